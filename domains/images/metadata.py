"""What a `metadata.csv` says of the pictures beside it: a class, real numbers, a caption for each.

The layout is the one of Hugging Face's image folders: a column `file_name`, relative to the table, and any
others.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ...shared.errors import Fault, InputError
from ...shared.files import replace_atomically

NAME = "metadata.csv"
FILE, CAPTION = "file_name", "caption"
CLASS_COLUMNS = ("label", "class", "category")
CAPTION_COLUMNS = (CAPTION, "text", "prompt")


@dataclass(frozen=True, eq=False)
class Described:
    """What is known of n pictures besides their pixels.

    Args:
        labels: (n,) int64 positions in `class_names`, -1 where unknown.
        class_names: the classes, sorted.
        covariates: (n, K) float64, NaN where unknown.
        covariate_names: K names.
        captions: n texts, None where there is none; empty when no picture has one.
        faults: warnings.
    """

    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    covariates: np.ndarray | None = None
    covariate_names: tuple[str, ...] = ()
    captions: tuple[str | None, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Metadata:
    """A `metadata.csv`: cells as text, by column; `lines` says in which row of the file each stands."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    @property
    def files(self) -> list[str]:
        return self.columns[FILE]


def read_metadata(path: Path) -> Metadata:
    """Read the table; every row must have a cell for each column, and name another file.

    Raises:
        InputError: `metadata-...`, with the row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "metadata-encoding", "the text is not UTF-8", str(path), "save it as UTF-8"
        ) from error
    head = text.split("\n", 1)[0]
    delimiter = next((d for d in ",;\t" if FILE in next(csv.reader([head], delimiter=d), [])), None)
    if delimiter is None:
        raise InputError(
            "metadata-no-file-name",
            f"no column is called {FILE}",
            f"{path}, row 1",
            f"name the column of the files {FILE}",
        )
    reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(
            "metadata-damaged", str(error), f"{path}, row {reader.line_num}", "mend the quotes of this row"
        ) from error
    header = [name.strip() for name in rows[0][1]]
    if len(set(header)) < len(header):
        raise InputError(
            "metadata-columns", "two columns have one name", f"{path}, row 1", "rename one of them"
        )
    for line, row in rows[1:]:
        if len(row) != len(header):
            what = f"{len(row)} cells where the header has {len(header)}"
            raise InputError("metadata-row-length", what, f"{path}, row {line}", "mend the row")
    cells = [[row[k].strip() for _, row in rows[1:]] for k in range(len(header))]
    made = Metadata(path, dict(zip(header, cells, strict=True)), [line for line, _ in rows[1:]])
    _require_files(made)
    return made


def write_metadata(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write such a table: `file_name`, and those of `label` and `caption` that some row has."""
    columns = [FILE, *(name for name in ("label", CAPTION) if any(row[name] for row in rows))]
    with replace_atomically(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row[name] for name in columns] for row in rows)


def _require_files(metadata: Metadata) -> None:
    """Each row names a file inside the folder, and no two the same."""
    seen: dict[str, int] = {}
    for k, line in enumerate(metadata.lines):
        name = metadata.files[k].replace("\\", "/").removeprefix("./")
        where = f"{metadata.path}, row {line}"
        if not name:
            raise InputError("metadata-no-file", f"{FILE} is empty", where, "name the file or remove the row")
        if name.startswith("/") or ":" in name or ".." in name.split("/"):
            raise InputError(
                "metadata-outside",
                "the file lies outside of the folder",
                where,
                "name files relative to the table",
            )
        if name in seen:
            what = f"the same file as in row {seen[name]}"
            raise InputError("metadata-repeated", what, where, "keep one of the rows")
        seen[name] = line
        metadata.files[k] = name


def describe(metadata: Metadata, names: Sequence[str], column: str | None = None) -> Described:
    """What the table says of the pictures `names`, in their order.

    A class comes from `column`, or from a column called label, class or category; a caption from one called
    caption, text or prompt; every column of numbers is a covariate. Other columns are told and left out.

    Raises:
        InputError: `metadata-no-match`, when no row names a picture; `metadata-no-column`.
    """
    row_of = {name: k for k, name in enumerate(metadata.files)}
    rows = [row_of.get(name) for name in names]
    if not any(row is not None for row in rows):
        what = f"none of its {len(metadata.files)} rows names a picture of the folder"
        raise InputError(
            "metadata-no-match", what, str(metadata.path), f"let {FILE} be relative to the table"
        )

    def cells(name: str) -> list[str]:
        return ["" if row is None else metadata.columns[name][row] for row in rows]

    label = _class_column(metadata, column)
    caption = next((c for c in CAPTION_COLUMNS if c in metadata.columns and c != label), None)
    rest = [c for c in metadata.columns if c not in (FILE, label, caption)]
    numbers = {c: column_ for c in rest if (column_ := _numbers(cells(c))) is not None}
    labels, class_names = coded(cells(label)) if label else (np.full(len(names), -1), ())
    return Described(
        labels,
        class_names,
        np.stack(list(numbers.values()), 1) if numbers else None,
        tuple(numbers),
        tuple(text or None for text in cells(caption)) if caption else (),
        (*_unmatched(metadata, names, rows), *_left_out(metadata, [c for c in rest if c not in numbers])),
    )


def _class_column(metadata: Metadata, column: str | None) -> str | None:
    if column is None:
        return next((c for c in CLASS_COLUMNS if c in metadata.columns), None)
    if column not in metadata.columns or column == FILE:
        others = [c for c in metadata.columns if c != FILE]
        close = get_close_matches(column, others, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(others)}"
        raise InputError("metadata-no-column", f"there is no column {column!r}", str(metadata.path), hint)
    return column


def coded(cells: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(positions in the sorted classes, -1 where empty; the classes). Whole numbers sort as numbers."""
    found = sorted({cell for cell in cells if cell})
    if all(name.lstrip("-").isdecimal() for name in found):
        found.sort(key=lambda name: (int(name), name))
    place = {name: k for k, name in enumerate(found)}
    return np.array([place.get(cell, -1) for cell in cells], np.int64), tuple(found)


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    """The column as float64 with NaN where empty; None when a cell is no finite number or all are empty."""
    try:
        values = np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return None
    filled = np.array([bool(cell) for cell in cells])
    return values if filled.any() and np.isfinite(values[filled]).all() else None


def _unmatched(metadata: Metadata, names: Sequence[str], rows: Sequence[int | None]) -> list[Fault]:
    """Rows without a file, and files without a row."""
    there = set(names)
    lines = [line for name, line in zip(metadata.files, metadata.lines, strict=True) if name not in there]
    bare = [name for name, row in zip(names, rows, strict=True) if row is None]
    faults = []
    if lines:
        what = f"{len(lines)} rows name no picture of the folder"
        where = f"{metadata.path}, row{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:5]))}"
        faults.append(
            Fault("metadata-row-without-file", what, where, "add the files or remove the rows", "warning")
        )
    if bare:
        what = f"{len(bare)} pictures have no row, the first is {bare[0]}"
        faults.append(
            Fault("metadata-file-without-row", what, str(metadata.path), "add a row for each", "warning")
        )
    return faults


def _left_out(metadata: Metadata, columns: Sequence[str]) -> list[Fault]:
    return [
        Fault(
            "metadata-column-unused",
            "neither a number, nor the class, nor a caption; it is left out",
            f"{metadata.path}, column {name!r}",
            "make it a number, or name it as the class",
            "warning",
        )
        for name in columns
    ]

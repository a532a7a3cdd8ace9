"""Covariates from a table beside the images: the first column is the subject, the others facts of them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ...shared.errors import InputError
from .names import key_of

Value = float | str | None
MISSING = frozenset(["", "n/a", "na", "nan", "none", "null", "missing", "?"])
"""Cells that stand for nothing known, in lower case (BIDS writes n/a)."""
_PERSON = re.compile(
    r"(^|_)(id|ids|uid|guid|mrn|name|names|firstname|lastname|surname|birth\w*|dob|address|phone|e?mail|"
    r"comments?|notes?|filename|file|path|date)($|_)",
    re.IGNORECASE,
)
_TEXT_LEVELS = 20  # a text column with more, nearly all different, is free text


def tables_in(folder: Path) -> list[Path]:
    """Tables that may hold covariates, `participants.tsv` first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in (".tsv", ".csv") and p.name[0] != "."]
    return sorted(found, key=lambda p: (p.name.lower() != "participants.tsv", p.name))


def read_covariates(
    path: Path, subjects: Collection[str]
) -> tuple[dict[str, dict[str, Value]], tuple[str, ...]]:
    """What a table says of the subjects.

    Args:
        path: TSV or CSV with a header; the first column holds the subjects' names, with or without `sub-`.
        subjects: as the files name them.

    Returns:
        For each subject that has a row, its covariates: a column of numbers as floats, others as text, None
        where missing or not to be read. And sentences on what was left out.

    Raises:
        InputError: the table cannot be read, a row has another number of cells, or a subject has two rows.
    """
    header, rows = _rows(path)
    by_key: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        key = row[0].strip().removeprefix("sub-")
        session = _session(header, row)
        key = f"{key}_{session}" if session else key
        if key in by_key:
            raise InputError(
                "covariates-twice", "the subject of this row has another one", f"{path}, row {number}",
                "keep one row for each subject",
            )  # fmt: skip
        by_key[key] = row
    found = {name: own for name in subjects if (own := _row_of(name, by_key))}
    notes, columns = [], {}
    for place, title in enumerate(header[1:], 1):
        cells = [row[place].strip() for row in found.values()]
        kept, note = _column(title, cells)
        if note:
            notes.append(f"{path.name}, column {title!r}: {note}")
        if kept is not None:
            columns[title] = kept
    values = {name: {title: cells[i] for title, cells in columns.items()} for i, name in enumerate(found)}
    return values, tuple(notes)


def _row_of(name: str, by_key: Mapping[str, list[str]]) -> list[str] | None:
    whole = name.removeprefix("sub-")
    return by_key.get(whole) or by_key.get(key_of(name))


def _session(header: Sequence[str], row: Sequence[str]) -> str:
    """The session of a row, as files name it; "" when the table has none."""
    for title, cell in zip(header, row, strict=True):
        if title.lower() in ("session_id", "session", "ses") and cell.strip():
            return "ses-" + cell.strip().removeprefix("ses-")
    return ""


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = "the table of covariates cannot be read as UTF-8 text"
        raise InputError("covariates-unreadable", what, where, "save it as UTF-8") from error
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ";" if first.count(";") > first.count(",") else ","
    lines = list(csv.reader(text.splitlines(), delimiter=delimiter))
    rows = [line for line in lines if line]
    if len(rows) < 2:
        raise InputError("covariates-empty", "the table of covariates has no rows", where)
    header = [title.strip() for title in rows[0]]
    wrong = [number for number, row in enumerate(rows[1:], 1) if len(row) != len(header)]
    if wrong:
        listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        what = f"{len(wrong)} rows do not have {len(header)} cells"
        raise InputError("row-length", what, f"{where}, rows {listed}", "mend the rows")
    if len(set(header)) < len(header):
        raise InputError("column-twice", "two columns have the same name", where, "rename one")
    return header, rows[1:]


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _column(title: str, cells: Sequence[str]) -> tuple[list[Value] | None, str]:
    """A column's values, or None when it is not to be used; and what to say about it."""
    if _PERSON.search(re.sub(r"[^A-Za-z]+", "_", re.sub(r"([a-z])([A-Z])", r"\1_\2", title))):
        return None, "left out, as it may tell who a person is"
    known = [cell for cell in cells if cell.lower() not in MISSING]
    if not known:
        return [None] * len(cells), "nothing is known of these subjects"
    numbers = [_number(cell) for cell in known]
    read = sum(number is not None for number in numbers)
    if 2 * read > len(known):
        values: list[Value] = [None if c.lower() in MISSING else _number(c) for c in cells]
        return values, f"{len(known) - read} cells are not numbers and count as missing" if read < len(
            known
        ) else ""
    levels = len(set(known))
    if levels > _TEXT_LEVELS and levels > len(known) / 2:
        return None, "left out, as it is free text"
    return [None if cell.lower() in MISSING else cell for cell in cells], ""

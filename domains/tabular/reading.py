"""Reading tables as they are: CSV, TSV, blanks, Parquet and Excel, whole or in pieces of bounded memory.

Cells of text tables stay text, so that what was observed can be written back byte for byte; empty cells
are missing. Rows are known by their position in the file (from 0), which is the index of every frame;
messages count rows from 1, the header not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from ...shared.errors import InputError
from .columns import ROW
from .dialects import Dialect, refuse_duplicate_names, sniff
from .pieces import arrow_dtype, parquet_file, parquet_frames, sheet_rows, text_frame, text_rows, workbook

Format = Literal["csv", "tsv", "parquet", "excel"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".txt": "csv",
    ".data": "csv",
    ".dat": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
}
CHUNK_ROWS = 50_000


@dataclass(frozen=True)
class TableSource:
    """A table in a file, read in pieces.

    Args:
        path: the file.
        format: how it is stored.
        columns: names of the columns.
        notes: sentences on what was assumed, for the manifest.
        dialect: how a text table is written.
        sheet: the sheet of an Excel file.
    """

    path: Path
    format: Format
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    dialect: Dialect | None = None
    sheet: str | None = None

    @cached_property
    def n_rows(self) -> int:
        """Number of rows, counted without holding the table; every row's length is checked on the way."""
        if self.format == "parquet":
            return int(parquet_file(self.path).metadata.num_rows)
        if self.dialect is not None:
            return sum(len(rows) for rows in text_rows(self.path, self.dialect, 100_000))
        return sum(len(rows) for rows in self._excel_rows(100_000))

    @property
    def decimal(self) -> str | None:
        """The decimal sign of text tables, where it is known: an argument of `TableCodec`."""
        return self.dialect.decimal if self.dialect else None

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of a Parquet file, with its metadata."""
        return parquet_file(self.path).schema_arrow

    def chunks(
        self, rows: int = CHUNK_ROWS, start: int = 0, stop: int | None = None
    ) -> Iterator[pd.DataFrame]:
        """Frames of at most `rows` rows, from row `start` up to but not including `stop`.

        The index is the position in the file, whatever the chunks.
        """
        at = start
        for frame in self._frames(rows, start):
            if stop is not None and at + len(frame) > stop:
                frame = frame.iloc[: stop - at]
            frame.index = pd.RangeIndex(at, at + len(frame), name=ROW)
            at += len(frame)
            if len(frame):
                yield frame
            if stop is not None and at >= stop:
                return

    def read(self) -> pd.DataFrame:
        """The whole table."""
        return join(list(self.chunks(1 << 62)) or [self.head(0)])

    def head(self, rows: int) -> pd.DataFrame:
        """The first rows; with 0, a frame of columns alone."""
        first = next(self.chunks(max(rows, 1)), None)
        if first is None:
            empty: dict[str, Any] = {name: pd.Series([], dtype="str") for name in self.columns}
            first = (
                self.schema.empty_table().to_pandas(types_mapper=arrow_dtype, ignore_metadata=True)
                if self.format == "parquet"
                else pd.DataFrame(empty, columns=list(self.columns))
            )
        return first.iloc[:rows]

    def sample(self, n: int, seed: int = 0) -> pd.DataFrame:
        """`n` rows in file order, each row with the same chance; the same rows whatever the chunks.

        Row i belongs to the sample when its key, a hash of (seed, i), is among the n smallest.
        """
        if n >= self.n_rows:
            return self.read()
        chosen = keyed_choice(self.n_rows, n, seed)
        pieces = []
        for frame in self.chunks():
            first = int(frame.index[0])
            a, b = np.searchsorted(chosen, [first, first + len(frame)])
            if b > a:
                pieces.append(frame.iloc[chosen[a:b] - first])
        return join(pieces or [self.head(0)])

    def _frames(self, rows: int, start: int) -> Iterator[pd.DataFrame]:
        if self.format == "parquet":
            yield from parquet_frames(self.path, rows, start)
        elif self.dialect is not None:
            for found in text_rows(self.path, self.dialect, rows, start):
                yield text_frame(found, self.columns)
        else:
            for block in self._excel_rows(rows, start):
                cells = list(zip(*block, strict=True))
                data = {k: pd.Series(c, dtype=object) for k, c in enumerate(cells)}
                yield pd.DataFrame(data).set_axis(list(self.columns), axis=1)

    def _excel_rows(self, rows: int, start: int = 0) -> Iterator[list[tuple[Any, ...]]]:
        found = sheet_rows(
            self.path, self.sheet, len(self.columns), bool(self.notes and NO_HEADER in self.notes)
        )
        found = islice(found, start, None)
        while block := list(islice(found, rows if rows < 1 << 31 else None)):
            yield block


NO_HEADER = "the table has no header; columns were called column_1, column_2, ..."


def open_table(
    path: str | Path,
    *,
    format: Format | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    decimal: str | None = None,
    sheet: str | None = None,
) -> TableSource:
    """Look at a table without reading it: its format, its columns, how it is written.

    Args:
        path: a CSV, TSV, Parquet or Excel file.
        format: overrides what suffix and content say.
        delimiter, encoding, decimal: of text tables; seen in the file when not given. "blanks" delimit too.
        header: whether the first row names the columns; None means yes, unless it looks like data (refused).
        sheet: of an Excel file; the first when not given.

    Raises:
        InputError: the file does not exist, is not a table, or how it is written cannot be told.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a table" if path.is_dir() else "there is no such file"
        raise InputError("no-table", what, str(path))
    format = format or format_of(path)
    if format == "parquet":
        names = [str(n) for n in parquet_file(path).schema_arrow.names]
        refuse_duplicate_names(names, str(path))
        return TableSource(path, format, tuple(names))
    if format == "excel":
        return _open_excel(path, sheet, header)
    if path.suffix.lower() in (".tsv", ".tab") and delimiter is None and format == "tsv":
        delimiter = "\t"
    dialect, notes = sniff(path, delimiter=delimiter, encoding=encoding, header=header, decimal=decimal)
    if dialect.header is None:
        notes += (NO_HEADER,)
    return TableSource(path, "tsv" if dialect.delimiter == "\t" else "csv", dialect.columns, notes, dialect)


def format_of(path: Path) -> Format:
    """The format by content (Parquet, Excel) and suffix; InputError for what is not a table."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return "parquet"
    suffix = path.suffix.lower()
    if magic == b"PK\3\4":
        if suffix in (".xlsx", ".xlsm"):
            return "excel"
        raise InputError("not-a-table", "a zip archive is not a table", str(path), "unpack it first")
    if magic == b"\xd0\xcf\x11\xe0" or suffix == ".xls":
        raise InputError(
            "old-excel", "Excel files from before 2007 (.xls) are not read", str(path), "save it as .xlsx"
        )
    found = SUFFIXES.get(suffix)
    if found in ("parquet", "excel"):
        raise InputError(
            "not-a-table", f"the content is not {found}, though the name ends in {suffix}", str(path)
        )
    if found is None:
        raise InputError(
            "not-a-table",
            f"files ending in {suffix or 'nothing'} are not known as tables",
            str(path),
            f"use one of {', '.join(SUFFIXES)}",
        )
    if magic[:2] == b"\x1f\x8b":
        raise InputError("not-a-table", "the file is compressed", str(path), "unpack it first (gunzip)")
    return found


def keyed_choice(total: int, n: int, seed: int) -> np.ndarray:
    """(n,) sorted positions below `total`, those with the smallest hash of (seed, position)."""
    best = np.empty(0, dtype=np.uint64)
    at = np.empty(0, dtype=np.int64)
    salt = np.frombuffer(hashlib.sha256(f"rows {seed}".encode()).digest()[:8], dtype=np.uint64)[0]
    for first in range(0, total, 1 << 20):
        rows = np.arange(first, min(first + (1 << 20), total), dtype=np.int64)
        keys = _mix(rows.astype(np.uint64) ^ salt)
        best, at = np.concatenate([best, keys]), np.concatenate([at, rows])
        if len(best) > n:
            keep = np.argpartition(best, n - 1)[:n] if n else np.empty(0, dtype=np.int64)
            best, at = best[keep], at[keep]
    return np.sort(at)


def _mix(x: np.ndarray) -> np.ndarray:
    """Splitmix64's finaliser: a bijection of 64-bit words whose outputs look random (Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def join(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other; categorical columns keep their dtype where their categories differ."""
    if len(frames) == 1:
        return frames[0]
    out = pd.concat(frames)
    for j in range(out.shape[1]):
        parts = [f.iloc[:, j] for f in frames]
        if (
            all(isinstance(p.dtype, pd.CategoricalDtype) for p in parts)
            and out.dtypes.iloc[j] != parts[0].dtype
        ):
            every = pd.Index(dict.fromkeys(c for p in parts for c in p.cat.categories))
            dtype = pd.CategoricalDtype(every, ordered=bool(parts[0].dtype.ordered))  # type: ignore[union-attr]
            whole: Any = pd.concat([p.astype(dtype) for p in parts])
            out.isetitem(j, whole)
    return out


def _open_excel(path: Path, sheet: str | None, header: bool | None) -> TableSource:
    book = workbook(path)
    if sheet is not None and sheet not in book.sheetnames:
        raise InputError(
            "no-sheet", f"there is no sheet {sheet!r}", str(path), f"choose of {', '.join(book.sheetnames)}"
        )
    name = sheet or book.sheetnames[0]
    notes = (
        []
        if len(book.sheetnames) == 1 or sheet
        else [f"of {len(book.sheetnames)} sheets the first, {name!r}, was read"]
    )
    first = next((r for r in book[name].iter_rows(values_only=True) if any(c is not None for c in r)), None)
    book.close()
    if first is None:
        raise InputError("empty-file", "the sheet is empty", f"{path}, sheet {name!r}")
    width = max(k for k, cell in enumerate(first, 1) if cell is not None)
    numbers = [c for c in first[:width] if isinstance(c, int | float) and not isinstance(c, bool)]
    if (
        header is None
        and len(numbers) >= 0.5 * width
        and sorted(numbers) != [*range(int(min(numbers)), int(min(numbers)) + len(numbers))]
    ):
        raise InputError(
            "header-unclear",
            "the first row looks like data, not like a header",
            f"{path}, sheet {name!r}",
            "say whether there is a header (--header or --no-header; header=True or False)",
        )
    if header is False:
        notes.append(NO_HEADER)
        names = tuple(f"column_{k}" for k in range(1, width + 1))
    else:
        names = tuple(f"unnamed_{k}" if c is None else str(c) for k, c in enumerate(first[:width], 1))
        refuse_duplicate_names(names, str(path))
    return TableSource(path, "excel", names, tuple(notes), sheet=name)

"""Reading tables as they are: CSV, TSV, blanks, Parquet and Excel, whole or in pieces of bounded memory.

Cells of text tables stay text, so that what was observed can be written back byte for byte; empty cells
are missing. Rows are known by their position in the file (from 0), which is the index of every frame;
messages count rows from 1, the header not counted.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ...shared.errors import EbbtideError, InputError
from .columns import ROW
from .dialects import Dialect, refuse_duplicate_names, sniff

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
            return int(_parquet(self.path).metadata.num_rows)
        if self.dialect is not None:
            return sum(len(rows) for rows in _text_rows(self.path, self.dialect, 100_000))
        return sum(len(rows) for rows in self._excel_rows(100_000))

    @property
    def decimal(self) -> str | None:
        """The decimal sign of text tables, where it is known: an argument of `TableCodec`."""
        return self.dialect.decimal if self.dialect else None

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of a Parquet file, with its metadata."""
        return _parquet(self.path).schema_arrow

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
                self.schema.empty_table().to_pandas(types_mapper=_dtype, ignore_metadata=True)
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
            yield from _parquet_frames(self.path, rows, start)
        elif self.dialect is not None:
            for found in _text_rows(self.path, self.dialect, rows, start):
                yield text_frame(found, self.columns)
        else:
            for found in self._excel_rows(rows, start):
                cells = list(zip(*found, strict=True))
                data = {k: pd.Series(c, dtype=object) for k, c in enumerate(cells)}
                yield pd.DataFrame(data).set_axis(list(self.columns), axis=1)

    def _excel_rows(self, rows: int, start: int = 0) -> Iterator[list[tuple[Any, ...]]]:
        found = _excel_body(
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
        delimiter, encoding, decimal: of text tables; seen in the file when not given. `delimiter` may be "blanks".
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
        names = [str(n) for n in _parquet(path).schema_arrow.names]
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
    """(n,) sorted positions below `total`, those with the smallest hash of (seed, position); 8 MB at most in hand."""
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
    return x ^ (x >> np.uint64(31))


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
            out.isetitem(j, pd.concat([p.astype(dtype) for p in parts]))
    return out


# ---------------------------------------------------------------------------------------------------- text


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Lines with their own ends; NUL bytes and wrong bytes are named by line."""
    number = 0
    with path.open("r", encoding=encoding, newline="") as file:
        try:
            for line in file:
                number += 1
                if "\0" in line:
                    raise InputError(
                        "nul-byte",
                        "the line holds a NUL byte",
                        f"{path}, line {number}",
                        "the file is damaged: write it again from its source",
                    )
                yield line
        except UnicodeDecodeError as error:
            raise InputError(
                "encoding-wrong",
                f"bytes that are not {encoding}",
                f"{path}, after line {number}",
                "name the encoding of the file (--encoding)",
            ) from error


def _text_rows(path: Path, dialect: Dialect, rows: int, start: int = 0) -> Iterator[list[list[str]]]:
    """Blocks of rows from row `start` on, each row of the right length."""
    lines = _lines(path, dialect.encoding)
    reader: Any = (
        (line.split() for line in lines)
        if dialect.blanks
        else csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    )
    before = 0
    size = min(rows, CHUNK_ROWS * 20)
    try:
        if dialect.header is not None:
            next((r for r in reader if r), None)
        while block := list(islice(reader, min(size, start - before) if before < start else size)):
            ended = _check_lengths(block, dialect.width, before, path, reader)
            if before >= start and block:
                yield block
            before += len(block)
            if ended:
                return
    except csv.Error as error:
        line = getattr(reader, "line_num", 0)
        raise InputError(
            "csv-quotes",
            f"the cell cannot be read ({error})",
            f"{path}, line {line}",
            "a quote is opened and not closed, or stands inside a quoted cell without being doubled",
        ) from error


def _check_lengths(
    block: list[list[str]], width: int, before: int, path: Path, rest: Iterator[list[str]]
) -> bool:
    """Refuse rows of the wrong length. Empty lines may only end the file; True when they do (they are removed)."""
    if set(map(len, block)) == {width}:
        return False
    for k, row in enumerate(block):
        if len(row) == width:
            continue
        if not row and width == 1:
            row.append("")
            continue
        if not row and not any(chain(block[k:], rest)):
            del block[k:]
            return True
        what = f"{len(row)} cells where {width} are expected" if row else "an empty line between rows"
        raise InputError(
            "row-length",
            what,
            f"{path}, row {before + k + 1}",
            "a cell is missing or one too many (a delimiter inside a cell needs quotes): mend the row",
        )
    return False


def text_dtype() -> Any:
    """Text held by Arrow, with NaN for missing where pandas has that (from 3.0)."""
    return "str" if int(pd.__version__.split(".")[0]) >= 3 else pd.StringDtype("pyarrow")


def text_frame(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> pd.DataFrame:
    """A frame of text cells; empty cells are missing."""
    made: dict[int, Any] = {}
    for k, cells in enumerate(zip(*rows, strict=True)):
        array = pa.array(cells, pa.large_string())
        made[k] = pd.Series(pd.array(pc.if_else(pc.equal(array, ""), None, array), dtype=text_dtype()))
    return pd.DataFrame(made).set_axis(list(columns), axis=1)


# ------------------------------------------------------------------------------------------------- Parquet


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(
            "parquet-damaged",
            "the file cannot be read as Parquet",
            str(path),
            "copy it again from its source",
        ) from error


def _dtype(kind: pa.DataType) -> Any:
    """Arrow's own types in pandas, so that nothing is converted on the way in and out."""
    return None if pa.types.is_dictionary(kind) else pd.ArrowDtype(kind)


def _parquet_frames(path: Path, rows: int, start: int) -> Iterator[pd.DataFrame]:
    file = _parquet(path)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    ends = np.cumsum([0, *sizes])
    group = int(np.searchsorted(ends, start, side="right")) - 1
    skip = start - int(ends[min(group, len(sizes))])
    if group >= len(sizes):
        return
    convert: Callable[..., pd.DataFrame] = partial(
        pa.Table.to_pandas, types_mapper=_dtype, ignore_metadata=True
    )
    size = min(rows, 1 << 20)
    try:
        for batch in file.iter_batches(batch_size=size, row_groups=range(group, len(sizes))):
            drop = min(skip, batch.num_rows)
            skip -= drop
            if drop < batch.num_rows:
                yield convert(pa.Table.from_batches([batch.slice(drop)]))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            "parquet-damaged", "a row group cannot be read", str(path), "copy it again from its source"
        ) from error


# --------------------------------------------------------------------------------------------------- Excel


def _workbook(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise EbbtideError(
            "excel-missing", "Excel files need openpyxl", str(path), 'pip install "ebbtide[excel]"'
        ) from error
    import zipfile

    try:
        # in memory: openpyxl keeps a handle of the path open in read-only mode
        return openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputError(
            "excel-damaged", "the file cannot be read as Excel", str(path), "save it again"
        ) from error


def _open_excel(path: Path, sheet: str | None, header: bool | None) -> TableSource:
    book = _workbook(path)
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


def _excel_body(path: Path, sheet: str | None, width: int, no_header: bool) -> Iterator[tuple[Any, ...]]:
    """Rows of the sheet below its header; empty rows at the end are left out."""
    book = _workbook(path)
    rows = (r for r in book[sheet].iter_rows(values_only=True))
    rows = iter(r for r in chain.from_iterable(_after_blank(rows)))
    if not no_header:
        next(rows, None)
    empty = 0
    for number, row in enumerate(rows, 1):
        cells = row[:width] + (None,) * (width - len(row))
        if any(c is not None for c in row[width:]):
            raise InputError(
                "row-length",
                f"a cell beyond the {width} columns of the header",
                f"{path}, row {number}",
                "give the column a name or empty the cell",
            )
        if all(c is None for c in cells):
            empty += 1
            continue
        for _ in range(empty):
            yield (None,) * width
        empty = 0
        yield cells
    book.close()


def _after_blank(rows: Iterator[tuple[Any, ...]]) -> Iterator[Iterator[tuple[Any, ...]]]:
    """The rows from the first that is not empty."""
    for row in rows:
        if any(c is not None for c in row):
            yield iter([row])
            yield rows

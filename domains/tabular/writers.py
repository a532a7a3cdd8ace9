"""What appends a table to a text, Parquet or Excel file, piece by piece."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from ...shared.errors import EbbtideError, InputError
from .columns import Column, missing, storage_of
from .dialects import Dialect
from .encoding import parse
from .reading import NO_HEADER, TableSource

if TYPE_CHECKING:
    from .cells import Series
FORMULA = re.compile(r"[=@\t\r].|[+-](?![\d.,]*(?:[eE][+-]?\d+)?$)", re.DOTALL)
"""Text that a spreadsheet runs; plain numbers and single characters are not."""
GROUP_ROWS = 1 << 16
EXCEL_ROWS = 1_048_576


class Writer(Protocol):
    """Takes a table piece by piece. `neutralised` counts the filled cells that got an apostrophe."""

    neutralised: int

    def write(self, frame: pd.DataFrame, filled: np.ndarray | None = None) -> None:
        """Append rows. `filled` (n, n_columns) bool says which cells are not observed."""

    def close(self) -> None:
        """Write what is still in hand."""


def typed(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """`frame` with numbers, dates, durations and booleans held as text turned into values."""
    out = frame.copy()
    known = {c.label: c for c in columns}
    for j, label in enumerate(frame.columns):
        column = known.get(label)
        series = frame.iloc[:, j]
        held, _ = storage_of(series)
        if column is None or held != "text" or column.storage != "text" or not column.modelled:
            continue
        if column.is_number:
            values, _ = parse(series, missing(series), column)  # encode has refused all but missing codes
            made: Any = pd.Series(_native(values, column), index=frame.index)
            out.isetitem(j, made)
        elif column.kind == "boolean":
            truth = {level: bool(k) for k, level in enumerate(column.levels)}
            if len(truth) == 2:
                made = pd.Series(series.map(truth).astype("boolean"), index=frame.index)
                out.isetitem(j, made)
    return out


def _native(values: np.ndarray, column: Column) -> Any:
    gone = np.isnan(values)
    if column.kind == "integer":
        return pd.arrays.IntegerArray(np.where(gone, 0, values).astype(np.int64), gone)
    if column.kind == "number":
        return values
    ticks = np.where(gone, 0, np.round(values * 1e6)).astype(np.int64)
    name = "datetime64[us]" if column.kind == "datetime" else "timedelta64[us]"
    made = ticks.astype(name)
    made[gone] = "NaT"
    return made


class TextWriter:
    """CSV, TSV and tables separated by blanks, in the dialect they were read in."""

    def __init__(self, path: Path, dialect: Dialect | None, columns: Sequence[Column] = ()) -> None:
        self.neutralised = 0
        self._path, self._dialect = path, dialect
        self._labels: Collection[Any] | None = (
            {c.label for c in columns if c.is_category} if columns else None
        )
        self._file = path.open("w", encoding=dialect.encoding if dialect else "utf-8", newline="")
        self._begun = False

    def write(self, frame: pd.DataFrame, filled: np.ndarray | None = None) -> None:
        """Append rows; text that we filled and that a spreadsheet would run gets an apostrophe."""
        dialect = self._ready(frame)
        parts = []
        for j, label in enumerate(frame.columns):
            texts = cell_texts(frame.iloc[:, j])
            if filled is not None and (self._labels is None or label in self._labels):
                texts = self._neutralise(texts, filled[:, j])
            every = dialect.quoted[j] if j < len(dialect.quoted) else False
            parts.append(quoted(texts, dialect, every))
        if len(frame):
            self._lines([dialect.delimiter.join(row) for row in zip(*parts, strict=True)])

    def close(self) -> None:
        """End the last line as the source does."""
        if self._begun and (self._dialect is None or self._dialect.last_newline):
            self._put(self._dialect.newline if self._dialect else "\n")
        self._begun = False
        self._file.close()

    def _ready(self, frame: pd.DataFrame) -> Dialect:
        if self._dialect is None or self._dialect.header == ():
            names = tuple(str(label) for label in frame.columns)
            self._dialect = replace(self._dialect or Dialect(), header=names, width=len(names))
        if not self._begun and not self._file.tell() and self._dialect.header is not None:
            cells = quoted(list(self._dialect.header), self._dialect, self._dialect.header_quoted)
            self._lines([self._dialect.delimiter.join(cells)])
        return self._dialect

    def _neutralise(self, texts: list[str], filled: np.ndarray) -> list[str]:
        for i in np.flatnonzero(filled):
            if FORMULA.match(texts[i]):
                texts[i] = "'" + texts[i]
                self.neutralised += 1
        return texts

    def _lines(self, lines: list[str]) -> None:
        newline = self._dialect.newline if self._dialect else "\n"
        self._put((newline if self._begun else "") + newline.join(lines))
        self._begun = True

    def _put(self, text: str) -> None:
        try:
            self._file.write(text)
        except UnicodeEncodeError as error:
            raise InputError(
                "encoding-lacks",
                f"text that {error.encoding} cannot hold",
                str(self._path),
                "write the table as UTF-8 or Parquet",
            ) from error


def cell_texts(series: Series) -> list[str]:
    """The cells as text; missing ones are empty, numbers are as short as they can be read back."""
    gone = series.isna().to_numpy(dtype=bool)
    values = series.astype(object).tolist()
    texts = values if _all_text(values) else [str(v) for v in values]
    return ["" if g else t for g, t in zip(gone, texts, strict=True)] if gone.any() else list(texts)


def _all_text(values: list[Any]) -> bool:
    return all(type(v) is str for v in values)


def quoted(texts: list[str], dialect: Dialect, every: bool) -> list[str]:
    """Cells with quotes where they are needed: around delimiters, line ends and quotes, or around all."""
    if dialect.blanks:
        if any(not t or t.split() != [t] for t in texts):
            raise InputError(
                "blank-cell",
                "a table separated by blanks cannot hold empty cells or blanks",
                "",
                "write it to a .tsv or .parquet file",
            )
        return texts
    if every:
        return ['"' + t.replace('"', '""') + '"' if t else t for t in texts]
    special = (dialect.delimiter, "\n", "\r", '"')
    joined = "".join(texts)
    if any(s in joined for s in special):
        first = '"' if dialect.bare_quotes else ""

        def needs(text: str) -> bool:
            marked = text.startswith(first) if first else '"' in text
            return marked or any(s in text for s in special[:3])

        texts = ['"' + t.replace('"', '""') + '"' if needs(t) else t for t in texts]
    return [t or '""' for t in texts] if dialect.width == 1 else texts


class ParquetWriter:
    """Parquet in row groups of equal size, whatever the pieces it is given."""

    def __init__(
        self,
        path: Path,
        schema: pa.Schema | None,
        columns: Sequence[Column],
        metadata: Mapping[str, str],
        compression: str = "snappy",
    ) -> None:
        self.neutralised = 0
        self._path, self._schema, self._columns, self._compression = path, schema, columns, compression
        self._metadata = {k.encode(): v.encode() for k, v in metadata.items()}
        self._retype = schema is None
        self._file: Any = None
        self._waiting: list[Any] = []

    def write(self, frame: pd.DataFrame, filled: np.ndarray | None = None) -> None:
        """Append rows."""
        import pyarrow.parquet as pq

        if self._retype:
            frame = typed(frame, self._columns)
        if self._file is None:
            schema = self._schema
            if schema is None:
                named = frame.rename(columns=str)
                schema = self._schema = pa.Schema.from_pandas(named, preserve_index=False)
            full = schema.with_metadata({**(schema.metadata or {}), **self._metadata})
            self._file = pq.ParquetWriter(self._path, full, compression=self._compression)
        table = pa.Table.from_pandas(frame.rename(columns=str), schema=self._schema, preserve_index=False)
        self._waiting.append(table.replace_schema_metadata(self._file.schema.metadata))
        self._flush(GROUP_ROWS)

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._file is not None:
            self._flush(1)
            self._file.close()
        self._file, self._waiting = None, []

    def _flush(self, least: int) -> None:
        rows = sum(len(t) for t in self._waiting)
        if rows < least:
            return
        table = pa.concat_tables(self._waiting)
        at = 0
        while rows - at >= least:
            step = min(GROUP_ROWS, rows - at)
            self._file.write_table(table.slice(at, step), row_group_size=GROUP_ROWS)
            at += step
        self._waiting = [table.slice(at)] if at < rows else []


class ExcelWriter:
    """One sheet; text is typed as text, so that "=..." is never run."""

    def __init__(self, path: Path, columns: Sequence[Column], source: TableSource | None) -> None:
        try:
            import openpyxl
            from openpyxl.cell import WriteOnlyCell
        except ImportError as error:
            raise EbbtideError(
                "excel-missing", "Excel files need openpyxl", str(path), 'pip install "ebbtide[excel]"'
            ) from error
        self.neutralised = 0
        self._path, self._columns = path, columns
        self._text = source is not None and source.dialect is not None
        bare = source is not None and source.format == "excel" and NO_HEADER in source.notes
        self._header = not bare
        self._book = openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet(source.sheet if source and source.sheet else "Sheet1")
        self._cell: Callable[..., Any] = WriteOnlyCell
        self._rows = 0

    def write(self, frame: pd.DataFrame, filled: np.ndarray | None = None) -> None:
        """Append rows."""
        if self._text:
            frame = typed(frame, self._columns)
        if not self._rows and self._header:
            self._append([str(label) for label in frame.columns])
        columns = [_excel_values(frame.iloc[:, j]) for j in range(frame.shape[1])]
        for row in zip(*columns, strict=True):
            self._append(row)

    def close(self) -> None:
        """Write the file."""
        self._book.save(self._path)

    def _append(self, row: Sequence[Any]) -> None:
        from openpyxl.utils.exceptions import IllegalCharacterError

        self._rows += 1
        if self._rows > EXCEL_ROWS:
            raise InputError(
                "excel-rows",
                f"Excel holds {EXCEL_ROWS:,} rows at most",
                str(self._path),
                "write the table to .parquet or .csv",
            )
        cells = []
        for value in row:
            if not isinstance(value, str):
                cells.append(value)
                continue
            try:
                cell = self._cell(self._sheet, value)
            except IllegalCharacterError as error:
                raise InputError(
                    "excel-characters",
                    "text with characters that Excel cannot hold",
                    f"{self._path}, row {self._rows}",
                    "write the table to .parquet or .csv",
                ) from error
            cell.data_type = "s"
            cells.append(cell)
        self._sheet.append(cells)


def _excel_values(series: Series) -> list[Any]:
    gone = series.isna().to_numpy(dtype=bool)
    return [None if g else _excel_value(v) for g, v in zip(gone, series.astype(object).tolist(), strict=True)]


def _excel_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, pd.Timestamp):
        value = value.to_pydatetime(warn=False)
    elif isinstance(value, pd.Timedelta):
        value = value.to_pytimedelta()
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return value.isoformat()
    plain = bool | int | float | str | dt.datetime | dt.date | dt.time | dt.timedelta
    return value if isinstance(value, plain) else str(value)

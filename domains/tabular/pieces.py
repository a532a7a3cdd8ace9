"""Rows of text tables, frames of Parquet files and rows of Excel sheets, piece by piece."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ...shared.errors import EbbtideError, InputError
from .dialects import Dialect

BLOCK_ROWS = 1 << 20
"""Rows in hand at most when a text or Parquet table is read whole."""


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


def text_rows(path: Path, dialect: Dialect, rows: int, start: int = 0) -> Iterator[list[list[str]]]:
    """Blocks of rows from row `start` on, each row of the right length."""
    lines = _lines(path, dialect.encoding)
    reader: Any = (
        (line.split() for line in lines)
        if dialect.blanks
        else csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    )
    before = 0
    size = min(rows, BLOCK_ROWS)
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
    """Refuse rows of the wrong length. Empty lines may only end the file; True when they do."""
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


def parquet_file(path: Path) -> Any:
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


def arrow_dtype(kind: pa.DataType) -> Any:
    """Arrow's own types in pandas, so that nothing is converted on the way in and out."""
    return None if pa.types.is_dictionary(kind) else pd.ArrowDtype(kind)


def parquet_frames(path: Path, rows: int, start: int) -> Iterator[pd.DataFrame]:
    file = parquet_file(path)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    ends = np.cumsum([0, *sizes])
    group = int(np.searchsorted(ends, start, side="right")) - 1
    skip = start - int(ends[min(group, len(sizes))])
    if group >= len(sizes):
        return
    convert: Callable[..., pd.DataFrame] = partial(
        pa.Table.to_pandas, types_mapper=arrow_dtype, ignore_metadata=True
    )
    size = min(rows, BLOCK_ROWS)
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


def workbook(path: Path) -> Any:
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


def sheet_rows(path: Path, sheet: str | None, width: int, no_header: bool) -> Iterator[tuple[Any, ...]]:
    """Rows of the sheet below its header; empty rows at the end are left out."""
    book = workbook(path)
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

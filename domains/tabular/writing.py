"""Writing tables as they were read: piece by piece, under *.partial until whole.

A CSV goes out with the delimiter, encoding, quotes and line ends it came with, so that its observed cells
are the same bytes; Parquet with its schema and metadata. What was filled is written beside it as a table of
0 and 1.

**Formulas.** Text that begins with `=`, `@`, tab, return, or with `+` or `-` and is no number, is run as a
formula by spreadsheets. Observed cells are never changed: they are the user's own, and promised back byte
for byte. Cells that *we* fill in a category column of a text table get an apostrophe before such text, and
are counted: a model made elsewhere could hold formulas among its categories. Parquet and Excel are
untouched, as their text is never run (Excel cells are typed as text).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from ...shared.files import refuse_existing, replace_atomically
from .columns import Column
from .dialects import Dialect
from .reading import SUFFIXES, TableSource
from .writers import ExcelWriter, ParquetWriter, TextWriter, Writer

if TYPE_CHECKING:
    pass


@contextmanager
def open_writer(
    path: str | Path,
    source: TableSource | None = None,
    *,
    columns: Sequence[Column] = (),
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    marks: bool = False,
) -> Iterator[Writer]:
    """A writer for `path`, whose file appears when the block ends without an error.

    Args:
        path: its suffix says the format.
        source: the table that the rows come from; the same format is written in the same way.
        columns: what the codec knows: text of numbers, dates and booleans becomes typed when a text table
            goes to Parquet or Excel, and only category columns are looked at for formulas.
        metadata: key-value pairs for Parquet.
        overwrite: replace a file that exists.
        marks: the rows are 0 and 1 (`marks_frame`), not the table itself.

    Raises:
        InputError: the file exists, the suffix is unknown, text that the encoding lacks.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise InputError(
            "unknown-format",
            f"tables are not written to files ending in {path.suffix or 'nothing'}",
            str(path),
            f"use one of {', '.join(SUFFIXES)}",
        )
    refuse_existing(path, overwrite)
    with replace_atomically(path) as part:
        writer: Writer
        if format == "parquet":
            schema = (
                source.schema if source is not None and source.format == "parquet" and not marks else None
            )
            codec = compression_of(source) if source is not None and source.format == "parquet" else "snappy"
            writer = ParquetWriter(part, schema, columns, metadata or {}, codec)
        elif format == "excel":
            writer = ExcelWriter(part, columns, source)
        else:
            writer = TextWriter(part, _dialect_for(format, source, marks), columns)
        try:
            yield writer
        except BaseException:
            writer.close()
            raise
        writer.close()


def _dialect_for(format: str, source: TableSource | None, marks: bool) -> Dialect | None:
    """The source's dialect for a text table; None when it must come from the first frame."""
    if source is None or source.dialect is None:
        return None if format == "csv" else Dialect("\t", header=())
    dialect = source.dialect
    if format == "tsv" and dialect.delimiter != "\t":
        dialect = replace(dialect, delimiter="\t", blanks=False)
    return replace(dialect, quoted=(False,) * dialect.width) if marks else dialect


def marks_frame(filled: np.ndarray, like: pd.DataFrame) -> pd.DataFrame:
    """The mask (n, n_columns) as a table of 0 and 1 with the columns and index of `like`."""
    return pd.DataFrame(filled.astype(np.uint8), index=like.index, columns=like.columns)


def compression_of(source: TableSource) -> str:
    """How the first column of a Parquet file is compressed."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(source.path).metadata
    if not metadata.num_row_groups or not metadata.num_columns:
        return "snappy"
    name: str = metadata.row_group(0).column(0).compression.lower()
    return {"uncompressed": "none", "lz4_raw": "lz4"}.get(name, name)

"""Cells to numbers and codes, a column at a time."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import cells, columns
from .columns import Column

if TYPE_CHECKING:
    from .cells import Series


def blank(series: Series) -> np.ndarray:
    """(n,) bool: cells that are missing or hold nothing but blanks."""
    values = series.astype(object).tolist()
    return np.fromiter((not isinstance(v, str) or not v or v.isspace() for v in values), bool, len(values))


def encode_numbers(series: Series, gone: np.ndarray, column: Column, first_row: int) -> np.ndarray:
    """(n,) float64 of one number, date or duration column."""
    held, _ = columns.storage_of(series)
    rows = series.index if series.index.name == columns.ROW else first_row
    if gone.all():
        return np.full(len(series), np.nan)
    if held == "text":
        values, bad = parse(series, gone, column)
    elif held == ("number" if column.kind in ("number", "integer") else column.kind):
        values, bad = columns.as_floats(series, gone, held), gone & False
    else:
        raise InputError(
            "wrong-dtype",
            f"cells of dtype {series.dtype} where {column.dtype} was seen at fit",
            f"column {column.name!r}",
        )
    if bad.any():
        raise InputError(
            f"text-in-{column.kind}-column",
            f"cells that cannot be read as {column.kind}",
            f"column {column.name!r}, {columns.rows_of(bad, rows)}",
            "correct the cells, or name the code that stands for missing",
        )
    columns.refuse_extremes(values, column.name, rows)
    return values


def parse(series: Series, gone: np.ndarray, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Values of text cells, and which cells are neither missing nor readable."""
    texts = series.astype(object).where(~gone, "")
    if column.kind == "datetime":
        values = cells.to_seconds(texts, column.form or "%Y-%m-%d", column.suffix)
    elif column.kind == "duration":
        values = np.array([cells.duration_seconds(t.strip()) for t in texts], dtype=np.float64)
    else:
        values = cells.to_numbers(texts, column.spelling.decimal if column.spelling else ".")
    bad = np.isnan(values) & ~gone
    bad[bad] = ~blank(texts[bad])
    return values, bad


def key(value: Any) -> tuple[str, Hashable]:
    """What makes two labels the same: True is not 1, but 1 is 1.0."""
    if isinstance(value, str):
        return "text", value
    if isinstance(value, bool | np.bool_):
        return "bool", bool(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float):
        return "number", value  # Python compares whole numbers with fractions exactly, and hashes them alike
    return type(value).__name__, value


def encode_labels(series: Series, gone: np.ndarray, column: Column) -> np.ndarray:
    """(n,) int32 codes of one category column; -1 where missing or never seen."""
    held, _ = columns.storage_of(series)
    array: Any = series.array
    out = np.full(len(series), -1, dtype=np.int32)
    code = {key(level): k for k, level in enumerate(column.levels)}
    other = len(column.levels) if column.pooled else -1
    if gone.all():
        return out
    if held == "category":
        table = np.array([code.get(key(v), other) for v in array.categories] or [other], dtype=np.int32)
        values = table[np.asarray(array.codes)]
    else:
        floats = held in ("number", "datetime", "duration")
        cells_ = (
            columns.as_floats(series, gone, held)[~gone]
            if floats
            else series[~gone].astype(object).to_numpy()
        )
        at, uniques = pd.factorize(cells_) if floats or held == "text" else (np.arange(len(cells_)), cells_)
        table = np.array([code.get(key(v), other) for v in uniques], dtype=np.int32)
        values = np.full(len(series), -1, dtype=np.int32)
        values[~gone] = table[at]
    out[~gone] = values[~gone]
    return out

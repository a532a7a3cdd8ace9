"""Numbers and codes to cells, in each column's own form: decimals, spelling, categories, dtype, range."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import cells, columns
from .columns import Column
from .encoding import key

if TYPE_CHECKING:
    from .cells import Series

Writer = Callable[[str, str], Any]
"""(storage, python type) -> the values to assign, (k,) array or list."""


def number_writer(column: Column, values: np.ndarray) -> Writer:
    values = shaped(column, values)

    def write(held: str, python: str) -> Any:
        if held == "text":
            return _spell_numbers(column, values)
        if column.kind in ("datetime", "duration"):
            return _spell_moments(column, values, python)
        if python == "Decimal":
            return [
                Decimal(f"{v:.{column.decimals}f}" if column.decimals is not None else repr(v))
                for v in values.tolist()
            ]
        if column.kind == "integer" and python != "float":
            return values.astype(np.int64)
        return values

    return write


def shaped(column: Column, values: np.ndarray) -> np.ndarray:
    """Values rounded to the column's decimals or step, within its observed range."""
    low, high = column.low, column.high
    assert low is not None and high is not None
    if column.kind in ("datetime", "duration"):
        values = _to_step(np.clip(values, low, high), column)
    elif column.decimals is not None:
        values = np.round(values, column.decimals) + 0.0
    kept: np.ndarray = np.clip(values, low, high)
    return kept


def _to_step(seconds: np.ndarray, column: Column) -> np.ndarray:
    """Seconds rounded to whole steps of local time."""
    if not column.tz or column.step < 60:
        return np.round(seconds / column.step) * column.step if column.step >= 1 else seconds
    local = (
        pd.to_datetime(np.round(seconds).astype(np.int64), unit="s", utc=True)
        .tz_convert(column.tz)
        .tz_localize(None)
    )
    ticks = local.to_numpy().astype("datetime64[s]").astype(np.int64)
    whole = (np.round(ticks / column.step) * column.step).astype(np.int64).astype("datetime64[s]")
    back = (
        pd.DatetimeIndex(whole)
        .tz_localize(column.tz, ambiguous=np.zeros(len(whole), dtype=bool), nonexistent="shift_forward")
        .tz_convert("UTC")
    )
    return back.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64).astype(np.float64)


def _spell_numbers(column: Column, values: np.ndarray) -> list[str]:
    if column.kind == "datetime":
        return [
            cells.write_time(v, column.form or "%Y-%m-%d %H:%M:%S", column.suffix) for v in values.tolist()
        ]
    if column.kind == "duration":
        return [cells.write_duration(v, column.form or "days") for v in values.tolist()]
    spelling = column.spelling or cells.Spelling(decimals=column.decimals, fixed=False)
    return [spelling.write(v) for v in values.tolist()]


def _spell_moments(column: Column, values: np.ndarray, python: str) -> Any:
    ticks = np.round(values * 1e6).astype(np.int64)
    if column.kind == "duration":
        spans = ticks.astype("timedelta64[us]")
        return [s.item() for s in spans] if python == "timedelta" else pd.TimedeltaIndex(spans)
    moments = ticks.astype("datetime64[us]")
    if python in ("date", "datetime"):
        return [m.item().date() if python == "date" else m.item() for m in moments]
    index = pd.DatetimeIndex(moments)
    return index if column.tz is None else index.tz_localize("UTC").tz_convert(column.tz)


def label_writer(column: Column, codes: np.ndarray, uniform: np.ndarray | None) -> Writer:
    table: list[Any] = list(column.levels) + list(column.pooled[:1])
    chosen = [table[code] for code in codes]
    rare = np.flatnonzero(codes == len(column.levels))
    if uniform is not None and len(rare):
        edges = np.cumsum(column.pooled_counts) / sum(column.pooled_counts)
        picks = np.searchsorted(edges, uniform[rare], side="right")
        for i, pick in zip(rare, picks, strict=True):
            chosen[i] = column.pooled[min(int(pick), len(column.pooled) - 1)]

    def write(held: str, python: str) -> Any:
        if column.storage in ("datetime", "duration"):
            moments = Column(column.name, column.storage, column.dtype, column.label, tz=column.tz)
            return _spell_moments(moments, np.array(chosen, dtype=np.float64), python)
        if python == "Decimal":
            return [Decimal(repr(v)) for v in chosen]
        return [str(v) for v in chosen] if held == "text" else chosen

    return write


def assign(series: Series, mask: np.ndarray, column: Column, write: Writer) -> Series:
    """A copy of the column with the masked cells written; the other cells are not touched."""
    held, python = columns.storage_of(series)
    if series[~mask].isna().all() and held not in (column.storage, "category", "text"):
        if not _holds(series.dtype, column):
            series = series.astype(object)
        held, python = column.storage, column.python
    values = write(held, python)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _assign_categories(series, mask, list(values))
    dtype = series.dtype
    if isinstance(dtype, np.dtype) and dtype.kind not in "mM":
        array = series.to_numpy(copy=True)
        if dtype.kind == "O":
            at = np.flatnonzero(mask)
            for i, value in zip(
                at, values.tolist() if isinstance(values, np.ndarray) else values, strict=True
            ):
                array[i] = value
        else:
            array[mask] = _fit_dtype(np.asarray(values), dtype)
        return pd.Series(array, index=series.index, dtype=dtype, name=series.name)
    extension = series.array.copy()
    extension[mask] = _for_extension(values, dtype)
    return pd.Series(extension, index=series.index, name=series.name)


def _holds(dtype: Any, column: Column) -> bool:
    """Whether a column of this dtype, all missing, can hold what the codec learned."""
    if isinstance(dtype, np.dtype):
        kinds = {"number": "fO", "datetime": "MO", "duration": "mO"}
        return dtype.kind in kinds.get(column.storage, "O")
    if isinstance(dtype, pd.CategoricalDtype):
        return True
    probe = pd.Series([None], dtype=dtype)
    return columns.storage_of(probe)[0] == column.storage


def _fit_dtype(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind in "iu":
        values = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


def _for_extension(values: Any, dtype: Any) -> Any:
    """Values in the form that the extension array takes."""
    if isinstance(dtype, pd.ArrowDtype):
        made = list(values.tolist() if isinstance(values, np.ndarray) else values)
        if str(dtype).startswith("date"):
            made = [v.date() for v in made]
        elif str(dtype).startswith("decimal"):
            made = [Decimal(f"{v:.{dtype.pyarrow_dtype.scale}f}") for v in made]
        elif "int" in str(dtype) and made and isinstance(made[0], float):
            made = [int(v) for v in made]
        elif isinstance(made[0], dt.timedelta | pd.Timestamp):
            made = [v.as_unit(getattr(dtype.pyarrow_dtype, "unit", "us")) for v in made]
        return made
    if isinstance(values, pd.DatetimeIndex | pd.TimedeltaIndex):
        unit: Any = getattr(dtype, "unit", None) or np.datetime_data(dtype)[0]
        return values.as_unit(unit)
    return np.array(values, dtype=object) if isinstance(dtype, pd.StringDtype) else np.asarray(values)


def _assign_categories(series: Series, mask: np.ndarray, values: Sequence[Any]) -> Series:
    """Write categories; a level that this table's dtype lacks is added to it."""
    held: Any = series.array
    place = {key(v): k for k, v in enumerate(held.categories)}
    lacking = list({key(v): v for v in values if key(v) not in place}.values())
    if lacking:
        held = held.add_categories(lacking)
        place |= {key(v): len(place) + k for k, v in enumerate(lacking)}
    codes = np.asarray(held.codes, dtype=np.int64).copy()
    codes[mask] = [place[key(v)] for v in values]
    return pd.Series(pd.Categorical.from_codes(codes, dtype=held.dtype), index=series.index, name=series.name)

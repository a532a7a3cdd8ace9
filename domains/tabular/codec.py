"""Tables to numbers and codes, and back: the border between what cells mean and what a model computes.

Only decode changes cells, and only those it is told to; every other cell of the table comes back as the
very object it was, because the column's own array is copied and written to at those places alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import cells, columns
from .columns import Column, Kind
from .recognition import recognise

if TYPE_CHECKING:
    from .cells import Series

__all__ = ["Coded", "Column", "Kind", "TableCodec"]


@dataclass(frozen=True)
class Coded:
    """A table as arrays, a row per row.

    Args:
        numbers: (n, p) float64, NaN where missing: numbers, whole numbers, dates (seconds since 1970, UTC) and
            durations (seconds), in `TableCodec.number_names` order.
        codes: (n, q) int32, -1 where missing: booleans, categories and ordered categories, in
            `TableCodec.category_names` order.
        unseen: (column, how many cells) for categories the codec never saw; their code is -1.
    """

    numbers: np.ndarray
    codes: np.ndarray
    unseen: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)


class TableCodec:
    """Learns the columns of a table from its observed cells; encodes tables and decodes what a model filled in.

    Args:
        missing: cells that stand for "missing" besides empty ones, for all columns (`("?", -999)`) or by column
            (`{"insulin": (0,)}`).
        kinds: the kind of a column where recognition is wrong; "datetime:%d/%m/%Y" says how text dates are written.
        max_levels: categories modelled in a column; rarer ones share one code.
        decimal: the decimal sign of numbers held as text, when known; else it is recognised column by column.

    Attributes:
        columns_: a `Column` for every column, in order.

    Example:
        >>> table = pd.DataFrame({"age": [31, 44, None], "sex": ["f", None, "m"]})
        >>> codec = TableCodec().fit(table)
        >>> codec.number_names, codec.category_names, codec.cardinalities
        (('age',), ('sex',), (2,))
    """

    columns_: tuple[Column, ...]

    def __init__(
        self, missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = (), *,
        kinds: Mapping[Hashable, str] | None = None, max_levels: int = 256, decimal: str | None = None,
    ) -> None:
        self.missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = missing
        self.kinds = dict(kinds or {})
        self.max_levels = max_levels
        self.decimal = decimal

    # ------------------------------------------------------------------------------------------------ fit

    def fit(self, frame: pd.DataFrame) -> Self:
        """Recognise the columns of `frame` from its observed cells.

        Raises:
            InputError: duplicate headers, infinities, text among numbers, kinds for columns that do not exist.
        """
        refuse_duplicates(frame)
        for label in self.kinds:
            if label not in frame.columns:
                raise InputError("unknown-column", f"kinds names a column {str(label)!r} that the table does not have")
        found: list[Column] = []
        faults: list[InputError] = []
        for at, label in enumerate(frame.columns):
            try:
                found.append(recognise(
                    frame.iloc[:, at], label, codes=self.codes_of(label), kind=self.kinds.get(label),
                    max_levels=self.max_levels, decimal=self.decimal,
                ))
            except InputError as error:
                faults.append(error)
        if faults:
            first = faults[0].fault
            more = f"; {len(faults) - 1} more columns have faults, check lists them all" if len(faults) > 1 else ""
            raise InputError(first.code, first.what, first.where, first.remedy + more)
        self.columns_ = tuple(found)
        return self

    def codes_of(self, label: Hashable) -> Collection[Hashable]:
        """The missing codes of one column."""
        if isinstance(self.missing, Mapping):
            return self.missing.get(label, ())
        return self.missing

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the columns of `Coded.numbers`."""
        return tuple(c.name for c in self.columns_ if c.is_number)

    @property
    def category_names(self) -> tuple[str, ...]:
        """Names of the columns of `Coded.codes`."""
        return tuple(c.name for c in self.columns_ if c.is_category)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each of the category columns has."""
        return tuple(c.cardinality for c in self.columns_ if c.is_category)

    # --------------------------------------------------------------------------------------------- encode

    def encode(self, frame: pd.DataFrame, *, first_row: int = 0) -> Coded:
        """The table as numbers and codes. Columns may stand in any order.

        Args:
            first_row: position of the first row in its file, for the row numbers of errors.

        Raises:
            InputError: columns that lack or are too many, cells that do not fit their column.
        """
        at = self._places(frame)
        numbers = [np.empty((len(frame), 0))]
        codes = [np.empty((len(frame), 0), dtype=np.int32)]
        unseen: list[tuple[str, int]] = []
        for column in self.columns_:
            if not column.modelled:
                continue
            series = frame.iloc[:, at[column.label]]
            gone = columns.missing(series, self.codes_of(column.label))
            if column.is_number:
                numbers.append(_encode_numbers(series, gone, column, first_row)[:, None])
                continue
            code = _encode_labels(series, gone, column)
            new = int(((code < 0) & ~gone).sum())
            unseen += [(column.name, new)] if new else []
            codes.append(code[:, None])
        return Coded(np.concatenate(numbers, axis=1), np.concatenate(codes, axis=1), tuple(unseen))

    def empty(self, frame: pd.DataFrame) -> np.ndarray:
        """(n, n_columns) bool, in the order of `frame`: cells that are missing, in columns of any kind."""
        self._places(frame)
        known = {c.label: c for c in self.columns_}
        out = np.zeros(frame.shape, dtype=bool)
        for j, label in enumerate(frame.columns):
            series = frame.iloc[:, j]
            out[:, j] = columns.missing(series, self.codes_of(label))
            if known[label].is_number and columns.storage_of(series)[0] == "text":
                out[:, j] |= _blank(series)
        return out

    def where(self, frame: pd.DataFrame) -> np.ndarray:
        """(n, n_columns) bool, in the order of `frame`: missing cells that a model can fill."""
        modelled = {c.label for c in self.columns_ if c.modelled}
        return self.empty(frame) & np.array([label in modelled for label in frame.columns], dtype=bool)

    def _places(self, frame: pd.DataFrame) -> dict[Hashable, int]:
        refuse_duplicates(frame)
        lacking = [c.name for c in self.columns_ if c.label not in frame.columns]
        known = {c.label for c in self.columns_}
        extra = [str(label) for label in frame.columns if label not in known]
        if lacking or extra:
            parts = [f"lacks {', '.join(map(repr, lacking))}"] if lacking else []
            parts += [f"has {', '.join(map(repr, extra))}, unknown to the model"] if extra else []
            raise InputError("columns-differ", "the table " + " and ".join(parts), remedy="give the columns seen at fit")
        return {label: at for at, label in enumerate(frame.columns)}

    # --------------------------------------------------------------------------------------------- decode

    def decode(
        self, filled: Coded, like: pd.DataFrame, where: np.ndarray, *, uniform: np.ndarray | None = None
    ) -> pd.DataFrame:
        """`like` with the cells of `where` replaced by what `filled` holds for them, in the column's own form.

        Numbers are rounded to the column's decimals and kept within its observed range. Cells of ids and text, and
        cells for which `filled` has nothing (NaN, -1), stay as they are.

        Args:
            filled: arrays for the rows of `like`.
            where: (n, n_columns) bool, columns in the order of `like`.
            uniform: (n, q) in [0, 1), which draws a level from the pool of rare ones by its frequency; without it
                the commonest of them is taken.
        """
        at = self._places(like)
        if where.shape != like.shape or where.dtype != bool:
            raise ValueError(f"where must be bool and shaped like the table {like.shape}, got {where.dtype} {where.shape}")
        if len(filled) != len(like):
            raise ValueError(f"filled has {len(filled)} rows and the table {len(like)}")
        out = like.copy()
        p = q = 0
        for column in self.columns_:
            if not column.modelled:
                continue
            j = at[column.label]
            if column.is_number:
                values = filled.numbers[:, p]
                mask = where[:, j] & ~np.isnan(values)
                write = _number_writer(column, values[mask])
                p += 1
            else:
                codes = filled.codes[:, q]
                mask = where[:, j] & (codes >= 0)
                write = _label_writer(column, codes[mask], None if uniform is None else uniform[mask, q])
                q += 1
            if mask.any():
                out.isetitem(j, _assign(like.iloc[:, j], mask, column, write))
        return out

    # ----------------------------------------------------------------------------------------------- JSON

    def to_dict(self) -> dict[str, Any]:
        """Everything learned, as plain JSON."""
        by_column = isinstance(self.missing, Mapping)
        return {
            "missing": [[cells.pack(k), [cells.pack(c) for c in v]] for k, v in self.missing.items()]
            if isinstance(self.missing, Mapping) else [cells.pack(c) for c in self.missing],
            "missing_by_column": by_column,
            "kinds": [[cells.pack(k), v] for k, v in self.kinds.items()],
            "max_levels": self.max_levels,
            "decimal": self.decimal,
            "columns": [c.to_dict() for c in self.columns_],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The codec that `to_dict` wrote."""
        gone: Any = tuple(cells.unpack(c) for c in data["missing"]) if not data["missing_by_column"] else {
            cells.unpack(k): tuple(cells.unpack(c) for c in v) for k, v in data["missing"]}
        kinds = {cells.unpack(k): v for k, v in data["kinds"]}
        codec = cls(gone, kinds=kinds, max_levels=data["max_levels"], decimal=data["decimal"])
        codec.columns_ = tuple(Column.from_dict(c) for c in data["columns"])
        return codec


def refuse_duplicates(frame: pd.DataFrame) -> None:
    """InputError when two columns have the same header."""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        names = ", ".join(repr(str(label)) for label in dict.fromkeys(twice))
        raise InputError("duplicate-column", f"two columns are called {names}", "header", "rename one of them")


# ------------------------------------------------------------------------------------------------- encode


def _blank(series: Series) -> np.ndarray:
    return series.isna().to_numpy(dtype=bool) | (series.astype(object).str.strip() == "").to_numpy(dtype=bool)


def _encode_numbers(series: Series, gone: np.ndarray, column: Column, first_row: int) -> np.ndarray:
    """(n,) float64 of one number, date or duration column."""
    held, _ = columns.storage_of(series)
    if gone.all():
        return np.full(len(series), np.nan)
    if held == "text":
        values, bad = _parse(series, gone, column)
    elif held == ("number" if column.kind in ("number", "integer") else column.kind):
        values, bad = columns.as_floats(series, gone, held), gone & False
    else:
        raise InputError("wrong-dtype", f"cells of dtype {series.dtype} where {column.dtype} was seen at fit",
                         f"column {column.name!r}")
    if bad.any():
        raise InputError(f"text-in-{column.kind}-column", f"cells that cannot be read as {column.kind}",
                         f"column {column.name!r}, {columns.rows_of(bad, first_row)}",
                         "correct the cells, or name the code that stands for missing")
    columns.refuse_extremes(values, column.name, first_row)
    return values


def _parse(series: Series, gone: np.ndarray, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Values of text cells, and which cells are neither missing nor readable."""
    blank = gone | _blank(series)
    texts = series.astype(object).where(~blank, "")
    if column.kind == "datetime":
        values = cells.to_seconds(texts, column.form or "%Y-%m-%d", column.suffix)
    elif column.kind == "duration":
        values = np.array([cells.duration_seconds(t.strip()) for t in texts], dtype=np.float64)
    else:
        values = cells.to_numbers(texts, column.spelling.decimal if column.spelling else ".")
    return values, np.isnan(values) & ~blank


def _key(value: Any) -> tuple[str, Hashable]:
    """What makes two labels the same: True is not 1, but 1 is 1.0."""
    if isinstance(value, str):
        return "text", value
    if isinstance(value, bool | np.bool_):
        return "bool", bool(value)
    if isinstance(value, int | float | np.number):
        return "number", float(value) if abs(value) <= columns.EXACT else int(value) if value == value // 1 else value
    return type(value).__name__, value


def _encode_labels(series: Series, gone: np.ndarray, column: Column) -> np.ndarray:
    """(n,) int32 codes of one category column; -1 where missing or never seen."""
    held, _ = columns.storage_of(series)
    out = np.full(len(series), -1, dtype=np.int32)
    code = {_key(level): k for k, level in enumerate(column.levels)}
    other = len(column.levels) if column.pooled else -1
    if gone.all():
        return out
    if held == "category":
        table = np.array([code.get(_key(v), other) for v in series.array.categories] or [other], dtype=np.int32)
        values = table[np.asarray(series.array.codes)]
    else:
        floats = held in ("number", "datetime", "duration")
        cells_ = columns.as_floats(series, gone, held)[~gone] if floats else series[~gone].astype(object).to_numpy()
        at, uniques = pd.factorize(cells_) if floats or held == "text" else (np.arange(len(cells_)), cells_)
        table = np.array([code.get(_key(v), other) for v in uniques], dtype=np.int32)
        values = np.full(len(series), -1, dtype=np.int32)
        values[~gone] = table[at]
    out[~gone] = values[~gone]
    return out


# ------------------------------------------------------------------------------------------------- decode

Writer = Callable[[str, str], Any]
"""(storage, python type) -> the values to assign, (k,) array or list."""


def _number_writer(column: Column, values: np.ndarray) -> Writer:
    values = _shaped(column, values)

    def write(held: str, python: str) -> Any:
        if held == "text":
            return _spell_numbers(column, values)
        if column.kind in ("datetime", "duration"):
            return _spell_moments(column, values, python)
        if python == "Decimal":
            return [Decimal(f"{v:.{column.decimals}f}" if column.decimals is not None else repr(v)) for v in values.tolist()]
        if column.kind == "integer" and python != "float":
            return values.astype(np.int64)
        return values

    return write


def _shaped(column: Column, values: np.ndarray) -> np.ndarray:
    """Values rounded to the column's decimals or step, within its observed range."""
    low, high = column.low, column.high
    assert low is not None and high is not None
    if column.kind in ("datetime", "duration"):
        values = _to_step(np.clip(values, low, high), column)
    elif column.decimals is not None:
        values = np.round(values, column.decimals) + 0.0
    return np.clip(values, low, high)


def _to_step(seconds: np.ndarray, column: Column) -> np.ndarray:
    """Seconds rounded to whole steps of local time."""
    if not column.tz or column.step < 60:
        return np.round(seconds / column.step) * column.step if column.step >= 1 else seconds
    local = pd.to_datetime(np.round(seconds).astype(np.int64), unit="s", utc=True).tz_convert(column.tz).tz_localize(None)
    ticks = local.to_numpy().astype("datetime64[s]").astype(np.int64)
    whole = (np.round(ticks / column.step) * column.step).astype(np.int64).astype("datetime64[s]")
    back = pd.DatetimeIndex(whole).tz_localize(
        column.tz, ambiguous=np.zeros(len(whole), dtype=bool), nonexistent="shift_forward").tz_convert("UTC")
    return back.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64).astype(np.float64)


def _spell_numbers(column: Column, values: np.ndarray) -> list[str]:
    if column.kind == "datetime":
        return [cells.write_time(v, column.form or "%Y-%m-%d %H:%M:%S", column.suffix) for v in values.tolist()]
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


def _label_writer(column: Column, codes: np.ndarray, uniform: np.ndarray | None) -> Writer:
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


def _assign(series: Series, mask: np.ndarray, column: Column, write: Writer) -> Series:
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
            for i, value in zip(at, values.tolist() if isinstance(values, np.ndarray) else values, strict=True):
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
            made = [Decimal(f"{v:.{dtype.pyarrow_dtype.scale}f}") for v in made]  # type: ignore[attr-defined]
        elif "int" in str(dtype) and made and isinstance(made[0], float):
            made = [int(v) for v in made]
        elif isinstance(made[0], dt.timedelta | pd.Timestamp):
            unit = str(getattr(dtype.pyarrow_dtype, "unit", "us"))
            made = [v.as_unit(unit) for v in made]
        return made
    if isinstance(values, pd.DatetimeIndex | pd.TimedeltaIndex):
        return values.as_unit(getattr(dtype, "unit", None) or np.datetime_data(dtype)[0])
    return np.array(values, dtype=object) if isinstance(dtype, pd.StringDtype) else np.asarray(values)


def _assign_categories(series: Series, mask: np.ndarray, values: Sequence[Any]) -> Series:
    """Write categories; a level that this table's dtype lacks is added to it."""
    held = series.array
    place = {_key(v): k for k, v in enumerate(held.categories)}
    lacking = list({_key(v): v for v in values if _key(v) not in place}.values())
    if lacking:
        held = held.add_categories(lacking)
        place |= {_key(v): len(place) + k for k, v in enumerate(lacking)}
    codes = np.asarray(held.codes, dtype=np.int64).copy()
    codes[mask] = [place[_key(v)] for v in values]
    return pd.Series(pd.Categorical.from_codes(codes, dtype=held.dtype), index=series.index, name=series.name)

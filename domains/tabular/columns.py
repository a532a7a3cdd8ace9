"""What the columns of a table are: numbers, categories, dates, ids; recognised from observed cells alone."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from ...shared.errors import InputError
from . import cells, labels
from .cells import Spelling

if TYPE_CHECKING:
    from .cells import Series

Kind = Literal["number", "integer", "boolean", "category", "ordered", "datetime", "duration", "id", "text"]
Storage = Literal["number", "boolean", "datetime", "duration", "category", "text", "object", "opaque"]

NUMBERS = frozenset({"number", "integer", "datetime", "duration"})
CATEGORIES = frozenset({"boolean", "category", "ordered"})
MASKED = (
    pd.Int8Dtype
    | pd.Int16Dtype
    | pd.Int32Dtype
    | pd.Int64Dtype
    | pd.UInt8Dtype
    | pd.UInt16Dtype
    | pd.UInt32Dtype
    | pd.UInt64Dtype
    | pd.Float32Dtype
    | pd.Float64Dtype
)
"""Pandas' own dtypes for numbers beside a mask of what is missing."""
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ROW = "row in the file"
"""Name of an index that holds the positions of rows in their file, from 0."""
EXACT = 2**53
"""Whole numbers beyond this are not all float64: such columns are ids."""
LARGEST = 1e100
"""Magnitudes beyond this are taken for damage: their squares and sums overflow."""


@dataclass(frozen=True)
class Column:
    """What is known of one column. Learned from observed cells, kept with a model, plain JSON by `to_dict`.

    Args:
        name: its header as text; `label` is the header itself (it may be a number or a tuple).
        kind: what it means.
        dtype: the pandas dtype it had at fit, for information.
        storage: how its cells are held, which may differ from what they mean (numbers held as text).
        python: for cells held as Python objects, their type ("int", "Decimal", "date", ...).
        observed, distinct: how many cells were observed, and how many different ones.
        low, high: range of the observed numbers; dates in seconds since 1970 (UTC), durations in seconds.
        decimals: digits after the decimal sign; None when not a decimal fraction.
        step: for dates and durations, the resolution in seconds (86400 when all are whole days).
        spelling: how numbers held as text are written.
        form, suffix: how dates and durations held as text are written; suffix is the offset from UTC.
        tz: time zone of a datetime column.
        levels, counts: modelled categories and how often each was seen; code k is `levels[k]`.
        pooled, pooled_counts: the commonest of the rarer levels, which share the code `len(levels)`.
        notes: (code, sentence) pairs on what was assumed.
    """

    name: str
    kind: Kind
    dtype: str
    label: Hashable
    storage: Storage = "opaque"
    python: str = ""
    observed: int = 0
    distinct: int = 0
    low: float | None = None
    high: float | None = None
    decimals: int | None = None
    step: float = 0.0
    spelling: Spelling | None = None
    form: str = ""
    suffix: str = ""
    tz: str | None = None
    levels: tuple[Hashable, ...] = ()
    counts: tuple[int, ...] = ()
    pooled: tuple[Hashable, ...] = ()
    pooled_counts: tuple[int, ...] = ()
    notes: tuple[tuple[str, str], ...] = field(default=())

    @property
    def modelled(self) -> bool:
        """Whether the column takes part in the model: not ids, not free text, not all missing."""
        return self.observed > 0 and self.kind not in ("id", "text")

    @property
    def is_number(self) -> bool:
        """Whether it is one of `Coded.numbers`."""
        return self.modelled and self.kind in NUMBERS

    @property
    def is_category(self) -> bool:
        """Whether it is one of `Coded.codes`."""
        return self.modelled and self.kind in CATEGORIES

    @property
    def cardinality(self) -> int:
        """How many codes a category column has, the pool of rare levels included."""
        return len(self.levels) + bool(self.pooled)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without the fields that have their default."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        data["label"] = labels.pack(self.label)
        for name in {"levels", "pooled"} & data.keys():
            data[name] = [labels.pack(level) for level in data[name]]
        if self.spelling is not None:
            data["spelling"] = asdict(self.spelling)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The column that `to_dict` wrote."""
        made: dict[str, Any] = dict(data)
        made["label"] = labels.unpack(data["label"])
        for name in {"levels", "pooled"} & made.keys():
            made[name] = tuple(labels.unpack(level) for level in made[name])
        for name in {"counts", "pooled_counts"} & made.keys():
            made[name] = tuple(made[name])
        made["notes"] = tuple((code, text) for code, text in made.get("notes", ()))
        if made.get("spelling"):
            made["spelling"] = Spelling(**made["spelling"])
        return cls(**made)


# ------------------------------------------------------------------------------------------ cells as held


def storage_of(series: Series) -> tuple[Storage, str]:
    """How the cells of a column are held, and the Python type where they are objects."""
    dtype = series.dtype
    if isinstance(dtype, pd.ArrowDtype):
        return _arrow_storage(dtype.pyarrow_dtype), ""
    if isinstance(dtype, pd.CategoricalDtype):
        return "category", ""
    if isinstance(dtype, pd.StringDtype):
        return "text", ""
    if isinstance(dtype, pd.DatetimeTZDtype):
        return "datetime", ""
    if isinstance(dtype, pd.BooleanDtype):
        return "boolean", ""
    if isinstance(dtype, np.dtype | MASKED):
        if dtype.kind == "O":
            return _object_storage(series)
        kinds: dict[str, Storage] = {"b": "boolean", "i": "number", "u": "number", "f": "number"}
        kinds |= {"M": "datetime", "m": "duration"}
        return kinds.get(dtype.kind, "opaque"), ""
    return "opaque", ""


def _arrow_storage(kind: pa.DataType) -> Storage:
    types = pa.types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "datetime"
    return "boolean" if types.is_boolean(kind) else "duration" if types.is_duration(kind) else "opaque"


def _object_storage(series: Series) -> tuple[Storage, str]:
    values = series[series.notna()]
    kinds = {type(v) for v in values}
    if not kinds:
        return "object", ""
    if all(issubclass(k, str) for k in kinds):
        return "text", ""
    if all(issubclass(k, bool | np.bool_) for k in kinds):
        return "boolean", "bool"
    if all(issubclass(k, int | float | np.integer | np.floating) and k is not bool for k in kinds):
        return "number", "int" if all(issubclass(k, int | np.integer) for k in kinds) else "float"
    if kinds == {Decimal}:
        return "number", "Decimal"
    if all(issubclass(k, dt.datetime) for k in kinds):
        naive = all(v.tzinfo is None for v in values)
        return (
            ("datetime", "Timestamp" if kinds == {pd.Timestamp} else "datetime") if naive else ("opaque", "")
        )
    if kinds == {dt.date}:
        return "datetime", "date"
    if all(issubclass(k, dt.timedelta) for k in kinds):
        return "duration", "Timedelta" if kinds == {pd.Timedelta} else "timedelta"
    return ("object", "") if _hashable(values) else ("opaque", "")


def _hashable(values: Iterable[Any]) -> bool:
    for value in values:
        try:
            labels.pack(value)
            hash(value)
        except TypeError:
            return False
    return True


def missing(series: Series, codes: Collection[Hashable] = ()) -> np.ndarray:
    """(n,) bool: cells that are empty (None, NaN, NaT, NA) or hold one of the named missing codes.

    A code matches text without the blanks around it, and numbers by value: -999, "-999" and "-999.0".
    """
    held, _ = storage_of(series)
    gone: np.ndarray = series.isna().to_numpy(dtype=bool).copy()
    if held == "number" and not (isinstance(series.dtype, np.dtype) and series.dtype.kind in "iu"):
        gone |= np.isnan(_floats(series, gone))
    if not codes or held == "opaque":
        return gone
    texts = {str(c).strip() for c in codes}
    numbers = {float(t) for t in texts if cells.NUMBER.fullmatch(t)}
    if held == "number":
        gone |= np.isin(_floats(series, gone), list(numbers))
    if held == "text":
        stripped = series.astype(object).where(~gone, "").str.strip()
        found = stripped.isin(texts).to_numpy(dtype=bool).copy()
        if numbers:
            found |= np.isin(cells.to_numbers(stripped, "."), list(numbers))
        gone |= found
    if held in ("category", "object"):
        values = series.astype(object)[~gone]
        gone[~gone] = [_is_code(v, texts, numbers) for v in values]
    return gone


def _is_code(value: Any, texts: set[str], numbers: set[float]) -> bool:
    if isinstance(value, str):
        text = value.strip()
        return text in texts or bool(numbers and cells.NUMBER.fullmatch(text) and float(text) in numbers)
    return (
        isinstance(value, int | float | np.number) and not isinstance(value, bool) and float(value) in numbers
    )


def _floats(series: Series, gone: np.ndarray) -> np.ndarray:
    """(n,) float64 of a column held as numbers; NaN where `gone`."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind == "O":
        out = np.full(len(series), np.nan)
        out[~gone] = [float(v) if abs(v) < 2**1000 else np.copysign(np.inf, v) for v in series[~gone]]
        return out
    if isinstance(series.dtype, pd.ArrowDtype) and pa.types.is_decimal(series.dtype.pyarrow_dtype):
        series = series.astype(pd.ArrowDtype(pa.float64()))
    values = series.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    values[gone] = np.nan
    return values


def as_floats(series: Series, gone: np.ndarray, held: Storage) -> np.ndarray:
    """(n,) float64 of a column held as numbers, moments (seconds since 1970, UTC) or durations (seconds)."""
    if held == "number":
        return _floats(series, gone)
    out = np.full(len(series), np.nan)
    values = series[~gone]
    if isinstance(series.dtype, pd.ArrowDtype):
        unit = pa.timestamp("us") if held == "datetime" else pa.duration("us")
        array = pa.array(values.array, from_pandas=True)
        if pa.types.is_timestamp(array.type) and array.type.tz is not None:
            unit = pa.timestamp("us", array.type.tz)
        ticks = array.cast(unit, safe=False).cast(pa.int64()).to_numpy(zero_copy_only=False)
        out[~gone] = ticks / 1e6
    elif values.dtype.kind == "O":
        if held == "duration":
            out[~gone] = [v.total_seconds() for v in values]
        else:
            epoch = dt.datetime(1970, 1, 1)
            moments = [
                v if isinstance(v, dt.datetime) else dt.datetime(v.year, v.month, v.day) for v in values
            ]
            out[~gone] = [(v - epoch).total_seconds() for v in moments]
    else:
        if held == "datetime" and values.dt.tz is not None:
            values = values.dt.tz_convert("UTC").dt.tz_localize(None)
        ticks = values.to_numpy()
        out[~gone] = ticks.astype(np.int64) / PER_SECOND[np.datetime_data(ticks.dtype)[0]]
    return out


def tokens(label: Hashable) -> frozenset[str]:
    """The lower-case words of a header: "PatientID" -> patient, id.

    Example:
        >>> sorted(tokens("PatientID_2"))
        ['2', 'id', 'patient']
    """
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", str(label))
    return frozenset(word.lower() for word in found)


def rows_of(bad: np.ndarray, rows: int | pd.Index = 0) -> str:
    """The first five rows where `bad` is true, counted from 1, and their number: "rows 3, 9 (2 in all)".

    Args:
        bad: (n,) bool.
        rows: position of the first row; or the index, which holds the positions when a `TableSource` made it.
    """
    at = np.flatnonzero(bad)
    numbers = at[:5] + (0 if isinstance(rows, pd.Index) else rows)
    if isinstance(rows, pd.Index) and rows.name == ROW:
        numbers = rows.to_numpy()[at[:5]]
    listed = ", ".join(str(int(i) + 1) for i in numbers)
    return f"row{'s' if len(at) > 1 else ''} {listed}{', ...' if len(at) > 5 else ''} ({len(at)} in all)"


def refuse_extremes(values: np.ndarray, name: str, rows: int | pd.Index = 0) -> None:
    """InputError when (n,) numbers hold infinities or magnitudes no measurement has."""
    bad = np.isinf(values)
    if bad.any():
        raise InputError(
            "infinity",
            "infinite (inf) numbers cannot be modelled",
            f"column {name!r}, {rows_of(bad, rows)}",
            "make these cells empty, or correct them",
        )
    bad = np.abs(values) > LARGEST
    if bad.any():
        raise InputError(
            "number-too-large",
            f"numbers beyond {LARGEST:g} cannot be modelled",
            f"column {name!r}, {rows_of(bad, rows)}",
            "make these cells empty, or correct them",
        )


def check_kind(kind: str, name: str) -> tuple[Kind, str]:
    """Split "datetime:%d/%m/%Y" into kind and form; InputError for a kind there is none of."""
    base, _, form = kind.partition(":")
    if base not in get_args(Kind):
        raise InputError(
            "unknown-kind",
            f"there is no kind of column called {base!r}",
            f"column {name!r}",
            f"choose one of {', '.join(get_args(Kind))}",
        )
    return base, form  # type: ignore[return-value]


def pool(levels: Sequence[Hashable], counts: Sequence[int], most: int) -> dict[str, Any]:
    """Keep the `most` frequent levels; remember at most as many again of the rest, as a pool."""
    order = sorted(range(len(levels)), key=lambda i: (-counts[i], str(levels[i]), type(levels[i]).__name__))
    kept, rest = order[:most], order[most : 2 * most]
    return {
        "levels": tuple(levels[i] for i in kept),
        "counts": tuple(counts[i] for i in kept),
        "pooled": tuple(levels[i] for i in rest),
        "pooled_counts": tuple(counts[i] for i in rest),
    }


def count_float_decimals(series: Series, values: np.ndarray) -> int | None:
    """Digits after the point of (n,) numbers in the precision they are held in (float32 0.1 has one)."""
    name = str(series.dtype).lower()
    if "32" in name or "16" in name or name in ("float[pyarrow]", "halffloat[pyarrow]"):
        short = np.float16 if ("16" in name or "half" in name) else np.float32
        values = values.astype(short)
        for digits in range(7):
            if np.array_equal(np.round(values.astype(np.float64), digits).astype(short), values):
                return digits
        return None
    return cells.count_decimals(values)

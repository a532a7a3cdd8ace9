"""Observed cells come back bit for bit, whatever the table; filled cells are in the column's own form."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebbtide.domains.tabular.codec import Coded, TableCodec
from ebbtide.shared.errors import InputError

Maker = Callable[[np.random.Generator, int], Any]


def _with_gaps(g: np.random.Generator, values: list[Any], gap: Any = None) -> list[Any]:
    share = g.choice([0.0, 0.3, 0.9])
    return [gap if g.random() < share else v for v in values]


def _objects(values: list[Any]) -> pd.Series:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = value
    return pd.Series(out, dtype=object)


def _pick(g: np.random.Generator, n: int, options: list[Any]) -> list[Any]:
    return [options[i] for i in g.integers(len(options), size=n)]


def _arrow(kind: pa.DataType, values: list[Any]) -> pd.Series:
    return pd.Series(pd.array(pa.array(values, kind), dtype=pd.ArrowDtype(kind)))


def _days(g: np.random.Generator, n: int) -> list[dt.date]:
    return [dt.date(2020, 1, 1) + dt.timedelta(days=int(d)) for d in g.integers(-9000, 9000, n)]


def _stamps(g: np.random.Generator, n: int, unit: str) -> pd.DatetimeIndex:
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    index = pd.DatetimeIndex((g.integers(-(10**9), 2 * 10**9, n) * ticks).astype(f"datetime64[{unit}]"))
    return index.where(g.random(n) < 0.8)


MAKERS: dict[str, Maker] = {
    "float64": lambda g, n: np.where(g.random(n) < 0.3, np.nan, g.normal(size=n) * 10.0 ** g.integers(-5, 6)),
    "float32": lambda g, n: g.normal(size=n).astype(np.float32).round(2),
    "float16": lambda g, n: g.normal(size=n).astype(np.float16),
    "zeros": lambda g, n: np.where(g.random(n) < 0.7, -0.0, g.exponential(size=n).round(1)),
    "constant": lambda g, n: np.full(n, 3.25),
    "all missing": lambda g, n: np.full(n, np.nan),
    "none": lambda g, n: _objects([None] * n),
    "int8": lambda g, n: g.integers(-128, 128, n).astype(np.int8),
    "uint64": lambda g, n: g.integers(0, 2**64, n, dtype=np.uint64),
    "int64 beyond 2^53": lambda g, n: g.integers(2**53, 2**62, n),
    "whole floats": lambda g, n: np.where(g.random(n) < 0.4, np.nan, g.integers(0, 40, n).astype(float)),
    "bool": lambda g, n: g.random(n) < 0.5,
    "bool objects": lambda g, n: _objects(_with_gaps(g, _pick(g, n, [True, False]))),
    "Int64": lambda g, n: pd.array(_with_gaps(g, g.integers(0, 99, n).tolist()), dtype="Int64"),
    "Int64 big": lambda g, n: pd.array(_with_gaps(g, g.integers(2**53, 2**60, n).tolist()), dtype="Int64"),
    "Float64": lambda g, n: pd.array(_with_gaps(g, g.normal(size=n).tolist()), dtype="Float64"),
    "boolean": lambda g, n: pd.array(_with_gaps(g, _pick(g, n, [True, False])), dtype="boolean"),
    "string": lambda g, n: pd.array(_with_gaps(g, _pick(g, n, ["a", "", "ü\n", "a,b"])), dtype="string"),
    "str": lambda g, n: pd.Series(_with_gaps(g, _pick(g, n, ["x", "y", " x", "日本"])), dtype="str"),
    "number text": lambda g, n: _objects(_with_gaps(g, [f"{v:.2f}" for v in g.normal(size=n)])),
    "comma text": lambda g, n: _objects([f"{v:.1f}".replace(".", ",") for v in g.normal(size=n)]),
    "date text": lambda g, n: _objects(_with_gaps(g, [d.strftime("%Y-%m-%d") for d in _days(g, n)])),
    "codes": lambda g, n: _objects([f"{v:05d}" for v in g.integers(0, 99999, n)]),
    "sentences": lambda g, n: _objects([" ".join(_pick(g, 9, ["so", "it", "goes", "on"])) for _ in range(n)]),
    "mixed": lambda g, n: _objects(
        _pick(g, n, [1, 1.0, True, "1", b"1", ("a", 1), None, "", dt.date(2020, 1, 1)])
    ),
    "unhashable": lambda g, n: _objects(_pick(g, n, [[1], {"a": 2}, None])),
    "tuples": lambda g, n: _objects(_pick(g, n, [(1, 2), (3,), ()])),
    "bytes": lambda g, n: _objects(_with_gaps(g, _pick(g, n, [b"a", b"\xff", b""]))),
    "decimals": lambda g, n: _objects(
        _with_gaps(g, [Decimal(int(v)) / 100 for v in g.integers(-500, 500, n)])
    ),
    "dates": lambda g, n: _objects(_with_gaps(g, _days(g, n))),
    "python ints": lambda g, n: _objects(_with_gaps(g, g.integers(0, 50, n).tolist())),
    "huge ints": lambda g, n: _objects([int(v) ** 25 for v in g.integers(2, 50, n)]),
    "datetimes": lambda g, n: _objects(_with_gaps(g, [dt.datetime(d.year, 1, 1, 5) for d in _days(g, n)])),
    "spans": lambda g, n: _objects(
        _with_gaps(g, [dt.timedelta(minutes=int(v)) for v in g.integers(-99, 99, n)])
    ),
    "datetime64[s]": lambda g, n: _stamps(g, n, "s"),
    "datetime64[ns]": lambda g, n: _stamps(g, n, "ns"),
    "days with a zone": lambda g, n: pd.DatetimeIndex(_days(g, n)).tz_localize("Europe/Berlin"),
    "utc": lambda g, n: _stamps(g, n, "us").tz_localize("UTC"),
    "timedelta64": lambda g, n: pd.TimedeltaIndex(g.integers(-(10**6), 10**6, n).astype("timedelta64[ms]")),
    "category": lambda g, n: pd.Categorical(_with_gaps(g, _pick(g, n, ["lo", "hi"])), ["hi", "lo", "unused"]),
    "ordered": lambda g, n: pd.Categorical(_pick(g, n, [3, 1]), [1, 2, 3], ordered=True),
    "dated category": lambda g, n: pd.Categorical(_pick(g, n, _days(g, 3))),
    "interval": lambda g, n: pd.cut(g.normal(size=n), [-9.0, 0.0, 9.0]),
    "period": lambda g, n: pd.period_range("2020-01", periods=n, freq="M"),
    "sparse": lambda g, n: pd.arrays.SparseArray(np.where(g.random(n) < 0.9, 0.0, 1.5)),
    "complex": lambda g, n: g.normal(size=n) + 1j,
    "int64[pyarrow]": lambda g, n: _arrow(pa.int64(), _with_gaps(g, g.integers(0, 9, n).tolist())),
    "double[pyarrow]": lambda g, n: _arrow(pa.float64(), _with_gaps(g, [1.5, float("nan"), 2.25] * n)[:n]),
    "float[pyarrow]": lambda g, n: _arrow(pa.float32(), _with_gaps(g, g.normal(size=n).tolist())),
    "string[pyarrow]": lambda g, n: _arrow(pa.string(), _with_gaps(g, _pick(g, n, ["a", "b"]))),
    "bool[pyarrow]": lambda g, n: _arrow(pa.bool_(), _with_gaps(g, _pick(g, n, [True, False]))),
    "timestamp[pyarrow]": lambda g, n: _arrow(
        pa.timestamp("ms", "UTC"),
        _with_gaps(g, [dt.datetime(2020, 1, 1), dt.datetime(1969, 5, 5, 7)] * n)[:n],
    ),
    "date[pyarrow]": lambda g, n: _arrow(pa.date32(), _with_gaps(g, _days(g, n))),
    "duration[pyarrow]": lambda g, n: _arrow(pa.duration("s"), _with_gaps(g, g.integers(0, 99, n).tolist())),
    "decimal[pyarrow]": lambda g, n: _arrow(
        pa.decimal128(9, 2), _with_gaps(g, [Decimal("1.25"), Decimal(7)] * n)[:n]
    ),
    "list[pyarrow]": lambda g, n: _arrow(pa.list_(pa.int8()), _with_gaps(g, [[1], [2, 3]] * n)[:n]),
    "dictionary[pyarrow]": lambda g, n: pd.Series(
        pd.arrays.ArrowExtensionArray(
            pa.array(_with_gaps(g, _pick(g, n, ["u", "v"])), pa.string()).dictionary_encode()
        )
    ),
}
LABELS = ["a", "Größe", 3, 2.5, ("x", 1), None, "", True, pd.Timestamp("2020-01-01"), b"raw"]
INDEXES: list[Callable[[int], pd.Index]] = [
    pd.RangeIndex,
    lambda n: pd.Index(["same"] * n),
    lambda n: pd.Index([float("nan")] * n),
    lambda n: pd.MultiIndex.from_arrays([np.arange(n) // 2, np.arange(n) % 2], names=["p", None]),
    lambda n: pd.date_range("2020", periods=n, tz="Asia/Tokyo"),
]


def odd_table(seed: int, names: list[str], n: int) -> pd.DataFrame:
    g = np.random.default_rng(seed)
    order = g.permutation(len(LABELS))
    data = {k: pd.Series(MAKERS[name](g, n)).set_axis(range(n)) for k, name in enumerate(names)}
    frame = pd.DataFrame(data, index=range(n))
    frame.columns = pd.Index([LABELS[order[k]] for k in range(len(names))], dtype=object)
    frame.index = INDEXES[seed % len(INDEXES)](n)
    return frame


def same_cells(a: pd.Series, b: pd.Series) -> None:
    """Equal in dtype, index, and every bit."""
    pd.testing.assert_series_equal(a, b, check_exact=True, check_freq=False)
    if isinstance(a.dtype, np.dtype) and a.dtype.kind in "fc":
        assert a.to_numpy().tobytes() == b.to_numpy().tobytes()
    elif a.dtype == object:
        assert all(x is y for x, y in zip(a, b, strict=True))


def drawn(codec: TableCodec, n: int, g: np.random.Generator) -> Coded:
    """Numbers far beyond each range, and any code."""
    p, q = len(codec.number_names), len(codec.category_names)
    codes = [g.integers(0, size, n) for size in codec.cardinalities]
    numbers = g.normal(size=(n, p)) * 10.0 ** g.integers(0, 12, (n, p))
    return Coded(numbers, np.array(codes, dtype=np.int32).reshape(q, n).T)


TABLES = {
    "seed": st.integers(0, 2**32),
    "names": st.lists(st.sampled_from(sorted(MAKERS)), min_size=1, max_size=8),
    "n": st.sampled_from([0, 1, 2, 9, 30]),
}
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **QUIET)
@given(**TABLES)
def test_observed_cells_come_back_bit_for_bit(seed: int, names: list[str], n: int) -> None:
    observed_come_back(seed, names, n)


@pytest.mark.slow
@settings(max_examples=2000, **QUIET)
@given(**TABLES)
def test_observed_cells_of_thousands_of_odd_tables_come_back(seed: int, names: list[str], n: int) -> None:
    observed_come_back(seed, names, n)


def observed_come_back(seed: int, names: list[str], n: int) -> None:
    frame = odd_table(seed, names, n)
    before = frame.copy(deep=True)
    codec = TableCodec().fit(frame)
    g = np.random.default_rng(seed)
    where = g.random(frame.shape) < g.choice([0.0, 0.4, 1.0])
    filled = codec.decode(drawn(codec, n, g), frame, where)
    assert filled.index.equals(frame.index) and filled.index.dtype == frame.index.dtype
    assert filled.columns.equals(frame.columns)
    for j, column in enumerate(codec.columns_):
        same_cells(frame.iloc[:, j], before.iloc[:, j])  # the input itself is left alone
        kept = ~where[:, j] if column.modelled else np.ones(n, dtype=bool)
        assert filled.dtypes.iloc[j] == frame.dtypes.iloc[j]
        same_cells(filled.iloc[:, j][kept], frame.iloc[:, j][kept])
        if column.modelled:
            assert not codec.empty(filled)[where[:, j], j].any()
    again = codec.encode(filled)
    for k, column in enumerate(c for c in codec.columns_ if c.is_number):
        values = again.numbers[:, k][~np.isnan(again.numbers[:, k])]
        assert column.low is not None and column.high is not None
        slack = (
            1e-3 * max(abs(column.low), abs(column.high))
            if "16" in column.dtype
            else 1e-6 * abs(column.high) + 1e-6
        )
        assert (values >= column.low - slack).all() and (values <= column.high + slack).all()
    assert not again.unseen
    restored = TableCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert restored.columns_ == codec.columns_


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_column_of_each_dtype_is_decoded_from_its_own_code(name: str) -> None:
    """Encode, then decode everything: the values that come out encode to the same numbers and codes."""
    frame = odd_table(5, [name], 40)
    codec = TableCodec().fit(frame)
    coded = codec.encode(frame)
    again = codec.encode(codec.decode(coded, frame, np.ones(frame.shape, dtype=bool)))
    np.testing.assert_allclose(again.numbers, coded.numbers, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(again.codes, coded.codes)


def fill(frame: pd.DataFrame, value: float, **options: Any) -> pd.Series:
    """The first column with its missing cells decoded from `value`."""
    codec = TableCodec(**options).fit(frame)
    coded = codec.encode(frame)
    numbers, codes = (
        np.full(coded.numbers.shape, value),
        np.full(coded.codes.shape, int(value), dtype=np.int32),
    )
    return codec.decode(Coded(numbers, codes), frame, codec.where(frame)).iloc[:, 0]


@pytest.mark.parametrize(
    ("cells", "value", "text"),
    [
        (["1.50", "2.25", None], 1.999, "2.00"),
        (["1.5", "2", "2.25", None], 2.0, "2"),
        (["7.0", "2.15", None], 3.0, "3.0"),
        (["1,5", "2,25", None], 1.5, "1,5"),
        ([" 12", " 40", None], 30.2, " 30"),
        (["-3", "4", None], -99.0, "-3"),
        (["2020-01-31", "2021-01-31", None], 1590000000.0, "2020-05-21"),
        (["1/2/2020", "31/12/2020", None], 1580600000.0, "2/2/2020"),
        (["2020-01-01T10:00:00Z", "2020-01-02T10:30:00Z", None], 1577880000.4, "2020-01-01T12:00:00Z"),
        (["00:10:00", "01:30:00", None], 1234.0, "00:21:00"),
    ],
)
def test_text_is_filled_in_the_form_of_its_column(cells: list[str | None], value: float, text: str) -> None:
    assert fill(pd.DataFrame({"c": cells}), value)[len(cells) - 1] == text


def test_numbers_keep_decimals_and_range() -> None:
    frame = pd.DataFrame({"x": [0.1, 2.25, np.nan]})
    assert fill(frame, 1.2345)[2] == 1.23
    assert fill(frame, 99.0)[2] == 2.25
    assert fill(pd.DataFrame({"x": [1.0, 7.0, 3.0, np.nan]}), 4.6)[3] == 5.0


def test_days_in_a_time_zone_stay_midnights_there() -> None:
    days = pd.DatetimeIndex(["2024-03-30", "2024-04-02", None]).tz_localize("Europe/Berlin")
    filled = fill(
        pd.DataFrame({"day": days}), pd.Timestamp("2024-04-01 01:00", tz="Europe/Berlin").timestamp()
    )
    assert filled[2] == pd.Timestamp("2024-04-01", tz="Europe/Berlin")


def test_big_integers_beside_a_blank_are_ids_and_stay_exact() -> None:
    frame = pd.DataFrame({"n": ["9007199254740993", None, "9007199254740995"]})
    codec = TableCodec().fit(frame)
    assert codec.columns_[0].kind == "id" and not codec.where(frame).any() and codec.empty(frame)[1, 0]
    assert codec.decode(codec.encode(frame), frame, np.ones((3, 1), bool)).equals(frame)


def test_infinities_are_named_by_column_rows_and_count() -> None:
    frame = pd.DataFrame(
        {"ok": np.arange(9.0), "x": [np.inf, 1, -np.inf, np.inf, 2, np.inf, np.inf, np.inf, 3]}
    )
    with pytest.raises(InputError, match=r"infinity: column 'x', rows 1, 3, 4, 6, 7, ... \(6 in all\)"):
        TableCodec().fit(frame)
    codec = TableCodec().fit(pd.DataFrame({"x": [1.0, 2.0]}))
    with pytest.raises(InputError, match=r"row 12 \(1 in all\)"):
        codec.encode(pd.DataFrame({"x": [1.0, np.inf]}), first_row=10)
    with pytest.raises(InputError, match="number-too-large"):
        TableCodec().fit(pd.DataFrame({"x": [1.0, 1e300]}))


def test_text_among_numbers_is_refused_with_its_rows_and_never_shown() -> None:
    cells = [str(v) for v in range(40)]
    cells[6] = cells[30] = "secret"
    with pytest.raises(InputError, match=r"column 'x', rows 7, 31 \(2 in all\)") as caught:
        TableCodec().fit(pd.DataFrame({"x": cells}))
    assert "secret" not in str(caught.value)
    codes = pd.DataFrame({"x": ["1", "2", "?", "3"] * 5})
    with pytest.raises(InputError, match=r"if '\?' stands for missing"):
        TableCodec().fit(codes)
    codec = TableCodec(missing=("?",)).fit(codes)
    assert (
        codec.columns_[0].kind == "integer"
        and codec.where(codes)[:, 0].tolist() == [False, False, True, False] * 5
    )


def test_na_of_namibia_stays_text() -> None:
    frame = pd.DataFrame({"country": ["NA", "DE", "None", "null", "NA"] * 9})
    codec = TableCodec().fit(frame)
    assert not codec.empty(frame).any() and set(codec.columns_[0].levels) == {"NA", "DE", "None", "null"}


def test_missing_codes_match_text_and_numbers_and_can_be_given_by_column() -> None:
    frame = pd.DataFrame({"a": [-999.0, 1.0, 2.0], "b": ["-999.0", "4", "5"], "c": [0, 1, 2]})
    assert (
        TableCodec(missing=(-999,)).fit(frame).where(frame).tolist()
        == [[True, True, False]] + [[False] * 3] * 2
    )
    assert TableCodec(missing={"c": ("0",)}).fit(frame).where(frame)[:, 2].tolist() == [True, False, False]


def test_columns_may_be_reordered_but_not_lack_or_be_too_many() -> None:
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})
    codec = TableCodec().fit(frame)
    np.testing.assert_array_equal(codec.encode(frame[["b", "a"]]).numbers, codec.encode(frame).numbers)
    with pytest.raises(InputError, match="lacks 'b' and has 'c'"):
        codec.encode(frame.rename(columns={"b": "c"}))
    with pytest.raises(InputError, match="duplicate-column"):
        TableCodec().fit(frame.set_axis(["a", "a"], axis=1))
    with pytest.raises(InputError, match="unknown-column"):
        TableCodec(kinds={"z": "id"}).fit(frame)


def test_unseen_categories_are_missing_to_the_model_and_counted_yet_stay_in_the_table() -> None:
    codec = TableCodec().fit(pd.DataFrame({"c": ["a", "b", "a"]}))
    new = pd.DataFrame({"c": ["a", "z", None]})
    coded = codec.encode(new)
    assert coded.codes[:, 0].tolist() == [0, -1, -1] and coded.unseen == (("c", 1),)
    assert codec.where(new)[:, 0].tolist() == [False, False, True]
    out = codec.decode(Coded(np.zeros((3, 0)), np.ones((3, 1), np.int32)), new, codec.where(new))
    assert out["c"].tolist() == ["a", "z", "b"]


def test_thousands_of_levels_are_pooled_and_drawn_by_frequency() -> None:
    g = np.random.default_rng(0)
    words = [f"w{int(v)}" for v in g.zipf(1.3, 30_000) % 5000]
    frame = pd.DataFrame({"w": words})
    codec = TableCodec(max_levels=50).fit(frame)
    column = codec.columns_[0]
    assert codec.cardinalities == (51,) and len(column.levels) == len(column.pooled) == 50
    assert min(column.counts) >= max(column.pooled_counts)
    coded = codec.encode(frame)
    assert (coded.codes >= 0).all() and not coded.unseen  # rare levels share the last code
    n = 4000
    like = pd.DataFrame({"w": [None] * n})
    other = Coded(np.zeros((n, 0)), np.full((n, 1), 50, np.int32))
    drawn_ = codec.decode(other, like, np.ones((n, 1), bool), uniform=g.random((n, 1)))["w"].value_counts()
    share = np.array(column.pooled_counts) / sum(column.pooled_counts)
    observed = np.array([drawn_.get(level, 0) for level in column.pooled]) / n
    assert np.abs(observed - share).max() < 4.5 * np.sqrt(share.max() / n)
    assert set(codec.decode(other, like, np.ones((n, 1), bool))["w"]) == {column.pooled[0]}


def test_a_category_that_the_table_lacks_is_added_to_its_dtype() -> None:
    codec = TableCodec().fit(pd.DataFrame({"c": pd.Categorical(["a", "b"])}))
    like = pd.DataFrame({"c": pd.Categorical(["a", None])})
    out = codec.decode(Coded(np.zeros((2, 0)), np.ones((2, 1), np.int32)), like, codec.where(like))
    assert out["c"].tolist() == ["a", "b"] and out["c"].cat.categories.tolist() == ["a", "b"]


@pytest.mark.parametrize("empty", [[None], [np.nan]])
def test_a_row_of_nothing_is_filled_with_what_was_learned(empty: list[Any]) -> None:
    train = pd.DataFrame({"c": ["a", "b", "a"], "x": [1.5, 2.5, 3.5], "b": [True, False, True]})
    codec = TableCodec().fit(train)
    like = pd.DataFrame(dict.fromkeys(train, empty))
    out = codec.decode(Coded(np.array([[2.5]]), np.array([[1, 1]], np.int32)), like, codec.where(like))
    assert out.iloc[0].tolist() == ["b", 2.5, True]


def test_encode_says_which_cells_do_not_fit() -> None:
    codec = TableCodec().fit(pd.DataFrame({"x": ["1.5", "2.5"], "d": ["2020-01-13", "2020-01-14"]}))
    with pytest.raises(InputError, match=r"text-in-number-column: column 'x', row 2 \(1 in all\)"):
        codec.encode(pd.DataFrame({"x": ["1.5", "two"], "d": ["2020-01-13", None]}))
    with pytest.raises(InputError, match=r"text-in-datetime-column: column 'd'"):
        codec.encode(pd.DataFrame({"x": ["1.5", " "], "d": ["2020-01-13", "13.1.2020"]}))
    with pytest.raises(InputError, match="wrong-dtype"):
        codec.encode(pd.DataFrame({"x": pd.to_datetime(["2020-01-01"]), "d": [None]}))

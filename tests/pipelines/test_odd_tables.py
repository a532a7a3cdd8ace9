"""Observed cells come back bit for bit, whatever the table: by the real model, and by a stand-in for it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ebbtide.domains.tabular.model import ModelSettings
from ebbtide.pipelines.frames import impute
from ebbtide.shared.errors import InputError

TINY = ModelSettings(
    trees=(1, 1), folds=2, copies=1, steps=4, batch_size=64, width=8, depth=1, head_width=8, head_depth=1,
    sampler_steps=2,
)  # fmt: skip

anything = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=False, width=32),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.text(max_size=4),
    st.datetimes(min_value=pd.Timestamp("1900-01-01"), max_value=pd.Timestamp("2100-01-01")),
)
moments = st.datetimes(min_value=pd.Timestamp("1970-01-01"), max_value=pd.Timestamp("2030-01-01"))
SORTS: list[tuple[st.SearchStrategy[Any], list[Any]]] = [
    (st.floats(-1e6, 1e6), [None, object, "float64", "float32", "Float64"]),
    (st.sampled_from([0.0, -0.0, 5e-324, 1e300, 0.1]), ["float64"]),
    (st.integers(-5, 5), [None, object, "Int64", "Int8", "float16"]),
    (st.integers(2**53 - 2, 2**53 + 2), ["Int64", object]),
    (st.booleans(), [None, object, "boolean"]),
    (st.text(max_size=2), [None, object, "string"]),
    (st.sampled_from(["low", "mid", "high"]), [pd.CategoricalDtype(["low", "mid", "high", "never"], True)]),
    (st.sampled_from(["=1+1", "NA", "00123", "1,5", "?"]), [None, "category"]),
    (moments, ["datetime64[ns]", "datetime64[s]", "datetime64[ns, Europe/Berlin]"]),
    (st.timedeltas(pd.Timedelta("-9D"), pd.Timedelta("9D")), ["timedelta64[ns]"]),
    (anything, [object]),
]
labels = st.lists(
    st.one_of(st.text(max_size=3), st.integers(0, 9)), min_size=1, max_size=4, unique_by=str
).filter(lambda names: all(not isinstance(name, str) or name.strip() for name in names))


@st.composite
def odd_tables(draw: st.DrawFn) -> pd.DataFrame:
    """Columns of every dtype with cells of one or several sorts, some all missing, some constant; rows enough
    for a network now and then; an index of numbers or of texts that repeat."""
    rows = draw(st.one_of(st.integers(1, 12), st.integers(30, 40)))
    columns: dict[Any, pd.Series[Any]] = {}
    for name in draw(labels):
        sort, dtypes = draw(st.sampled_from(SORTS))
        # A few different values, repeated: quick to make, and constant columns and piles are among them.
        few = draw(st.lists(st.one_of(st.none(), sort), min_size=1, max_size=6))
        picks = draw(st.lists(st.integers(0, len(few) - 1), min_size=rows, max_size=rows))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 1e6 as float16 and the like is inf, and refused
            columns[name] = pd.Series([few[k] for k in picks], dtype=draw(st.sampled_from(dtypes)))
    table = pd.DataFrame(columns)
    if draw(st.booleans()):
        table.index = pd.Index([f"row {k % 7}" for k in range(rows)], name="who")
    return table


def require_observed_kept(table: pd.DataFrame, **options: Any) -> bool:
    """Fill the table and compare every cell that was not; False where it was refused."""
    before = table.copy(deep=True)
    try:
        result = impute(table, draws=2, details=True, **options)
    except InputError:
        return False
    pd.testing.assert_frame_equal(table, before)  # the caller's own is left alone
    blank = table.astype(object).map(lambda cell: isinstance(cell, str) and not cell.strip())
    assert not (result.mask & table.notna() & ~blank).any().any()  # only empty cells are ever filled
    for made in (result.table, *result.tables):
        assert made.columns.equals(table.columns) and made.index.equals(table.index)
        assert made.index.name == table.index.name and (made.dtypes == table.dtypes).all()
        for place in range(table.shape[1]):
            kept = ~result.mask.iloc[:, place].to_numpy()
            require_same_bits(made.iloc[:, place][kept], table.iloc[:, place][kept])
    return True


def require_same_bits(new: pd.Series[Any], old: pd.Series[Any]) -> None:
    """The very bits for numbers and times (-0.0 is not 0.0), type and value for objects."""
    pd.testing.assert_series_equal(new, old, check_exact=True)
    if old.dtype.kind in "fmM" and isinstance(old.dtype, np.dtype):
        assert new.to_numpy().tobytes() == old.to_numpy().tobytes()
    for one, other in zip(new.astype(object), old.astype(object), strict=True):
        assert type(one) is type(other) and (pd.isna(other) if pd.isna(one) else one == other)


ALLOWED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
odd = settings(deadline=None, suppress_health_check=ALLOWED)


@settings(odd, max_examples=60)
@given(odd_tables())
@pytest.mark.usefixtures("gaussian")
def test_observed_cells_of_odd_tables_come_back_as_they_were(table: pd.DataFrame) -> None:
    require_observed_kept(table)


# Shrinking runs the model hundreds of times; a failing table of twelve rows needs none.
@settings(odd, max_examples=40, phases=[Phase.explicit, Phase.generate])
@given(odd_tables())
def test_so_they_do_from_the_real_model(table: pd.DataFrame) -> None:
    require_observed_kept(table, settings=TINY)


@pytest.mark.slow
@settings(odd, max_examples=3000)
@given(odd_tables())
@pytest.mark.usefixtures("gaussian")
def test_so_do_those_of_thousands_of_odd_tables(table: pd.DataFrame) -> None:
    require_observed_kept(table)


@pytest.mark.slow
@settings(odd, max_examples=1000)
@given(odd_tables())
def test_so_do_those_of_a_thousand_from_the_real_model(table: pd.DataFrame) -> None:
    require_observed_kept(table, settings=TINY)

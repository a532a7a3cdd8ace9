"""`ebbtide.impute(df)`: what stays, what is filled, and on what a draw depends."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular import fitted as fitted_module
from ebbtide.domains.tabular.filling import half_sample_mode
from ebbtide.domains.tabular.fitted import FittedTable, content_keys
from ebbtide.pipelines.frames import canonical, impute, row_keys
from ebbtide.shared.errors import InputError

pytestmark = pytest.mark.usefixtures("gaussian")


def mixed(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """A table with one column of each common sort, a fifth of its cells missing."""
    rng = np.random.default_rng(seed)
    height = rng.normal(170, 10, rows).round(1)
    table = pd.DataFrame(
        {
            "id": [f"{k:05d}" for k in range(rows)],
            "height": height,
            "weight": (height - 100 + rng.normal(0, 8, rows)).round(1),
            "children": pd.array(rng.integers(0, 5, rows), dtype="Int64"),
            "sex": rng.choice(["f", "m"], rows),
            "smoker": pd.array(rng.random(rows) < 0.3, dtype="boolean"),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], rows), ["S", "M", "L"], ordered=True),
            "seen": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, rows), unit="D"),
        }
    )
    for name in table.columns[1:]:
        table.loc[rng.random(rows) < 0.2, name] = None
    return table


def test_observed_cells_stay_and_missing_ones_are_filled() -> None:
    table = mixed()
    table.index = pd.Index(np.arange(len(table)) * 7 + 3, name="row")
    before = table.copy(deep=True)
    completed = impute(table, draws=3)
    pd.testing.assert_frame_equal(table, before)
    assert completed.index.equals(table.index) and list(completed.columns) == list(table.columns)
    assert (completed.dtypes == table.dtypes).all()
    assert not completed.isna().any().any()
    for name in table.columns:
        known = table[name].notna()
        pd.testing.assert_series_equal(completed[name][known], table[name][known])


def test_details_say_what_was_filled_and_how_surely() -> None:
    table = mixed()
    result = impute(table, draws=20, details=True)
    assert (result.mask == table.isna()).all().all()
    known = table["height"].notna()
    assert (result.std["height"][known] == 0).all() and (result.std["height"][~known] > 0).all()
    assert (result.lower["height"] <= result.upper["height"]).all()
    pd.testing.assert_series_equal(result.lower["height"][known], table["height"][known])
    assert (result.probability["sex"][table["sex"].notna()] == 1).all()
    assert result.probability["sex"][table["sex"].isna()].between(0.5, 1, inclusive="left").all()
    assert len(result.tables) == 20
    draws = np.stack([drawn["height"][~known] for drawn in result.tables])
    assert draws.std() > 0
    assert result.std["height"][~known].mean() == pytest.approx(draws.std(0, ddof=1).mean(), rel=0.05)


def test_statistics() -> None:
    table = mixed()
    result = impute(table, draws=9, details=True)
    sample = impute(table, draws=9, statistic="sample", model=result.model)
    pd.testing.assert_frame_equal(sample, result.tables[0])
    middle = impute(table, draws=9, statistic="median", model=result.model)
    pd.testing.assert_frame_equal(middle, result.table)  # of a Gaussian, median and mean are one
    mode = impute(table, draws=9, statistic="mode", model=result.model)["height"]
    draws = np.stack([drawn["height"] for drawn in result.tables])
    np.testing.assert_allclose(mode, half_sample_mode(draws), atol=1.0)  # these draws are rounded already
    with pytest.raises(InputError, match="average"):
        impute(table, statistic="average")  # type: ignore[call-overload]


def test_the_mode_is_where_draws_lie_densest() -> None:
    draws = np.concatenate([np.zeros(12), np.linspace(1, 9, 8)])[:, None]
    assert half_sample_mode(draws) == 0
    skewed = np.random.default_rng(0).gamma(3.0, size=(20_001, 1))
    assert half_sample_mode(skewed) == pytest.approx(2.0, abs=0.35)  # mode of Gamma(3) is 2, its mean 3


def test_draws_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    table = mixed(600)
    whole = impute(table, draws=2, statistic="sample")
    monkeypatch.setattr(fitted_module, "BYTES_IN_MEMORY", 1)  # pieces of 256 rows
    pd.testing.assert_frame_equal(impute(table, draws=2, statistic="sample"), whole)


def test_with_a_key_the_order_of_rows_does_not_matter() -> None:
    table = mixed()
    whole = impute(table, draws=2, statistic="sample", key="id")
    order = np.random.default_rng(1).permutation(len(table))
    shuffled = impute(table.iloc[order], draws=2, statistic="sample", key="id")
    pd.testing.assert_frame_equal(shuffled, whole.iloc[order])
    unkeyed = impute(table.iloc[order], draws=2, statistic="sample")
    assert not unkeyed.equals(whole.iloc[order])


@pytest.mark.parametrize(
    "cells, code", [(["a", "b", "a"], "key-duplicate"), (["a", None, "c"], "key-missing")]
)
def test_bad_keys_are_refused_with_their_rows(cells: list[str | None], code: str) -> None:
    table = pd.DataFrame({"key": cells, "x": [1.0, None, 3.0]})
    with pytest.raises(InputError, match=code) as caught:
        impute(table, key="key")
    assert "row" in str(caught.value)


def test_only_the_columns_asked_for() -> None:
    table = mixed()
    completed = impute(table, draws=2, columns=["height"])
    assert completed["height"].notna().all()
    pd.testing.assert_frame_equal(completed.drop(columns="height"), table.drop(columns="height"))
    with pytest.raises(InputError, match="did you mean 'height'"):
        impute(table, draws=2, columns=["heigth"])
    with pytest.raises(InputError, match="column-not-modelled"):
        impute(table, draws=2, columns=["id"])


def test_missing_codes_are_filled_and_nothing_else() -> None:
    table = pd.DataFrame({"a": [1.0, 2.0, -999.0, 4.0] * 5, "b": ["x", "?", "y", "x"] * 5})
    completed = impute(table, draws=2, missing=("?", -999))
    assert (completed["a"] != -999).all() and (completed["b"] != "?").all()
    assert (impute(table, draws=2) == table).all().all()


def test_an_unseen_category_stays_and_counts_as_missing_for_the_rest() -> None:
    train = pd.DataFrame({"a": [1.0, 2.0] * 10, "b": ["x", "y"] * 10})
    model = FittedTable.fit(train)
    new = pd.DataFrame({"a": [None, 1.0], "b": ["z", None]})
    completed = impute(new, model=model, draws=2)
    assert completed["b"][0] == "z" and completed["a"].notna().all() and completed["b"][1] in ("x", "y")


def test_a_column_without_a_cell_is_kept() -> None:
    table = mixed().assign(nothing=np.nan)
    result = impute(table, draws=2, details=True)
    assert result.table["nothing"].isna().all() and not result.mask["nothing"].any()
    assert any(fault.code == "column-empty" and "nothing" in fault.where for fault in result.model.warnings)


def test_rows_are_named_by_what_they_say() -> None:
    table = pd.DataFrame({"a": [1.0, 2.0, 1.0, -0.0, 0.0], "b": ["x", "x", "x", "y", "y"]})
    codec = FittedTable.fit(table).codec
    keys = content_keys(codec.encode(table))
    assert keys[0] == keys[2] and keys[3] == keys[4] and len(set(keys.tolist())) == 3


def test_what_is_not_a_table_is_refused() -> None:
    with pytest.raises(InputError, match="not-a-frame"):
        impute([[1.0, 2.0]])  # type: ignore[call-overload]
    with pytest.raises(InputError, match="table-no-rows"):
        impute(pd.DataFrame({"a": []}))
    with pytest.raises(InputError, match="table-no-columns"):
        impute(pd.DataFrame(index=[0, 1]))


def test_what_is_learnt_from_does_not_depend_on_the_order_of_keyed_rows() -> None:
    table = mixed()
    order = np.random.default_rng(1).permutation(len(table))
    shuffled = table.iloc[order]
    first = canonical(table, row_keys(table, "id"))
    pd.testing.assert_frame_equal(canonical(shuffled, row_keys(shuffled, "id")), first)
    assert not first.index.equals(table.index)


def test_errors_count_rows_from_the_beginning_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_module, "BYTES_IN_MEMORY", 1)  # pieces of 256 rows
    numbers = pd.DataFrame({"a": [f"{k / 7:.3f}" for k in range(400)], "b": ["1.5", "2.5"] * 200})
    model = FittedTable.fit(numbers)
    numbers.loc[300, "a"] = "twelve"
    with pytest.raises(InputError, match="301"):
        impute(numbers, model=model, draws=2)

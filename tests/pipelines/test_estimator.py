"""`ebbtide.TabularImputer` keeps scikit-learn's contract and ours."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from ebbtide.domains.tabular import fitted
from ebbtide.pipelines.estimator import TabularImputer
from ebbtide.shared.errors import InputError

pytestmark = pytest.mark.usefixtures("gaussian")


@parametrize_with_checks([TabularImputer(draws=3)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def holes(rows: int = 80, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4))
    X[rng.random(X.shape) < 0.2] = np.nan
    return X


def test_fit_on_one_table_fill_another() -> None:
    train, test = holes(), holes(30, seed=1)
    imputer = TabularImputer(draws=5).fit(train)
    filled = imputer.transform(test)
    known = ~np.isnan(test)
    assert filled.shape == test.shape and not np.isnan(filled).any()
    assert filled[known].tobytes() == test[known].tobytes()
    with pytest.raises(ValueError, match="features"):
        imputer.transform(test[:, :3])


def test_rows_do_not_depend_on_their_neighbours() -> None:
    X = holes()
    imputer = TabularImputer(draws=3, statistic="sample").fit(X)
    whole = imputer.transform(X)
    order = np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(imputer.transform(X[order]), whole[order])
    assert np.array_equal(np.vstack([imputer.transform(row[None]) for row in X[:9]]), whole[:9])


def test_frames_come_back_as_frames() -> None:
    X = pd.DataFrame(holes(), columns=list("abcd"), index=np.arange(80) + 5)
    X["sex"] = np.where(X["a"] > 0, "f", "m")
    X.loc[8, "sex"] = None
    imputer = TabularImputer(draws=3).fit(X)
    filled = imputer.transform(X)
    assert isinstance(filled, pd.DataFrame) and filled.index.equals(X.index)
    assert (filled.dtypes == X.dtypes).all() and filled.notna().all().all()
    assert list(imputer.get_feature_names_out()) == list(X.columns)
    with pytest.raises(ValueError, match="order"):
        imputer.transform(X[list(X.columns[::-1])])


def test_set_output_and_pipelines() -> None:
    X = holes()
    frame = TabularImputer(draws=2).set_output(transform="pandas").fit_transform(X)
    assert list(frame.columns) == ["x0", "x1", "x2", "x3"]
    model = make_pipeline(TabularImputer(draws=2), LinearRegression()).fit(X, np.arange(80))
    assert np.isfinite(model.predict(X)).all()


def test_columns_without_a_cell_are_kept_and_named() -> None:
    X = np.column_stack([holes(), np.full(80, np.nan)])
    imputer = TabularImputer(draws=2).fit(X)
    filled = imputer.transform(X)
    assert filled.shape == X.shape and np.isnan(filled[:, 4]).all() and not np.isnan(filled[:, :4]).any()
    assert imputer.empty_columns_ == ["x4"]


def test_saved_and_pickled_imputers_fill_alike(tmp_path: Path) -> None:
    X = holes()
    imputer = TabularImputer(draws=3, random_state=7).fit(X)
    imputer.save(tmp_path / "model")
    expected = imputer.transform(X)
    for again in (TabularImputer.load(tmp_path / "model"), pickle.loads(pickle.dumps(imputer))):
        assert np.array_equal(again.transform(X), expected)
    assert not any(path.suffix in (".pkl", ".pt", ".bin") for path in (tmp_path / "model").iterdir())
    assert clone(imputer).get_params() == imputer.get_params()


def test_samples_for_multiple_imputation() -> None:
    X = holes()
    tables = TabularImputer(draws=3).fit(X).sample(X, draws=6)
    assert len(tables) == 6
    gone = np.isnan(X)
    assert all(np.array_equal(table[~gone], X[~gone]) for table in tables)
    assert (np.stack(tables)[:, gone].std(0) > 0).all()


def test_seeds() -> None:
    X = holes()
    first, again, other = (
        TabularImputer(draws=2, statistic="sample", random_state=seed).fit_transform(X)
        for seed in (1, 1, np.random.RandomState(3))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_key_names_the_rows_of_frames() -> None:
    X = pd.DataFrame(holes(), columns=list("abcd")).assign(who=[f"p{k}" for k in range(80)])
    X.loc[1, list("abcd")] = X.loc[0, list("abcd")]
    X.loc[[0, 1], "a"] = np.nan
    keyed = TabularImputer(draws=2, statistic="sample", key="who").fit_transform(X)
    by_content = TabularImputer(draws=2, statistic="sample", kinds={"who": "id"}).fit_transform(X)
    assert keyed.loc[0, "a"] != keyed.loc[1, "a"]
    assert by_content.loc[0, "a"] == by_content.loc[1, "a"]
    with pytest.raises(InputError, match="key-unknown"):
        TabularImputer(key="nobody").fit(holes()).transform(holes())


def test_infinity_is_refused_with_its_row() -> None:
    X = holes()
    X[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"infinity.*x1.*row 4"):
        TabularImputer().fit(X)


def test_the_model_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    X = holes()
    imputer = TabularImputer(draws=2).fit(X)
    monkeypatch.setattr(fitted.TableModel, "fit", None)
    imputer.transform(holes(seed=3))

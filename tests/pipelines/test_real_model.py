"""The promises that lean on the model itself, with a real one made as small as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from ebbtide.domains.tabular import fitted as fitted_module
from ebbtide.domains.tabular.fitted import FittedTable
from ebbtide.domains.tabular.model import ModelSettings
from ebbtide.pipelines.estimator import TabularImputer
from ebbtide.pipelines.frames import impute

TINY = ModelSettings(
    trees=(2, 2), folds=2, copies=1, steps=20, width=16, depth=1, head_width=16, head_depth=1, sampler_steps=3
)


def table(rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=rows)
    frame = pd.DataFrame({"a": a, "b": 2 * a + 0.1 * rng.normal(size=rows), "c": np.where(a > 0, "x", "y")})
    return frame.mask(rng.random(frame.shape) < 0.2)


@pytest.mark.parametrize("columns", [["a"], ["c"], ["a", "c"]])
def test_tables_of_one_and_two_columns(columns: list[str]) -> None:
    given = table(60)[columns]
    result = impute(given, draws=3, settings=TINY, details=True)
    assert result.table.notna().all().all()
    known = given.notna()
    assert (result.table[known] == given[known]).where(known, True).all().all()


def test_draws_are_the_same_in_pieces_alone_and_after_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = table()
    model = FittedTable.fit(given, settings=TINY, device="cpu")
    whole = impute(given, model=model, draws=3, statistic="sample")
    monkeypatch.setattr(fitted_module, "BYTES_IN_MEMORY", 1)  # pieces of 256 rows
    pd.testing.assert_frame_equal(impute(given, model=model, draws=3, statistic="sample"), whole)
    model.save(tmp_path / "model")
    again = impute(given, model=tmp_path / "model", draws=3, statistic="sample")
    pd.testing.assert_frame_equal(again, whole)
    items = np.arange(len(given), dtype=np.int64)
    rows = np.array([7, 250, 31])
    some = model.fill(given.iloc[rows], items[rows], draws=3).draw(0)
    pd.testing.assert_frame_equal(some, whole.iloc[rows])


def test_the_transformer_does_not_mind_company() -> None:
    given = table(80)[["a", "b"]].to_numpy()
    imputer = TabularImputer(draws=2, statistic="sample", settings=TINY).fit(given)
    whole = imputer.transform(given)
    order = np.random.default_rng(0).permutation(len(given))
    assert np.array_equal(imputer.transform(given[order]), whole[order])
    gone = np.flatnonzero(np.isnan(given).any(1))[:3]
    assert all(np.array_equal(imputer.transform(given[row : row + 1]), whole[row : row + 1]) for row in gone)


@pytest.mark.slow
@parametrize_with_checks([TabularImputer(draws=3, settings=TINY)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)

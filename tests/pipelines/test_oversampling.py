"""`ebbtide.Oversampler` by imbalanced-learn's convention, and `ebbtide.Augment` for training loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from torch.utils.data import DataLoader

import ebbtide
from ebbtide.shared.errors import InputError


def imbalanced(seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    y = pd.Series(np.repeat([0, 1, 2], [60, 25, 15]), name="grade", index=np.arange(100) + 500)
    x = pd.DataFrame({"a": rng.standard_normal(100) + 2 * y.to_numpy(), "n": rng.integers(0, 9, 100)})
    x["k"] = np.where(rng.random(100) < 0.5, "u", "v")
    return x.set_index(y.index), y


def test_classes_are_filled_up_and_types_kept(gaussian: object) -> None:
    x, y = imbalanced()
    more_x, more_y = ebbtide.Oversampler(vary=0.5).fit_resample(x, y)
    assert isinstance(more_x, pd.DataFrame) and isinstance(more_y, pd.Series) and more_y.name == "grade"
    assert more_x.dtypes.equals(x.dtypes) and more_y.dtype == y.dtype
    pd.testing.assert_frame_equal(more_x.iloc[:100], x.reset_index(drop=True))
    assert more_y.iloc[:100].tolist() == y.tolist()
    counts = more_y.value_counts()
    assert counts.tolist() == [60, 60, 60]
    mean = more_x["a"].groupby(more_y).mean()
    assert mean[2] - mean[0] > 2.5  # a made row is of its class


def test_arrays_go_in_and_come_out(gaussian: object) -> None:
    x, y = imbalanced()
    array = x[["a", "n"]].to_numpy(np.float32)
    more_x, more_y = ebbtide.Oversampler("minority", vary=0.5).fit_resample(array, y.to_numpy())
    assert more_x.dtype == np.float32 and more_x.shape[1] == 2 and np.array_equal(more_x[:100], array)
    assert np.bincount(more_y).tolist() == [60, 25, 60]


@pytest.mark.parametrize(
    "strategy, counts", [({2: 40}, [60, 25, 40]), (0.5, [60, 30, 30]), ("not majority", [60, 60, 60])]
)
def test_strategies(gaussian: object, strategy: object, counts: list[int]) -> None:
    x, y = imbalanced()
    _, more_y = ebbtide.Oversampler(strategy, vary=0.5).fit_resample(x, y)  # type: ignore[arg-type]
    assert np.bincount(more_y).tolist() == counts


def test_with_a_factor_every_class_grows(gaussian: object) -> None:
    x, y = imbalanced()
    more_x, more_y = ebbtide.Oversampler(factor=3, vary=0.5).fit_resample(x, y)
    assert np.bincount(more_y).tolist() == [180, 180, 180]
    assert len(more_x.iloc[100:].drop_duplicates()) < 250  # rows stand there several times
    assert np.bincount(ebbtide.Oversampler(0.5, factor=2, vary=0.5).fit_resample(x, y)[1]).tolist() == [
        60,
        60,
        60,
    ]


def test_new_rows_are_drawn_by_a_model_of_their_class() -> None:
    x, y = imbalanced()
    sampler = ebbtide.Oversampler()
    more_x, more_y = sampler.fit_resample(x, y)
    assert set(sampler.dropped_) == {"near copies", "implausible"} and "generate" in sampler.model_.can
    made = more_x.iloc[100:].groupby(more_y.iloc[100:])["a"].mean()
    assert more_x.dtypes.equals(x.dtypes) and made[2] > made[1] + 0.5


@pytest.mark.parametrize(
    "strategy, code", [({0: 10}, "fewer rows"), (1.5, "no strategy"), ("most", "no strategy")]
)
def test_strategies_that_cannot_be(strategy: object, code: str) -> None:
    with pytest.raises(InputError, match=code):
        ebbtide.Oversampler(strategy).fit_resample(*imbalanced())  # type: ignore[arg-type]


def test_one_class_and_unequal_lengths_are_refused() -> None:
    x, y = imbalanced()
    with pytest.raises(InputError, match="one-class"):
        ebbtide.Oversampler().fit_resample(x, y * 0)
    with pytest.raises(InputError, match="lengths-differ"):
        ebbtide.Oversampler().fit_resample(x, y[:-1])


def test_it_is_cloned_like_any_estimator() -> None:
    copy = clone(ebbtide.Oversampler(0.5, vary=0.2, random_state=3))
    assert copy.get_params()["vary"] == 0.2 and copy.random_state == 3


def test_a_loader_sees_every_real_sample_once_and_the_share_of_synthetic_ones() -> None:
    mixed = ebbtide.Augment(list(range(30)), [-1 - k for k in range(50)], share=0.25)
    seen = [int(x) for batch in DataLoader(mixed, batch_size=7, shuffle=True) for x in batch]
    assert len(seen) == 40 and sorted(x for x in seen if x >= 0) == list(range(30))
    assert [mixed.is_synthetic(k) for k in (0, 29, 30, 39)] == [False, False, True, True]


def test_another_epoch_shows_other_synthetic_samples_and_the_same_seed_the_same() -> None:
    mixed, again = (ebbtide.Augment(range(10), range(1000, 9000), seed=4) for _ in range(2))
    first = [mixed[k] for k in range(10, 20)]
    assert first == [again[k] for k in range(10, 20)] and len(set(first)) > 8
    mixed.set_epoch(1)
    assert first != [mixed[k] for k in range(10, 20)] and mixed[3] == 3
    assert len(ebbtide.Augment(range(10), [], share=0)) == 10
    with pytest.raises(IndexError):
        mixed[20]


@pytest.mark.parametrize("share, synthetic", [(1.0, [1]), (0.5, [])])
def test_what_cannot_be_mixed_is_refused(share: float, synthetic: list[int]) -> None:
    with pytest.raises(InputError):
        ebbtide.Augment([1], synthetic, share)

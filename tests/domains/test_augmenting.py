"""Rows for a training set: how many, which are dropped, SMOTE's geometry, a proof that sees no test row."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular.augmenting import (
    ROUNDS,
    Sieve,
    Target,
    columns_of,
    emptied,
    enough,
    make_rows,
    place_of,
    wanted,
)
from ebbtide.domains.tabular.codec import Coded, TableCodec
from ebbtide.domains.tabular.measures.downstream import (
    NOTHING,
    SMOTE,
    WEIGHTS,
    Fold,
    Proof,
    gain,
    made_by,
    nothing,
    prove,
    smote,
    verdict,
)
from ebbtide.domains.tabular.teaching import Teacher, allotted, copies_of, pooled, trust
from ebbtide.shared.errors import InputError


def people(n: int, seed: int, *, ill: float = 0.3) -> pd.DataFrame:
    """Two classes that a line tells apart, with noise; a category that follows them."""
    rng = np.random.default_rng(seed)
    sick = rng.random(n) < ill
    a, b = rng.standard_normal((2, n)) + np.where(sick, 0.8, 0)
    ward = np.where(rng.random(n) < np.where(sick, 0.7, 0.3), "north", "south")
    return pd.DataFrame({"a": a, "b": b, "ward": ward, "outcome": np.where(sick, "ill", "well")})


def fold_of(frame: pd.DataFrame, counts: list[int]) -> Fold:
    codec = TableCodec().fit(frame)
    place, _ = place_of(codec, "outcome", balance=True, where="")
    return Fold(frame, codec.encode(frame), codec, place, np.array(counts), 0)


# ------------------------------------------------------------------------------------------- how many, which


def test_balance_fills_up_to_the_largest_class_and_a_factor_times_that() -> None:
    assert wanted(np.array([10, 4, 7]), balance=True).tolist() == [0, 6, 3]
    assert wanted(np.array([10, 4, 0]), balance=True, factor=1.5).tolist() == [5, 11, 0]
    assert wanted(np.array([10, 4]), balance=False).tolist() == [10, 4]


def test_a_column_to_predict_is_named_guessed_or_refused() -> None:
    codec = TableCodec().fit(people(60, 0))
    assert place_of(codec, None, balance=False, where="")[0].name == "outcome"
    assert place_of(codec, "ward", balance=True, where="")[0].name == "ward"
    with pytest.raises(InputError, match=r"not-balanceable.*number"):
        place_of(codec, "a", balance=True, where="t.csv")
    with pytest.raises(InputError, match=r"target-unknown.*did you mean 'ward'\?"):
        place_of(codec, "wrad", balance=False, where="t.csv")


def test_the_levels_of_a_target_are_counted() -> None:
    frame = people(50, 3)
    codec = TableCodec().fit(frame)
    coded = codec.encode(frame)
    target = Target.of(place_of(codec, "outcome", balance=True, where="")[0], coded)
    assert dict(zip(target.levels, target.counts, strict=True)) == frame["outcome"].value_counts().to_dict()
    labels = target.labels(coded)
    assert labels is not None and labels.tolist() == frame["outcome"].tolist()


def test_near_copies_and_the_implausible_are_told_from_strangers() -> None:
    frame, strangers = people(300, 1), people(300, 2)
    codec = TableCodec().fit(frame)
    sieve = Sieve.of(columns_of(codec), codec.encode(frame))
    copies, odd = sieve.judge(codec.encode(strangers))
    assert copies.mean() < 0.03 and odd.mean() < 0.03
    jittered = frame.assign(a=frame["a"] + 1e-4)
    copies, _ = sieve.judge(codec.encode(jittered))
    assert copies.mean() > 0.95
    copies, _ = sieve.judge(codec.encode(frame))
    assert copies.all()
    far = strangers.assign(a=strangers["a"] + 9, b=strangers["b"] - 9)
    copies, odd = sieve.judge(codec.encode(far))
    assert odd.mean() > 0.95 and not copies.any()


class Half:
    """Every second row is a real one."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame, self.asked = frame, list[tuple[Hashable | None, int]]()

    def make(self, level: Hashable | None, count: int, seed: int) -> pd.DataFrame:
        self.asked.append((level, count))
        made = people(count, seed, ill=1.0 if level == "ill" else 0.0)
        made.iloc[::2] = self.frame[self.frame["outcome"] == level].iloc[: len(made.iloc[::2])].to_numpy()
        return made


def test_what_is_dropped_is_counted_and_made_up_for() -> None:
    frame = people(200, 1)
    codec = TableCodec().fit(frame)
    sieve = Sieve.of(columns_of(codec), codec.encode(frame))
    maker = Half(frame)
    made = make_rows(maker, codec, sieve, ["ill", "well"], np.array([40, 0]), 0)
    assert made.frame["outcome"].eq("ill").all()
    assert made.drawn == len(made.frame) + made.copies + made.implausible
    assert made.short == 40 - len(made.frame) < 10
    assert made.copies >= 35 and len(maker.asked) <= ROUNDS
    assert not pd.merge(made.frame, frame).shape[0]
    assert [n for _, n in maker.asked] == sorted((n for _, n in maker.asked), reverse=True)


def test_emptied_cells_are_missing_and_others_untouched() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "flag": [True, False, True], "t": ["x", "y", "z"]})
    where = np.array([[True, False, False], [False, True, False], [False, False, True]])
    out = emptied(frame, where)
    assert out.isna().to_numpy().tolist() == where.tolist()
    assert out.loc[1, "n"] == 2 and out.loc[0, "flag"] is True and out.loc[0, "t"] == "x"
    assert frame.notna().all().all()


# ----------------------------------------------------------------------------------------------------- SMOTE


def test_smote_lies_between_neighbours_of_the_class() -> None:
    frame = people(80, 4)
    fold = fold_of(frame, [0, 0])
    level = list(fold.target.column.levels).index("ill")
    counts = np.zeros(2, int)
    counts[level] = 200
    made = smote(Fold(frame, fold.coded, fold.codec, fold.target, counts, 0))
    assert len(made) == 200 and (made.codes[:, fold.target.at] == level).all()
    own = fold.coded.numbers[fold.coded.codes[:, fold.target.at] == level]
    i, j = np.triu_indices(len(own), 1)
    lengths = np.linalg.norm(own[i] - own[j], axis=1)
    for row in made.numbers[:50]:
        detour = np.linalg.norm(own[i] - row, axis=1) + np.linalg.norm(own[j] - row, axis=1) - lengths
        assert detour.min() < 1e-9  # on a segment between two rows of the class
    assert made.numbers.min() >= own.min() and made.numbers.max() <= own.max()


def test_smote_takes_the_commonest_level_and_keeps_what_is_missing() -> None:
    frame = pd.DataFrame(
        {
            "x": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, np.nan] * 3,
            "k": ["u", "u", "u", "u", "u", "v", "u"] * 3,
            "outcome": ["ill"] * 7 + ["well"] * 14,
        }
    )
    fold = fold_of(frame, [0, 0])
    counts = [60 if level == "ill" else 0 for level in fold.target.column.levels]
    made = smote(Fold(frame, fold.coded, fold.codec, fold.target, np.array(counts), 0))
    u = list(next(p for p in fold.places if p.name == "k").column.levels).index("u")
    assert (made.codes[:, 0] == u).all()  # v is nobody's commonest neighbour
    known = made.numbers[~np.isnan(made.numbers)]
    assert len(known) and known.min() >= 0 and known.max() <= 0.5


def test_smote_of_a_single_row_repeats_it() -> None:
    frame = people(30, 5)
    frame.loc[1:, "outcome"] = "well"
    frame.loc[0, "outcome"] = "ill"
    fold = fold_of(frame, [0, 0])
    counts = np.array([5 if level == "ill" else 0 for level in fold.target.column.levels])
    made = smote(Fold(frame, fold.coded, fold.codec, fold.target, counts, 0))
    assert np.array_equal(made.numbers, np.repeat(fold.coded.numbers[:1], 5, axis=0))


# ----------------------------------------------------------------------------------------------- the proof


def test_the_interval_of_a_gain_is_nadeau_and_bengios() -> None:
    apart = np.array([0.01, 0.03, 0.02, 0.0, 0.04])
    found = gain(apart + 0.5, np.full(5, 0.5), test_share=0.25)
    assert found.mean == pytest.approx(0.02)
    error = np.sqrt(apart.var(ddof=1) * (1 / 5 + 1 / 4))
    assert (found.high - found.low) / 2 == pytest.approx(2.7764451 * error, rel=1e-6)
    assert gain(apart[:1], apart[:1], 0.25).high == np.inf


def proved(way: object, *, n: int = 90, balance: bool = False, seen: list[Fold] | None = None) -> Proof:
    frame = people(n, 7)
    codec = TableCodec().fit(frame)

    def spied(fold: Fold) -> Coded:
        if seen is not None:
            seen.append(fold)
        return way(fold)  # type: ignore[operator, no-any-return]

    return prove(
        frame,
        codec,
        "outcome",
        {"ours": spied},
        lambda counts: wanted(counts, balance=balance),
        balance=balance,
        folds=3,
    )


def fresh(fold: Fold) -> Coded:
    return fold.codec.encode(people(2000, 1000 + fold.seed))


def flipped(fold: Fold) -> Coded:
    more = fold.codec.encode(people(400, 2000 + fold.seed))
    codes = more.codes.copy()
    codes[:, fold.target.at] = 1 - codes[:, fold.target.at]
    return Coded(more.numbers, codes)


def test_real_rows_in_disguise_help_and_lies_do_harm() -> None:
    helped, harmed = proved(fresh), proved(flipped)
    assert helped.over(NOTHING).mean > 0.02 and helped.over(NOTHING, "boosted trees").mean > 0.02
    assert harmed.over(NOTHING).high < 0
    assert verdict(harmed)[:2] == ("bad", "It does harm")
    assert "Train on the real data alone." in verdict(harmed)[2]


def test_what_adds_nothing_changes_nothing_and_is_said_so() -> None:
    seen: list[Fold] = []
    proof = proved(nothing, balance=True, seen=seen)
    assert proof.over(NOTHING).mean == 0 and verdict(proof)[1] == "No difference can be seen"
    assert set(proof.scores) == {NOTHING, WEIGHTS, SMOTE, "ours"} and proof.measure == "balanced accuracy"
    assert proof.counts[SMOTE] > 0 and proof.counts["ours"] == 0
    # Nothing that makes rows has a part in what it is tested on, and every row is tested once.
    assert len(seen) == 3
    tests = [set(range(90)) - set(fold.frame.index) for fold in seen]
    assert sorted(row for test in tests for row in test) == list(range(90))
    levels = seen[0].target.column.levels
    made = dict(zip(levels, seen[0].counts, strict=True))
    assert made["well"] == 0 and made["ill"] == -np.diff(
        [seen[0].frame["outcome"].eq(x).sum() for x in ("well", "ill")]
    )


# ------------------------------------------------------------------------------------------ a taught class


def test_a_pool_is_bayes_rule_for_independent_words() -> None:
    said = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.5, 0.5]]])
    product = said[0] * said[1]
    assert np.allclose(pooled(said, np.ones(2)), product / product.sum(1, keepdims=True))
    assert np.allclose(pooled(said, np.array([1.0, 0.0])), said[0])


def test_trust_goes_to_the_model_that_is_right_and_beyond_one_where_it_is_too_cautious() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(4000) * 0.98 + 0.01
    y = (rng.random(4000) < truth).astype(int)
    odds = np.log(truth / (1 - truth))
    timid = 1 / (1 + np.exp(-odds / 2))  # half the log odds: twice the weight mends it
    said = np.stack([np.stack([1 - p, p], 1) for p in (timid, rng.random(4000) * 0.2 + 0.4)])
    weights = trust(said, y)
    assert weights[0] > 1.4 > 0.6 > weights[1]
    together = pooled(said, weights)
    rows = np.arange(4000)
    assert -np.log(together[rows, y]).mean() < min(-np.log(s[rows, y]).mean() for s in said) - 0.02


def test_rows_are_allotted_by_what_is_said_of_them_and_classes_have_exact_counts() -> None:
    rng = np.random.default_rng(5)
    p = rng.dirichlet([2, 1, 1], 400)
    real = np.array([200, 100, 100])
    counts = np.array([2000, 1000, 1000])
    times = allotted(p, real / 400, real, counts, rng)
    assert times.sum(0).tolist() == counts.tolist()
    assert np.abs(times / 10 - p * (counts / (10 * p.sum(0)))).max() < 0.11  # rounded, and no more
    # Wanted alone, a class is drawn from the rows that look like it: its mean is that of p(x | c).
    only = allotted(p, real / 400, real, np.array([0, 0, 3000]), rng)
    assert only.sum(0).tolist() == [0, 0, 3000]
    x = np.arange(400)
    assert only[:, 2] @ x / 3000 == pytest.approx(p[:, 2] @ x / p[:, 2].sum(), rel=0.01)
    # Made for one class more often than it is real, they are weighed back.
    mix = np.array([0.2, 0.2, 0.6])
    odds = p / (real / 400)
    back = p[:, 2] / (odds @ mix)
    skewed = allotted(p, mix, real, np.array([0, 0, 3000]), rng)
    assert skewed[:, 2] @ x / 3000 == pytest.approx(back @ x / back.sum(), rel=0.01)


def test_small_tables_grow_tenfold_and_large_ones_twice() -> None:
    assert enough(np.array([300, 200]), balance=False) == 10
    assert enough(np.array([700, 300]), balance=False) == 6
    assert enough(np.array([9000, 900]), balance=False) == 2
    assert enough(np.array([400, 200, 0]), balance=True) == 7.5
    assert enough(np.array([9000, 900]), balance=True) == 1
    assert [copies_of(total, 500) for total in (100, 500, 2100, 90_000)] == [1, 1, 4, 10]


@dataclass(frozen=True)
class Blind:
    """A model whose rows have nothing to do with the class that they are made for; half are real ones."""

    codec: TableCodec
    real: pd.DataFrame

    def generate(self, count: int, *, seed: int, condition: dict[str, str]) -> pd.DataFrame:
        made = people(count, seed + 17)
        made.iloc[::2] = self.real.iloc[: len(made.iloc[::2])].to_numpy()
        return made.assign(outcome=condition["outcome"])


def test_a_teacher_gives_blind_rows_their_class_and_copies_in_all_but_the_class_are_dropped() -> None:
    frame = people(300, 11)
    fold = fold_of(frame, [0, 0])
    target = Target.of(fold.target, fold.coded)
    counts = np.array([500, 400])
    blind = Blind(fold.codec, frame)
    made, again = (
        made_by(blind, frame, fold.coded, target, counts, None, 3)  # type: ignore[arg-type]
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(made.frame, again.frame)
    assert [made.frame["outcome"].eq(level).sum() for level in target.levels] == [500, 400]
    apart = made.frame.groupby("outcome")["a"].mean()
    assert apart["ill"] - apart["well"] > 0.5
    assert made.short == 0 and made.copies > 50
    rest = ["a", "b", "ward"]
    assert not pd.merge(made.frame[rest], frame[rest]).shape[0]
    assert made.different == len(made.frame[rest].drop_duplicates()) < 450
    # The same row stands under both classes where the teacher is unsure.
    assert made.frame.groupby(rest)["outcome"].nunique().eq(2).mean() > 0.3


def test_a_teacher_is_calibrated_and_beats_a_guess() -> None:
    frame, unseen = people(400, 11), people(2000, 12)
    fold = fold_of(frame, [0, 0])
    say = Teacher.of(fold.places, fold.target, fold.coded, 0)
    rows = fold.codec.encode(unseen)
    said, y = say(rows), rows.codes[:, fold.target.at]
    assert np.allclose(said.sum(1), 1) and abs(said.mean(0) - np.bincount(y) / 2000).max() < 0.06
    assert -np.log(said[np.arange(2000), y]).mean() < 0.5  # 0.61 for the class shares alone

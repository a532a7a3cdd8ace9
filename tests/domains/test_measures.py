"""What tables are compared by: the published formulas, on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular.measures import Pair, assess, encode_pair
from ebbtide.domains.tabular.measures import fidelity as alike
from ebbtide.domains.tabular.measures.assessing import halved
from ebbtide.domains.tabular.measures.learners import (
    class_auc,
    detection_score,
    guess_targets,
    two_sample,
    usefulness,
)
from ebbtide.domains.tabular.measures.manifold import alpha_beta
from ebbtide.domains.tabular.measures.pair import row_keys
from ebbtide.domains.tabular.measures.spaces import Space, nearest, normal_scores
from ebbtide.shared.errors import InputError

NAN = float("nan")


def table(n: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """People with three linked numbers, two categories, missing cells and an id."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n)
    frame = pd.DataFrame(
        {
            "patient_id": [f"p{seed}-{k}" for k in range(n)],
            "weight": np.round(70 + 12 * base + 5 * rng.standard_normal(n) + shift, 3),
            "height": np.round(170 + 8 * base + 3 * rng.standard_normal(n), 3),
            "age": rng.integers(20, 90, n),
            "sex": rng.choice(["f", "m"], n),
            "outcome": np.where(base + 0.5 * rng.standard_normal(n) > 0, "yes", "no"),
        }
    )
    frame.loc[rng.random(n) < 0.15, "height"] = NAN
    return frame


# ----------------------------------------------------------------------------------- columns and pairs


def test_ks_complement_is_one_minus_the_largest_gap() -> None:
    # F_real steps by 1/4 at 1, 2, 3, 4; F_synthetic by 1/2 at 2, 10. Gaps: 1/4, 0, 1/4, 1/2 (at 4), 0.
    assert alike.ks_complement(np.array([1.0, 2, 3, 4]), np.array([2.0, 10, NAN])) == 0.5


def test_tv_complement_leaves_missing_cells_out() -> None:
    # Shares 1/2, 1/2 against 1/4, 1/4, 1/2: half of |1/4| + |1/4| + |1/2| is 1/2.
    assert alike.tv_complement(np.array([0, 0, 1, 1, -1]), np.array([0, 1, 2, 2])) == 0.5


def test_correlation_similarity_halves_the_gap() -> None:
    # r is 1 in the real table, -1 in the other: 1 - 2/2; against r = 0 it is 1 - 1/2.
    up, down, flat = np.array([1.0, 2, 3]), np.array([3.0, 2, 1]), np.array([1.0, -2, 1])
    assert alike.correlation_similarity((up, up), (up, down)) == pytest.approx(0)
    assert alike.correlation_similarity((up, up), (up, flat)) == pytest.approx(0.5)


def test_contingency_similarity_counts_missing_as_a_level() -> None:
    # Cells (0,0), (1,-1) with 1/2 each; the other has (0,0) with 1/2, (1,1) with 1/2.
    real = np.array([0, 1]), np.array([0, -1])
    other = np.array([0, 1]), np.array([0, 1])
    assert alike.contingency_similarity(real, other) == 0.5


def test_numbers_beside_categories_are_cut_over_the_real_range() -> None:
    real = np.arange(11.0)
    codes = alike.binned(np.array([-3.0, 0.5, 9.5, 30, NAN]), real)
    assert codes.tolist() == [1, 1, 10, 10, 11]


@pytest.mark.parametrize(
    "a, b, v",
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0),
        ([0, 0, 1, 1], [0, 0, 0, 1], 3**-0.5),
    ],
)
def test_cramers_v(a: list[int], b: list[int], v: float) -> None:
    # The last: chi^2 of [[2, 0], [1, 1]] is 4 (2 * 1 - 0)^2 / (2 * 2 * 3 * 1) = 4/3, and V^2 = 4/3 / 4.
    assert alike.cramers_v(np.array(a), np.array(b)) == pytest.approx(v)


def test_correlation_ratio() -> None:
    # Level means 1 and 3 about 2: between 4 * 1, total 4 + 4 * 0.25 = 5.
    numbers = np.array([0.5, 1.5, 2.5, 3.5])
    assert alike.correlation_ratio(numbers, np.array([0, 0, 1, 1])) == pytest.approx((4 / 5) ** 0.5)


def test_every_figure_is_perfect_for_the_table_itself() -> None:
    real = table(120, 0)
    pair = encode_pair(real, real)
    assert set(alike.shape(pair, pair.synthetic).values()) == {1.0}
    assert alike.trend(pair, pair.synthetic).values() == pytest.approx([1.0] * 10)
    assert alike.missing_pattern_similarity(pair, pair.synthetic) == 1.0
    assert alike.violations(pair, "synthetic").any_rule == 0.0


def test_missing_patterns_are_compared_row_by_row() -> None:
    real = pd.DataFrame({"a": [1.5, NAN] * 20, "b": [NAN, 1.5] * 20})
    both = pd.DataFrame({"a": [1.5, NAN] * 20, "b": [1.5, NAN] * 20})
    pair = encode_pair(real, both)
    assert alike.missing_shares(pair, pair.synthetic) == alike.missing_shares(pair, pair.real)
    assert alike.missing_pattern_similarity(pair, pair.synthetic) == 0.0


def test_rules_are_learned_from_the_real_table() -> None:
    real = pd.DataFrame({"dose": [0.5, 1.5, 2.5, 3.5] * 10, "site": ["a", "b"] * 20})
    made = pd.DataFrame({"dose": [0.5, 9.5, 1.25, 1.5] * 5, "site": ["a", "b", "c", "a"] * 5})
    found = alike.violations(encode_pair(real, made), "synthetic")
    assert (found.any_rule, found.out_of_range, found.unseen_level, found.too_precise) == (
        0.5,
        0.25,
        0.25,
        0.25,
    )


# ------------------------------------------------------------------------------------------ clouds of points


def test_alpha_precision_and_beta_recall_on_a_line() -> None:
    real = np.array([[-3.0], [-1.0], [1.0], [3.0]])
    made = np.array([[-1.0], [1.0], [1.0], [-1.0]])
    found = alpha_beta(real, made, steps=3)
    # alphas 0, 1/2, 1. Real distances from the centre 3, 1, 1, 3: radii 1, 2, 3. All synthetic points lie 1
    # from it: the curve is 1, 1, 1, and 1 - (1 + 1/2 + 0) / (3/2) = 0.
    assert found.alpha_precision == pytest.approx(0.0)
    # Every real point has a synthetic one within 2, the distance of the next real one; those all lie 1 from
    # the synthetic centre: the curve is 1, 1, 1 again.
    assert found.beta_recall == pytest.approx(0.0)
    assert found.authenticity == 0.0


def test_alpha_precision_and_beta_recall_of_points_that_stray() -> None:
    real = np.array([[-3.0], [-1.0], [1.0], [3.0]])
    made = np.array([[-1.0], [1.0], [2.0], [9.0]])
    found = alpha_beta(real, made, steps=3)
    # Radii 1, 2, 3 hold 2, 3, 3 of the synthetic points: 1 - (1/2 + 1/4 + 1/4) / (3/2).
    assert found.alpha_precision == pytest.approx(1 / 3)
    # The closest to the real ones are -1, -1, 1, 2; they lie 3.75, 3.75, 1.75, 0.75 from the synthetic mean
    # 2.75; radii 0.75, 2.75, 3.75 hold 1, 2, 4 of them: 1 - (1/4 + 0 + 0) / (3/2).
    assert found.beta_recall == pytest.approx(5 / 6)
    assert found.authenticity == 0.25  # only 9 is farther from its real point (6) than that from the next (2)


def test_alpha_and_beta_are_one_for_the_same_points() -> None:
    points = np.random.default_rng(0).standard_normal((400, 3))
    found = alpha_beta(points, points)
    assert found.alpha_precision > 0.99 and found.beta_recall > 0.99 and found.authenticity == 0.0


def test_equal_points_are_exactly_no_distance_apart() -> None:
    points = 1e3 + np.random.default_rng(1).standard_normal((300, 30))
    apart, where = nearest(points, points, 1)
    assert (apart == 0).all() and (where[:, 0] == np.arange(300)).all()


def test_normal_scores_keep_ties_and_order() -> None:
    scores = normal_scores(np.array([0.0, 0, 1, 2, 2.5, 50]), np.sort([0.0, 0, 1, 2]))
    assert scores[0] == scores[1] and (np.diff(scores[1:]) > 0).all()
    assert scores[1] == pytest.approx(-0.6744897)  # the mid-rank of the two zeros is 1/4


def test_two_levels_are_one_apart_and_a_missing_number_is_too() -> None:
    real = pd.DataFrame({"sex": ["f", "m"] * 15, "x": np.arange(30) * 1.5})
    made = pd.DataFrame({"sex": ["f", "m", "f"] * 10, "x": [1.5, 1.5, NAN] * 10})
    pair = encode_pair(real, made)
    points = Space.of(pair, "rank").points(pair.synthetic)
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(1)
    assert points[2][-1] - points[0][-1] == 1


def test_a_row_is_told_from_its_neighbours_by_any_cell() -> None:
    real = table(60, 3)
    pair = encode_pair(real, real.iloc[::-1])
    assert np.isin(row_keys(pair.synthetic), row_keys(pair.real)).all()
    changed = encode_pair(real, real.assign(age=real["age"] + 1)).synthetic
    assert not np.isin(row_keys(changed), row_keys(pair.real)).any()


# ------------------------------------------------------------------------------------------------- learners


def test_detection_score_is_sdmetrics_own() -> None:
    assert detection_score([0.5, 0.5]) == 1.0
    assert detection_score([1.0, 1.0]) == 0.0
    assert detection_score([0.6, 0.3]) == pytest.approx(
        1 - (0.2 + 0.0) / 2
    )  # below one half counts as one half


def test_area_of_a_level_that_a_model_never_saw_is_one_half() -> None:
    y = np.array([0.0, 0, 1, 2])
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.5, 0.5]])
    # Level 0 (2 rows) and level 1 are told apart perfectly, level 2 not at all.
    assert class_auc(y, probability, np.array([0.0, 1.0])) == pytest.approx((2 * 1 + 1 + 0.5) / 4)


def test_a_judge_sees_a_shift_and_no_more() -> None:
    pair = encode_pair(table(400, 1), table(400, 2), table(400, 3, shift=30.0))
    assert pair.holdout is not None
    for judge in ("boosting", "logistic"):
        assert two_sample(pair, pair.synthetic, judge, 400, 0).auc < 0.6  # type: ignore[arg-type]
        assert two_sample(pair, pair.holdout, judge, 400, 0).auc > 0.9  # type: ignore[arg-type]


def test_shuffled_columns_teach_nothing() -> None:
    real, rng = table(400, 1), np.random.default_rng(0)
    shuffled = pd.DataFrame({name: rng.permutation(real[name]) for name in real})
    found = usefulness(encode_pair(real, shuffled, table(300, 2)), "outcome", 400, 0)
    assert found is not None and found.measure == "AUC"
    assert found.real > 0.85 and abs(found.synthetic - 0.5) < 0.12
    assert {name for name, *_ in found.important[:2]} == {"weight", "height"}
    assert found.trained == (400, 400) and found.tested == 300


def test_a_target_is_guessed_by_its_name_or_several_are_tried() -> None:
    real = table(60, 1)
    assert guess_targets(encode_pair(real, real), None)[0] == ("outcome",)
    assert guess_targets(encode_pair(real, real), "age")[0] == ("age",)
    plain = real.rename(columns={"outcome": "smokes"})
    several, why = guess_targets(encode_pair(plain, plain), None)
    assert len(several) == 4 and "--target" in why


# ------------------------------------------------------------------------------------------------- the pair


def test_ids_take_no_part_and_need_not_be_there() -> None:
    real, made = table(60, 1), table(60, 2).drop(columns="patient_id").iloc[:, ::-1].assign(note="x")
    pair = encode_pair(real, made)
    assert pair.left_out == ("patient_id",)
    assert [place.name for place in pair.places] == ["weight", "height", "age", "sex", "outcome"]


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda t: t.drop(columns="age"), "columns-differ"),
        (lambda t: t.head(5), "too-few-rows"),
        (lambda t: t.assign(weight=np.inf), "infinity"),
    ],
)
def test_what_does_not_fit_is_said(change: object, code: str) -> None:
    with pytest.raises(InputError, match=f"{code}: SYNTHETIC"):
        encode_pair(table(60, 1), change(table(60, 2)))  # type: ignore[operator]


def test_a_holdout_that_is_part_of_the_real_table_is_refused() -> None:
    real = table(100, 1)
    with pytest.raises(InputError, match="holdout-in-real"):
        encode_pair(real, table(60, 2), real.iloc[:50])
    some = pd.concat([real.iloc[:10], table(90, 3)])
    assert [fault.code for fault in encode_pair(real, table(60, 2), some).warnings] == ["holdout-overlaps"]


def test_without_a_holdout_the_halves_of_the_real_table_are_the_reference() -> None:
    pair = encode_pair(table(101, 1), table(60, 2))
    halves: Pair = halved(pair, 0)
    assert halves.holdout is not None
    parts = [bytes(key) for half in (halves.real, halves.holdout) for key in row_keys(half)]
    assert sorted(parts) == sorted(bytes(key) for key in row_keys(pair.real))
    found = assess(pair, target="sex")
    assert found.privacy is None and "without held-out people" in found.privacy_reason
    assert found.reference.violations is None and found.synthetic.violations is not None

"""Attacks on synthetic tables see copies, over-trained models and planted leaks, and nothing in strangers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from ebbtide.domains.tabular.measures import Pair, Privacy, encode_pair
from ebbtide.domains.tabular.measures.assessing import assess_privacy
from ebbtide.domains.tabular.measures.copies import find_copies, jittered, planted_hits
from ebbtide.domains.tabular.measures.inference import in_common, relabelled
from ebbtide.domains.tabular.measures.intervals import (
    Rate,
    area,
    fewest_copies,
    holm,
    more_often,
    smallest_area,
    smallest_difference,
)
from ebbtide.domains.tabular.measures.membership import catch, suspected

REAL, HELD = 600, 400


def people(n: int, seed: int) -> pd.DataFrame:
    """Six linked numbers and two categories."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(np.zeros(5), 0.5 * np.eye(5) + 0.5, n)
    frame = pd.DataFrame({f"x{j}": np.round(50 + 10 * z[:, j], 3) for j in range(5)})
    frame["age"] = np.round(50 + 10 * z[:, 0] + 8 * rng.standard_normal(n)).astype(int)
    frame["site"] = rng.choice(list("abcd"), n, p=[0.45, 0.25, 0.16, 0.14])
    frame["outcome"] = np.where(z.sum(1) + rng.standard_normal(n) > 0, "yes", "no")
    return frame


def copula(real: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """A Gaussian copula fitted to the numbers, categories by their shares: an honest, simple model."""
    from scipy.stats import norm, rankdata

    rng = np.random.default_rng(seed)
    numbers = real.select_dtypes("number")
    scores = norm.ppf((rankdata(numbers, axis=0) - 0.5) / len(real))
    drawn = norm.cdf(rng.multivariate_normal(np.zeros(scores.shape[1]), np.corrcoef(scores.T), n))
    made = pd.DataFrame({c: np.round(np.quantile(numbers[c], drawn[:, j]), 3) for j, c in enumerate(numbers)})
    made["age"] = made["age"].round().astype(int)
    for name in ("site", "outcome"):
        made[name] = rng.choice(real[name], n)
    return made


def overtrained(real: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What a model that learned its rows by heart gives: each with noise of a fifth of its spread."""
    rng, made = np.random.default_rng(seed), real.copy()
    for name in made.select_dtypes("number"):
        made[name] = (made[name] + 0.2 * made[name].std() * rng.standard_normal(len(made))).round(3)
    return made.assign(age=made["age"].round().astype(int))


@cache
def privacy(kind: str, seed: int = 0) -> Privacy:
    real, held = people(REAL, 100 + seed), people(HELD, 200 + seed)
    made = {
        "strangers": lambda: people(REAL, 300 + seed),
        "copula": lambda: copula(real, REAL, seed),
        "bootstrap": lambda: real.sample(REAL, replace=True, random_state=seed),
        "overtrained": lambda: overtrained(real, seed),
        "one in twenty": lambda: pd.concat([people(REAL - 30, 300 + seed), real.iloc[:30]]),
    }[kind]()
    return assess_privacy(encode_pair(real, made, held), seed, lambda done: None)


@cache
def strangers() -> Pair:
    return encode_pair(people(REAL, 1), people(REAL, 2), people(HELD, 3))


# ---------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["strangers", "copula"])
def test_strangers_and_honest_models_pass(kind: str, seed: int) -> None:
    found = privacy(kind, seed)
    assert found.leaks == []
    assert found.copies.near_training.share < 0.01
    assert found.n_attacks == 6


@pytest.mark.parametrize("kind", ["bootstrap", "overtrained"])
def test_copies_and_overtrained_models_fail(kind: str) -> None:
    found = privacy(kind)
    assert "copies of training rows" in found.leaks
    assert any(leak.startswith("density ratio") for leak in found.leaks)
    assert any(leak.startswith("attribute inference") for leak in found.leaks)
    assert "linkability" in found.leaks


def test_a_bootstrap_is_called_all_copies() -> None:
    found = privacy("bootstrap").copies
    assert found.exact.share == found.near_training.share == 1.0
    assert found.exact_holdout.share == found.near_holdout.share == 0.0
    assert found.pairs[0][2] == 0.0


def test_one_copy_in_twenty_rows_is_found() -> None:
    found = privacy("one in twenty")
    assert found.leaks[0] == "copies of training rows"
    assert found.copies.smallest < 0.05
    planted = [made for made, _, _ in found.copies.pairs]
    assert min(planted) >= REAL - 30  # the copies stand at the end, and are pointed at first
    assert [real for _, real, _ in found.copies.pairs] == [made - (REAL - 30) for made in planted]


def test_the_detector_is_tried_with_planted_copies() -> None:
    hits = find_copies(strangers(), 0).hit_rates
    assert hits["exact"].share == 1.0
    assert hits["every number jittered by 1 % of its spread"].share >= 0.95
    assert hits["one cell replaced by another person's"].share < 0.95


def test_a_coarse_table_blinds_the_detector_and_it_says_so() -> None:
    coarse = [people(400, k)[["age"]].assign(age=lambda t: t["age"] // 5 * 1.0) for k in (1, 2, 3)]
    found = find_copies(encode_pair(*coarse), 0)
    assert not found.sees or found.smallest > 0.2
    assert found.p > 0.05


def test_members_are_found_at_few_false_alarms() -> None:
    found = privacy("bootstrap").membership[0]
    assert found.area.low > 0.7
    at_one_percent = found.caught[1]
    assert at_one_percent.found.share > 0.5 and at_one_percent.alarms.share <= 0.01
    assert not found.caught[0].resolved  # 400 people cannot show one false alarm in a thousand


def test_the_unusual_and_minorities_are_looked_at_apart() -> None:
    groups = [found.group for found in privacy("strangers").membership]
    assert groups[2:] == ["the most unusual tenth", "site = d", "site = c"]


def test_an_attack_is_held_against_control_and_baseline() -> None:
    found = {a.about or a.code: a for a in privacy("strangers").attacks}
    assert abs(found["outcome"].risk) < 0.25
    assert found["outcome"].control.low > found["outcome"].baseline.high  # the population gives much away
    assert {"linkability", "singling-out"} <= set(found)


def test_same_seed_same_answer() -> None:
    one = assess_privacy(strangers(), 5, lambda done: None)
    assert one == assess_privacy(strangers(), 5, lambda done: None)
    assert one != assess_privacy(strangers(), 6, lambda done: None)


def test_planted_jitter_is_of_the_size_it_says() -> None:
    pair = strangers()
    moved = jittered(pair, pair.real, 0.05, np.random.default_rng(0)).numbers - pair.real.numbers
    assert moved[:, 0].std() == pytest.approx(0.05 * pair.real.numbers[:, 0].std(), rel=0.1)
    assert planted_hits.__doc__


# ------------------------------------------------------------------------------------ what a count can show


def test_clopper_pearson_has_the_textbook_ends() -> None:
    rate = Rate(0, 20)
    assert (rate.low, rate.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert Rate(20, 20).low == pytest.approx(0.025 ** (1 / 20))
    assert (Rate(5, 10).low, Rate(5, 10).high) == (
        pytest.approx(0.1871, abs=1e-4),
        pytest.approx(0.8129, abs=1e-4),
    )


def test_the_area_counts_pairs() -> None:
    found = area(np.array([3.0, 1.0]), np.array([2.0, 1.0, 0.0]))
    # 3 beats three, 1 beats one and ties with one: (3 + 1.5) / 6.
    assert found.value == 0.75
    assert found.low <= 0.75 <= found.high


def test_intervals_of_the_area_cover_it() -> None:
    rng = np.random.default_rng(0)
    truth = 0.7602  # of two normals one standard deviation apart: Phi(1 / sqrt 2)
    inside = [
        (found := area(1 + rng.standard_normal(60), rng.standard_normal(80))).low <= truth <= found.high
        for _ in range(300)
    ]
    assert 0.91 <= np.mean(inside) <= 0.985


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert holm([]) == []


def test_members_caught_are_those_above_the_allowed_alarms() -> None:
    others = np.arange(100.0)
    found = catch(np.array([98.5, 98.0, 99.5]), others, 0.01)
    # One alarm is allowed (99): the threshold is 98, which 98 itself does not pass.
    assert (found.found.successes, found.alarms.successes, found.resolved) == (2, 1, True)
    assert catch(others, others, 0.001).resolved is False


def test_a_few_sure_leaks_are_seen_where_the_area_is_blind() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.standard_normal(500), rng.standard_normal(500)
    members[:10] = 9.0
    assert area(members, others).p > 0.01
    assert suspected(members, others) < 0.002


def test_exact_tests_agree_with_tables() -> None:
    assert more_often(Rate(3, 3), Rate(0, 3)) == pytest.approx(1 / 20)  # one of C(6, 3) ways


def test_singling_out_is_tested_by_changing_places() -> None:
    rng = np.random.default_rng(0)
    alone = np.eye(20, dtype=bool)  # each description fits one person
    assert relabelled(alone, np.zeros((20, 20), bool), rng) == 0.001  # of 1,000 labellings only the true one
    assert relabelled(np.zeros((20, 20), bool), alone, rng) == 1.0
    chance = rng.random((200, 40)) < 0.03
    assert 0.05 < relabelled(chance[:, :20], chance[:, 20:], rng) < 0.95


def test_power_grows_with_people() -> None:
    assert smallest_area(2000, 2000, 5) < smallest_area(200, 200, 5) < smallest_area(200, 200, 50)
    few, many = Rate(5, 100), Rate(50, 1000)
    assert smallest_difference(many, 1000, 5) < smallest_difference(few, 100, 5)


def test_fewest_copies_is_where_the_test_turns() -> None:
    # Without background, k copies have p = (1/2)^k: at 0.05 that is five. A detector that finds half needs
    # at least twice as many.
    assert fewest_copies(0, 0.5, 1.0, 1) == 5
    assert fewest_copies(0, 0.5, 0.5, 1) >= 10
    assert fewest_copies(10, 0.5, 1.0, 1) > 5


def test_the_smallest_area_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    shift = 2**0.5 * 0.2275  # of normals with an area of Phi(0.2275) = 0.59
    assert smallest_area(150, 150, 1) == pytest.approx(0.583, abs=0.003)
    seen = [area(shift + rng.standard_normal(150), rng.standard_normal(150)).p < 0.05 for _ in range(200)]
    assert 0.75 <= np.mean(seen) <= 0.95


def test_links_need_an_entry_in_common() -> None:
    assert in_common(np.array([[1, 2], [3, 4]]), np.array([[5, 1], [6, 7]])).tolist() == [True, False]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("sort", ["exact", "jittered"])
def test_planted_copies_are_found_whatever_their_share(share: float, sort: str) -> None:
    """The positive control of the report: at least 95 % of what was planted is flagged."""
    real, held, made = people(REAL, 100), people(HELD, 200), people(REAL, 300)
    clean = find_copies(encode_pair(real, made, held), 0).near_training.successes
    count = round(share * REAL)
    copied = real.iloc[:count].copy()
    if sort == "jittered":
        noise = np.random.default_rng(4).standard_normal((count, 5))
        copied[[f"x{j}" for j in range(5)]] += (0.01 * 10 * noise).round(3)
    found = find_copies(encode_pair(real, pd.concat([made.iloc[count:], copied]), held), 0)
    assert found.near_training.successes >= 0.95 * count
    assert clean <= 0.01 * REAL and found.holdout_flagged.share < 0.01


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("sort", ["exact", "jittered"])
def test_planted_copies_are_found_in_a_real_table(share: float, sort: str) -> None:
    """Cells of breasts, 569 people and ten numbers each: the same bars."""
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True).frame.iloc[:, [*range(10), 30]]
    frame = frame.sample(frac=1, random_state=0).reset_index(drop=True)
    real, held, made = frame.iloc[:269], frame.iloc[269:419], frame.iloc[419:]
    count = round(share * 150)
    pair = encode_pair(real, made, held)
    clean = find_copies(pair, 0)
    copied = real.iloc[:count].copy()
    if sort == "jittered":
        numbers = copied.columns[:10]
        noise = np.random.default_rng(4).standard_normal((count, 10))
        copied[numbers] += 0.01 * real[numbers].std().to_numpy() * noise
    found = find_copies(encode_pair(real, pd.concat([made.iloc[count:], copied]), held), 0)
    assert found.near_training.successes >= 0.95 * count
    assert clean.near_training.share < 0.01 and clean.holdout_flagged.share < 0.01

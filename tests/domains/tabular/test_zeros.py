"""Levels that are never found together: when that is a finding, and how a walk keeps to it."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from ebbtide.domains.tabular.fitted import FittedTable
from ebbtide.domains.tabular.generator import GeneratorSettings, TableGenerator
from ebbtide.domains.tabular.parts import Part, Parts
from ebbtide.domains.tabular.walk import Demand, Walk
from ebbtide.domains.tabular.zeros import CHANCE, FEWEST, Zeros

EMPTY = np.empty(0)


def parts(*counts: int) -> Parts:
    """Categories alone."""
    made = tuple(Part(f"c{k}", "category", k, count, False) for k, count in enumerate(counts))
    return Parts((), made, ())


def walk(zeros: Zeros, order: tuple[int, ...], law: np.ndarray | None = None, **demand: object) -> np.ndarray:
    """(400, P) levels drawn in this order by a law that knows nothing, or by this one for every part."""
    levels = zeros.levels
    asked = Demand(EMPTY, EMPTY, zeros=zeros, **demand)  # type: ignore[arg-type]

    def flat(drawn: np.ndarray, hidden: np.ndarray, place: int) -> np.ndarray:
        return np.full((400, levels[place]), 1 / levels[place]) if law is None else np.tile(law, (400, 1))

    one = Walk(parts(*levels), asked, flat, 400)
    one.go(order, np.random.default_rng(0).random((400, len(levels), 2)))
    return one.levels


def test_a_pair_is_missed_where_chance_would_have_made_it() -> None:
    rng = np.random.default_rng(0)
    first, second, third = rng.integers(0, 2, 400), rng.integers(0, 3, 400), rng.integers(0, 2, 400)
    second[(first == 1) & (second == 2)] = 0
    zeros = Zeros.found(np.column_stack([first, second, third]), (2, 3, 2))
    assert zeros.pairs.tolist() == [[0, 1, 1, 2]]
    assert not len(Zeros.found(np.column_stack([first, second])[:20], (2, 3)).pairs)  # too few to tell


@pytest.mark.parametrize("many", [FEWEST - 1, FEWEST, 60])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_chance_is_fishers_and_levels_of_few_rows_tell_nothing(many: int, share: float) -> None:
    n, few = 600, int(share * 540)
    rows = np.zeros((n, 2), int)
    rows[:few, 0], rows[n - many :, 1] = 1, 1
    rule = many >= FEWEST and few >= FEWEST and hypergeom(n, few, many).logpmf(0) <= CHANCE
    assert ([0, 1, 1, 1] in Zeros.found(rows, (2, 2)).pairs.tolist()) == rule


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_walk_makes_no_missed_pair_in_whatever_order(order: tuple[int, ...]) -> None:
    pairs = np.array([[0, 0, 1, 0], [0, 0, 2, 3], [1, 2, 2, 0]], np.int16)
    rows = walk(Zeros(pairs, (2, 3, 4)), order)
    for a, first, b, second in pairs:
        assert not ((rows[:, a] == first) & (rows[:, b] == second)).any()
    assert len(np.unique(rows, axis=0)) == 16  # of 24, all that are left, are drawn


def test_where_nothing_is_left_the_network_decides() -> None:
    pairs = np.array([[0, level, 1, other] for level in range(2) for other in range(2)], np.int16)
    rows = walk(Zeros(pairs, (2, 2)), (0, 1), np.array([0.25, 0.75]))
    assert rows.mean(0) == pytest.approx([0.75, 0.75], abs=0.06)


def test_what_is_asked_for_is_made_though_it_was_never_found_together() -> None:
    zeros = Zeros(np.array([[0, 1, 1, 2]], np.int16), (2, 3))
    asked = {0: np.array([False, True]), 1: np.array([False, False, True])}
    assert (walk(zeros, (0, 1), levels=asked) == [1, 2]).all()
    assert (walk(zeros, (1, 0), levels=asked) == [1, 2]).all()


def test_the_shares_of_other_levels_keep_their_proportions() -> None:
    rows = walk(Zeros(np.array([[0, 1, 1, 2]], np.int16), (3, 3)), (0, 1), np.array([0.2, 0.4, 0.4]))
    there = rows[rows[:, 0] == 1, 1]
    assert np.bincount(there, minlength=3) / len(there) == pytest.approx([1 / 3, 2 / 3, 0], abs=0.08)


@pytest.mark.parametrize("pair", [[0, 2, 1, 0], [0, 0, 2, 0], [-1, 0, 1, 0], [0, 0, 1, 3], [0, -1, 1, 0]])
def test_pairs_of_levels_that_there_are_not_are_refused(pair: list[int]) -> None:
    with pytest.raises(ValueError, match="there are not"):
        Zeros(np.array([pair], np.int16), (2, 3))


def test_a_model_finds_them_keeps_them_and_saves_them() -> None:
    rng = np.random.default_rng(1)
    sex = rng.choice(["F", "M"], 500)
    state = np.where(
        sex == "F", rng.choice(["pregnant", "well", "ill"], 500), rng.choice(["well", "ill"], 500)
    )
    # A network of a few steps knows the shares of the columns, and would pair these.
    settings = GeneratorSettings(width=16, depth=1, steps=5)
    frame = pd.DataFrame({"sex": sex, "state": state, "age": rng.integers(18, 90, 500)})
    fitted = FittedTable.fit(frame, verbs=("generate",), generator=settings)
    assert fitted.generator is not None and len(fitted.generator.zeros.pairs) == 1
    rows = fitted.generate(600, 0)
    assert (rows["state"] == "pregnant").any() and (rows["sex"] == "M").any()
    assert not ((rows["sex"] == "M") & (rows["state"] == "pregnant")).any()
    wish = fitted.generate(20, 0, condition={"sex": "M", "state": "pregnant"})
    assert (wish["sex"] == "M").all() and (wish["state"] == "pregnant").all()
    config, tensors = fitted.generator.state()
    again = TableGenerator.from_state(fitted.generator.parts.columns, config, tensors)
    assert np.array_equal(again.zeros.pairs, fitted.generator.zeros.pairs)
    del tensors["zeros"]  # as in models from before
    assert not len(TableGenerator.from_state(fitted.generator.parts.columns, config, tensors).zeros.pairs)

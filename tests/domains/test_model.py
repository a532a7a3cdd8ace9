"""The model of a table against laws that are known: forests, scales, chains, calibration, draws."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

from ebbtide.domains.tabular.calibration import _weights, interval
from ebbtide.domains.tabular.chain import Table, TreeChains
from ebbtide.domains.tabular.codec import Coded
from ebbtide.domains.tabular.correction import HiddenCells
from ebbtide.domains.tabular.forest import Forest, grow
from ebbtide.domains.tabular.model import ModelSettings, TableModel, _held_out
from ebbtide.domains.tabular.space import GaussScale, TableSpace
from ebbtide.shared.errors import EbbtideError

SMALL = ModelSettings(trees=(4, 4, 12), folds=8, steps=300, batch_size=256)


@pytest.fixture(autouse=True)
def single_precision():
    """The model works in float32, whatever other tests have made the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


# ----------------------------------------------------------------------------------------------- forests


def test_a_packed_forest_predicts_what_scikit_learn_predicts():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 6)).astype(np.float32)
    target = np.stack([rows[:, 0] * rows[:, 1], rows[:, 2]], 1)
    fitted = ExtraTreesRegressor(8, min_samples_leaf=2, random_state=0).fit(rows, target)
    new = rng.normal(size=(500, 6)).astype(np.float32)
    ours = grow(rows, target, trees=8, leaf=2, width=2, seed=0).predict(torch.from_numpy(new)).numpy()
    # Thresholds are kept to 11 bits: a few rows that lie at one go the other way.
    off = np.abs(ours - fitted.predict(new)).max(1)
    assert np.quantile(off, 0.95) < 2e-3
    assert off.mean() < 5e-3


def test_class_shares_are_laid_out_by_code_also_for_classes_unseen():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 3)).astype(np.float32)
    codes = np.where(rows[:, 0] > 0, 4, 1)  # of 6 levels, two occur
    shares = grow(rows, codes, trees=5, leaf=4, width=6, seed=0).predict(torch.from_numpy(rows)).numpy()
    fitted = ExtraTreesClassifier(5, min_samples_leaf=4, max_features=None, random_state=0).fit(rows, codes)
    # A leaf's share is kept in 255ths, and a row or two at a rounded threshold go the other way.
    assert np.quantile(np.abs(shares[:, [1, 4]] - fitted.predict_proba(rows)), 0.99) < 1 / 255
    assert shares.shape == (300, 6)
    assert np.allclose(shares.sum(1), 1, atol=6 / 255 / 2)  # kept in 255ths
    assert (shares.argmax(1) == codes).mean() > 0.99
    assert not shares[:, [0, 2, 3, 5]].any()


def test_rows_do_not_mind_company():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(400, 4)).astype(np.float32)
    forest = grow(rows, np.stack([rows[:, 0]] * 3, 1), trees=7, leaf=1, width=3, seed=0)
    whole = forest.predict(torch.from_numpy(rows))
    for part in (slice(3, 4), slice(100, 237)):
        assert torch.equal(forest.predict(torch.from_numpy(rows[part])), whole[part])


def test_growing_trees_leaves_the_warning_filters_of_other_threads_alone():
    before, seen = list(warnings.filters), []
    rows = np.random.default_rng(3).normal(size=(3000, 8)).astype(np.float32)
    with ThreadPoolExecutor(1) as pool:
        growing = pool.submit(grow, rows, rows[:, 0], trees=20, leaf=1, width=1, seed=0)
        while not growing.done():
            seen.append(list(warnings.filters) == before)
            time.sleep(0.001)
    assert all(seen)
    assert growing.result().trees == 20


@pytest.mark.parametrize("harm", ["open", "left over", "empty", "leaf", "threshold", "feature"])
def test_nodes_that_make_up_no_trees_are_refused(harm):
    rows = np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)
    state = grow(rows, rows[:, :2], trees=2, leaf=1, width=2, seed=0).state("f")
    state = {name: value.clone() for name, value in state.items()}
    assert Forest.from_state(state, "f", features=3).trees == 2
    inner = int((state["f.feature"] >= 0).nonzero()[1])
    if harm == "open":  # the last leaf is gone: a node has one child
        state["f.feature"], state["f.values"] = state["f.feature"][:-1], state["f.values"][:-1]
    elif harm == "left over":  # a node after the last tree has closed
        state["f.feature"] = torch.cat([state["f.feature"], state["f.feature"][:1]])
        state["f.threshold"] = torch.cat([state["f.threshold"], state["f.threshold"][:1]])
    elif harm == "empty":
        state = {name: value[:0] for name, value in state.items()}
    elif harm == "leaf":
        state["f.values"] = state["f.values"][:-1]
    elif harm == "threshold":
        state["f.threshold"] = state["f.threshold"][1:]
    else:
        state["f.feature"][inner] = 3
    with pytest.raises(EbbtideError, match="model-forest"):
        Forest.from_state(state, "f", features=3)


def test_a_forest_takes_five_bytes_a_node_beside_its_leaves():
    rows = np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32)
    forest = grow(rows, rows[:, :2], trees=4, leaf=1, width=2, seed=0)
    size = sum(t.numel() * t.element_size() for t in forest.state("f").values())
    nodes, leaves = len(forest.feature), len(forest.values)
    assert nodes == 2 * leaves - 4  # four full binary trees
    assert size == nodes + 2 * (nodes - leaves) + 2 * 2 * leaves


# ------------------------------------------------------------------------------------------------ scales


numbers = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, -3.5]), st.floats(-1e6, 1e6, allow_subnormal=False)),
    min_size=1,
    max_size=60,
)


@given(numbers)
@settings(max_examples=200, deadline=None)
def test_the_gaussian_scale_is_monotone_and_comes_back(values):
    seen = np.array(values)
    scale = GaussScale.fit(seen)
    order = np.sort(seen)
    coded = scale.encode(order)
    assert np.isfinite(coded).all()
    assert (np.diff(coded) >= 0).all()
    assert np.allclose(scale.decode(coded), order, rtol=1e-9, atol=1e-9 * max(np.abs(seen).max(), 1))


def test_a_pile_of_equal_values_decodes_to_that_value_and_keeps_its_share():
    rng = np.random.default_rng(4)
    seen = np.where(rng.random(4000) < 0.7, 0.0, rng.lognormal(size=4000))
    scale = GaussScale.fit(seen)
    drawn = scale.decode(rng.normal(size=20_000))
    assert np.mean(drawn == 0) == pytest.approx(np.mean(seen == 0), abs=0.01)
    assert np.quantile(drawn, 0.95) == pytest.approx(np.quantile(seen, 0.95), rel=0.05)
    assert drawn.min() >= 0 and drawn.max() <= seen.max()


def test_a_constant_column_stays_constant_and_an_empty_one_missing():
    space = TableSpace([]).fit(np.array([[7.3, np.nan], [7.3, np.nan], [np.nan, np.nan]]))
    back = space.from_gauss(np.array([[-2.0, 0.0], [3.0, 1.0]]))
    assert (back[:, 0] == 7.3).all()
    assert np.isnan(back[:, 1]).all()


# ------------------------------------------------------------------------------------------------ chains


def remembered(chains: TreeChains, table: Table, chain: np.ndarray) -> float:
    """How well a chain tells numbers that nothing predicts: it can only remember them."""
    n = len(table.standard)
    hidden = table.hide(np.repeat([[True, False, False]], n, 0), np.zeros((n, 0), bool))
    said = chains.guess(hidden, chains.settle(hidden, chain[:, None]), chain).standard[:, 0]
    return float(np.corrcoef(said, table.standard[:, 0])[0, 1])


def noise_table(rows: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    return Table(rng.normal(size=(rows, 3)), rng.normal(size=(rows, 3)), np.zeros((rows, 0), np.int32))


@pytest.mark.parametrize("trees", [(4,), (2, 4)])
def test_a_chain_has_not_seen_the_rows_it_is_asked_about_in_training(trees):
    """The chain of a row's fold must not have seen it; for rows held out the chain before it neither."""
    table, fold = noise_table(300, 5), np.arange(300) % 6
    held = np.random.default_rng(0).random(300) < 0.5
    chains = TreeChains([], trees=trees, leaf=1).fit(table, fold, held, seed=0)
    assert abs(remembered(chains, table, fold)) < 0.2  # 3.5 standard errors
    before = (fold - 1) % 6
    assert abs(remembered(chains, table[held], before[held])) < 0.3
    assert remembered(chains, table[~held], before[~held]) > 0.9
    assert remembered(chains, table, (fold + 2) % 6) > 0.9


def test_a_chain_without_folds_has_seen_every_row():
    table = noise_table(300, 5)
    chains = TreeChains([], trees=(2, 4), leaf=1).fit(table, None, np.ones(300, bool), seed=0)
    assert chains.chains_ == 1 and remembered(chains, table, np.zeros(300, int)) > 0.9


def test_cells_hidden_on_purpose_are_settled_by_their_own_chains_and_missing_ones_by_all():
    table, fold = noise_table(300, 6), np.arange(300) % 4
    chains = TreeChains([], trees=(3, 1), leaf=1).fit(table, fold, np.zeros(300, bool), seed=0)
    first = np.repeat([[True, False, False]], 300, 0)
    hidden = table.hide(first, np.zeros((300, 0), bool))
    everybody = chains.settle(hidden)
    assert np.corrcoef(everybody[:, 0], table.standard[:, 0])[0, 1] > 0.8  # three in four remember
    own = chains.settle(hidden, fold[:, None], first)
    assert abs(np.corrcoef(own[:, 0], table.standard[:, 0])[0, 1]) < 0.2
    assert np.array_equal(chains.settle(hidden, fold[:, None], ~first), everybody)
    assert np.allclose(chains.settle(hidden, np.tile(np.arange(4), (300, 1))), everybody)


def two_sided(rows: int, seed: int) -> tuple[Table, Table]:
    """A coin and a number on either side of 0 by it; the same with both hidden in every fourth row."""
    rng = np.random.default_rng(seed)
    coin = (rng.random((rows, 1)) < 0.45).astype(np.int32)
    number = 2.0 * coin - 0.9 + 0.1 * rng.normal(size=(rows, 1))
    table, gone = Table(number, number, coin), np.arange(rows)[:, None] % 4 == 0
    return table, table.hide(gone, gone)


@pytest.mark.parametrize("shares, error", [(False, 1.35), (True, 1.0)])
def test_with_shares_an_uncertain_level_is_passed_on_as_uncertain(shares, error):
    """The commonest level would put the number on its side: off by 2 in 45 % of rows, a root mean square of
    1.34; the mean of both sides is off by 1 in all."""
    _, hidden = two_sided(800, 11)
    chains = TreeChains([2], trees=(8, 8, 16), shares=shares)
    chains.fit(hidden, np.arange(800) % 4, np.zeros(800, bool), seed=0)
    new_truth, new = two_sided(800, 12)
    guess = chains.guess(new, chains.settle(new), np.zeros(800, int)).standard
    gone = np.isnan(new.standard)
    assert np.sqrt(np.mean((guess - new_truth.standard)[gone] ** 2)) == pytest.approx(error, abs=0.1)


def test_chains_that_see_shares_are_read_back_as_such():
    _, hidden = two_sided(120, 13)
    for shares in (False, True):
        chains = TreeChains([2], trees=(2, 3), shares=shares)
        chains.fit(hidden, np.arange(120) % 3, np.zeros(120, bool), seed=0)
        again = TreeChains.from_state(2, [2], (2, 3), 3, chains.state())
        assert np.array_equal(again.settle(hidden), chains.settle(hidden))
        state, own = chains.settle(hidden), np.arange(120) % 3
        assert np.array_equal(again.guess(hidden, state, own).shares, chains.guess(hidden, state, own).shares)


@pytest.mark.parametrize("shares", [False, True])
def test_known_cells_of_a_guess_are_the_table_itself(shares):
    rng = np.random.default_rng(6)
    table = Table(
        rng.normal(size=(60, 2)), rng.normal(size=(60, 2)), rng.integers(0, 3, (60, 1)).astype(np.int32)
    )
    chains = TreeChains([3], trees=(2, 2), shares=shares)
    chains.fit(table, np.arange(60) % 3, np.zeros(60, bool), seed=0)
    guess = chains.guess(table, chains.settle(table), np.zeros(60, int))
    assert np.array_equal(guess.standard, table.standard)
    assert np.array_equal(guess.gauss, table.gauss)
    assert not guess.spread.any()
    assert np.array_equal(guess.shares, np.eye(3, dtype=np.float32)[table.codes[:, 0]])


# -------------------------------------------------------------------------------------------- correction


def test_lessons_are_stacked_one_below_the_other():
    one = torch.arange(12.0).reshape(4, 3)
    pieces = [HiddenCells(one + k, one - k, one > k, one < k) for k in range(3)]
    rows = torch.tensor([True, False, True, True])
    whole = HiddenCells.stacked((piece[rows] for piece in pieces), 3)
    assert len(whole) == 9
    assert torch.equal(whole.features, torch.cat([one[rows] + k for k in range(3)]))
    assert torch.equal(whole.residual, torch.cat([one[rows] - k for k in range(3)]))
    assert torch.equal(whole.counts, torch.cat([one[rows] > k for k in range(3)]))
    assert torch.equal(whole.hidden, torch.cat([one[rows] < k for k in range(3)]))


# ------------------------------------------------------------------------------------------- calibration


def test_intervals_of_few_draws_cover_what_they_say():
    draws = np.random.default_rng(7).normal(size=(20, 40_000))
    low, high = interval(draws)
    truth = np.random.default_rng(8).normal(size=40_000)
    assert np.mean((truth >= low) & (truth <= high)) == pytest.approx(0.9, abs=0.007)  # 4.5 standard errors


@pytest.mark.parametrize("chains", [2, 8, 1000])
def test_the_weight_is_right_for_the_average_of_all_chains(chains):
    """Chain k says x + b + n_k with its own noise n_k, and the correction is d = -n_k - b / 2 + u.

    Averaged over K chains the error is b + n / K and the correction -n / K - b / 2 + u, whose best weight is
    known; taken from one chain alone it would lean on its noise.
    """
    rng = np.random.default_rng(9)
    n, var_b, var_n, var_u = 400_000, 0.5, 1.0, 0.25
    b, u = rng.normal(size=n) * var_b**0.5, rng.normal(size=n) * var_u**0.5
    noise = rng.normal(size=(2, n)) * var_n**0.5
    error = -(b + noise)  # x - m
    said = -noise - b / 2 + u
    best = (var_n / chains + var_b / 2) / (var_n / chains + var_b / 4 + var_u)
    found = _weights(said[..., None], error[..., None], np.ones((n, 1), bool), chains, np.arange(n))
    assert found[0] == pytest.approx(min(best, 1), abs=0.02)


# ------------------------------------------------------------------------------------------------- model


def gaussian_table(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of a known Gaussian (correlations 0.8, 0.5, 0.4), and 25 % of them hidden."""
    rng = np.random.default_rng(seed)
    covariance = np.array([[1, 0.8, 0.5], [0.8, 1, 0.4], [0.5, 0.4, 1]])
    truth = rng.multivariate_normal([3, -1, 10], covariance, rows)
    return truth, np.where(rng.random(truth.shape) < 0.25, np.nan, truth)


@pytest.fixture(scope="module")
def fitted() -> TableModel:
    _, holes = gaussian_table(1500, 0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    model = TableModel.fit(Coded(holes, np.zeros((1500, 0), np.int32)), [], SMALL, seed=0)
    torch.set_default_dtype(before)
    return model


def test_means_come_near_the_exact_conditional_mean_and_draws_cover(fitted):
    truth, holes = gaussian_table(1200, 1)
    filled = fitted.fill(Coded(holes, np.zeros((1200, 0), np.int32)), np.arange(1200), draws=20)
    # Rows that miss the first column alone: E[x_1 | x_2, x_3] is linear and its variance 0.3302.
    rows = np.isnan(holes[:, 0]) & ~np.isnan(holes[:, 1:]).any(1)
    inverse = np.linalg.inv(np.array([[1, 0.4], [0.4, 1]]))
    gain = np.array([0.8, 0.5]) @ inverse
    exact = 3 + (truth[rows][:, 1:] - np.array([-1, 10])) @ gain.T
    assert (
        np.sqrt(np.mean((filled.mean[rows, 0] - exact) ** 2)) < 0.33
    )  # the mean of the column would be 0.82 off
    hidden = np.isnan(holes)
    low, high = interval(filled.numbers)
    assert 0.86 < np.mean(((truth >= low) & (truth <= high))[hidden]) < 0.96
    spread = filled.numbers[:, rows, 0].std(0, ddof=1).mean()
    assert 0.5 < spread < 0.85  # exact 0.57; the column's own is 1


def test_known_cells_come_back_bit_for_bit_in_every_draw(fitted):
    _, holes = gaussian_table(40, 2)
    filled = fitted.fill(Coded(holes, np.zeros((40, 0), np.int32)), np.arange(40), draws=3)
    known = ~np.isnan(holes)
    for made in (filled.mean, filled.median, *filled.numbers):
        assert np.array_equal(made[known], holes[known])
        assert np.isfinite(made).all()


def test_a_row_is_filled_alike_in_any_company_order_and_number_of_draws(fitted):
    _, holes = gaussian_table(700, 3)
    coded, items = Coded(holes, np.zeros((700, 0), np.int32)), np.arange(700) * 7 + 1
    whole = fitted.fill(coded, items, seed=5, draws=6)
    order = np.random.default_rng(0).permutation(700)[:300]
    some = fitted.fill(Coded(holes[order], coded.codes[order]), items[order], seed=5, draws=3)
    assert np.array_equal(some.numbers, whole.numbers[:3, order])
    assert np.array_equal(some.mean, whole.mean[order])
    other = fitted.fill(coded, items, seed=6, draws=1)
    assert not np.array_equal(other.numbers[0], whole.numbers[0])


def test_of_a_small_table_a_chain_of_all_rows_has_its_part_in_the_centre_alone(fitted):
    _, holes = gaussian_table(120, 5)
    coded = Coded(holes, np.zeros((120, 0), np.int32))
    model = TableModel.fit(coded, [], replace(SMALL, steps=0))
    assert fitted.whole is None and model.whole is not None
    again = TableModel.from_state(*model.state())
    both, read = (one.fill(coded, np.arange(120), draws=3) for one in (model, again))
    assert all(np.array_equal(a, b) for a, b in zip(vars(both).values(), vars(read).values(), strict=True))
    whole, model.whole = model.whole, None
    blind = model.fill(coded, np.arange(120), draws=3)
    assert not np.array_equal(both.mean, blind.mean)
    model.chains = whole
    alone = model.fill(coded, np.arange(120), draws=3)
    assert np.allclose(both.mean, blind.mean + (alone.mean - blind.mean) / 4)
    # Draws scatter by what the blind chains told alone: each is as far from the centre as without the other.
    shift = model.space.gauss(both.numbers) - model.space.gauss(blind.numbers)
    assert np.isnan(holes).any(0).all() and np.nanmedian(shift.std(0)[np.isnan(holes)]) < 0.02


def test_a_saved_model_fills_alike(fitted):
    _, holes = gaussian_table(50, 4)
    coded = Coded(holes, np.zeros((50, 0), np.int32))
    again = TableModel.from_state(*fitted.state())
    for one, two in zip(
        vars(fitted.fill(coded, np.arange(50), draws=2)).values(),
        vars(again.fill(coded, np.arange(50), draws=2)).values(),
        strict=True,
    ):
        assert np.array_equal(one, two)


def test_categories_follow_what_determines_them_and_carry_their_chance():
    rng = np.random.default_rng(10)
    number = rng.normal(size=900)
    codes = np.stack([np.digitize(number, [-0.5, 0.5]), rng.integers(0, 2, 900)], 1).astype(np.int32)
    shown = np.where(rng.random(codes.shape) < 0.3, -1, codes).astype(np.int32)
    model = TableModel.fit(Coded(number[:, None], shown), [3, 2], SMALL, seed=0)
    filled = model.fill(Coded(number[:, None], shown), np.arange(900), draws=20)
    first, second = shown[:, 0] < 0, shown[:, 1] < 0
    assert np.mean(filled.mode[first, 0] == codes[first, 0]) > 0.9
    assert filled.probability[second, 1].mean() == pytest.approx(0.55, abs=0.08)  # a coin tells nothing
    assert np.mean(filled.codes[:, second, 1] == 1) == pytest.approx(0.5, abs=0.08)
    assert (filled.codes[:, ~first, 0] == shown[~first, 0]).all()


@pytest.mark.parametrize("rows", [1, 2, 8, 29])
def test_tables_of_a_few_rows_are_filled(rows):
    holes = np.arange(rows * 2, dtype=float).reshape(rows, 2)
    holes[0, 0] = np.nan
    codes = np.zeros((rows, 1), np.int32)
    filled = TableModel.fit(Coded(holes, codes), [2]).fill(Coded(holes, codes), np.arange(rows), draws=2)
    assert np.isfinite(filled.mean[:, 1]).all()
    assert np.isnan(filled.mean[0, 0]) == (rows == 1)  # nothing was ever seen of it


@pytest.mark.parametrize("place", range(0, 40, 5))
def test_rows_of_missing_cells_alone_neither_teach_nor_test(place):
    # Held out by chance, all such rows left nothing to calibrate on.
    holes, codes = np.full((40, 1), np.nan), np.zeros((40, 0), np.int32)
    holes[place] = 7.0
    coded = Coded(holes, codes)
    model = TableModel.fit(coded, [], replace(SMALL, steps=None))
    assert np.allclose(model.fill(coded, np.arange(40), draws=2).numbers, 7.0)
    assert not model.correction.denoiser.network.out.weight.any()  # it was not trained on one row


def test_as_many_rows_with_known_cells_are_held_out_among_empty_ones():
    told = np.arange(400) % 4 == 0
    held = _held_out(told, ModelSettings(), 0)
    assert held.sum() == 20 and not held[~told].any()
    assert not _held_out(np.arange(400) % 20 == 0, ModelSettings(), 0).any()  # 20 rows are too few


def test_a_table_of_which_nothing_is_known_is_given_back(recwarn):
    holes, codes = np.full((40, 0), np.nan), np.full((40, 1), -1, np.int32)
    filled = TableModel.fit(Coded(holes, codes), [0]).fill(Coded(holes, codes), np.arange(40), draws=3)
    assert filled.codes.shape == (3, 40, 1) and (filled.codes == -1).all() and (filled.mode == -1).all()
    assert not recwarn.list  # no weights without elements

"""What is chosen on held-out cells: how far to trust the network beside the trees, how wide draws scatter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from ...shared.masking import Cells
from ...shared.noise import Keys
from .chain import Table, TreeChains
from .correction import Correction, Told, one_thread
from .space import TableSpace

_CELLS = 2000  # how many cells are hidden for it at least, where there are so many


@dataclass(frozen=True)
class Calibration:
    """What was chosen.

    Args:
        standard: (p,) weight of the network's correction to the trees' mean, 0 to 1.
        median: (p,) weight of the median in the mean, 0 to 1: two estimates err less than one.
        gauss: (p,) weight of the network's correction on the Gaussian scale.
        shares: (q,) likewise for categories.
        spread: (p,) factor on the draws' distance from the centre.
    """

    standard: np.ndarray
    median: np.ndarray
    gauss: np.ndarray
    shares: np.ndarray
    spread: np.ndarray

    @classmethod
    def none(cls, p: int, q: int) -> Calibration:
        """The trees alone."""
        return cls(np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(q), np.ones(p))

    def state(self) -> dict[str, Tensor]:
        """Named tensors for safetensors."""
        return {f"calibration.{f.name}": torch.from_numpy(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Calibration:
        """What `state` wrote."""
        return cls(*(tensors[f"calibration.{f.name}"].numpy() for f in fields(cls)))


def centre(space: TableSpace, calibration: Calibration, told: Told) -> np.ndarray:
    """(n, C) a guess, corrected as far as is trusted: Gaussian scale and shares."""
    weight = np.concatenate([calibration.gauss, np.repeat(calibration.shares, space.cardinalities)])
    guess = np.concatenate([told.guess.gauss, told.guess.shares], 1)
    return np.asarray(guess + weight * told.added[:, : space.columns])


def median(space: TableSpace, calibration: Calibration, told: Told) -> np.ndarray:
    """(n, p) the middle of the conditional law on the standard scale, by one chain and the network."""
    p = told.guess.standard.shape[1]
    return space.standard(space.from_gauss(centre(space, calibration, told)[:, :p]))


def mean(space: TableSpace, calibration: Calibration, told: Told) -> np.ndarray:
    """(n, p) the conditional mean on the standard scale, by one chain and the network."""
    middle = median(space, calibration, told)
    plain = told.guess.standard + calibration.standard * told.added[:, space.columns :]
    return np.asarray(plain + calibration.median * (middle - plain))


@dataclass(frozen=True)
class _Pair:
    """Held-out rows with cells hidden, as the two chains that never saw them guess them.

    Args:
        truth: the rows before hiding.
        hidden: after.
        raw: (n, p) the numbers in raw units.
        keys: for draws.
        told: the guesses of the two chains, and what the network makes of them.
        chains: how many there are in all.
        places: (n,) which row of the table each is: some are there several times.
    """

    truth: Table
    hidden: Table
    raw: np.ndarray
    keys: Keys
    told: list[Told]
    chains: int
    places: np.ndarray
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", self.hidden.missing & ~self.truth.missing)


def calibrate(
    chains: TreeChains,
    correction: Correction,
    table: Table,
    raw: np.ndarray,
    fold: np.ndarray,
    held: np.ndarray,
    seed: int,
) -> Calibration:
    """Weights by least squares and spreads by coverage, on hidden cells of held-out rows.

    Args:
        table, raw: the table on model scales and its numbers as they are.
        fold: (n,) fold of each row.
        held: (n,) True for rows that the network did not learn from.
    """
    space = correction.space
    p, q = table.standard.shape[1], len(space.cardinalities)
    pair = _hide(chains, correction, table, raw, fold, held, seed)
    said = np.stack([one.added for one in pair.told])
    guesses = [one.guess for one in pair.told]
    truth = np.concatenate([pair.truth.gauss, space.indicators(pair.truth.codes), pair.truth.standard], 1)
    error = np.stack([truth - np.concatenate([g.gauss, g.shares, g.standard], 1) for g in guesses])
    numbers, k = pair.counts[:, :p], chains.chains_
    shares = np.zeros(q)
    for j in range(q):
        part = slice(p + space.offsets[j], p + space.offsets[j + 1])
        at = pair.counts[:, p + j]
        if at.any():  # the levels of a column share a weight: its cells times its levels are one long column
            d, e = (array[:, at, part].reshape(2, -1, 1) for array in (said, error))
            rows = np.repeat(pair.places[at], part.stop - part.start)
            shares[j] = _weights(d, e, np.ones(d.shape[1:], bool), k, rows)[0]
    found = replace(
        Calibration.none(p, q),
        gauss=_weights(said[:, :, :p], error[:, :, :p], numbers, k, pair.places),
        standard=_weights(said[:, :, space.columns :], error[:, :, space.columns :], numbers, k, pair.places),
        shares=shares,
    )
    plain, middle = ([answer(space, found, one) for one in pair.told] for answer in (mean, median))
    toward = np.stack([m - s for m, s in zip(middle, plain, strict=True)])
    missed = np.stack([pair.truth.standard - s for s in plain])
    found = replace(found, median=_weights(toward, missed, numbers, k, pair.places))
    return replace(found, spread=_spreads(correction, found, pair))


def _hide(
    chains: TreeChains,
    correction: Correction,
    table: Table,
    raw: np.ndarray,
    fold: np.ndarray,
    held: np.ndarray,
    seed: int,
) -> _Pair:
    """Rows with one cell more hidden than is missing anyway, so that guessing it is as hard as it will be in
    use. Known cells are chosen, not rows: as many others are missing beside one as beside a missing cell. A
    table that misses nothing is taken to be for filling tables that do."""
    p, columns = table.standard.shape[1], table.missing.shape[1]
    if table.missing.mean() > 0.05:
        at, cell = np.nonzero(~table.missing & held[:, None])
        luck = Keys(seed, torch.from_numpy(at), torch.from_numpy(cell)).uniform((), "hide one").numpy()
        some = np.sort(luck.argsort()[: max(_CELLS, int(np.clip(columns // 4, 4, 6)) * int(held.sum()))])
        places, stays = at[some], np.arange(columns) != cell[some][:, None]
        keys = Keys(seed, torch.from_numpy(places), torch.from_numpy(cell[some]))
    else:
        places = np.tile(np.flatnonzero(held), 2)
        keys = Keys(seed, torch.from_numpy(places), torch.arange(2).repeat_interleave(len(places) // 2))
        stays = Cells(0.25, 0.25)(keys, (columns,)).numpy()
    rows, own = table[places], fold[places]
    hidden = rows.hide(~stays[:, :p], ~stays[:, p:])
    pair = np.stack([own, (own - 1) % chains.chains_], 1)
    # What was hidden on purpose is known to all other chains; what is missing anyway, to none.
    state = chains.settle(hidden, pair, hidden.missing & ~rows.missing)
    told = [correction.tell(hidden, chains.guess(hidden, state, chain)) for chain in pair.T]
    return _Pair(rows, hidden, raw[places], keys, told, chains.chains_, places)


def _spreads(correction: Correction, found: Calibration, pair: _Pair, draws: int = 20) -> np.ndarray:
    """(p,) the factor on the draws with which 90 % intervals will cover 90 % of cells.

    It is found on held-out cells around the average of two chains' centres. The squared width goes as
    a + b / K in the number of chains; how much two chains need less than one, pooled over columns (a column's
    own is mostly chance), gives it for all of them.
    """
    space, p, counts = correction.space, pair.raw.shape[1], pair.counts[:, : pair.raw.shape[1]]
    one, two = (centre(space, found, told)[:, :p] for told in pair.told)
    noise = _noise(correction, pair.told, pair.keys, draws, p)
    single, double = (
        _factor(space, middle, noise, pair.raw, counts) ** 2 for middle in (one, (one + two) / 2)
    )
    share = float(double @ counts.sum(0) / (single @ counts.sum(0))) if counts.any() else 1.0
    slope = 2 * float(np.clip(1 - share, 0, 0.45))
    return np.asarray(np.sqrt(double * (1 - slope * (1 - 1 / pair.chains)) / (1 - slope / 2)))


def _noise(correction: Correction, told: list[Told], keys: Keys, draws: int, p: int) -> np.ndarray:
    """(draws, n, p) of the numbers, some rows at a time."""
    n = len(told[0].added)
    parts = []
    with one_thread():
        for rows in np.array_split(np.arange(n), max(n // 256, 1)):
            some = [one[rows] for one in told]
            parts.append(correction.noise(some, keys[torch.from_numpy(rows)], draws)[..., :p])
    return np.concatenate(parts, 1)


def _factor(
    space: TableSpace, middle: np.ndarray, noise: np.ndarray, truth: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """(p,) the factor on the noise with which 90 % intervals around `middle` cover 90 %."""
    factors = np.geomspace(0.3, 3.5, 33)
    score, inside = np.zeros((2, len(factors), counts.shape[1]))
    for j, scale in enumerate(space.scales_):
        at = counts[:, j]
        if scale is None or not at.any():
            continue
        # Of draws in raw units, as they will be reported: between two whole numbers a quantile lies on
        # neither, and an interval that ends there covers less than one that ends on them.
        drawn = middle[at, j] + factors[:, None] * noise[:, None, at, j]
        low, high = interval(scale.decode(drawn))
        miss = np.maximum(low - truth[at, j], 0) + np.maximum(truth[at, j] - high, 0)
        score[:, j] = ((high - low + 20 * miss) / space.stds_[j]).sum(1)
        inside[:, j] = (miss <= 0).sum(1)
    cells = counts.sum(0)
    # A column with few held-out cells leans on all columns together, as if it had 150 cells more.
    total = max(cells.sum(), 1)
    coverage = (inside + 150 * inside.sum(1, keepdims=True) / total) / (cells + 150)
    score = (score + 150 * score.sum(1, keepdims=True) / total) / (cells + 150)
    covering = np.maximum.accumulate(coverage, 0)
    reached = np.array([np.interp(0.9, column, factors) for column in covering.T])
    # Where values pile up (nine zeros in ten), every width covers: the interval score decides.
    return np.where(coverage[0] > 0.9, factors[score.argmin(0)], reached)


def _weights(
    said: np.ndarray, error: np.ndarray, counts: np.ndarray, chains: int, rows: np.ndarray
) -> np.ndarray:
    """(p,) the weight w, 0 to 1, for which m + w d errs least in the mean square, when guesses m and
    corrections d will be averaged over K chains.

    Errors and corrections of two chains that did not see the row estimate both the average of products
    within a chain (of which the averages over K chains have 1 / K) and across chains (the rest): a
    correction that only takes a chain's own noise back is not needed where averaging does.

    Args:
        said, error: (2, n, p), d and x - m of the two chains.
        counts: (n, p) cells that count.
        rows: (n,) which row each is, as what comes from one row is one row's evidence.
    """
    said, error = np.where(counts, said, 0).astype(float), np.where(counts, error, 0).astype(float)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        within = (a[0] * b[0] + a[1] * b[1]) / 2
        across = (a[0] * b[1] + a[1] * b[0]) / 2
        return np.asarray(within / chains + across * (1 - 1 / chains))

    gains, square = product(said, error), product(said, said).sum(0).clip(min=0)
    # A column with few cells leans on all columns together, as if it had 50 cells more; and all columns
    # together on their gain less two standard errors: it is the network that must earn trust.
    by_row = np.bincount(rows, gains.sum(1))
    common = np.clip((gains.sum() - 2 * np.sqrt((by_row**2).sum())) / max(square.sum(), 1e-12), 0, 1)
    typical = 50 * square.sum() / max(counts.sum(), 1) + 1e-12
    return np.asarray(np.clip((gains.sum(0) + typical * common) / (square + typical), 0, 1))


def interval(draws: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval from draws along axis 0.

    Quantile q is the (m + 1) q-th of m draws in order (Weibull's plotting position): a new value of the same
    law then falls below it with probability q exactly, also when draws are few; numpy's default would make
    90 % intervals of 20 draws cover 81 %.
    """
    tails = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return tails[0], tails[1]

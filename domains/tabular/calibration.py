"""What is chosen on held-out cells: how far to trust the network beside the trees, how wide draws scatter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from ...shared.masking import Cells
from ...shared.noise import Keys
from .chain import Guess, Table, TreeChains
from .correction import Correction
from .space import TableSpace


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


def centre(space: TableSpace, calibration: Calibration, guess: Guess, correction: np.ndarray) -> np.ndarray:
    """(n, C) a guess, corrected as far as is trusted: Gaussian scale and shares.

    Args:
        correction: (n, C + p), by `Correction.corrections`.
    """
    weight = np.concatenate([calibration.gauss, np.repeat(calibration.shares, space.cardinalities)])
    return np.asarray(
        np.concatenate([guess.gauss, guess.shares], 1) + weight * correction[:, : space.columns]
    )


def median(space: TableSpace, calibration: Calibration, guess: Guess, correction: np.ndarray) -> np.ndarray:
    """(n, p) the middle of the conditional law on the standard scale, by one chain and the network."""
    p = guess.standard.shape[1]
    return space.standard(space.from_gauss(centre(space, calibration, guess, correction)[:, :p]))


def mean(space: TableSpace, calibration: Calibration, guess: Guess, correction: np.ndarray) -> np.ndarray:
    """(n, p) the conditional mean on the standard scale, by one chain and the network."""
    middle = median(space, calibration, guess, correction)
    plain = guess.standard + calibration.standard * correction[:, space.columns :]
    return np.asarray(plain + calibration.median * (middle - plain))


@dataclass(frozen=True)
class _Pair:
    """Held-out rows with cells hidden, as the two chains that never saw them guess them.

    Args:
        truth: the rows before hiding.
        hidden: after.
        raw: (n, p) the numbers in raw units.
        keys: for draws.
        guesses, corrections: of the two chains.
        chains: how many there are in all.
    """

    truth: Table
    hidden: Table
    raw: np.ndarray
    keys: Keys
    guesses: list[Guess]
    corrections: list[np.ndarray]
    chains: int
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
    said = np.stack(pair.corrections)
    truth = np.concatenate([pair.truth.gauss, space.indicators(pair.truth.codes), pair.truth.standard], 1)
    error = np.stack([truth - np.concatenate([g.gauss, g.shares, g.standard], 1) for g in pair.guesses])
    numbers, k = pair.counts[:, :p], chains.chains_
    shares = np.zeros(q)
    for j in range(q):
        part = slice(p + space.offsets[j], p + space.offsets[j + 1])
        at = pair.counts[:, p + j]
        if at.any():  # the levels of a column share a weight: its cells times its levels are one long column
            d, e = (array[:, at, part].reshape(2, -1, 1) for array in (said, error))
            shares[j] = _weights(d, e, np.ones(d.shape[1:], bool), k)[0]
    found = replace(
        Calibration.none(p, q),
        gauss=_weights(said[:, :, :p], error[:, :, :p], numbers, k),
        standard=_weights(said[:, :, space.columns :], error[:, :, space.columns :], numbers, k),
        shares=shares,
    )
    told = list(zip(pair.guesses, pair.corrections, strict=True))
    plain, middle = ([answer(space, found, *one) for one in told] for answer in (mean, median))
    toward = np.stack([m - s for m, s in zip(middle, plain, strict=True)])
    missed = np.stack([pair.truth.standard - s for s in plain])
    found = replace(found, median=_weights(toward, missed, numbers, k))
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
    """One cell more of each row than is missing anyway, so that guessing it is as hard as it will be in use;
    and so each row several times. A table that misses nothing is taken to be for filling tables that do."""
    p, columns = table.standard.shape[1], table.missing.shape[1]
    misses = table.missing.mean() > 0.05
    times = int(np.clip(columns // 4, 4, 6)) if misses else 2
    places = np.tile(np.flatnonzero(held), times)
    draws = torch.arange(times).repeat_interleave(len(places) // times)
    keys = Keys(seed, torch.from_numpy(places), draws)
    rows, own = table[places], fold[places]
    if misses:
        rank = np.where(rows.missing, -1.0, keys.uniform((columns,), "hide one").numpy())
        stays = rank < rank.max(1, keepdims=True)
    else:
        stays = Cells(0.25, 0.25)(keys, (columns,)).numpy()
    hidden = rows.hide(~stays[:, :p], ~stays[:, p:])
    guesses = [chains.guess(hidden, chain) for chain in (own, (own - 1) % chains.chains_)]
    corrections = [correction.corrections(hidden, guess) for guess in guesses]
    return _Pair(rows, hidden, raw[places], keys, guesses, corrections, chains.chains_)


def _spreads(correction: Correction, found: Calibration, pair: _Pair, draws: int = 20) -> np.ndarray:
    """(p,) the factor on the draws with which 90 % intervals will cover 90 % of cells.

    It is found on held-out cells around one chain's centre (s_1) and around the average of two (s_2);
    the squared width goes as a + b / K in the number of chains, which gives it for all of them.
    """
    space, p = correction.space, pair.raw.shape[1]
    one, two = (
        centre(space, found, g, c)[:, :p] for g, c in zip(pair.guesses, pair.corrections, strict=True)
    )
    noise = correction.noise([pair.hidden], pair.guesses[:1], pair.keys, draws)[..., :p]
    single = _factor(space, one, noise, pair.raw, pair.counts[:, :p]) ** 2
    double = _factor(space, (one + two) / 2, noise, pair.raw, pair.counts[:, :p]) ** 2
    slope = 2 * np.clip(single - double, 0, None)
    return np.asarray(np.sqrt(np.clip(single - slope * (1 - 1 / pair.chains), 0.15 * single, None)))


def _factor(
    space: TableSpace, middle: np.ndarray, noise: np.ndarray, truth: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """(p,) the factor on the noise with which 90 % intervals around `middle` cover 90 %."""
    factors = np.geomspace(0.3, 3.5, 33)
    score, inside = np.zeros((2, len(factors), counts.shape[1]))
    tails = interval(noise)
    for i, factor in enumerate(factors):
        # The scale is monotone: ends of draws are draws of ends.
        low, high = (space.from_gauss(middle + factor * tail) for tail in tails)
        miss = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
        score[i] = np.where(counts, (high - low + 20 * miss) / space.stds_, 0).sum(0)
        inside[i] = ((miss <= 0) & counts).sum(0)
    cells = counts.sum(0)
    # A column with few held-out cells leans on all columns together, as if it had 150 cells more.
    total = max(cells.sum(), 1)
    coverage = (inside + 150 * inside.sum(1, keepdims=True) / total) / (cells + 150)
    score = (score + 150 * score.sum(1, keepdims=True) / total) / (cells + 150)
    covering = np.maximum.accumulate(coverage, 0)
    reached = np.array([np.interp(0.9, column, factors) for column in covering.T])
    # Where values pile up (nine zeros in ten), every width covers: the interval score decides.
    return np.where(coverage[0] > 0.9, factors[score.argmin(0)], reached)


def _weights(said: np.ndarray, error: np.ndarray, counts: np.ndarray, chains: int) -> np.ndarray:
    """(p,) the weight w, 0 to 1, for which m + w d errs least in the mean square, when guesses m and
    corrections d will be averaged over K chains.

    Errors and corrections of two chains that did not see the row estimate both the average of products
    within a chain (of which the averages over K chains have 1 / K) and across chains (the rest): a
    correction that only takes a chain's own noise back is not needed where averaging does.

    Args:
        said, error: (2, n, p), d and x - m of the two chains.
        counts: (n, p) cells that count.
    """
    said, error = np.where(counts, said, 0).astype(float), np.where(counts, error, 0).astype(float)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        within = (a[0] * b[0] + a[1] * b[1]).sum(0) / 2
        across = (a[0] * b[1] + a[1] * b[0]).sum(0) / 2
        return np.asarray(within / chains + across * (1 - 1 / chains))

    gain, square = product(said, error), product(said, said).clip(min=0)
    # A column with few cells leans on all columns together, as if it had 50 cells more.
    common = np.clip(gain.sum() / max(square.sum(), 1e-12), 0, 1)
    typical = 50 * square.sum() / max(counts.sum(), 1) + 1e-12
    return np.asarray(np.clip((gain + typical * common) / (square + typical), 0, 1))


def interval(draws: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval from draws along axis 0.

    Quantile q is the (m + 1) q-th of m draws in order (Weibull's plotting position): a new value of the same
    law then falls below it with probability q exactly, also when draws are few; numpy's default would make
    90 % intervals of 20 draws cover 81 %.
    """
    tails = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return tails[0], tails[1]

"""Numbers as levels: values that many rows share are levels of their own, the rest are bins at quantiles.

A number becomes a category, so that a law of any shape (piles, gaps, long tails) is a list of shares;
inside a bin the training law is kept as a few quantiles, between which a value is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

KNOTS = 8
"""Steps of the law within a bin."""


SLACK = 1e-9
"""Of a grid's step: what is not told apart."""


@dataclass(frozen=True)
class Grid:
    """What all values of a number are a whole number of steps from; a step of 0 is no grid.

    Example:
        >>> grid = Grid.fit(np.array([3450.0, 3650, 3675, 3700, 3800, 3750]), 1.0, 0)
        >>> grid.step, grid.up(np.array([3651.0])).tolist()
        (25.0, [3675.0])
    """

    step: float = 0.0
    offset: float = 0.0
    decimals: int | None = None

    @classmethod
    def fit(cls, values: np.ndarray, base: float, decimals: int | None) -> Self:
        """The coarsest grid that holds all of `values` (n,), a multiple of `base`.

        Args:
            decimals: of the numbers on the grid.
        """
        distinct = np.unique(values)
        if not base or len(distinct) < 2 or np.abs(distinct).max() / base > 2**50:
            return cls()
        steps = np.round((distinct - distinct[0]) / base).astype(np.int64)
        # Few values have a common step by chance.
        common = int(np.gcd.reduce(steps)) if len(distinct) > 5 else 1
        return cls(base * common, float(distinct[0]), decimals)

    def up(self, values: np.ndarray) -> np.ndarray:
        """The next place of the grid that is not below."""
        return self._at(np.ceil((values - self.offset) / self.step - SLACK), values) if self.step else values

    def down(self, values: np.ndarray) -> np.ndarray:
        """The next place of the grid that is not above."""
        return self._at(np.floor((values - self.offset) / self.step + SLACK), values) if self.step else values

    def near(self, values: np.ndarray) -> np.ndarray:
        """The nearest place of the grid."""
        return self._at(np.round((values - self.offset) / self.step), values) if self.step else values

    def _at(self, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
        made = np.where(np.isfinite(values), steps * self.step + self.offset, values)
        return np.asarray(made if self.decimals is None else np.round(made, self.decimals) + 0.0)


@dataclass(frozen=True)
class Bins:
    """The levels of one number.

    Args:
        knots: (L, KNOTS + 1) float64, ascending in each row: equally likely steps of the law within the
            level. A value of its own has one knot, repeated. Levels are sorted by their middle.
        steps: (L,) what the values within a level are whole numbers of steps apart; 0 where nothing is known.
            (Ages are whole years, but for babies.)
    """

    knots: np.ndarray
    steps: np.ndarray

    @classmethod
    def fit(
        cls, values: np.ndarray, most: int = 128, own: int = 256, rare: int = 5, base: float = 0.0
    ) -> Self:
        """Learn from training values.

        Args:
            values: (n,) finite numbers, n >= 1.
            most: bins at most; each holds at least `2 * rare` rows.
            own: values that are levels of their own, at most.
            rare: a value of fewer rows is never a level of its own.
            base: what all values are multiples of; 0 when that is not known.
        """
        distinct, counts = np.unique(values, return_counts=True)
        n = len(values)
        few = len(distinct) <= own
        least = max(
            rare, 0 if few else n // most // 2, int(np.sort(counts)[-own]) if len(counts) > own else 0
        )
        alone = counts >= least
        rest = np.repeat(distinct[~alone], counts[~alone])
        knots = [np.repeat(distinct[alone][:, None], KNOTS + 1, 1)]
        if len(rest):
            bins = int(np.clip(round(most * max(len(rest) / n, 0.1)), 1, max(len(rest) // (2 * rare), 1)))
            knots.append(_quantile_bins(rest, bins))
        made = np.concatenate(knots)
        made = made[np.lexsort((made[:, -1], made[:, KNOTS // 2]))]
        return cls(made, np.array([_step(rest, row, base) for row in made]))

    def __len__(self) -> int:
        return len(self.knots)

    @property
    def alone(self) -> np.ndarray:
        """(L,) whether a level is one value."""
        return np.asarray(self.knots[:, 0] == self.knots[:, -1])

    def encode(self, values: np.ndarray) -> np.ndarray:
        """(n,) numbers to (n,) int32 levels: the value's own, else the bin it is in or next to; NaN: -1."""
        alone = np.flatnonzero(self.alone)
        wide = np.flatnonzero(~self.alone)
        out = np.full(len(values), -1, np.int32)
        seen = ~np.isnan(values)
        found = np.zeros(len(values), bool)
        if len(alone):
            held = self.knots[alone, 0]
            at = np.searchsorted(held, values).clip(max=len(held) - 1)
            near = at - (np.abs(held[at - 1] - values) < np.abs(held[at] - values)) * (at > 0)
            found = seen & ((held[at] == values) | (len(wide) == 0))
            out[found] = alone[np.where(held[at] == values, at, near)[found]]
        if len(wide):
            at = np.searchsorted(self.knots[wide, -1], values).clip(max=len(wide) - 1)
            rest = seen & ~found
            out[rest] = wide[at[rest]]
        return out

    def share(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, L) each: where in the law of every level `low` and `high` (n,) lie, 0 to 1; their difference
        is how much of the level lies between. A value of its own is between or not: 0 and 1, or 0 and 0."""
        first, last = self.knots[:, 0], self.knots[:, -1]
        begin, end = _places(self.knots, low[:, None]), _places(self.knots, high[:, None])
        alone = (first == last)[None]
        inside = (first >= low[:, None]) & (last <= high[:, None])
        return np.where(alone, 0.0, begin), np.where(alone, inside * 1.0, np.maximum(begin, end))

    def decode(self, levels: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """(n,) levels (none of them -1) and places in their laws (n,) in [0, 1] to numbers."""
        at = uniform * KNOTS
        step = np.minimum(at.astype(int), KNOTS - 1)
        low, high = self.knots[levels, step], self.knots[levels, step + 1]
        values, first, grain = low + (at - step) * (high - low), self.knots[levels, 0], self.steps[levels]
        safe = np.where(grain > 0, grain, 1.0)
        return np.asarray(np.where(grain > 0, first + np.round((values - first) / safe) * safe, values))


def _step(values: np.ndarray, knots: np.ndarray, base: float) -> float:
    """What the sorted `values` in a bin are whole numbers of steps of `base` apart; 0 of fewer than three."""
    inside = np.unique(
        values[np.searchsorted(values, knots[0]) : np.searchsorted(values, knots[-1], "right")]
    )
    if not base or len(inside) < 3 or np.abs(inside).max() / base > 2**50:
        return 0.0
    return base * int(np.gcd.reduce(np.round((inside - inside[0]) / base).astype(np.int64)))


def _quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """(<= bins, KNOTS + 1) quantiles of sorted values cut into equal parts, equal values never apart."""
    cuts = np.unique(np.searchsorted(values, values[np.linspace(0, len(values), bins + 1)[1:-1].astype(int)]))
    parts = [part for part in np.split(values, cuts) if len(part)]
    grid = np.linspace(0, 1, KNOTS + 1)
    return np.stack([np.quantile(part, grid) for part in parts])


def _places(knots: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(n, L) where in the law of each level a value (n, 1) lies, 0 to 1."""
    at = np.zeros((len(value), len(knots)))
    for step in range(KNOTS):
        low, high = knots[:, step], knots[:, step + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(high > low, (value - low) / (high - low), value >= high)
        at += np.clip(part, 0, 1)
    return at / KNOTS

"""Structural zeros: levels of two parts that are never found together, though chance would often pair them.

The network gives every pair of levels some probability, and over all pairs of a row that adds up. Were the
parts independent, some row would have two levels that many rows have; that none has is taken for a rule where
the chance of it (of the hypergeometric law, Fisher's) is at most e^-12, one in 160,000. What it tells of the
training rows is an aggregate: each of the two levels is held by twelve rows at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import gammaln

FEWEST = 12
"""Rows that each of the two levels is in, at least."""
CHANCE = -12.0
"""Logarithm of the chance, were the parts independent, of no row with both: at most this."""
_LEVELS = 512  # a part with more takes no part: its levels are seldom, and tables grow with them
_BYTES = 64 * 2**20  # of all tables together


@dataclass(frozen=True)
class Zeros:
    """The pairs.

    Args:
        pairs: (K, 4) int16: a part, its level, a later part, its level.
        levels: of each part.
    """

    pairs: np.ndarray
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        most = np.array([*self.levels, 0])  # a part that there is not has no level
        for part, level in (self.pairs[:, :2].T, self.pairs[:, 2:].T):
            known = (part >= 0) & (part < len(self.levels)) & (level >= 0)
            if not (known.all() and (level < most[part]).all()):
                raise ValueError("a pair of levels that there are not")

    @classmethod
    def none(cls, levels: Sequence[int]) -> Zeros:
        """Anything goes with anything."""
        return cls(np.empty((0, 4), np.int16), tuple(levels))

    @classmethod
    def found(cls, rows: np.ndarray, levels: Sequence[int]) -> Zeros:
        """Those of (n, P) training levels. Where they are too many, the pairs of parts are kept that rule out
        most rows."""
        pieces: list[tuple[float, int, np.ndarray]] = []
        n, held = len(rows), [np.bincount(rows[:, k], minlength=count) for k, count in enumerate(levels)]
        for b, few in enumerate(levels):
            for a, many in enumerate(levels[:b]):
                if max(many, few) > _LEVELS:
                    continue
                there = np.bincount(rows[:, a] * few + rows[:, b], minlength=many * few).reshape(many, few)
                often = (held[a] >= FEWEST)[:, None] & (held[b] >= FEWEST)
                first, second = np.nonzero((there == 0) & often)
                sure = _chance(n, held[a][first], held[b][second]) <= CHANCE
                first, second = first[sure], second[sure]
                if len(first):
                    each = np.column_stack([np.full_like(first, a), first, np.full_like(first, b), second])
                    rest = float((held[a][first] * held[b][second]).sum())
                    pieces.append((-rest, many * few, each.astype(np.int16)))
        pieces.sort(key=lambda piece: piece[0])
        sizes = np.cumsum([size for _, size, _ in pieces])
        kept = [each for (_, _, each), size in zip(pieces, sizes, strict=True) if size <= _BYTES]
        return cls(np.concatenate(kept) if kept else cls.none(levels).pairs, tuple(levels))

    def possible(self, drawn: np.ndarray, hidden: np.ndarray, place: int) -> np.ndarray | None:
        """(R, L) bool: levels of the part at `place` that are found with all that is drawn of a row; None
        where no pair tells.

        Args:
            drawn: (R, P) levels.
            hidden: (P,) parts that are not drawn yet.
        """
        fits: np.ndarray | None = None
        for other, table in self._tables[place].items():
            if not hidden[other]:
                fits = table[drawn[:, other]] if fits is None else fits & table[drawn[:, other]]
        return fits

    @cached_property
    def _tables(self) -> list[dict[int, np.ndarray]]:
        """For each part those that it has pairs with, and the (their levels, own levels) that go together."""
        tables: list[dict[int, np.ndarray]] = [{} for _ in self.levels]
        a, first, b, second = self.pairs.T.astype(np.int64)
        for one, other in np.unique(np.column_stack([a, b]), axis=0).tolist():
            at = (a == one) & (b == other)
            table = np.ones((self.levels[one], self.levels[other]), bool)
            table[first[at], second[at]] = False
            tables[other][one], tables[one][other] = table, table.T
        return tables


def _chance(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(K,) log-probability that of n rows none is among both the `first` and the `second` many, which were
    chosen independently. They are no more than n together."""
    return np.asarray(
        gammaln(n - first + 1) + gammaln(n - second + 1) - gammaln(n + 1) - gammaln(n - first - second + 1)
    )

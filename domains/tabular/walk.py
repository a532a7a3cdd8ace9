"""One walk of the reverse process over some rows: parts are unmasked one at a time, as far as is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from .codec import Coded
from .decoding import shaped
from .parts import DAY, Part, Parts
from .rules import Order
from .zeros import Zeros

Law = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(levels (R, P), hidden (R, P), place) -> (R, L) probabilities of the levels of the part at that place."""
TINY = 1e-12


@dataclass(frozen=True)
class Demand:
    """What a row must be like.

    Args:
        low, high: (p,) range of each number, on its grid; infinite where open.
        levels: part -> (L,) bool: its levels that are allowed.
        present: parts that must not be missing.
        first: parts that are drawn before all others, because something is asked of them.
        orders: pairs of numbers (places), and whether strictly ordered.
        sums: number -> (sign, number) of its terms.
        groups: parts, and the (T, g) combinations of their levels that there are.
        pooled: category -> which of its seldom levels is meant, a place in [0, 1).
        zeros: levels that are never found together. They yield to all that is demanded.
    """

    low: np.ndarray
    high: np.ndarray
    levels: dict[int, np.ndarray] = field(default_factory=dict)
    present: frozenset[int] = frozenset()
    first: tuple[int, ...] = ()
    orders: tuple[tuple[int, int, bool], ...] = ()
    sums: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    groups: tuple[tuple[tuple[int, ...], np.ndarray], ...] = ()
    pooled: dict[int, float] = field(default_factory=dict)
    zeros: Zeros | None = None

    @property
    def uncertain(self) -> bool:
        """Whether how likely what is asked is depends on how the first of it is met: then several ways are
        weighed. Not so where each part but one is told exactly, or where one part is asked alone."""
        exact = {place for place, allowed in self.levels.items() if allowed.sum() == 1}
        return len(set(self.first) - exact) > 1

    @classmethod
    def of(
        cls, parts: Parts, low: np.ndarray, high: np.ndarray, orders: Sequence[Order], **more: object
    ) -> Self:
        """With ranges that agree with one another: what follows from the orders is drawn, and all lie on the
        columns' grids."""
        place = {column.name: at for at, column in enumerate(parts.numbers)}
        pairs = tuple((place[o.low], place[o.high], o.strict) for o in orders)
        low, high = low.copy(), high.copy()
        for a, b, _ in pairs:
            high[a], low[b] = min(high[a], high[b]), max(low[a], low[b])
        for part in reversed(parts.parts):
            if part.role == "difference" and part.bins is not None:
                low[part.anchor] = max(low[part.anchor], low[part.at] - part.bins.knots.max())
                high[part.anchor] = min(high[part.anchor], high[part.at] - part.bins.knots.min())
        for at, grid in enumerate(parts.grids):
            low[at], high[at] = float(grid.up(low[at : at + 1])[0]), float(grid.down(high[at : at + 1])[0])
        return replace(cls(low, high, orders=pairs), **more)  # type: ignore[arg-type]


class Walk:
    """Rows in the making.

    Attributes:
        levels, hidden: (R, P) what is drawn, and what is not yet.
        numbers: (R, p) finished numbers; NaN where missing or not yet drawn.
        weight: (R,) log-probability that what is asked of the parts drawn so far holds.
    """

    def __init__(self, parts: Parts, demand: Demand, law: Law, rows: int) -> None:
        self.parts, self.demand, self.law = parts, demand, law
        self.levels = np.zeros((rows, len(parts.parts)), np.int64)
        self.hidden = np.ones(self.levels.shape, bool)
        self.numbers = np.full((rows, len(parts.numbers)), np.nan)
        self.days = np.full(self.numbers.shape, np.nan)
        self.weight = np.zeros(rows)

    def take(self, other: Walk, rows: np.ndarray) -> None:
        """Continue some rows as `other` has them."""
        for name in ("levels", "hidden", "numbers", "days", "weight"):
            getattr(self, name)[rows] = getattr(other, name)[rows]

    def go(self, places: Sequence[int], uniform: np.ndarray) -> None:
        """Draw the parts at these places, in this order.

        Args:
            uniform: (R, P, 2) in (0, 1): which level, and where in it.
        """
        for place in places:
            self._draw(place, uniform[:, place])

    def _draw(self, place: int, uniform: np.ndarray) -> None:
        part = self.parts.parts[place]
        law = self.law(self.levels, self.hidden, place)
        allowed = self._allowed(place, part)
        begin = end = low = high = None
        if part.bins is not None:
            low, high = self._interval(part)
            begin, end = part.bins.share(low, high)
            allowed[:, : part.seen] *= end - begin
        mass = self._possible(law, place) * allowed
        total = mass.sum(1)
        self.weight += np.log(np.maximum(total, TINY))
        # What is asked for was never found with what is drawn: then it is as likely as the network says.
        stuck = total <= TINY
        mass[stuck] = (law * allowed)[stuck]
        stuck = mass.sum(1) <= TINY
        if stuck.any():
            mass[stuck] = self._nearest(part, law, allowed, low, high)[stuck]
        below = mass.cumsum(1)
        level = (uniform[:, :1] * below[:, -1:] >= below).sum(1).clip(max=part.levels - 1)
        self.levels[:, place], self.hidden[:, place] = level, False
        if part.bins is not None:
            assert begin is not None and end is not None and low is not None and high is not None
            self._finish(part, level, uniform[:, 1], begin, end, low, high)

    def _possible(self, law: np.ndarray, place: int) -> np.ndarray:
        """(R, L) the law without levels that are never found with what is drawn; whole where none is left."""
        zeros = self.demand.zeros
        fits = None if zeros is None else zeros.possible(self.levels, self.hidden[0], place)
        if fits is None:
            return law
        rest = law * fits
        total = rest.sum(1, keepdims=True)
        return np.where(total > TINY, rest / np.maximum(total, TINY), law)

    def _allowed(self, place: int, part: Part) -> np.ndarray:
        """(R, L) 1 or 0: levels that are allowed, ranges apart."""
        allowed = np.ones((len(self.levels), part.levels))
        if place in self.demand.levels:
            allowed *= self.demand.levels[place]
        for group, combinations in self.demand.groups:
            if place in group:
                allowed *= self._together(group, combinations, place, part.levels)
        if part.gone:
            if place in self.demand.present:
                allowed[:, -1] = 0
            if part.role in ("clock", "difference"):
                leader = self.days[:, part.at] if part.role == "clock" else self.numbers[:, part.anchor]
                gone = np.isnan(leader)
                allowed[gone, :-1], allowed[~gone, -1] = 0, 0
        return allowed

    def _together(
        self, group: tuple[int, ...], combinations: np.ndarray, place: int, levels: int
    ) -> np.ndarray:
        """(R, levels) 1 where the level goes with what is drawn of the group."""
        fits = np.ones((len(self.levels), len(combinations)), bool)
        for at, other in enumerate(group):
            if not self.hidden[0, other]:
                fits &= self.levels[:, other, None] == combinations[None, :, at]
        out = np.zeros((len(self.levels), levels))
        rows, found = np.nonzero(fits)
        out[rows, combinations[found, group.index(place)]] = 1
        return out

    def _interval(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """(R,) each: between which numbers the part must lie, as the part counts."""
        low = np.full(len(self.levels), self.demand.low[part.at])
        high = np.full(len(self.levels), self.demand.high[part.at])
        grid = self.parts.grids[part.at]
        for a, b, strict in self.demand.orders:
            if part.at not in (a, b):
                continue
            other = self.numbers[:, a if part.at == b else b]
            if part.at == b:
                least = (
                    np.nextafter(other, np.inf) if strict and not grid.step else other + strict * grid.step
                )
                low = np.fmax(low, grid.up(least) if not strict else grid.down(least))
            else:
                most = (
                    np.nextafter(other, -np.inf) if strict and not grid.step else other - strict * grid.step
                )
                high = np.fmin(high, grid.down(most) if not strict else grid.up(most))
        if part.role == "day":
            return np.floor(low / DAY), np.floor(high / DAY)
        base = self._base(part)
        return low - base, high - base

    def _base(self, part: Part) -> np.ndarray:
        """(R,) what a part's numbers are counted from; 0 where that is missing, and the part is too."""
        if part.role == "number":
            return np.zeros(len(self.levels))
        return np.nan_to_num(
            self.days[:, part.at] * DAY if part.role == "clock" else self.numbers[:, part.anchor]
        )

    def _nearest(
        self,
        part: Part,
        law: np.ndarray,
        allowed: np.ndarray,
        low: np.ndarray | None,
        high: np.ndarray | None,
    ) -> np.ndarray:
        """(R, L) of rows where no likely level is allowed: those nearest to the range, or allowed, or any."""
        if part.bins is not None and low is not None and high is not None:
            knots = part.bins.knots
            away = np.maximum(knots[:, 0] - high[:, None], low[:, None] - knots[:, -1])
            near = np.zeros(law.shape)
            near[:, : part.seen] = away <= away.min(1, keepdims=True)
            lost = np.zeros(len(law), bool)
            if part.role in ("clock", "difference") and part.gone:
                lost = np.isnan(
                    self.days[:, part.at] if part.role == "clock" else self.numbers[:, part.anchor]
                )
            near[lost] = 0
            near[lost, -1] = 1
            return near
        some = allowed.sum(1, keepdims=True) > 0
        return np.where(some, allowed, law + TINY)

    def _finish(
        self,
        part: Part,
        level: np.ndarray,
        uniform: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> None:
        """The number of a level: a place in its law, within what is allowed, in the column's form."""
        assert part.bins is not None
        gone = level >= part.seen
        rows, at = np.arange(len(level)), np.where(gone, 0, level)
        first, last = begin[rows, at], end[rows, at]
        none = last <= first
        where = np.where(none, uniform, first + uniform * (last - first))
        values = part.bins.decode(at, where)
        if part.role == "day":
            self.days[:, part.at] = np.where(gone, np.nan, np.clip(np.round(values), low, high))
            return
        base = self._base(part)
        values = shaped(self.parts.numbers[part.at], values + base)
        values = self.parts.grids[part.at].near(values)
        values = np.clip(values, low + base, high + base)
        self.numbers[:, part.at] = np.where(gone, np.nan, values)

    def coded(self) -> Coded:
        """What was drawn; sums are made from their terms."""
        numbers = self.numbers.copy()
        for total, terms in self.demand.sums.items():
            values = np.sum([sign * numbers[:, at] for sign, at in terms], axis=0)
            column = self.parts.numbers[total]
            numbers[:, total] = values if column.decimals is None else np.round(values, column.decimals) + 0.0
        width = sum(column.is_category for column in self.parts.columns)
        codes = np.full((len(numbers), width), -1, np.int32)
        for place, part in enumerate(self.parts.parts):
            if part.role == "category":
                level = self.levels[:, place]
                codes[:, part.at] = np.where(level < part.seen, level, -1)
        return Coded(numbers, codes)

    def broken(self, coded: Coded) -> np.ndarray:
        """(R,) bool: rows that are not as demanded, which happens where one demand leaves another no room."""
        demand, numbers = self.demand, coded.numbers
        with np.errstate(invalid="ignore"):
            bad = ((numbers < demand.low) | (numbers > demand.high)).any(1)
            for a, b, strict in demand.orders:
                bad |= (numbers[:, a] > numbers[:, b]) | (strict & (numbers[:, a] == numbers[:, b]))
        for total in demand.sums:
            column = self.parts.numbers[total]
            assert column.low is not None and column.high is not None
            bad |= (numbers[:, total] < column.low) | (numbers[:, total] > column.high)
        for place, allowed in demand.levels.items():
            bad |= ~allowed.astype(bool)[self.levels[:, place]]
        for group, combinations in demand.groups:
            drawn = self.levels[:, list(group)]
            bad |= ~(drawn[:, None] == combinations[None]).all(2).any(1)
        for place in demand.present:
            part = self.parts.parts[place]
            bad |= part.gone & (self.levels[:, place] >= part.seen)
        return np.asarray(bad)

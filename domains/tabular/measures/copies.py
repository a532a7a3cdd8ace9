"""Are synthetic rows copies of real people? A detector, and copies planted to see whether it sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..codec import Coded
from .intervals import Rate, fewest_copies, more_often
from .pair import Pair, row_keys, some, stacked, take
from .spaces import Space, nearest

LOCAL = 5
"""The distance to so many neighbours says how far apart people are in a neighbourhood."""
FLAGGED = 0.005
"""Share of held-out people that the detector may flag."""
STRICTER = (1.0, 0.25, 0.0)
"""The test looks at rows below these parts of the threshold too, the last being equal rows: the nearer the
copies, the fewer rows are there by chance."""
ATOM = 0.05
"""A number that so many people share is an atom of its column's distribution."""
PLANTED = 400
"""Copies planted of each sort."""


@dataclass(frozen=True)
class Copies:
    """What the detector found.

    A row is *suspicious* when its nearest person, training or held-out, is much nearer than people are in
    that neighbourhood; the threshold is what 0.5 % of held-out people fall below. Suspicious rows should be
    near training people as often as these are among all people; copies are near training people always.

    Args:
        exact: synthetic rows equal to a training row in every cell.
        exact_holdout: the same of held-out people.
        near_training: synthetic rows suspiciously near a training person.
        near_holdout: suspiciously near a held-out person, which chance alone brings about.
        expected: share of suspicious rows that would be near training people if nothing was copied.
        holdout_flagged: held-out people that the detector flags (they are copies of nobody).
        p: that training people have suspicious rows near them more often than held-out ones (Fisher on
            people, so that many rows near one person count once; Bonferroni over STRICTER).
        hit_rates: share of the planted copies that was found, by sort of copy.
        smallest: the smallest share of copied rows that would have been seen four times in five.
        pairs: (synthetic row, training row, distance as a share of the usual) of the most suspicious, by
            position. Only for those who may see the training table.
    """

    exact: Rate
    exact_holdout: Rate
    near_training: Rate
    near_holdout: Rate
    expected: float
    holdout_flagged: Rate
    p: float
    hit_rates: Mapping[str, Rate]
    smallest: float
    pairs: tuple[tuple[int, int, float], ...] = ()

    @property
    def sees(self) -> bool:
        """Whether the detector finds 95 % of exact copies and of copies that were jittered by 1 %."""
        return all(self.hit_rates[sort].share >= 0.95 for sort in list(self.hit_rates)[:2])


def find_copies(pair: Pair, seed: int, tests: int = 1) -> Copies:
    """Look for copies of the real table's rows in the synthetic one. The pair must have a holdout.

    Args:
        tests: how many tests the report makes: the more, the stronger each must speak.
    """
    assert pair.holdout is not None
    space = Space.of(pair, "rank")
    crowd = Crowd.of(space, pair.real, pair.holdout)
    threshold = crowd.threshold()
    ratio, owner = crowd.look(space.points(pair.synthetic))
    suspicious = ratio <= threshold
    kind = crowd.kind[owner]
    n = len(pair.synthetic)
    known = np.abs(crowd.kind) == 1
    expected = float((crowd.kind[known] == 1).mean())
    counts = [
        [int(((ratio <= part * threshold) & (kind == of)).sum()) for of in (1, -1)] for part in STRICTER
    ]
    p = min(crowd.approached(owner[ratio <= part * threshold]) for part in STRICTER)
    training, held = counts[0]
    flagged = int((crowd.held_ratio <= threshold).sum())
    hits = planted_hits(pair, space, crowd, threshold, np.random.default_rng([seed, 21]))
    found = float(np.mean([rate.share for rate in list(hits.values())[:2]]))
    background = (
        [n * flagged / len(pair.holdout), 0.0] if threshold > 0 else [n * flagged / len(pair.holdout)]
    )
    fewest = min(fewest_copies(b, expected, found, len(STRICTER) * tests) for b in background)
    real_keys = row_keys(pair.real)
    order = np.argsort(np.where(suspicious & (kind >= 0), ratio, np.inf), kind="stable")
    return Copies(
        exact=_among(pair.synthetic, real_keys),
        exact_holdout=_among(pair.holdout, real_keys),
        near_training=Rate(training, n),
        near_holdout=Rate(held, n),
        expected=expected,
        holdout_flagged=Rate(flagged, len(pair.holdout)),
        p=min(1.0, len(STRICTER) * p),
        hit_rates=hits,
        smallest=min(1.0, fewest / n),
        pairs=tuple(
            (int(i), int(crowd.row[owner[i]]), float(ratio[i]))
            for i in order[:20]
            if suspicious[i] and kind[i] >= 0
        ),
    )


def _among(table: Coded, keys: np.ndarray) -> Rate:
    return Rate(int(np.isin(row_keys(table), keys).sum()), len(table))


@dataclass(frozen=True)
class Crowd:
    """Training and held-out people together, each different row once.

    Args:
        points: (n, d).
        kind: (n,) 1 for training people, -1 for held-out ones, 0 for rows that both have.
        row: (n,) position of the row in its own table.
        held_ratio: (h,) of each held-out person how suspicious it is among the others.
    """

    points: np.ndarray
    kind: np.ndarray
    row: np.ndarray
    held_ratio: np.ndarray

    @classmethod
    def of(cls, space: Space, real: Coded, holdout: Coded) -> Crowd:
        both = stacked(real, holdout)
        _, first, which = np.unique(row_keys(both), return_index=True, return_inverse=True)
        which = which.ravel()
        has_real = np.bincount(which[: len(real)], minlength=len(first)) > 0
        held = np.bincount(which[len(real) :], minlength=len(first))
        kind = np.where(has_real & (held > 0), 0, np.where(has_real, 1, -1))
        points = space.points(take(both, first))
        row = np.where(first < len(real), first, first - len(real))
        return cls(points, kind, row, cls._held_ratio(points, has_real, held, which[len(real) :]))

    @staticmethod
    def _held_ratio(points: np.ndarray, real: np.ndarray, held: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Each held-out person among everybody else: a twin of another person is at distance 0."""
        apart, _ = nearest(points[which], points, LOCAL + 1)
        alone = ~real[which] & (held[which] == 1)
        without = np.where(alone[:, None], apart[:, 1:], apart[:, :-1])
        return _ratio(without)

    def threshold(self) -> float:
        """Below it lies a share of FLAGGED of the held-out people.

        Where fewer than two of them would, it is read off the lowest tenth, whose shares fall as a power of
        the ratio (its exponent by Hill 1975): else one odd person would set it.
        """
        ordered = np.sort(self.held_ratio)
        if FLAGGED * len(ordered) >= 2:
            return float(np.quantile(ordered, FLAGGED, method="lower"))
        tail = max(5, len(ordered) // 10)
        if ordered[0] <= 0 or ordered[tail] <= ordered[0]:
            return float(ordered[0])
        exponent = tail / np.log(ordered[tail] / ordered[:tail]).sum()
        return float(ordered[tail] * (FLAGGED * len(ordered) / tail) ** (1 / exponent))

    def approached(self, owners: np.ndarray) -> float:
        """One-sided p that the people at `owners` are of the training table more often than chance has it."""
        near = np.zeros(len(self.kind), bool)
        near[owners] = True
        rates = [Rate(int(near[self.kind == of].sum()), int((self.kind == of).sum())) for of in (1, -1)]
        return more_often(rates[0], rates[1])

    def look(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) how suspicious points are (0: a copy, 1: as far from the nearest person as from the fifth),
        and (n,) which of the crowd is nearest."""
        apart, where = nearest(points, self.points, LOCAL)
        return _ratio(apart), where[:, 0]


def _ratio(apart: np.ndarray) -> np.ndarray:
    far = apart[:, -1]
    ratio: np.ndarray = np.where(far > 0, apart[:, 0] / np.where(far > 0, far, 1.0), 0.0)
    return ratio


def planted_hits(
    pair: Pair, space: Space, crowd: Crowd, threshold: float, rng: np.random.Generator
) -> dict[str, Rate]:
    """How many planted copies of training rows the detector finds. Those of rows that some held-out person
    has as well are never found: they could be chance."""
    chosen = take(pair.real, some(pair.real, PLANTED, rng))
    sorts = {
        "exact": chosen,
        "every number jittered by 1 % of its spread": jittered(pair, chosen, 0.01, rng),
        "every number jittered by 5 % of its spread": jittered(pair, chosen, 0.05, rng),
        "one cell replaced by another person's": swapped(pair, chosen, rng),
    }
    found = {}
    for sort, copies in sorts.items():
        ratio, owner = crowd.look(space.points(copies))
        hit = (ratio <= threshold) & (crowd.kind[owner] == 1)
        found[sort] = Rate(int(hit.sum()), len(hit))
    return found


def jittered(pair: Pair, coded: Coded, share: float, rng: np.random.Generator) -> Coded:
    """Numbers moved by normal noise of a share of their standard deviation, and rounded as the column is.

    Values that many people have in common (ATOM), as the zeros of an income, stay: a model keeps them too.
    """
    numbers = coded.numbers.copy()
    for place in pair.numbers:
        values, counts = np.unique(place.of(pair.real), return_counts=True)
        common = np.isin(numbers[:, place.at], values[counts >= ATOM * len(pair.real)])
        noise = share * np.nanstd(place.of(pair.real)) * rng.standard_normal(len(numbers))
        moved = numbers[:, place.at] + np.where(common, 0.0, noise)
        decimals = place.column.decimals
        numbers[:, place.at] = moved if decimals is None else np.round(moved, decimals)
    return Coded(numbers, coded.codes)


def swapped(pair: Pair, coded: Coded, rng: np.random.Generator) -> Coded:
    """In every row one cell takes the value of another real person."""
    numbers, codes = coded.numbers.copy(), coded.codes.copy()
    which = rng.integers(len(pair.places), size=len(coded))
    donor = rng.integers(len(pair.real), size=len(coded))
    for j, place in enumerate(pair.places):
        rows = np.flatnonzero(which == j)
        if place.is_number:
            numbers[rows, place.at] = pair.real.numbers[donor[rows], place.at]
        else:
            codes[rows, place.at] = pair.real.codes[donor[rows], place.at]
    return Coded(numbers, codes)


def closer_to_training(pair: Pair, seed: int) -> Rate:
    """Synthetic rows that are nearer to a training person than to any held-out one, of as many of each kind.

    One half is chance. A smoke alarm only: a set can leak without moving it (Yao et al. 2025).
    """
    assert pair.holdout is not None
    rng = np.random.default_rng([seed, 26])
    space, n = Space.of(pair, "rank"), min(len(pair.real), len(pair.holdout))
    rows = space.points(pair.synthetic)
    apart = [
        nearest(rows, space.points(take(table, some(table, n, rng))))[0][:, 0]
        for table in (pair.real, pair.holdout)
    ]
    differ = apart[0] != apart[1]
    return Rate(int((apart[0] < apart[1])[differ].sum()), int(differ.sum()))

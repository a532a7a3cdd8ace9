"""Tables as points: how far apart two rows are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..codec import Coded
from .pair import Pair, Place

Scaling = Literal["range", "rank"]


@dataclass(frozen=True)
class Space:
    """Rows as points of Euclidean space.

    A category of k levels takes k + 1 axes (one for missing). With "range" numbers run from 0 to 1 over the
    real table and levels are 0 or 1, as synthcity's measures have it. With "rank" numbers are the normal
    scores of their rank among the real ones, which no outlier can stretch, and two different levels are 1
    apart. A missing number stands at the real mean, 1 away from the known ones along an axis of its own.

    Args:
        scaling: how numbers become coordinates.
        places: the columns.
        known: for each number, its sorted observed real values.
        missing: for each number, whether it gets an axis for missing.
    """

    scaling: Scaling
    places: tuple[Place, ...]
    known: dict[int, np.ndarray]
    missing: dict[int, bool]

    @classmethod
    def of(cls, pair: Pair, scaling: Scaling) -> Space:
        """The space of a pair, scaled by its real table."""
        known, missing = {}, {}
        for place in pair.numbers:
            values = place.of(pair.real)
            known[place.at] = np.sort(values[~np.isnan(values)])
            missing[place.at] = any(np.isnan(place.of(table)).any() for table in pair.tables().values())
        return cls(scaling, pair.places, known, missing)

    def points(self, coded: Coded, without: Collection[str] = ()) -> np.ndarray:
        """(n, d) float64 coordinates of the rows.

        Args:
            without: columns to leave out.
        """
        parts = [self._axes(place, coded) for place in self.places if place.name not in without]
        return np.concatenate([np.empty((len(coded), 0)), *parts], axis=1)

    def _axes(self, place: Place, coded: Coded) -> np.ndarray:
        if not place.is_number:
            codes = coded.codes[:, place.at]
            levels: np.ndarray = np.eye(place.column.cardinality + 1)[codes]  # -1 is the last: missing
            return levels if self.scaling == "range" else np.asarray(levels * np.sqrt(0.5))
        values = place.of(coded)
        gone = np.isnan(values)
        axis = np.zeros(len(values))
        known = self.known[place.at]
        axis[~gone] = (self._ranged if self.scaling == "range" else normal_scores)(values[~gone], known)
        axis[gone] = (self._ranged(known, known) if self.scaling == "range" else np.zeros(1)).mean()
        columns = [axis, gone.astype(np.float64)] if self.missing[place.at] else [axis]
        return np.stack(columns, axis=1)

    @staticmethod
    def _ranged(values: np.ndarray, known: np.ndarray) -> np.ndarray:
        width = known[-1] - known[0]
        return np.asarray((values - known[0]) / (width if width > 0 else 1.0))


def normal_scores(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Phi^-1 of the mid-rank of each value among the sorted `known`, straight lines between known values.

    Beyond the known range the score goes on with the slope of one real standard deviation per unit.
    """
    from scipy.special import ndtri

    unique, counts = np.unique(known, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(known)
    scores = np.interp(values, unique, ndtri(middle))
    spread = known.std() or 1.0
    beyond = np.clip(values - unique[-1], 0, None) + np.clip(values - unique[0], None, 0)
    return np.asarray(scores + np.clip(beyond / spread, -3, 3))


def nearest(queries: np.ndarray, reference: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) distances to the k nearest points of `reference`, and (n, k) which they are.

    Distances are computed once more from differences: equal points are exactly 0 apart, which the faster
    expansion |a|^2 - 2ab + |b|^2 does not give.
    """
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(reference))
    found = NearestNeighbors(n_neighbors=k).fit(reference)
    where = np.asarray(found.kneighbors(queries, return_distance=False))
    apart = np.empty(where.shape)
    for j in range(k):
        apart[:, j] = np.sqrt(((queries - reference[where[:, j]]) ** 2).sum(1))
    order = np.argsort(apart, axis=1, kind="stable")
    return np.take_along_axis(apart, order, 1), np.take_along_axis(where, order, 1)


def nearest_others(points: np.ndarray, k: int = 1) -> np.ndarray:
    """(n, k) distances from each point to the k nearest of the others; a twin is 0 away."""
    apart, _ = nearest(points, points, k + 1)
    return apart[:, 1:]

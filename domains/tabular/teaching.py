"""A teacher that learnt the class from real rows, and the classes that it gives to synthetic ones.

A generator that learnt little makes rows whose class does not follow from them; a mean of models that learnt
the class from the real rows knows it better. So its word decides (augmented distillation: Fakoor et al. 2020,
"Fast, Accurate, and Simple Models for Tabular Data via Augmented Distillation"). It says probabilities, and a
table holds classes. One class drawn for each row is so noisy that trees, which can tell every row from every
other, learn the noise; so each row is written several times, with its classes in proportion to what the
teacher says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .codec import Coded
from .measures.learners import LEVELS_AT_MOST, features
from .measures.pair import Pair, Place, some, take
from .measures.spaces import Space

FOLDS = 5
"""In which it is found out how much each model is to be trusted."""
TRIED = 2500
"""Real rows on which it is found out, at most."""
PULL = 0.02
"""Toward trusting all models alike, in nats for a weight that is 1 off."""
BASIS = 300
"""Real rows that a kernel is spanned by, at most."""
LEAST = 1e-3
"""Probability that a model's word is taken for, at least."""
COPIES = 10
"""How often a synthetic row is written, at most."""

Points = Callable[[Coded], np.ndarray]
Member = tuple[Any, Points]
"""An estimator, and what it takes of rows."""


@dataclass(frozen=True)
class Teacher:
    """Models of the target, and how much each is trusted.

    What they say is multiplied, each raised to its weight, and made to sum to 1 (a logarithmic pool). The
    weights give real rows, each predicted by models that did not see it, the largest likelihood, and are
    pulled toward equal ones.

    Args:
        members: trained models.
        weights: (m,) at least 0. Their sum may be other than 1: above where all are too cautious.
        levels: how many the target has.
    """

    members: tuple[Member, ...]
    weights: np.ndarray
    levels: int

    @classmethod
    def of(cls, places: Sequence[Place], target: Place, real: Coded, seed: int) -> Teacher:
        """Learn from real rows, which all have the target.

        Args:
            places: all columns, `target` among them.
        """
        from sklearn.model_selection import StratifiedKFold

        y, levels = real.codes[:, target.at], target.column.cardinality
        members = _members(places, target, real, seed)
        weights = np.full(len(members), 1 / len(members))
        tried = take(real, some(real, TRIED, np.random.default_rng([seed, 73])))
        seen = tried.codes[:, target.at]
        folds = min(FOLDS, int(np.bincount(seen)[np.unique(seen)].min()))
        if folds > 1:
            said = np.empty((len(members), len(seen), levels))
            for learn, rest in StratifiedKFold(folds, shuffle=True, random_state=seed).split(seen, seen):
                held = take(tried, rest)
                for at, member in enumerate(_trained(members, take(tried, learn), seen[learn])):
                    said[at, rest] = _said(member, held, levels)
            weights = trust(said, seen)
        return cls(tuple(_trained(members, real, y)), weights, levels)

    def __call__(self, rows: Coded) -> np.ndarray:
        """(n, k) probabilities of the target's levels."""
        return pooled(np.stack([_said(member, rows, self.levels) for member in self.members]), self.weights)


def _members(places: Sequence[Place], target: Place, real: Coded, seed: int) -> list[Member]:
    """Of different kinds, and cautious, so that their probabilities can be believed."""
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rest = [place for place in places if place.name != target.name]
    levels = np.array([not p.is_number and p.column.cardinality <= LEVELS_AT_MOST for p in rest])
    pair = Pair(tuple(place.column for place in places), real, real)
    ranges, ranks = Space.of(pair, "range"), Space.of(pair, "rank")

    def cells(rows: Coded) -> np.ndarray:
        return features(rows, rest)

    def ranged(rows: Coded) -> np.ndarray:
        return ranges.points(rows, without=(target.name,))

    def ranked(rows: Coded) -> np.ndarray:
        return ranks.points(rows, without=(target.name,))

    boosting = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_leaf_nodes=8,
        early_stopping=False,
        random_state=seed,
        categorical_features=levels if levels.any() else None,
    )
    axes = ranked(real).shape[1]
    kernel = Nystroem(gamma=0.5 / axes, n_components=min(BASIS, len(real) // 2 + 1), random_state=seed)
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=seed)
    trees = ExtraTreesClassifier(100, min_samples_leaf=2, max_features=0.5, random_state=seed)
    return [
        (boosting, cells),
        (forest, ranged),
        (trees, ranged),
        (LogisticRegression(max_iter=1000), ranged),
        (LogisticRegression(C=0.3, max_iter=1000), ranked),
        (make_pipeline(kernel, LogisticRegression(C=10, max_iter=1000)), ranked),
    ]


def _trained(members: Sequence[Member], rows: Coded, y: np.ndarray) -> list[Member]:
    from sklearn.base import clone

    return [(clone(model).fit(points(rows), y), points) for model, points in members]


def _said(member: Member, rows: Coded, levels: int) -> np.ndarray:
    model, points = member
    found = np.zeros((len(rows), levels))
    found[:, model.classes_] = model.predict_proba(points(rows))
    return found


def pooled(said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, k) what m models say together.

    Args:
        said: (m, n, k) probabilities.
        weights: (m,).

    Example:
        >>> pooled(np.array([[[0.9, 0.1]], [[0.5, 0.5]]]), np.array([1.0, 1.0])).round(3)
        array([[0.9, 0.1]])
    """
    logs = np.tensordot(weights, np.log(np.maximum(said, LEAST)), 1)
    odds = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def trust(said: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(m,) the weights of a pool under which n rows are likeliest, pulled toward equal ones.

    Args:
        said: (m, n, k) what models said of rows that they had not seen.
        y: (n,) codes of the levels that these have.
    """
    from scipy.optimize import minimize

    equal = np.full(len(said), 1 / len(said))
    logs, rows = np.log(np.maximum(said, LEAST)), np.arange(len(y))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        together = pooled(said, weights)
        slope = ((together * logs).sum(-1) - logs[:, rows, y]).mean(1)
        surprise = -np.log(np.maximum(together[rows, y], 1e-300)).mean()
        apart = weights - equal
        return float(surprise + PULL * (apart**2).sum()), slope + 2 * PULL * apart

    found = minimize(loss, equal, jac=True, method="L-BFGS-B", bounds=[(0, 3)] * len(said))
    return np.asarray(found.x)


# --------------------------------------------------------------------------------- from words to classes


def copies_of(total: int, real: int) -> int:
    """How often each synthetic row is written, when `total` are wanted beside `real` ones: as many different
    ones as there are real ones serve, and more copies of each say more exactly what its class is."""
    return int(np.clip(total // max(real, 1), 1, COPIES))


def mixture(counts: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(k,) shares of the classes for which candidates are made: half as wanted, half as in reality, so that
    the teacher can find rows of a class among those made for another."""
    return np.asarray((counts / counts.sum() + real / real.sum()) / 2)


def allotted(
    said: np.ndarray, mix: np.ndarray, real: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(m, k) how often each of m rows is written with each of k classes; columns sum to `counts` exactly.

    By Bayes' rule a row x stands for class c in proportion to p(x | c) = p(x) p(c | x) / p(c), and rows that
    were made for classes in the shares `mix` lie as p(x) sum_c mix(c) p(c | x) / p(c).

    Args:
        said: (m, k) the teacher's probabilities p(c | x).
        mix: (k,) shares of the classes that the rows were made for.
        real: (k,) real rows of each class.
        counts: (k,) rows wanted of each.
    """
    odds = said * np.divide(real.sum(), real, out=np.zeros(len(real)), where=real > 0)
    share = odds / np.maximum((odds * mix).sum(1, keepdims=True), 1e-12)
    wanted = share / np.maximum(share.sum(0), 1e-12) * counts
    ends = np.vstack([np.zeros(len(counts)), wanted.cumsum(0)])
    ends = np.minimum(ends, counts)
    ends[-1] = counts if len(said) else 0
    # Systematic sampling: whole numbers next to the wanted ones, whose sum is exact.
    return np.asarray(np.diff(np.floor(ends + rng.random(len(counts))), axis=0).astype(np.int64))

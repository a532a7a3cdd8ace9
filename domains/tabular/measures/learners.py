"""What is asked of a classifier: can it tell real rows from synthetic ones, and does it learn the same from
both?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..codec import Coded
from ..columns import tokens
from .pair import Pair, Place, some, stacked, take
from .spaces import Space

FOLDS = 5
ROUNDS = 100
"""Trees of a boosted model."""
LEVELS_AT_MOST = 250
"""Beyond, the codes of a category (which go by frequency) are split like numbers."""
TARGET_WORDS = frozenset(
    ["target", "label", "class", "outcome", "diagnosis", "result", "response", "y", "survived", "survival"]
) | frozenset(["death", "died", "mortality", "income", "default", "churn", "disease", "readmitted"])
"""Words of a header that name what is to be predicted."""
TARGETS = 4
"""Columns that stand in for a target when there is none."""
JUDGED = 1000
"""Rows on which importances are measured."""

Judge = Literal["boosting", "logistic"]


def features(coded: Coded, places: Sequence[Place]) -> np.ndarray:
    """(n, c) the columns as they are, codes as numbers, NaN where missing: what trees take."""
    return np.stack([place.of(coded) for place in places], axis=1)


def boosted(places: Sequence[Place], *, classes: bool, seed: int) -> Any:
    """Histogram gradient boosting over `features` of these places."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    model = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    levels = [not p.is_number and p.column.cardinality <= LEVELS_AT_MOST for p in places]
    return model(
        max_iter=ROUNDS,
        early_stopping=False,
        random_state=seed,
        categorical_features=np.array(levels) if any(levels) else None,
    )


# ----------------------------------------------------------------------------------- can they be told apart


@dataclass(frozen=True)
class TwoSample:
    """A classifier's test of whether two tables are one (C2ST).

    Args:
        auc: mean area under the ROC curve over the folds. 0.5: cannot be told apart. Well below: rows have
            twins of the other kind, which the classifier was taught; that is, copies.
        score: 1 - mean(2 max(auc, 0.5) - 1), SDMetrics' detection score: 1 is best.
        rows: of each table.
    """

    auc: float
    score: float
    rows: int


def detection_score(aucs: Sequence[float]) -> float:
    """SDMetrics' detection score from the areas of the folds.

    Example:
        >>> detection_score([0.75, 0.4])
        0.75
    """
    return float(1 - np.mean([2 * max(auc, 0.5) - 1 for auc in aucs]))


def two_sample(pair: Pair, other: Coded, judge: Judge, rows: int, seed: int) -> TwoSample:
    """Train on four fifths of real and other rows, in equal number; test on the last fifth; five times."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng([seed, 11])
    n = min(len(pair.real), len(other), rows)
    both = stacked(take(pair.real, some(pair.real, n, rng)), take(other, some(other, n, rng)))
    label = np.repeat([0, 1], n)
    x = features(both, pair.places) if judge == "boosting" else Space.of(pair, "range").points(both)
    folds = StratifiedKFold(min(FOLDS, n), shuffle=True, random_state=seed)
    aucs = []
    for learn, test in folds.split(x, label):
        model = boosted(pair.places, classes=True, seed=seed) if judge == "boosting" else _logistic()
        model.fit(x[learn], label[learn])
        aucs.append(float(roc_auc_score(label[test], model.predict_proba(x[test])[:, 1])))
    return TwoSample(float(np.mean(aucs)), detection_score(aucs), n)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


# ------------------------------------------------------------------------------- do models learn the same


@dataclass(frozen=True)
class Usefulness:
    """One target: a model trained on synthetic rows and one trained on real ones, on the same real test rows.

    Args:
        target: the column predicted.
        measure: "AUC" (mean of one against the rest, for more than two levels) or "R2".
        synthetic, real: that measure of the two models.
        agreement: Spearman's correlation of the two models' permutation importances; NaN with one feature.
        important: (feature, importance to the real model, to the synthetic model), most important first.
        trained: rows that each model was trained on.
        tested: rows of the test.
    """

    target: str
    measure: str
    synthetic: float
    real: float
    agreement: float
    important: tuple[tuple[str, float, float], ...] = field(default=())
    trained: tuple[int, int] = (0, 0)
    tested: int = 0


def guess_targets(pair: Pair, wanted: str | None) -> tuple[tuple[str, ...], str]:
    """The columns to predict, and in words how they were chosen."""
    names = [place.name for place in pair.places]
    if wanted is not None:
        return (wanted,), "as asked for"
    named = [name for name in names if tokens(name) & TARGET_WORDS]
    if named:
        return (named[-1],), "guessed from its name; --target names another"
    chosen = sorted(pair.categories, key=lambda p: p.column.cardinality)[: TARGETS // 2]
    chosen += sorted(pair.numbers, key=lambda p: -p.column.distinct)[: TARGETS - len(chosen)]
    chosen += [p for p in pair.categories if p not in chosen][: TARGETS - len(chosen)]
    kept = [p.name for p in pair.places if p in chosen]
    return tuple(kept), "no column is called a target, so several were tried; --target names one"


def usefulness(pair: Pair, target: str, rows: int, seed: int) -> Usefulness | None:
    """Train on synthetic, test on held-out real rows, beside train on real.

    Without a holdout a third of the real rows is the test, and the real model learns from the rest. None when
    the target does not vary, or too few rows have it.
    """
    place = next(p for p in pair.places if p.name == target)
    rest = [p for p in pair.places if p.name != target]
    rng = np.random.default_rng([seed, 12])
    real, test = pair.real, pair.holdout
    if test is None:
        order = rng.permutation(len(real))
        cut = len(real) // 3
        real, test = take(pair.real, np.sort(order[cut:])), take(pair.real, np.sort(order[:cut]))
    tables = [
        _with_target(take(table, some(table, rows, rng)), place) for table in (real, pair.synthetic, test)
    ]
    if not rest or any(not _varied(table, place) for table in tables):
        return None
    real, synthetic, test = tables
    x_test, y_test = features(test, rest), place.of(test)
    models = [_trained(table, place, rest, seed) for table in (real, synthetic)]
    scores = [_score(model, x_test, y_test, place) for model in models]
    few = some(test, JUDGED, rng)
    weights = [_importance(model, x_test[few], y_test[few], place, seed) for model in models]
    order = np.argsort(-weights[0], kind="stable")
    return Usefulness(
        target=target,
        measure="R2" if place.is_number else "AUC",
        real=scores[0],
        synthetic=scores[1],
        agreement=_rank_agreement(*weights),
        important=tuple((rest[j].name, float(weights[0][j]), float(weights[1][j])) for j in order[:8]),
        trained=(len(real), len(synthetic)),
        tested=len(test),
    )


def _with_target(table: Coded, place: Place) -> Coded:
    return take(table, ~np.isnan(place.of(table)))


def _varied(table: Coded, place: Place) -> bool:
    return len(table) >= 10 and len(np.unique(place.of(table))) > 1


def _trained(table: Coded, place: Place, rest: Sequence[Place], seed: int) -> Any:
    model = boosted(rest, classes=not place.is_number, seed=seed)
    return model.fit(features(table, rest), place.of(table))


def _score(model: Any, x: np.ndarray, y: np.ndarray, place: Place) -> float:
    from sklearn.metrics import r2_score

    if place.is_number:
        return float(r2_score(y, model.predict(x)))
    return class_auc(y, model.predict_proba(x), model.classes_)


def class_auc(y: np.ndarray, probability: np.ndarray, classes: np.ndarray) -> float:
    """Mean over the levels in `y` of the area under the ROC curve of one against the rest, weighted by how
    often the level occurs. A level that the model never saw has probability 0, which is worth one half."""
    from sklearn.metrics import roc_auc_score

    areas, counts = [], []
    for level in np.unique(y):
        at = np.flatnonzero(classes == level)
        guess = probability[:, at[0]] if len(at) else np.zeros(len(y))
        areas.append(roc_auc_score(y == level, guess))
        counts.append(np.sum(y == level))
    return float(np.average(areas, weights=counts))


def _importance(model: Any, x: np.ndarray, y: np.ndarray, place: Place, seed: int) -> np.ndarray:
    """(c,) how much the score falls when a feature is shuffled, the mean of two shuffles."""
    rng = np.random.default_rng([seed, 13])
    whole = _score(model, x, y, place)
    falls = np.zeros((2, x.shape[1]))
    for shuffle in range(2):
        for j in range(x.shape[1]):
            shuffled = x.copy()
            shuffled[:, j] = shuffled[rng.permutation(len(x)), j]
            falls[shuffle, j] = whole - _score(model, shuffled, y, place)
    return np.asarray(falls.mean(0))


def _rank_agreement(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(spearmanr(a, b).statistic)

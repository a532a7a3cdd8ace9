"""Does it help to add rows? Downstream models, cross-validated with and without, beside the classical ways.

Whatever makes rows sees the training rows of a fold alone: no test row has a part in what is added. SMOTE and
SMOTE-NC are written after Chawla, Bowyer, Hall & Kegelmeyer (2002), sections 4.2 and 6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from ..augmenting import Drawn, Made, Maker, Sieve, Target, Varied, columns_of, make_rows, place_of
from ..codec import Coded, TableCodec
from ..fitted import FittedTable
from ..teaching import Teacher, allotted, copies_of, mixture
from .learners import boosted, class_auc, features
from .pair import Pair, Place, stacked, take
from .spaces import Space, nearest

NEIGHBOURS = 5
"""Of SMOTE."""
SMALL = 2500
"""Tables of at most so many rows are given to logistic regression and a forest too."""
FEWEST = 40
"""Rows below which nothing is proved."""
MOMENTS = ("datetime", "duration")
"""Kinds whose spelling is recognised anew in each fold."""
NOTHING, WEIGHTS, SMOTE = "nothing added", "class weights", "SMOTE"
BOOSTING, LOGISTIC, FOREST = "boosted trees", "linear model", "forest"


@dataclass(frozen=True)
class Fold:
    """The training rows of a fold, and what is to be added.

    Args:
        frame, coded: the rows.
        codec: learnt from them alone.
        target: what is predicted.
        counts: (k,) rows to add of each of its levels; (1,) when it is a number.
        seed: of this fold.
    """

    frame: pd.DataFrame
    coded: Coded
    codec: TableCodec
    target: Place
    counts: np.ndarray
    seed: int

    @property
    def places(self) -> tuple[Place, ...]:
        """All columns."""
        return Pair(columns_of(self.codec), self.coded, self.coded).places


Way = Callable[[Fold], Coded]
"""Makes the rows that are added to those of a fold."""


# ------------------------------------------------------------------------------------------------- SMOTE


def smote(fold: Fold) -> Coded:
    """SMOTE for numbers, SMOTE-NC where there are categories: a row of the class, moved toward one of its
    five nearest of that class; a category is the commonest among these. Of a number as target, rows of any
    kind are taken and the target moves along."""
    rng = np.random.default_rng([fold.seed, 81])
    if fold.target.is_number:
        return _interpolated(fold, np.arange(len(fold.coded)), int(fold.counts[0]), rng)
    parts = [
        _interpolated(fold, np.flatnonzero(fold.coded.codes[:, fold.target.at] == level), int(count), rng)
        for level, count in enumerate(fold.counts)
        if count
    ]
    return stacked(*parts) if parts else nothing(fold)


def _interpolated(fold: Fold, rows: np.ndarray, count: int, rng: np.random.Generator) -> Coded:
    """`count` rows between neighbours among `rows`."""
    own = take(fold.coded, rows)
    base = rng.integers(0, len(rows), count)
    if len(rows) < 2:
        return take(own, base)
    points = smote_points(own)
    _, near = nearest(points, points, min(NEIGHBOURS + 1, len(rows)))
    others = np.stack([_without(near[i], i) for i in range(len(rows))])
    chosen = others[base, rng.integers(0, others.shape[1], count)]
    part = rng.random((count, 1))
    a, b = own.numbers[base], own.numbers[chosen]
    numbers = np.where(np.isnan(b), a, np.where(np.isnan(a), b, a + part * (b - a)))
    codes = np.stack([_commonest(own.codes[others[i]], own.codes[i]) for i in range(len(rows))])[base]
    return Coded(numbers, codes)


def _without(near: np.ndarray, itself: int) -> np.ndarray:
    """Neighbours other than the row itself, which a twin may have pushed from the first place."""
    kept = near[near != itself]
    return kept if len(kept) < len(near) else near[:-1]


def _commonest(codes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(q,) of each category the commonest level among (k, q) neighbours; the row's own where they tie."""
    found = own.copy()
    for j in range(codes.shape[1]):
        counts = np.bincount(codes[:, j] + 1)
        top = np.flatnonzero(counts == counts.max()) - 1
        found[j] = own[j] if own[j] in top else top[0]
    return found


def smote_points(coded: Coded) -> np.ndarray:
    """(n, d) standardised numbers, missing ones at the mean; two levels of a category lie as far apart as the
    median of the numbers' standard deviations, which is 1 here."""
    known = ~np.isnan(coded.numbers)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, coded.numbers, 0).sum(0) / count
    spread = np.sqrt(np.where(known, (coded.numbers - mean) ** 2, 0).sum(0) / count)
    numbers = np.where(known, (coded.numbers - mean) / np.where(spread > 0, spread, 1), 0)
    axes = [
        np.eye(coded.codes[:, j].max(initial=0) + 2)[coded.codes[:, j]] for j in range(coded.codes.shape[1])
    ]
    return np.concatenate([numbers, *(axis * np.sqrt(0.5) for axis in axes)], axis=1)


def nothing(fold: Fold) -> Coded:
    """No row."""
    return take(fold.coded, np.arange(0))


# ----------------------------------------------------------------------------------------------- the proof


@dataclass(frozen=True)
class Gain:
    """How much better one way is than another.

    Args:
        mean, low, high: with a 95 % interval.
        splits: how many pairs of training and test rows.
    """

    mean: float
    low: float
    high: float
    splits: int


def gain(a: np.ndarray, b: np.ndarray, test_share: float) -> Gain:
    """Mean of a - b over splits, with the corrected interval for repeated cross-validation (Nadeau & Bengio
    2003, eq. 9): splits share rows, so that their spread alone would say too much.

    Args:
        a, b: (splits,) scores on the same splits.
        test_share: test rows over training rows.
    """
    from scipy.stats import t

    apart = a - b
    n = len(apart)
    error = np.sqrt(apart.var(ddof=1) * (1 / n + test_share)) if n > 1 else np.inf
    half = float(t.ppf(0.975, n - 1) * error) if n > 1 else float("inf")
    return Gain(float(apart.mean()), float(apart.mean()) - half, float(apart.mean()) + half, n)


@dataclass(frozen=True)
class Proof:
    """Scores of downstream models trained with and without added rows, on real rows that nobody saw.

    Args:
        target: what was predicted.
        measure: by which scores are compared: "AUC", "balanced accuracy" or "R2".
        scores: way -> model -> measure -> (splits,).
        ours: the way that is to be proved.
        classical: the other ways that add something.
        folds, repeats: of the cross-validation; folds is 1 where held-out items were tested instead, and
            scores are of each of these.
        counts: rows that were added in a fold, the mean, by way.
    """

    target: str
    measure: str
    scores: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
    ours: str
    classical: tuple[str, ...]
    folds: int
    repeats: int
    counts: Mapping[str, float] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.scores[self.ours])

    def of(self, way: str, model: str | None = None, measure: str | None = None) -> np.ndarray:
        """(splits,) scores of a way by one model, or by the mean of all."""
        models = self.models if model is None else (model,)
        found = np.stack([self.scores[way][name][measure or self.measure] for name in models])
        return np.asarray(found.mean(0))

    @property
    def best_classical(self) -> str:
        """The classical way with the best mean: chosen after the fact, in its favour."""
        return max(self.classical, key=lambda way: float(self.of(way).mean()), default=NOTHING)

    def over(self, way: str, model: str | None = None) -> Gain:
        """The gain of ours over another way."""
        share = 1 / (self.folds - 1) if self.folds > 1 else 0.0
        return gain(self.of(self.ours, model), self.of(way, model), share)

    def spread(self, way: str, model: str | None = None, measure: str | None = None) -> float:
        """Standard deviation over splits; over held-out items the standard error of the mean."""
        scores = self.of(way, model, measure)
        return float(scores.std(ddof=1) / (1 if self.folds > 1 else np.sqrt(len(scores))))


def prove(
    frame: pd.DataFrame,
    codec: TableCodec,
    target: str,
    ours: Mapping[str, Way],
    counts: Callable[[np.ndarray], np.ndarray],
    *,
    balance: bool,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Proof:
    """Cross-validate downstream models with nothing added, the classical ways, and ours.

    Args:
        frame: real rows, all with a known target.
        codec: how columns are to be read (kinds and missing codes); learnt anew in each fold.
        target: name of the column to predict.
        ours: what is to be proved, by name; the first is what the proof is about.
        counts: (k,) rows of each class in a fold -> (k,) rows to add.
        balance: judge by balanced accuracy, and try class weights.
        folds, repeats: of the cross-validation.
    """
    tell = progress or (lambda stage, fraction: None)
    place, _ = place_of(codec, target, balance=False, where="the table")
    ways: dict[str, Way | None] = {NOTHING: nothing}
    if balance:
        ways[WEIGHTS] = None
    ways |= {SMOTE: smote, **ours}
    label = place.of(codec.encode(frame))
    splits = list(split(label, place.is_number, folds, repeats, seed))
    scores: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in ways}
    added: dict[str, list[int]] = {name: [] for name in ways}
    for at, (learn, test) in enumerate(splits):
        tell("proof", at / len(splits))
        fold = _fold(frame.iloc[learn], codec, target, counts, seed + at)
        unseen = fold.codec.encode(frame.iloc[test])
        for name, way in ways.items():
            more = nothing(fold) if way is None else way(fold)
            added[name].append(len(more))
            for model, found in judged(fold, more, unseen, weighted=way is None).items():
                for measure, value in found.items():
                    scores[name].setdefault(model, {}).setdefault(measure, []).append(value)
    tell("proof", 1.0)
    kept = {
        name: {model: {m: np.array(v) for m, v in found.items()} for model, found in models.items()}
        for name, models in scores.items()
    }
    measure = "R2" if place.is_number else "balanced accuracy" if balance else "AUC"
    classical = (WEIGHTS, SMOTE) if balance else (SMOTE,)
    means = {name: float(np.mean(count)) for name, count in added.items()}
    return Proof(target, measure, kept, next(iter(ours)), classical, folds, repeats, means)


def _fold(
    frame: pd.DataFrame, codec: TableCodec, target: str, counts: Callable[[np.ndarray], np.ndarray], seed: int
) -> Fold:
    kinds: dict[Any, str] = {c.label: c.kind for c in codec.columns_ if c.kind not in MOMENTS}
    kinds |= codec.kinds
    own = TableCodec(codec.missing, kinds=kinds, max_levels=codec.max_levels, decimal=codec.decimal).fit(
        frame
    )
    place, _ = place_of(own, target, balance=False, where="the table")
    coded = own.encode(frame)
    there = (
        np.array([len(frame)])
        if place.is_number
        else np.bincount(coded.codes[:, place.at], minlength=len(place.column.levels))
    )
    return Fold(frame, coded, own, place, counts(there), seed)


def split(label: np.ndarray, number: bool, folds: int, repeats: int, seed: int) -> Any:
    """(learn, test) rows of repeated cross-validation, classes spread evenly."""
    from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

    kind = RepeatedKFold if number else RepeatedStratifiedKFold
    found = kind(n_splits=folds, n_repeats=repeats, random_state=seed)
    return found.split(np.zeros(len(label)), None if number else label)


def judged(fold: Fold, more: Coded, test: Coded, *, weighted: bool = False) -> dict[str, dict[str, float]]:
    """Scores of each downstream model, trained on the fold and what was added, on `test`."""
    whole = stacked(fold.coded, more)
    target = fold.target
    rest = [place for place in fold.places if place.name != target.name]
    y, y_test = target.of(whole), target.of(test)
    seen = ~np.isnan(y_test)
    weights = _class_weights(y) if weighted else None
    found = {}
    space = Space.of(Pair(tuple(p.column for p in fold.places), fold.coded, whole), "range")
    for name in (BOOSTING, LOGISTIC, FOREST) if len(fold.coded) <= SMALL else (BOOSTING,):
        if name == BOOSTING:
            x, x_test = features(whole, rest), features(test, rest)
            model = boosted(rest, classes=not target.is_number, seed=fold.seed)
        else:
            x, x_test = (space.points(part, without=(target.name,)) for part in (whole, test))
            model = _model(name, target.is_number, fold.seed)
        model.fit(x, y, **({} if weights is None else {"sample_weight": weights}))
        found[name] = score(model, x_test[seen], y_test[seen], target)
    return found


def _model(name: str, number: bool, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    if name == LOGISTIC:
        return Ridge(1.0) if number else LogisticRegression(max_iter=1000)
    kind = RandomForestRegressor if number else RandomForestClassifier
    return kind(200, min_samples_leaf=2, random_state=seed)


def score(model: Any, x: np.ndarray, y: np.ndarray, target: Place) -> dict[str, float]:
    """AUC and balanced accuracy of a class; R2 of a number."""
    from sklearn.metrics import r2_score, recall_score

    if target.is_number:
        return {"R2": float(r2_score(y, model.predict(x)))}
    recall = recall_score(y, model.predict(x), labels=np.unique(y), average="macro")
    return {"AUC": class_auc(y, model.predict_proba(x), model.classes_), "balanced accuracy": float(recall)}


def _class_weights(y: np.ndarray) -> np.ndarray:
    """(n,) weights that give every class the same sum."""
    levels, where, counts = np.unique(y, return_inverse=True, return_counts=True)
    return np.asarray(len(y) / (len(levels) * counts[where]))


def made_by(
    fitted: FittedTable,
    frame: pd.DataFrame,
    coded: Coded,
    target: Target,
    counts: np.ndarray,
    vary: float | None,
    seed: int,
    teacher: Teacher | None = None,
) -> Made:
    """Rows by a model, new ones or real ones varied, without near copies of what it learnt from and the
    implausible; in the classes that a teacher sees in them. A number as target stays as the model drew it.

    Args:
        fitted: learnt from `frame`, which is `coded` by its codec.
        counts: (k,) rows to make of each of the target's levels.
        vary: None, or the share of the cells that are drawn anew.
        teacher: that learnt the target from `coded`; None has one learn it now.
    """
    codec, place = fitted.codec, target.place
    columns = columns_of(codec)
    taught = not place.is_number and (target.counts > 0).sum() > 1 < len(columns)
    named = None if place.is_number else place.name
    maker: Maker = Drawn(fitted, named)
    if vary is not None:
        maker = Varied(fitted, frame, target.labels(coded), vary, named)
    # A row that is a real one but for its class is a copy too, when a teacher gives the class.
    sieve = Sieve.of(columns, coded, without=(place.name,) if taught else ())
    if not taught or not counts.any():
        return make_rows(maker, codec, sieve, target.levels, counts, seed)
    mix = mixture(counts, target.counts)
    each = copies_of(int(counts.sum()), len(frame)) * mix[counts > 0].sum()
    candidates = np.ceil(mix * counts.sum() / each).astype(np.int64)
    made = make_rows(maker, codec, sieve, target.levels, candidates, seed)
    teacher = teacher or Teacher.of(Pair(columns, coded, coded).places, place, coded, seed)
    times = allotted(teacher(made.coded), mix, target.counts, counts, np.random.default_rng([seed, 72]))
    found = made.in_classes(times, target, target.cells(frame, coded), codec)
    return replace(found, short=int(counts.sum()) - len(found.frame))


# ----------------------------------------------------------------------------------------------- in words


def verdict(proof: Proof) -> tuple[str, str, list[str]]:
    """("good", "look" or "bad", a title, sentences): whether it helped, said plainly."""
    none, best = proof.over(NOTHING), proof.over(proof.best_classical)
    if none.low > 0:
        level, title = "good", "It helps"
        if best.low <= 0:
            title += f", but not more than {proof.best_classical} for sure"
    elif none.high < 0:
        level, title = "bad", "It does harm"
    else:
        level, title = "look", "No difference can be seen"
    words = [_words(proof, NOTHING), _words(proof, proof.best_classical)]
    if level == "look":
        words.append("A gain, if there is one, cannot be told from chance with so little data.")
    if none.mean <= 0:
        words.append("Train on the real data alone.")
    return level, title, words


def _words(proof: Proof, way: str) -> str:
    found = proof.over(way)
    beside = f"beside {way}" if way == NOTHING else f"beside the best classical way ({way})"
    return (
        f"{proof.measure} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] {beside}: "
        f"{proof.of(proof.ours).mean():.3f} and {proof.of(way).mean():.3f}."
    )


def rows_of(proof: Proof) -> Sequence[tuple[str, str, float, float]]:
    """(way, model, mean, spread) of every cell of the table."""
    return [
        (way, model, float(proof.of(way, model).mean()), proof.spread(way, model))
        for way in proof.scores
        for model in proof.models
    ]

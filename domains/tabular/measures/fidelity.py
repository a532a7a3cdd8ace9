"""How alike two tables are: column by column, pair by pair, in what is missing, and in what cannot be.

KS and TV complements, correlation and contingency similarity are as SDMetrics defines them (documentation
of `KSComplement`, `TVComplement`, `CorrelationSimilarity`, `ContingencySimilarity`), and so are the means
over columns ("shape") and pairs ("trend").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..codec import Coded
from .pair import Pair, Place

BINS = 10
"""Numbers are cut into so many equal parts of the real range to be set against categories."""


def ks_complement(real: np.ndarray, synthetic: np.ndarray) -> float:
    """1 - sup |F_real - F_synthetic| of two samples of numbers, missing ones left out.

    Example:
        >>> ks_complement(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6]))
        0.5
    """
    a, b = (np.sort(x[~np.isnan(x)]) for x in (real, synthetic))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    at = np.concatenate([a, b])
    apart = np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)
    return float(1 - np.abs(apart).max())


def tv_complement(real: np.ndarray, synthetic: np.ndarray) -> float:
    """1 - total variation distance of two samples of codes (-1 is missing, and left out).

    Example:
        >>> tv_complement(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2]))
        0.5
    """
    a, b = real[real >= 0], synthetic[synthetic >= 0]
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    most = int(max(a.max(), b.max())) + 1
    apart = np.bincount(a, minlength=most) / len(a) - np.bincount(b, minlength=most) / len(b)
    return float(1 - np.abs(apart).sum() / 2)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation over the rows that have both; NaN where one of them does not vary."""
    both = ~np.isnan(a) & ~np.isnan(b)
    if both.sum() < 2:
        return float("nan")
    a, b = a[both] - a[both].mean(), b[both] - b[both].mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else float("nan")


def correlation_similarity(
    real: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> float:
    """1 - |r_real - r_other| / 2; NaN where the real correlation is not defined."""
    r_real, r_other = pearson(*real), pearson(*other)
    return 1 - abs(r_real - (0.0 if np.isnan(r_other) else r_other)) / 2


def contingency_similarity(
    real: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> float:
    """1 - total variation distance of two contingency tables; -1 (missing) counts as a level.

    Example:
        >>> real = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
        >>> other = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
        >>> contingency_similarity(real, other)
        0.5
    """
    width = int(max(real[1].max(), other[1].max())) + 2
    a, b = ((first + 1) * width + second + 1 for first, second in (real, other))
    most = int(max(a.max(), b.max())) + 1
    apart = np.bincount(a, minlength=most) / len(a) - np.bincount(b, minlength=most) / len(b)
    return float(1 - np.abs(apart).sum() / 2)


def binned(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(n,) int64 codes of numbers by `BINS` equal parts of the real range, the outer ones without end;
    missing numbers have a code of their own. As SDMetrics' `ContingencySimilarity` cuts continuous columns.

    Example:
        >>> binned(np.array([-5.0, 0, 4.9, 10, 99, np.nan]), np.array([0.0, 10]))
        array([ 1,  1,  5, 10, 10, 11])
    """
    edges = np.histogram_bin_edges(real[~np.isnan(real)], BINS)
    edges[0], edges[-1] = -np.inf, np.inf
    return np.asarray(np.digitize(values, edges))


def shape(pair: Pair, other: Coded) -> dict[str, float]:
    """KS or TV complement of every column against the real table."""
    return {
        p.name: ks_complement(p.of(pair.real), p.of(other))
        if p.is_number
        else tv_complement(pair.real.codes[:, p.at], other.codes[:, p.at])
        for p in pair.places
    }


def trend(pair: Pair, other: Coded) -> dict[tuple[str, str], float]:
    """Correlation similarity of two numbers, contingency similarity of all other pairs; undefined pairs are
    left out."""
    codes = {p.name: (_codes(p, pair.real, pair.real), _codes(p, other, pair.real)) for p in pair.places}
    found = {}
    for p, q in combinations(pair.places, 2):
        if p.is_number and q.is_number:
            score = correlation_similarity((p.of(pair.real), q.of(pair.real)), (p.of(other), q.of(other)))
        else:
            (a, b), (c, d) = codes[p.name], codes[q.name]
            score = contingency_similarity((a, c), (b, d))
        if not np.isnan(score):
            found[p.name, q.name] = score
    return found


def _codes(place: Place, coded: Coded, real: Coded) -> np.ndarray:
    if place.is_number:
        return binned(place.of(coded), place.of(real))
    return coded.codes[:, place.at].astype(np.int64)


def mean(scores: Mapping[object, float]) -> float:
    """Mean of the values; 1 of none (a table of one column has no pairs)."""
    return float(np.mean(list(scores.values()))) if scores else 1.0


# ------------------------------------------------------------------------------------- association maps


def associations(pair: Pair, coded: Coded) -> np.ndarray:
    """(c, c) how strongly columns hang together: |correlation| of numbers, Cramer's V of categories, the
    correlation ratio of one of each. 0 to 1; the sign of correlations is kept."""
    out = np.eye(len(pair.places))
    for i, j in combinations(range(len(pair.places)), 2):
        out[i, j] = out[j, i] = _association(pair.places[i], pair.places[j], coded)
    return out


def _association(p: Place, q: Place, coded: Coded) -> float:
    if p.is_number and q.is_number:
        found = pearson(p.of(coded), q.of(coded))
    elif p.is_number or q.is_number:
        number, category = (p, q) if p.is_number else (q, p)
        found = correlation_ratio(number.of(coded), coded.codes[:, category.at])
    else:
        found = cramers_v(coded.codes[:, p.at], coded.codes[:, q.at])
    return 0.0 if np.isnan(found) else found


def correlation_ratio(numbers: np.ndarray, codes: np.ndarray) -> float:
    """eta: the root of the share of a number's variance that lies between the levels of a category."""
    both = ~np.isnan(numbers) & (codes >= 0)
    if both.sum() < 2:
        return float("nan")
    numbers, codes = numbers[both], codes[both]
    counts = np.bincount(codes)
    means = np.bincount(codes, numbers) / np.maximum(counts, 1)
    total = ((numbers - numbers.mean()) ** 2).sum()
    return (
        float(np.sqrt((counts * (means - numbers.mean()) ** 2).sum() / total)) if total > 0 else float("nan")
    )


def cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    """Cramer's V of two categories: the root of chi^2 / (n (min(rows, columns) - 1))."""
    both = (a >= 0) & (b >= 0)
    if not both.any():
        return float("nan")
    table = np.zeros((int(a[both].max()) + 1, int(b[both].max()) + 1))
    np.add.at(table, (a[both], b[both]), 1)
    table = table[table.any(1)][:, table.any(0)]
    least = min(table.shape) - 1
    if least < 1:
        return float("nan")
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / (table.sum() * least)))


# --------------------------------------------------------------------------------- missing, and impossible


def missing_shares(pair: Pair, coded: Coded) -> dict[str, float]:
    """Share of missing cells of every column (unseen categories among them)."""
    return {p.name: float(np.isnan(p.of(coded)).mean()) for p in pair.places}


def missing_pattern_similarity(pair: Pair, other: Coded) -> float:
    """1 - total variation distance between how often each pattern of missing cells is found in a row."""
    gone = [np.stack([np.isnan(p.of(table)) for p in pair.places], 1) for table in (pair.real, other)]
    patterns, which = np.unique(np.concatenate(gone), axis=0, return_inverse=True)
    which = which.ravel()
    a, b = (
        np.bincount(part, minlength=len(patterns)) / len(part) for part in np.split(which, [len(gone[0])])
    )
    return float(1 - np.abs(a - b).sum() / 2)


@dataclass(frozen=True)
class Violations:
    """Shares of rows that break what the real table obeys.

    Args:
        any_rule: rows with any of these.
        out_of_range: a number beyond the real range.
        unseen_level: a category that the real table does not have.
        too_precise: a number with more decimals than any real one, or a fraction where all are whole.
    """

    any_rule: float
    out_of_range: float
    unseen_level: float
    too_precise: float


def violations(pair: Pair, role: str) -> Violations:
    """Rows of the "synthetic" table or the "holdout" against ranges, levels and decimals of the real one."""
    other, strange = pair.tables()[role], pair.unseen[role]
    n = len(other)
    beyond, precise = np.zeros(n, bool), np.zeros(n, bool)
    for p in pair.numbers:
        values, column = p.of(other), p.column
        known = ~np.isnan(values)
        assert column.low is not None and column.high is not None
        beyond |= known & ((values < column.low) | (values > column.high))
        if column.decimals is not None:
            precise |= known & (np.abs(values - np.round(values, column.decimals)) > 1e-9 * np.abs(values))
    shares = [float(rows.mean()) for rows in (beyond | strange | precise, beyond, strange, precise)]
    return Violations(*shares)

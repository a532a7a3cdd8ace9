"""How near draws come to a truth that was hidden: errors, and whether the spread is the right one.

All are proper: nothing but the true law has a better expectation (Gneiting & Raftery 2007).
"""

from __future__ import annotations

import numpy as np

ROWS = 2000
"""Rows in the energy score, at most."""
SLACK = 1e-9
"""By which a bound may be missed through rounding."""


def crps(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(k,) continuous ranked probability score of each cell: E|X - y| - E|X - X'| / 2, the second without
    bias and by order statistics. In the unit of the numbers; of a single draw the absolute error.

    Args:
        draws: (m, k). truth: (k,).

    Example:
        >>> crps(np.array([[0.0], [2.0]]), np.array([1.0])).tolist()
        [0.0]
    """
    ordered = np.sort(draws, axis=0)
    m = len(ordered)
    away = np.abs(ordered - truth).mean(0)
    if m < 2:
        return np.asarray(away)
    order = (2 * np.arange(1, m + 1) - m - 1)[:, None]
    return np.asarray(away - (order * ordered).sum(0) / (m * (m - 1)))


def energy_score(draws: np.ndarray, truth: np.ndarray, at: np.ndarray) -> float:
    """Mean over rows of E|X - y| - E|X - X'| / 2, Euclidean over the hidden cells of a row: CRPS for whole
    rows, which sees whether cells are drawn together rightly. X' are the draws of the other half.

    Args:
        draws: (m, n, p), m at least 2. truth: (n, p).
        at: (n, p) bool, the cells that count; the first ROWS rows that have one are looked at.
    """
    rows = np.flatnonzero(at.any(1))[:ROWS]
    weight = at[rows].astype(np.float64)
    off = np.sqrt(((np.nan_to_num(draws[:, rows] - truth[rows]) ** 2) * weight).sum(-1)).mean(0)
    half = len(draws) // 2
    apart = np.nan_to_num(draws[:half, rows] - draws[half : 2 * half, rows])
    between = np.sqrt(((apart**2) * weight).sum(-1)).mean(0)
    return float((off - between / 2).mean())


def inside(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which true values lie in their interval, bounds included."""
    return np.asarray((truth >= low - SLACK) & (truth <= high + SLACK))


def rmse(made: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((made - truth) ** 2)))

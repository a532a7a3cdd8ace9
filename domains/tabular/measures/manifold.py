"""Where two clouds of points lie: precision, recall, density and coverage; alpha-precision, beta-recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .spaces import nearest, nearest_others

NEIGHBOURS = 5
"""Of PRDC, as its authors recommend."""
BLOCK = 512
"""Rows whose distances to all others are held at a time."""


@dataclass(frozen=True)
class Prdc:
    """Naeem et al. (2020), "Reliable Fidelity and Diversity Metrics for Generative Models".

    Args:
        precision: share of synthetic points inside some real point's ball (radius: its k-th real neighbour).
        recall: share of real points inside some synthetic point's ball.
        density: how many real balls hold a synthetic point, divided by k, on average; may pass 1.
        coverage: share of real balls that hold a synthetic point.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> Prdc:
    """Precision, recall, density and coverage of (m, d) synthetic points among (n, d) real ones.

    Distances are held for a block of rows at a time, never n x m.
    """
    from scipy.spatial.distance import cdist

    k = min(k, len(real) - 1, len(synthetic) - 1)
    real_radius = nearest_others(real, k)[:, -1]
    synthetic_radius = nearest_others(synthetic, k)[:, -1]
    inside = np.zeros(len(synthetic), dtype=np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        apart = cdist(real[rows], synthetic)
        ball = apart < real_radius[rows, None]
        inside += ball.sum(0)
        covered[rows] = ball.any(1)
        recalled[rows] = (apart < synthetic_radius).any(1)
    return Prdc(
        float((inside > 0).mean()), float(recalled.mean()), float(inside.mean() / k), float(covered.mean())
    )


@dataclass(frozen=True)
class AlphaBeta:
    """Alaa et al. (2022), "How Faithful is your Synthetic Data?", in the original coordinates ("naive").

    Args:
        alpha_precision: 1 when, for every alpha, a share alpha of the synthetic points lies in the ball that
            holds a share alpha of the real ones.
        beta_recall: the same of real points that have a near synthetic one, within synthetic balls.
        authenticity: share of synthetic points that are farther from their real neighbour than that is from
            the next real one.
    """

    alpha_precision: float
    beta_recall: float
    authenticity: float


def alpha_beta(real: np.ndarray, synthetic: np.ndarray, steps: int = 30) -> AlphaBeta:
    """Integrated alpha-precision and beta-recall, 1 - sum|curve - alpha| / sum alpha over a grid of `steps`
    alphas, as synthcity has them.

    Authenticity follows the paper (of each synthetic point its own nearest real one). synthcity looks up the
    real neighbour's distance under the index of a synthetic one, which is another number.
    """
    alphas = np.linspace(0, 1, steps)
    centre = real.mean(0)
    radii = np.quantile(_from(real, centre), alphas)
    precision = (_from(synthetic, centre)[:, None] <= radii).mean(0)

    real_to_real = nearest_others(real, 1)[:, 0]
    real_to_synthetic, closest = (found[:, 0] for found in nearest(real, synthetic))
    closest_from_centre = _from(synthetic[closest], synthetic.mean(0))
    synthetic_radii = np.quantile(closest_from_centre, alphas)
    near = real_to_synthetic <= real_to_real
    recall = (near[:, None] & (closest_from_centre[:, None] <= synthetic_radii)).mean(0)

    synthetic_to_real, owner = (found[:, 0] for found in nearest(synthetic, real))
    authentic = (real_to_real[owner] < synthetic_to_real).mean()
    scores = [1 - np.abs(alphas - curve).sum() / alphas.sum() for curve in (precision, recall)]
    return AlphaBeta(float(scores[0]), float(scores[1]), float(authentic))


def _from(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.sqrt(((points - centre) ** 2).sum(1))
    return distances

"""Where two clouds of points lie: alpha-precision, beta-recall and authenticity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .spaces import nearest, nearest_others


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

"""A cheap guess for what is not observed on a grid: as smooth as what is known around it allows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDS = 4  # of relaxation at each scale


def smoothly_filled(values: Tensor, observed: Tensor) -> Tensor:
    """Unknown entries from the known ones of their channel: from coarse scales to fine ones (the pull-push of
    Gortler et al. 1996, "The Lumigraph"), each relaxed toward the solution of Laplace's equation.

    Args:
        values: (B, C, *S), one to three axes S; what is not observed is not looked at.
        observed: bool, same shape. A channel without any is 0.

    Returns:
        (B, C, *S): known entries as they are.
    """
    if bool(observed.all()):
        return values
    weight = observed.to(values)
    return torch.where(observed, values, _smooth(torch.where(observed, values, 0), weight))


def _smooth(x: Tensor, known: Tensor) -> Tensor:
    """x (B, C, *S) where `known` is 1, and what follows from it elsewhere."""
    size = x.shape[2:]
    if max(size) == 1 or bool(known.all()):
        return x
    pooled, share = _halved(x * known), _halved(known)
    there = (share > 0).to(x)
    coarse = _smooth(pooled / share.clamp(min=1e-6) * there, there)
    for axis, n in enumerate(size, 2):
        coarse = coarse if n == 1 else _doubled(coarse, axis).narrow(axis, 0, n)
    filled = torch.where(known > 0, x, coarse)
    for _ in range(_ROUNDS):
        filled = torch.where(known > 0, x, _neighbours(filled))
    return filled


def _halved(x: Tensor) -> Tensor:
    """Means of 2 along every axis that is longer than 1; an odd last one stands for itself."""
    edges = [1 if n == 1 else 2 for n in x.shape[2:]]
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(edges)]
    return pool(x, edges, ceil_mode=True, count_include_pad=False)


def _doubled(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation to twice as many positions along one axis, constant beyond the ends."""
    n = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
    return torch.stack([(3 * x + before) / 4, (3 * x + after) / 4], axis + 1).flatten(axis, axis + 1)


def _neighbours(x: Tensor) -> Tensor:
    """The mean of the two neighbours along every axis, the border's own value beyond it."""
    total, axes = torch.zeros_like(x), [axis for axis in range(2, x.ndim) if x.shape[axis] > 1]
    for axis in axes:
        n = x.shape[axis]
        total += torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], axis)
        total += torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
    return total / (2 * len(axes))

"""Samples of which near copies of real items are dropped, and others drawn in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..shared.measures import NEARER, nearest

Item = TypeVar("Item", np.ndarray, Tensor)
TRIED = 3
"""Times as many as are wanted are drawn at most."""


@dataclass(frozen=True)
class Kept(Generic[Item]):
    """What was kept.

    Args:
        batches: (numbers of samples, samples), as they were drawn.
        drawn, copies: how many were drawn in all, and dropped.
    """

    batches: tuple[tuple[np.ndarray, Item], ...]
    drawn: int
    copies: int

    @property
    def items(self) -> np.ndarray:
        """Numbers of the samples that were kept."""
        return np.concatenate([np.empty(0, np.int64), *(items for items, _ in self.batches)])


def threshold(real: Tensor) -> float:
    """The distance below which a sample is a near copy of one of the (n, D) real points."""
    apart = torch.cdist(real, real).fill_diagonal_(torch.inf).min(1).values
    return float(torch.quantile(apart, NEARER))


def drawn_apart(
    draw: Callable[[int, int], Item],
    points: Callable[[Item], Tensor],
    real: Tensor,
    near: float,
    count: int,
    *,
    start: int = 0,
    at_once: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Kept[Item]:
    """Draw `count` samples that are no near copies.

    Args:
        draw: (first number, how many) -> samples.
        points: (n, D) of samples, as of real items.
        real: (m, D). near: `threshold`.
        start: number of the first sample. at_once: drawn at a time.

    Returns:
        `count` of them, or fewer where `TRIED` times as many had to be drawn.
    """
    batches: list[tuple[np.ndarray, Item]] = []
    have = drawn = copies = 0
    while have < count and drawn < TRIED * count:
        n = min(at_once, count - have)
        made = draw(start + drawn, n)
        distance, _ = nearest(points(made), real)
        good = ((distance >= near) & (distance > 0)).numpy()
        batches.append((np.arange(start + drawn, start + drawn + n)[good], made[good]))
        have, drawn, copies = have + int(good.sum()), drawn + n, copies + int((~good).sum())
        if progress is not None:
            progress(min(1.0, have / max(count, 1)))
    return Kept(tuple(batches), drawn, copies)

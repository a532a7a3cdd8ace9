"""Which entries stay observed: distributions of observation patterns, for training by hiding and for tests.

A pattern is called as `pattern(keys, shape)` with shape (C, *S) of one element, and returns bool (B, C, *S),
True where the entry stays observed. It is a pure function of `keys`: element k of the result depends on
keys[k] and on nothing else, so masks are the same whatever the batch, the order or the number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .data import like
from .noise import Keys


class Pattern(Protocol):
    """A distribution of observation masks."""

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        """Masks bool (B, *shape) for `keys`, True where observed; shape is (C, *S) of one element."""
        ...


def _between(keys: Keys, low: float, high: float, stream: str) -> Tensor:
    """(B,) float64, uniform in (low, high)."""
    return low + (high - low) * keys.uniform((), f"mask {stream}")


def _pick(keys: Keys, options: tuple[int, ...], stream: str) -> Tensor:
    """(B,) int64, one of `options` with equal chances."""
    place = (keys.uniform((), f"mask {stream}") * len(options)).long()
    return torch.tensor(options)[place]


def _spatial(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """`axes` (0 is the first axis after the channels), or all of them when None, checked against `shape`."""
    axes = tuple(range(len(shape) - 1)) if axes is None else axes
    if not axes or not all(0 <= axis < len(shape) - 1 for axis in axes):
        raise ValueError(f"axes {axes}: an element of shape {shape} has {len(shape) - 1} spatial axes")
    return axes


def _along(values: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """Lay (..., n) along spatial `axis`: (..., 1, 1, n, 1), ready to broadcast with (..., *shape)."""
    return values.reshape(*values.shape[:-1], *(n if i == axis + 1 else 1 for i, n in enumerate(shape)))


def _exactly(keys: Keys, count: int, rate: Tensor, keep: int, stream: str) -> Tensor:
    """bool (B, count), False at round(rate * count) random places, yet True in at least `keep`, and
    False in at least one where `keep` allows."""
    order = keys.uniform((count,), f"mask {stream}").argsort(1).argsort(1)
    hidden = (rate * count).round().clamp(min=1).clamp(max=max(count - keep, 0))
    return order >= hidden[:, None]


@dataclass(frozen=True)
class Nothing:
    """Nothing is observed: generation."""

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(len(keys), *shape, dtype=torch.bool)


@dataclass(frozen=True)
class Cells:
    """Every entry is hidden independently, at a rate drawn per element: missing completely at random.

    Args:
        low, high: range of the rate.
        together: hide all channels of a position at once (the pixels of a colour image).

    Example:
        >>> Cells(0.5, 0.5)(Keys.range(0, 1000), (4,)).float().mean().round(decimals=1).item()
        0.5
    """

    low: float = 0.1
    high: float = 0.9
    together: bool = False

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        drawn = (1, *shape[1:]) if self.together else shape
        rate = _between(keys, self.low, self.high, "cells rate")
        uniform = keys.uniform(drawn, "mask cells")
        return (uniform >= like(rate, uniform)).expand(-1, *shape).contiguous()


@dataclass(frozen=True)
class Channels:
    """Whole channels are hidden: columns of a record, modalities of a scan.

    Args:
        low, high: range of the share that is hidden; at least one channel is.
        keep: channels that stay at least (0 allows hiding all of them).
        group: this many neighbouring channels stand for one (8 for a volume packed by Haar wavelets).
    """

    low: float = 0.0
    high: float = 1.0
    keep: int = 1
    group: int = 1

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        if shape[0] % self.group:
            raise ValueError(f"{shape[0]} channels do not divide into groups of {self.group}")
        rate = _between(keys, self.low, self.high, "channels rate")
        mask = _exactly(keys, shape[0] // self.group, rate, self.keep, "channels").repeat_interleave(
            self.group, 1
        )
        return mask.reshape(len(keys), shape[0], *(1 for _ in shape[1:])).expand(-1, *shape).contiguous()


@dataclass(frozen=True)
class Boxes:
    """One to `count` boxes are hidden, anywhere inside the grid, in all channels.

    Args:
        count: the most there may be; their number is uniform in 1 ... count.
        low, high: range of a box's edge, as a share of each axis.
    """

    count: int = 1
    low: float = 0.2
    high: float = 0.6

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        axes = _spatial(shape, None)
        number = _pick(keys, tuple(range(1, self.count + 1)), "boxes number")
        uniform = keys.uniform((2, len(axes), self.count), "mask boxes")
        hidden = torch.ones(len(keys), self.count, 1, *shape[1:], dtype=torch.bool)
        for axis in axes:
            n = shape[axis + 1]
            edge = ((self.low + (self.high - self.low) * uniform[:, 0, axis]) * n).round().clamp(1, n)
            first = (uniform[:, 1, axis] * (n - edge + 1)).floor()
            place = torch.arange(n)
            inside = (place >= first[..., None]) & (place < (first + edge)[..., None])  # (B, count, n)
            hidden &= _along(inside, axis, shape)
        hidden &= like(torch.arange(self.count) < number[:, None], hidden)
        return ~hidden.any(1).expand(-1, *shape)


@dataclass(frozen=True)
class Strokes:
    """Brush strokes are hidden: thick random walks across the grid, in all channels.

    Args:
        count: the most there may be; their number is uniform in 1 ... count.
        points: places visited by one stroke.
        width: range of the brush's width, as a share of the shortest axis (at least one position).
    """

    count: int = 4
    points: int = 12
    width: tuple[float, float] = (0.05, 0.2)

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        axes, sizes = _spatial(shape, None), torch.tensor(shape[1:], dtype=torch.float64)
        number = _pick(keys, tuple(range(1, self.count + 1)), "strokes number")
        start = keys.uniform((self.count, 1, len(axes)), "mask strokes start") * sizes
        radius = self.width[0] + (self.width[1] - self.width[0]) * keys.uniform(
            (self.count,), "mask strokes width"
        )
        radius = (radius * sizes.min() / 2).clamp(min=0.5)
        # Steps of about a radius, so that discs overlap; a persistent heading, so that it travels.
        turns = keys.normal((self.count, self.points, len(axes)), "mask strokes turns", torch.float64)
        heading = turns.cumsum(2)
        heading = heading / heading.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        walk = (start + (heading * 1.2 * radius[..., None, None]).cumsum(2)).remainder(sizes)
        hidden = torch.zeros(len(keys), 1, *shape[1:], dtype=torch.bool)
        for stroke in range(self.count):
            limit = torch.where(stroke < number, radius[:, stroke] ** 2, -1.0)  # -1: this stroke is not drawn
            for point in range(self.points):
                distance = torch.zeros(len(keys), 1, *(1 for _ in axes), dtype=torch.float64)
                for axis in axes:
                    away = torch.arange(shape[axis + 1]) + 0.5 - walk[:, stroke, point, axis, None]
                    distance = distance + _along(away**2, axis, shape)
                hidden |= distance <= like(limit, distance)
        return ~hidden.expand(-1, *shape)


@dataclass(frozen=True)
class Half:
    """One half of the grid is hidden: what lies on a random side of the middle of a random axis.

    Args:
        axes: spatial axes to choose from; all when None.
    """

    axes: tuple[int, ...] | None = None

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        axes = _spatial(shape, self.axes)
        chosen, side = _pick(keys, axes, "half axis"), _pick(keys, (0, 1), "half side")
        mask = torch.ones(len(keys), *shape, dtype=torch.bool)
        for axis in axes:
            low = torch.arange(shape[axis + 1]) < math.ceil(shape[axis + 1] / 2)
            kept = _along(low[None] == (side == 0)[:, None], axis, shape)
            mask &= kept | like(chosen != axis, mask)
        return mask


@dataclass(frozen=True)
class Slices:
    """Whole slices across a random axis are hidden, the ends too; at least one stays and one goes.

    Args:
        low, high: range of the share that is hidden.
        axes: spatial axes to choose from; all when None.
    """

    low: float = 0.1
    high: float = 0.9
    axes: tuple[int, ...] | None = None

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        axes = _spatial(shape, self.axes)
        chosen, rate = _pick(keys, axes, "slices axis"), _between(keys, self.low, self.high, "slices rate")
        mask = torch.ones(len(keys), *shape, dtype=torch.bool)
        for axis in axes:
            kept = _along(_exactly(keys, shape[axis + 1], rate, 1, f"slices {axis}"), axis, shape)
            mask &= kept | like(chosen != axis, mask)
        return mask


@dataclass(frozen=True)
class EveryKth:
    """Only every k-th slice along a random axis is kept, from a random first one: thick slices, downsampling.

    Args:
        factors: values of k to choose from.
        axes: spatial axes to choose from; all when None.
        grid: thin out all `axes` at once by the same k: what is kept is a coarse grid.
    """

    factors: tuple[int, ...] = (2, 3, 4)
    axes: tuple[int, ...] | None = None
    grid: bool = False

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        axes = _spatial(shape, self.axes)
        chosen, k = _pick(keys, axes, "kth axis"), _pick(keys, self.factors, "kth factor")
        mask = torch.ones(len(keys), *shape, dtype=torch.bool)
        for axis in axes:
            # On an axis shorter than k the first one kept must lie inside it.
            first = (keys.uniform((), f"mask kth first {axis}") * k.clamp(max=shape[axis + 1])).long()
            kept = torch.arange(shape[axis + 1]) % k[:, None] == first[:, None]
            mask &= _along(kept, axis, shape) | like((chosen != axis) & (not self.grid), mask)
        return mask


@dataclass(frozen=True)
class Mixture:
    """Each element takes one of several patterns.

    Args:
        patterns: what there is to choose from.
        weights: their chances, of any positive sum; equal when None.

    Raises:
        ValueError: when there is no pattern, or the weights do not match.
    """

    patterns: tuple[Pattern, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        weights = self.weights if self.weights is not None else (1.0,) * len(self.patterns)
        if len(weights) != len(self.patterns) or min(weights, default=-1) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"{len(self.patterns)} patterns need as many weights, none negative: got {weights}"
            )

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Tensor:
        weights = torch.tensor(self.weights or (1.0,) * len(self.patterns), dtype=torch.float64)
        bounds = weights.cumsum(0) / weights.sum()
        chosen = torch.searchsorted(bounds, keys.uniform((), "mask mixture"))
        mask = torch.empty(len(keys), *shape, dtype=torch.bool)
        for index, pattern in enumerate(self.patterns):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                mask[rows] = pattern(keys[rows], shape)
        return mask

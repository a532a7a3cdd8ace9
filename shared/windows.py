"""Grids too large for a network, seen through windows: trained on random, answered in overlapping ones.

All that is cheap stays whole: the data, what is known of them, the centre, the noise. Only the network, whose
maps are what fills the memory, sees a window at a time, and where in the grid the window lies (Wang et al.
2023, "Patch Diffusion"). What it answers for neighbouring windows is blended at every step of a sampler, so
that noise and answer belong to the whole grid and to no order of the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import NOTHING, Condition, Encoded
from .noise import Keys

Index = tuple[Any, ...]


def fill_up(x: Tensor, factor: int) -> Tensor:
    """Repeat the last entry of each spatial axis until `factor` divides it (any dtype, any rank)."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        if n % factor:
            x = x.index_select(axis, torch.arange(n + -n % factor, device=x.device).clamp(max=n - 1))
    return x


def window(corner: Sequence[int], size: Sequence[int]) -> Index:
    """The index of the spatial box of `size` at `corner`."""
    return (..., *(slice(a, a + n) for a, n in zip(corner, size, strict=True)))


def positions(x: Tensor) -> Tensor:
    """(B, n, *S) where each position of x (B, C, *S) lies along its n axes: numbers of unit variance."""
    axes = [torch.linspace(-1.7, 1.7, n).to(x) for n in x.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, *x.shape[2:])


def blended(
    part: Callable[[Index], Tensor],
    size: Sequence[int],
    tile: Sequence[int],
    overlap: Sequence[int],
    factor: int = 1,
) -> Tensor:
    """What `part` says of overlapping tiles, blended by weights that rise linearly from their edges.

    Args:
        part: the index of a tile -> (B, C, *(factor times its size)).
        size, tile, overlap: of the grid; of a tile; and what neighbours share. Corners are multiples of what
            divides all three.
        factor: how many output positions one of the grid becomes, along each axis.

    Raises:
        ValueError: an overlap as large as its tile.
    """
    if not all(0 <= o < t for o, t in zip(overlap, tile, strict=True)):
        raise ValueError(
            f"overlap {tuple(overlap)}: expected at least 0 and less than the tile, {tuple(tile)}"
        )

    def starts(n: int, t: int, o: int) -> list[int]:
        return sorted({min(s, max(n - t, 0)) for s in range(0, max(n - o, 1), t - o)})

    total: Tensor | None = None
    for corner in product(*(starts(*axis) for axis in zip(size, tile, overlap, strict=True))):
        found = part(window(corner, tile))
        found = found.to(torch.promote_types(found.dtype, torch.float32))  # weights run into the thousands
        if total is None:
            total = found.new_zeros(*found.shape[:2], *(factor * n for n in size))
            weights = found.new_zeros(total.shape[2:])
        weight = found.new_ones(found.shape[2:])
        for axis, (n, shared) in enumerate(zip(found.shape[2:], overlap, strict=True)):
            place = torch.arange(n, device=found.device)
            ramp = torch.minimum(place + 1, n - place).clamp(max=shared * factor + 1).to(found.dtype)
            weight = weight * ramp.reshape(-1, *(1,) * (found.ndim - 3 - axis))
        where = window([factor * s for s in corner], found.shape[2:])
        total[where] += found * weight
        weights[where] += weight
    assert total is not None
    return total / weights


def corners(keys: Keys, where: Tensor, patch: int, multiple: int) -> Tensor:
    """(B, n) corners of a random window for each element: around a random entry that counts, so that all of
    these are learnt from about equally often, those at the edge of the grid too.

    Args:
        keys: B of them.
        where: bool (B, C, *S), entries that count.
        patch: edge of a window. multiple: of which corners are multiples; it divides `patch`.
    """
    size, uniform = where.shape[2:], keys.uniform((1 + len(where.shape[2:]),), "window").to(where.device)
    counts = where.any(1).flatten(1).cumsum(1)
    target = (uniform[:, :1] * counts[:, -1:]).long() + 1  # the target-th of them
    place = torch.searchsorted(counts, target).clamp(max=counts.shape[1] - 1)[:, 0]
    found = []
    for axis, n in reversed(list(enumerate(size))):
        within, place = place % n, place // n
        edge = _edge(n, patch, multiple)
        cells = within // multiple - (uniform[:, 1 + axis] * (edge // multiple)).long()
        found.append((cells * multiple).clamp(0, n + -n % multiple - edge))
    return torch.stack(found[::-1], 1)


def inside(corner: Tensor, size: Sequence[int], patch: int, multiple: int) -> Tensor:
    """bool (B, 1, *S), True inside of each element's window."""
    mask = torch.ones(len(corner), 1, *size, dtype=torch.bool, device=corner.device)
    for axis, n in enumerate(size):
        place, first = torch.arange(n, device=corner.device), corner[:, axis, None]
        along = (place >= first) & (place < first + _edge(n, patch, multiple))
        mask &= along.reshape(len(corner), 1, *(n if a == axis else 1 for a in range(len(size))))
    return mask


def _edge(n: int, patch: int, multiple: int) -> int:
    """Of a window along an axis of length n: an axis that is shorter is seen whole."""
    return min(patch, n + -n % multiple)


class Windowed(nn.Module):
    """A network that sees one window of the grid at a time.

    Where `condition.window` says through which window each element is seen (in training), the answer is 0
    outside of it, and must not count there. Else the whole grid is answered, in windows that overlap by a
    quarter: exact where the network acts on each position alone.

    Args:
        network: takes `n` more channels of the condition, the positions in the whole grid.
        patch: edge of a window.
        multiple: of which corners are multiples, as the network's packing needs; it divides `patch`.
    """

    def __init__(self, network: nn.Module, patch: int, multiple: int) -> None:
        super().__init__()
        self.network, self.patch, self.multiple = network, patch, multiple

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition = NOTHING) -> Tensor:
        """x (B, C, *S), noise_level (B,) -> (B, C, *S)."""
        size, multiple, corner = x.shape[2:], self.multiple, condition.window
        beside = positions(x)
        if condition.channels is not None:
            beside = torch.cat([condition.channels.to(x), beside], 1)
        told = _spatial(replace(condition, window=None, channels=beside), lambda t: fill_up(t, multiple))
        x = fill_up(x, multiple)
        tile = [_edge(n, self.patch, multiple) for n in x.shape[2:]]

        def seen(where: Index) -> Tensor:
            return self.network(x[where], noise_level, _spatial(told, lambda t: t[where]))  # type: ignore[no-any-return]

        if corner is None:
            overlap = [t // (4 * multiple) * multiple for t in tile]
            return blended(seen, x.shape[2:], tile, overlap)[window((0,) * len(size), size)]
        each = [window(c, tile) for c in corner.tolist()]

        def cut(t: Tensor) -> Tensor:
            return torch.stack([one[where] for one, where in zip(t, each, strict=True)])

        found = self.network(cut(x), noise_level, _spatial(told, cut))
        placed = [_placed(one, c, x.shape[2:]) for one, c in zip(found, corner.tolist(), strict=True)]
        return torch.stack(placed)[window((0,) * len(size), size)]


def _placed(part: Tensor, corner: Sequence[int], size: Sequence[int]) -> Tensor:
    """(C, *size) with (C, *s) at `corner`, 0 elsewhere."""
    sides = [(c, n - c - t) for c, n, t in zip(corner, size, part.shape[1:], strict=True)]
    return F.pad(part, [side for pair in reversed(sides) for side in pair])


def _spatial(condition: Condition, function: Callable[[Tensor], Tensor]) -> Condition:
    """The condition with what lies on the grid changed."""
    known, channels = condition.known, condition.channels
    return replace(
        condition,
        known=None if known is None else Encoded(function(known.values), function(known.observed)),
        channels=None if channels is None else function(channels),
    )

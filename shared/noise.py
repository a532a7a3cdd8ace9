"""Noise that depends on what it is for and on nothing else.

A draw is named by (seed, item, draw, stream); its numbers are the same whatever the batch, the order, the
number of workers or the chunking. They come from the counter-based generator Philox4x32-10 (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"), computed here in 64-bit integer tensor arithmetic,
so that a whole batch of keys is one call.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit counters -> four of 32-bit random numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A 32 x 32 bit product needs 64 unsigned bits; int64 wraps to the same bits, and the masks
        # read its two halves.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def key_of(*parts: object) -> int:
    """A stable 63-bit number for anything with a stable text: row keys, stream names, subject ids."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Keys:
    """Who the noise is for: one (item, draw) pair for each element of a batch, under one seed.

    Args:
        seed: the run's seed.
        items: (B,) int64, which record, volume or image (a position, or `key_of` an id).
        draws: (B,) int64, which of its draws.
    """

    seed: int
    items: Tensor
    draws: Tensor

    @classmethod
    def range(cls, seed: int, count: int, start: int = 0, draw: int = 0) -> Keys:
        """Items start ... start + count - 1, one draw each."""
        items = torch.arange(start, start + count, dtype=torch.int64)
        return cls(seed, items, torch.full_like(items, draw))

    def __getitem__(self, rows: slice | Tensor) -> Keys:
        return Keys(self.seed, self.items[rows], self.draws[rows])

    def __len__(self) -> int:
        return len(self.items)

    def _bits(self, count: int, stream: str) -> Tensor:
        """(B, count) random 32-bit integers, count a multiple of 4."""
        key = key_of(self.seed, stream)
        blocks = torch.arange(count // 4, dtype=torch.int64)[None, :]
        item, draw = self.items.cpu()[:, None], self.draws.cpu()[:, None]
        one = torch.ones_like(item * blocks)
        counter = (blocks * one, (draw & _MASK) * one, (item & _MASK) * one, ((item >> 32) & _MASK) * one)
        return torch.stack(philox(counter, (key & _MASK, (key >> 32) & _MASK)), -1).reshape(len(item), -1)

    def uniform(self, shape: tuple[int, ...], stream: str = "uniform") -> Tensor:
        """(B, *shape) float64 in (0, 1), never 0 or 1."""
        count = math.prod(shape)
        bits = self._bits(-(-count // 4) * 4, stream)[:, :count]
        return ((bits.double() + 0.5) / 2**32).reshape(-1, *shape)

    def normal(
        self, shape: tuple[int, ...], stream: str = "normal", dtype: torch.dtype | None = None
    ) -> Tensor:
        """(B, *shape) standard normal numbers by Box and Muller (1958), computed in float64."""
        count = math.prod(shape)
        half = -(-count // 4) * 2
        u = (self._bits(2 * half, stream).double() + 0.5) / 2**32
        radius, angle = (-2 * u[:, :half].log()).sqrt(), 2 * math.pi * u[:, half:]
        pair = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return pair[:, :count].reshape(-1, *shape).to(dtype or torch.get_default_dtype())


@dataclass(frozen=True)
class White:
    """Independent standard normal noise, keyed: the default noise source of every sampler."""

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor:
        """Noise shaped and typed like `x` (B, C, *S); element k is named by `keys[k]` and `stream`."""
        return keys.normal(tuple(x.shape[1:]), stream, x.dtype).to(x.device)

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
_CHUNK = 2**15


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
        parts = torch.broadcast_tensors(blocks, draw & _MASK, item & _MASK, (item >> 32) & _MASK)
        c0, c1, c2, c3 = (part.reshape(-1) for part in parts)
        words = torch.empty(len(c0), 4, dtype=torch.int64)
        for at in range(0, len(c0), _CHUNK):  # what fits the cache goes several times as fast
            here = slice(at, at + _CHUNK)
            counter = (c0[here], c1[here], c2[here], c3[here])
            torch.stack(philox(counter, (key & _MASK, (key >> 32) & _MASK)), -1, out=words[here])
        return words.reshape(len(item), count)

    def uniform(self, shape: tuple[int, ...], stream: str = "uniform") -> Tensor:
        """(B, *shape) float64 in (0, 1), never 0 or 1."""
        count = math.prod(shape)
        bits = self._bits(-(-count // 4) * 4, stream)[:, :count]
        return ((bits.double() + 0.5) / 2**32).reshape(len(self), *shape)

    def normal(
        self, shape: tuple[int, ...], stream: str = "normal", dtype: torch.dtype | None = None
    ) -> Tensor:
        """(B, *shape) standard normal numbers by Box and Muller (1958), computed in float64."""
        count = math.prod(shape)
        half = -(-count // 4) * 2
        u = (self._bits(2 * half, stream).double() + 0.5) / 2**32
        radius, angle = (-2 * u[:, :half].log()).sqrt(), 2 * math.pi * u[:, half:]
        pair = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return pair[:, :count].reshape(len(self), *shape).to(dtype or torch.get_default_dtype())


@dataclass(frozen=True)
class White:
    """Independent standard normal noise, keyed: the default noise source of every sampler."""

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor:
        """Noise shaped and typed like `x` (B, C, *S); element k is named by `keys[k]` and `stream`."""
        return keys.normal(tuple(x.shape[1:]), stream, x.dtype).to(x.device)


@dataclass(frozen=True)
class Coloured:
    """A Gaussian random field over the spatial axes with power spectrum |frequency|^-power, unit variance
    at every position, periodic: smooth noise for smooth data.

    Args:
        power: 0 is white, 1 pink, 2 about as smooth as natural images.
    """

    power: float = 1.0

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor:
        """Noise shaped and typed like `x` (B, C, *S)."""
        white, axes = keys.normal(tuple(x.shape[1:]), stream, torch.float64), tuple(range(2, x.ndim))
        squared = torch.zeros(x.shape[2:], dtype=torch.float64)
        for axis, length in enumerate(x.shape[2:]):
            shape = [-1 if a == axis else 1 for a in range(x.ndim - 2)]
            squared = squared + torch.fft.fftfreq(length, dtype=torch.float64).reshape(shape) ** 2
        # The mean has no wavelength; it gets the longest one's power.
        squared[(0,) * squared.ndim] = float(max(x.shape[2:])) ** -2
        gain = squared ** (-self.power / 4)
        gain = gain / gain.square().mean().sqrt()
        field: Tensor = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * gain, dim=axes).real
        return field.to(x.dtype).to(x.device)


@dataclass(frozen=True)
class Offset:
    """White noise plus one number for each channel, rescaled to unit variance (Guttenberg 2023): lets a
    model move the overall brightness, which white noise hardly touches.

    Args:
        strength: standard deviation of the shared number beside the white noise's 1.
    """

    strength: float = 0.1

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor:
        """Noise shaped and typed like `x` (B, C, *S)."""
        white = keys.normal(tuple(x.shape[1:]), stream, x.dtype)
        shared = keys.normal((x.shape[1],), f"{stream} offset", x.dtype)
        mixed = white + self.strength * shared.reshape(*shared.shape, *(1,) * (x.ndim - 2))
        return (mixed / math.sqrt(1 + self.strength**2)).to(x.device)


@dataclass(frozen=True)
class CategoricalNoise:
    r"""Noise for categories (Austin et al. 2021, D3PM): by time t a code has stayed itself with probability
    `kept`, and is otherwise absorbed by an extra code `levels` (a mask), or redrawn uniformly.

    Args:
        levels: number of categories K.
        absorbing: absorb into code K; otherwise multinomial over the K codes.
    """

    levels: int
    absorbing: bool = True

    @property
    def states(self) -> int:
        """Number of codes x_t may take."""
        return self.levels + self.absorbing

    def _rest(self, like: Tensor) -> Tensor:
        """(states,) where a code that did not stay goes."""
        rest = torch.zeros(self.states, dtype=like.dtype, device=like.device)
        if self.absorbing:
            rest[-1] = 1.0
            return rest
        return rest + 1 / self.levels

    def forward(self, probabilities: Tensor, kept: Tensor) -> Tensor:
        """(..., K) law of x_0 -> (..., states) law of x_t; `kept` broadcasts over (..., 1)."""
        padded = torch.nn.functional.pad(probabilities, (0, self.states - self.levels))
        return kept * padded + (1 - kept) * self._rest(probabilities) * probabilities.sum(-1, keepdim=True)

    def reverse(self, codes: Tensor, probabilities: Tensor, kept_t: Tensor, kept_s: Tensor) -> Tensor:
        r"""Law of x_s given x_t and a predicted law of x_0, s cleaner than t (Austin et al. 2021, eq. 3-4):
        sum_{x_0} q(x_s | x_t, x_0) p(x_0).

        Args:
            codes: (...) int64 x_t.
            probabilities: (..., K) p(x_0 | x_t).
            kept_t, kept_s: probability of having stayed, at t and at s; broadcast over (..., 1).

        Returns:
            (..., states) probabilities.
        """
        step, rest = kept_t / kept_s, self._rest(probabilities)
        here = torch.nn.functional.one_hot(codes, self.states).to(probabilities)
        onward = step * here + (1 - step) * rest[codes][..., None]  # q(x_t | x_s) as a function of x_s
        chance = kept_t * here[..., : self.levels] + (1 - kept_t) * rest[codes][..., None]  # q(x_t | x_0)
        believed = probabilities.clamp(min=1e-12)  # what was observed happened, however unlikely it was held
        law = onward * self.forward(torch.where(chance > 0, believed / chance, 0.0), kept_s)
        return law / law.sum(-1, keepdim=True)

    def draw(self, keys: Keys, probabilities: Tensor, stream: str) -> Tensor:
        """(B, ...) int64 codes from (B, ..., K) probabilities, keyed."""
        u = keys.uniform(tuple(probabilities.shape[1:-1]), stream).to(probabilities.device)
        below = probabilities.double().cumsum(-1)
        below = below / below[..., -1:]
        return (u[..., None] > below).sum(-1).clamp(max=probabilities.shape[-1] - 1)

"""The model space of a table: numbers on a Gaussian scale, categories as indicators, and the way back.

Two scales are kept for a number. The *standard* scale (x - mean) / std is where a conditional mean means
what people expect of it. The *Gaussian* scale maps ranks to normal quantiles, so that skew, heavy tails,
bounds and piles of equal values (zeros, caps) do not reach the denoiser: a pile becomes an interval, and
every draw that falls into it decodes to exactly that value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

_KNOTS = 1024
_ATOM = 0.005  # the share of equal values from which they count as a pile


@dataclass(frozen=True)
class GaussScale:
    """A monotone map between raw numbers and normal quantiles, piecewise linear, learned from ranks.

    Args:
        raw, gauss: (k,) knots. `raw` repeats a value across the interval of quantiles that a pile takes up.
        middle: (k,) the quantile a raw value is encoded to: the middle of its pile, else `gauss` itself.
    """

    raw: np.ndarray
    gauss: np.ndarray
    middle: np.ndarray

    @classmethod
    def fit(cls, observed: np.ndarray) -> Self:
        """observed: (n,) finite numbers, n >= 1."""
        values, counts = np.unique(observed, return_counts=True)
        n = len(observed)
        upper = np.cumsum(counts) / n
        lower = upper - counts / n
        pile = counts >= max(_ATOM * n, 2)
        keep = pile.copy()
        keep[np.unique(np.linspace(0, len(values) - 1, _KNOTS).astype(int))] = True
        values, lower, upper, pile = values[keep], lower[keep], upper[keep], pile[keep]

        def quantile(share: np.ndarray) -> np.ndarray:
            return np.asarray(ndtri(np.clip(share, 0.5 / n, 1 - 0.5 / n)))

        centre = quantile((lower + upper) / 2)
        # A pile contributes two knots with the same raw value, everything else one.
        ends = np.stack([np.where(pile, quantile(lower), centre), np.where(pile, quantile(upper), centre)], 1)
        once = np.stack([np.ones_like(pile), pile], 1).reshape(-1)
        raw, gauss, middle = np.repeat(values, 2)[once], ends.reshape(-1)[once], np.repeat(centre, 2)[once]
        return cls(raw, np.maximum.accumulate(gauss), middle)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """Raw numbers (NaN passes through) to quantiles."""
        return np.where(np.isnan(raw), np.nan, np.interp(raw, self.raw, self.middle))

    def decode(self, gauss: np.ndarray) -> np.ndarray:
        """Quantiles to raw numbers, within the observed range."""
        return np.asarray(np.interp(gauss, self.gauss, self.raw))


class TableSpace:
    """Learns both scales of each number from observed cells alone.

    Args:
        cardinalities: how many codes each category column has.

    Attributes:
        means_, stds_: (p,) of the observed numbers; std 1 where constant.
        scales_: p of `GaussScale`; None for a column with no observed cell.
    """

    def __init__(self, cardinalities: Sequence[int]) -> None:
        self.cardinalities = tuple(int(k) for k in cardinalities)

    def fit(self, numbers: np.ndarray) -> Self:
        """numbers: (n, p) float64, NaN where missing."""
        columns = [column[~np.isnan(column)] for column in numbers.T]
        self.scales_ = [GaussScale.fit(seen) if len(seen) else None for seen in columns]
        self.means_ = np.array([seen.mean() if len(seen) else np.nan for seen in columns])
        spread = np.array([seen.std() if len(seen) else 1.0 for seen in columns])
        # A constant column's computed spread can be rounding noise of its own magnitude.
        noise = np.array([np.abs(seen).max() * 1e-9 if len(seen) else 0.0 for seen in columns])
        self.stds_ = np.where(spread > noise, spread, 1.0)
        return self

    @property
    def offsets(self) -> list[int]:
        """Where each category's indicators begin among all indicators, and their total."""
        return [0, *np.cumsum(self.cardinalities, dtype=int).tolist()]

    def standard(self, numbers: np.ndarray) -> np.ndarray:
        """(n, p) raw to the standard scale."""
        return np.asarray((numbers - self.means_) / self.stds_)

    def raw(self, standard: np.ndarray) -> np.ndarray:
        """(..., p) the standard scale to raw."""
        return np.asarray(standard * self.stds_ + self.means_)

    def gauss(self, numbers: np.ndarray) -> np.ndarray:
        """(n, p) raw to the Gaussian scale."""
        out = np.full(numbers.shape, np.nan)
        for j, scale in enumerate(self.scales_):
            if scale is not None:
                out[:, j] = scale.encode(numbers[:, j])
        return out

    def from_gauss(self, gauss: np.ndarray) -> np.ndarray:
        """(..., p) the Gaussian scale to raw; NaN for a column never observed."""
        out = np.full(gauss.shape, np.nan)
        for j, scale in enumerate(self.scales_):
            if scale is not None:
                out[..., j] = scale.decode(gauss[..., j])
        return out

    def indicators(self, codes: np.ndarray) -> np.ndarray:
        """(n, q) codes to (n, sum K) float32 indicators; a missing code is all 0."""
        parts = [np.zeros((len(codes), 0), np.float32)]
        for j, levels in enumerate(self.cardinalities):
            part = np.zeros((len(codes), levels), np.float32)
            known = np.flatnonzero(codes[:, j] >= 0)
            part[known, codes[known, j]] = 1
            parts.append(part)
        return np.concatenate(parts, 1)

    @property
    def columns(self) -> int:
        """C = p + sum K, the length of a record in model space: Gaussian scales, then indicators."""
        return len(self.means_) + self.offsets[-1]

    def entries(self, columns: np.ndarray) -> np.ndarray:
        """(n, p + q) a flag for each column to (n, C), a flag for each entry of the record."""
        p = len(self.means_)
        return np.concatenate([columns[:, :p], np.repeat(columns[:, p:], self.cardinalities, axis=1)], 1)

    def state(self) -> dict[str, Tensor]:
        """Named tensors for safetensors."""
        tensors = {"space.means": torch.from_numpy(self.means_), "space.stds": torch.from_numpy(self.stds_)}
        for j, scale in enumerate(self.scales_):
            if scale is not None:
                knots = np.stack([scale.raw, scale.gauss, scale.middle])
                tensors[f"space.{j}"] = torch.from_numpy(knots)
        return tensors

    @classmethod
    def from_state(cls, cardinalities: Sequence[int], tensors: Mapping[str, Tensor]) -> Self:
        """What `state` wrote."""
        space = cls(cardinalities)
        space.means_, space.stds_ = tensors["space.means"].numpy(), tensors["space.stds"].numpy()
        names = [f"space.{j}" for j in range(len(space.means_))]
        space.scales_ = [GaussScale(*tensors[name].numpy()) if name in tensors else None for name in names]
        return space

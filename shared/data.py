"""The three things every domain hands to the core: values, what of them was observed, and conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Append axes so that a () or (B,) coefficient multiplies (B, C, *S).

    Example:
        >>> like(torch.ones(4), torch.zeros(4, 2, 8, 8)).shape
        torch.Size([4, 1, 1, 1])
    """
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


@dataclass(frozen=True)
class Encoded:
    """A batch in model space (zero mean, unit variance) and what of it is known.

    Args:
        values: (B, C, *S) floating point, finite, 0 where unknown.
        observed: bool, same shape, True where known.

    Raises:
        ValueError: when the shapes differ, or a value is not finite, or an unknown value is not 0.

    Example:
        >>> Encoded(torch.tensor([[1.5, 0.0]]), torch.tensor([[True, False]])).observed.sum().item()
        1
    """

    values: Tensor
    observed: Tensor

    def __post_init__(self) -> None:
        if self.values.shape != self.observed.shape or self.observed.dtype != torch.bool:
            raise ValueError(
                f"observed must be bool and shaped like values {tuple(self.values.shape)}, "
                f"got {self.observed.dtype} {tuple(self.observed.shape)}"
            )
        # A sum is quick, and finite unless a value is not or the values are enormous: then all are looked at.
        if not self.values.sum().isfinite() and not self.values.isfinite().all():
            raise ValueError("values must be finite: encode() writes 0 where observed is False")
        if (self.values * ~self.observed).any():
            raise ValueError("values must be 0 where observed is False")

    def __getitem__(self, rows: slice | Tensor) -> Encoded:
        return Encoded(self.values[rows], self.observed[rows])


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told besides the noisy input. Every field may be absent.

    Args:
        label: (B,) int64 class indices; -1 where unknown.
        covariates: (B, K) real numbers; NaN where unknown.
        tokens: (B, T, D) a sequence to attend to (text); a row of NaN tokens where unknown.
        channels: (B, K, *S) images laid beside the noisy one (a segmentation map, a coarse image).
        known: values and mask of the observed part of the data itself; the denoiser fills the rest.
        fold: (B,) int64, which cross-fitted centre never saw this record; -1 or absent for the one fitted
            on all (see `centre`).
        window: (B, n) int64, the corner of the window through which a network sees each record in training,
            where it sees windows (see `windows`); absent in use.
    """

    label: Tensor | None = None
    covariates: Tensor | None = None
    tokens: Tensor | None = None
    channels: Tensor | None = None
    known: Encoded | None = None
    fold: Tensor | None = None
    window: Tensor | None = None

    def drop(self) -> Condition:
        """The unconditional twin that guidance compares with: label, covariates and tokens become
        unknown (present, but null, so that shapes stay); channels and the known part remain, because
        they are data to agree with and not a wish to be guided by."""
        return replace(
            self,
            label=None if self.label is None else torch.full_like(self.label, -1),
            covariates=None if self.covariates is None else torch.full_like(self.covariates, torch.nan),
            tokens=None if self.tokens is None else torch.full_like(self.tokens, torch.nan),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `function` to every tensor held (indexing, moving to a device, repeating)."""
        changed: dict[str, Tensor | Encoded] = {}
        for field in fields(self):
            held = getattr(self, field.name)
            if isinstance(held, Encoded):
                changed[field.name] = Encoded(function(held.values), function(held.observed))
            elif held is not None:
                changed[field.name] = function(held)
        return replace(self, **changed)  # type: ignore[arg-type]

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self.map(lambda held: held[rows])

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda held: held.to(device))  # type: ignore[return-value]


NOTHING = Condition()
"""No condition at all: the default argument wherever one may be left out."""

r"""Guidance: a guided denoiser is a denoiser, and a sampler cannot tell the difference.

All are D = D_ref + sum_i w_i (D_i - D_ref). At scale 0 they are the reference and at scale 1 the conditional
denoiser, to the bit, and then cost one evaluation. Above 1 the samples no longer follow the data's law: for
p(x | c) = N(m_c, v) and p(x) = N(0, v) scale w draws from N(w m_c, v), a class more typical than any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import NOTHING, Condition
from .denoisers import CentredDenoiser, Denoiser
from .schedules import Schedule

View = Callable[[Condition], Condition]
"""A condition from a condition, for the whole batch: `Condition.drop`, `only("label")`, `wanting(3)`."""


def within(schedule: Schedule, t: Tensor, interval: tuple[float, float]) -> bool:
    """Whether the first element's noise-to-signal ratio lies in an interval."""
    low, high = interval
    return low <= float(schedule.ratio(t.double().reshape(-1)[0])) <= high


def only(*names: str) -> View:
    """The condition with its wishes (label, covariates, tokens) dropped but for those named."""

    def view(condition: Condition) -> Condition:
        return replace(condition.drop(), **{name: getattr(condition, name) for name in names})

    return view


def wanting(label: int) -> View:
    """The condition with another label for all: as `reference`, what to move away from (a negative
    condition)."""

    def view(condition: Condition) -> Condition:
        if condition.label is None:
            raise ValueError("wanting another label needs a condition with labels")
        return replace(condition, label=torch.full_like(condition.label, label))

    return view


@dataclass(frozen=True)
class Composed:
    """Several conditions at once, each with its own scale (Liu et al. 2022; Brooks et al. 2023).

    Args:
        denoiser: trained with conditions dropped at random.
        terms: (view, scale) pairs, added up.
        reference: what the terms are compared with; the unconditional twin by default.
        interval: noise-to-signal ratios sigma / alpha between which to guide (Kynkaanniemi et al. 2024);
            outside it every scale is 1 for the condition as given.

    Example, text at 5 and a class at 2: `Composed(d, ((only("tokens"), 5.0), (only("label"), 2.0)))`.
    """

    denoiser: Denoiser
    terms: Sequence[tuple[View, float]]
    reference: View = Condition.drop
    interval: tuple[float, float] = (0.0, math.inf)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, condition], guided, (B, C, *S); guiding is decided by the first element's time."""
        if not within(self.schedule, t, self.interval):
            return self.denoiser(x_t, t, condition)
        weights = [weight for _, weight in self.terms]
        if weights == [1.0]:
            return self.denoiser(x_t, t, self.terms[0][0](condition))
        x_0 = free = self.denoiser(x_t, t, self.reference(condition))
        for view, weight in self.terms:
            if weight:
                x_0 = x_0 + weight * (self.denoiser(x_t, t, view(condition)) - free)
        return x_0


def as_given(condition: Condition) -> Condition:
    """The condition itself."""
    return condition


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho & Salimans 2022): D_ref + scale (D - D_ref).

    Args:
        denoiser: trained with conditions dropped at random.
        scale: 0 is the reference, 1 the conditional denoiser, more exaggerates.
        reference, interval: as for `Composed`.
    """

    denoiser: Denoiser
    scale: float
    reference: View = Condition.drop
    interval: tuple[float, float] = (0.0, math.inf)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, condition], guided, (B, C, *S)."""
        terms = ((as_given, self.scale),)
        return Composed(self.denoiser, terms, self.reference, self.interval)(x_t, t, condition)


@dataclass(frozen=True)
class AutoGuided:
    """Guided by a worse version of the same model (Karras et al. 2024): D_weak + scale (D - D_weak), which
    sharpens without narrowing the choice of classes.

    Args:
        denoiser: the good one.
        weak: smaller or less trained, on the same schedule and condition.
        scale: 1 is the good one alone.
        interval: as for `Composed`.
    """

    denoiser: Denoiser
    weak: Denoiser
    scale: float
    interval: tuple[float, float] = (0.0, math.inf)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, condition], guided, (B, C, *S)."""
        if self.scale == 1 or not within(self.schedule, t, self.interval):
            return self.denoiser(x_t, t, condition)
        x_0 = self.weak(x_t, t, condition)
        return x_0 + self.scale * (self.denoiser(x_t, t, condition) - x_0) if self.scale else x_0


@dataclass(frozen=True)
class AwayFromCentre:
    """Autoguidance (Karras et al. 2024) with a model's own centre as its worse version: D_gauss + scale (D -
    D_gauss), which scales what the network adds, at the cost of one ordinary call.

    Args:
        denoiser: around a centre.
        scale: 1 is the denoiser itself, 0 the centre.
        interval: noise-to-signal ratios sigma / alpha between which to guide.
    """

    denoiser: CentredDenoiser
    scale: float
    interval: tuple[float, float] = (0.0, math.inf)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """The denoiser's answer, guided, (B, C, *S); guiding is decided by the first element's time."""
        parts = self.denoiser.precondition(x_t, t, condition)
        if within(self.schedule, t, self.interval):
            parts = replace(parts, out=self.scale * parts.out)
        return self.denoiser.finish(parts, condition.known)

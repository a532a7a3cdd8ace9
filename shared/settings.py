"""What a training is given: examples that hide and augment by key, and how to learn from them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .data import Condition
from .denoisers import Weighting
from .ema import PowerFunction, Profile
from .errors import InputError
from .noise import Keys
from .samplers import NoiseSource
from .schedules import LogNormalDensity, Schedule


class Density(Protocol):
    """Which times are trained on: uniform numbers (B,) in (0, 1) to times (B,)."""

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Args:
        x_0: (B, C, *S) clean data in model space; any finite number where unknown.
        condition: what the network is told, the known part among it.
        where: bool, shaped like x_0: entries that count in the loss (hidden, yet really observed).
        noise, t: shaped like x_0 and (B,), where the lesson says with what noise and at which times; else the
            training draws them.
    """

    x_0: Tensor
    condition: Condition
    where: Tensor
    noise: Tensor | None = None
    t: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        if self.x_0.device == device:
            return self
        noise, t = (None if held is None else held.to(device) for held in (self.noise, self.t))
        return Batch(self.x_0.to(device), self.condition.to(device), self.where.to(device), noise, t)


class Examples(Protocol):
    """A data set that hides and augments by key."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        """The examples at `indices` (B,) int64. Element k may depend on indices[k], keys[k] and nothing
        else: keys.items are the indices, keys.draws the epoch."""
        ...


@dataclass(frozen=True)
class TrainingSettings:
    """How a denoiser is trained.

    Args:
        steps: optimiser steps, at most.
        batch_size: examples a step; they may come from two epochs.
        micro_batch: examples computed at once (memory); None is the whole batch. The result is the same
            up to rounding.
        learning_rate, warmup, decay: AdamW's rate, reached linearly in `warmup` steps, then constant or
            falling to zero at `steps` along half a cosine.
        weight_decay: AdamW's.
        gradient_clip: largest norm of the gradient; None does not clip.
        ema: the profile of the averaged weights, which are validated and returned.
        density: which times are trained on.
        noise: a keyed noise source; None is white noise from a generator seeded by the step,
            which is 30 times faster.
        weighting: of the loss over noise levels; None is the plain error of the network's target.
        validate_every: steps between rows of the history (and validations, where there is a held-out set).
        validation_draws: noise draws per held-out example.
        patience: stop after so many validations without a better one; None never does.
        checkpoint_every: steps between checkpoints, when there is a folder.
        precision: "bf16" runs matrix products and convolutions in bfloat16; times, norms and loss stay
            float32.
        time_limit: seconds; None keeps the run reproducible.
    """

    steps: int = 2000
    batch_size: int = 256
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    gradient_clip: float | None = 1.0
    ema: Profile = field(default_factory=PowerFunction)
    density: Density = field(default_factory=LogNormalDensity)
    noise: NoiseSource | None = None
    weighting: Weighting | None = None
    validate_every: int = 100
    validation_draws: int = 1
    patience: int | None = None
    checkpoint_every: int = 1000
    precision: Literal["fp32", "bf16"] = "fp32"
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_draws", "checkpoint_every"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("micro_batch", "patience"):
            self._require(
                getattr(self, name) is None or getattr(self, name) >= 1, name, "at least 1, or none"
            )
        for name in ("gradient_clip", "time_limit"):
            self._require(getattr(self, name) is None or getattr(self, name) > 0, name, "above 0, or none")
        self._require(0 < self.learning_rate < math.inf, "learning_rate", "above 0")
        self._require(self.warmup >= 0 and self.weight_decay >= 0, "warmup and weight_decay", "0 or more")
        self._require(self.decay in ("cosine", "constant"), "decay", "cosine or constant")
        self._require(self.precision in ("fp32", "bf16"), "precision", "fp32 or bf16")

    @staticmethod
    def _require(holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise InputError("bad-setting", f"{name} must be {expected}", "training settings", "change it")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.decay == "constant":
            return rate
        passed = max(step - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return rate * (1 + math.cos(math.pi * min(passed, 1.0))) / 2

    def described(self) -> dict[str, Any]:
        """Plain JSON: numbers and texts as they are, objects by their repr (without where they lie in memory,
        which another process would not agree with)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = (int, float, str, type(None))
        return {
            name: v if isinstance(v, plain) else re.sub(r" at 0x[0-9a-f]+", "", repr(v))
            for name, v in values.items()
        }


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself: three times as fast as float32, else far slower."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked()) if asked is not None else False

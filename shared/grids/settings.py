"""How a model of a grid is made, and for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..schedules import Density, LogNormalDensity, Schedule
from ..settings import TrainingSettings


@dataclass(frozen=True)
class _WithMean:
    """A density of which a share lies at t = 1, where nothing is seen of the data but what is known."""

    share: float
    rest: Density

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        """Times (B,) from uniform numbers (B,)."""
        below = uniform < self.share
        times = self.rest.sample(schedule, ((uniform - self.share) / (1 - self.share)).clamp(1e-6, 1 - 1e-6))
        return torch.where(below, torch.ones_like(times), times)


@dataclass(frozen=True)
class GridSettings:
    """How a model of a grid is made.

    Args:
        widths, blocks, attention, dropout, checkpointing: of the `UNet`.
        coordinates: tell the network where each position is.
        levels: Haar packing, how often each axis is halved.
        patch: edge of the windows that the network sees and is told the place of (see `windows`), a multiple
            of 2^levels; None is the whole grid. For grids whose maps do not fit the memory.
        components, reach, floor: of the low-rank Gaussian centre. The floor is high, because a position that
            never varies in training may do so in use.
        folds: of the centre's cross-fitting.
        blank: share of the examples in which nothing is observed, beside those of the domain's pattern.
        drop: share of the examples whose conditions are dropped, for guidance. drop_channels: the same of the
            images that a condition lays beside the data, which 0 everywhere stands for.
        held_out: share of the groups kept for early stopping.
        sampler_steps: of a draw.
        channel_guidance: scale of the guidance by those images, when a sample is made for one.
        autoguidance: scale away from the model's own centre, while there is less noise than data: what the
            network adds to a Gaussian is structure, and of that a short training shows too little.
        steps, batch_size, learning_rate, patience, time_limit, precision: of the training.
        latent: channels of the latents of an autoencoder in which the model works, for large grids; 0 works
            in the grid itself.
        latent_widths: of the autoencoder; each but the first halves the size.
        latent_steps, latent_crop: of its training, and the edge of the crops that it is trained on.
        density_mean, density_std: log-normal law of the noise levels that are trained on.
        mean_share: share of the examples at the highest level, where the answer is the conditional mean.
    """

    widths: tuple[int, ...] = (48, 96, 144)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    dropout: float = 0.0
    checkpointing: bool = False
    coordinates: bool = False
    levels: int = 1
    patch: int | None = None
    components: int = 20
    reach: float = 0.8
    floor: float = 1e-2
    folds: int = 4
    blank: float = 0.4
    drop: float = 0.1
    drop_channels: float = 0.3
    held_out: float = 0.1
    sampler_steps: int = 20
    channel_guidance: float = 1.0
    autoguidance: float = 1.0
    steps: int = 4000
    batch_size: int = 4
    learning_rate: float = 1e-3
    patience: int | None = 10
    time_limit: float | None = None
    precision: str = "fp32"
    latent: int = 0
    latent_widths: tuple[int, ...] = (32, 64, 96)
    latent_steps: int = 2000
    latent_crop: int = 64
    density_mean: float = -0.6
    density_std: float = 1.4
    mean_share: float = 0.06

    def __post_init__(self) -> None:
        patch, multiple = self.patch, 2**self.levels
        if patch is not None and (patch != int(patch) or patch < 2 * multiple or patch % multiple):
            what = f"a patch of {patch} does not fit {self.levels} level(s) of packing"
            remedy = f"choose a multiple of {multiple}, at least {2 * multiple}, or none"
            raise InputError("bad-setting", what, "patch", remedy)
        if patch is not None and self.latent:
            what = "a grid is modelled in latents or through windows, not both"
            raise InputError("bad-setting", what, "patch", "set latent to 0, or patch to none")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> GridSettings:
        """From plain JSON; lists become tuples, unknown names are left out."""
        known = {f.name for f in fields(cls)}
        held: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known
        }
        return cls(**held)

    @property
    def notes(self) -> list[str]:
        """Sentences for a person who is to decide whether to train so."""
        if not self.latent:
            return []
        told = f"in {self.latent} channels of an autoencoder's latents, one for {self.factor} along each axis"
        return [f"The model works {told} (model.latent: 0 in the plan: without)."]

    @property
    def factor(self) -> int:
        """How many positions along an axis one latent stands for."""
        return int(2 ** (len(self.latent_widths) - 1))

    def network(self) -> dict[str, Any]:
        """Of the `UNet`."""
        names = ("widths", "blocks", "attention", "dropout", "checkpointing")
        return {name: getattr(self, name) for name in names}

    def training(self, examples: int) -> TrainingSettings:
        """Of the training, for so many examples."""
        return TrainingSettings(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=min(200, self.steps // 10 + 1),
            density=_WithMean(self.mean_share, LogNormalDensity(self.density_mean, self.density_std)),
            validate_every=max(self.steps // 40, 20),
            validation_draws=max(1, 64 // max(1, round(examples * self.held_out))),
            patience=self.patience,
            checkpoint_every=max(self.steps // 40, 20),
            precision="bf16" if self.precision == "bf16" else "fp32",
            time_limit=self.time_limit,
        )


@dataclass(frozen=True)
class GridShape:
    """What a network over a grid is made for.

    Args:
        shape: (C, *S) of an example.
        classes: how many labels.
        covariates: how many real covariates.
        token_width: length of a token.
        context: channels of the condition.
        done: numbers that tell what an augmentation did.
        words, length: how many ids of words there are, and how many of them a text has at most, where tokens
            are such ids (see `words`).
    """

    shape: tuple[int, ...]
    classes: int = 0
    covariates: int = 0
    token_width: int = 0
    context: int = 0
    done: int = 0
    words: int = 0
    length: int = 0

r"""A model of data on a grid (images, volumes): generate and fill, with one set of weights.

A centre (`centre`) knows mean and spread in closed form, given whatever is observed; a U-Net (`unet`) on
Haar-packed grids (`latent`) corrects it, trained by hiding random patterns of what is observed. Everything
but the network's inside works on the grid itself: masks need not fit the packing, and white noise stays
white, because the packing is orthonormal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .centre import CentredDenoiser, CrossFitted, GaussianCentre
from .data import NOTHING, Condition, Encoded
from .denoisers import Denoiser
from .embeddings import drop_randomly
from .filling import fill
from .guidance import Guided
from .latent import haar_pack, haar_unpack
from .masking import Pattern
from .noise import Keys, key_of
from .samplers import Heun, Sampler
from .schedules import EDM, LogNormalDensity
from .training import Batch, Trained, TrainingSettings, train
from .unet import UNet

Progress = Callable[[str, float], None]
Augmentation = Callable[[Keys, Tensor], tuple[Tensor, Tensor]]
"""(keys, x (B, C, *S)) to the changed x and (B, A) what was done to it, 0 for nothing: the network is told,
so that samples, drawn with zeros, are not augmented (Karras et al. 2020, 2022)."""

_MICRO = 2**18  # positions computed at once in inference: fixed, so that an answer does not depend on company


class PackedNetwork(nn.Module):
    """A U-Net that works on Haar-packed grids and is called in voxels.

    Values and mask of the known part, and the channels of the condition, are packed beside the noisy data.

    Args:
        ndim: spatial dimensions.
        channels: C of the data.
        levels: how often each axis is halved by packing; 0 packs nothing.
        context: channels of `condition.channels`.
        settings: of the `UNet` inside.
    """

    def __init__(self, ndim: int, channels: int, levels: int, context: int, **settings: Any) -> None:
        super().__init__()
        self.levels, bands = levels, 2 ** (ndim * levels)
        self.inner = UNet(
            ndim, channels * bands, context=(2 * channels + context) * bands, fills=False, **settings
        )

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition = NOTHING) -> Tensor:
        """x (B, C, *S), noise_level (B,) -> (B, C, *S)."""
        known = condition.known
        beside = (
            [torch.zeros_like(x), torch.zeros_like(x)]
            if known is None
            else [known.values.to(x), known.observed.to(x)]
        )
        if condition.channels is not None:
            beside.append(condition.channels.to(x))
        told = replace(condition, known=None, channels=haar_pack(torch.cat(beside, 1), self.levels))
        out = self.inner(haar_pack(x, self.levels), noise_level, told)
        return haar_unpack(out, x.shape[2:], self.levels)


@dataclass(frozen=True)
class GridSettings:
    """How a model of a grid is made.

    Args:
        widths, blocks, attention, dropout, checkpointing: of the `UNet`.
        levels: Haar packing, how often each axis is halved.
        components, reach, floor: of the low-rank Gaussian centre. The floor is high, because a position that
            never varies in training may do so in use.
        folds: of the centre's cross-fitting.
        blank: share of the examples in which nothing is observed, beside those of the domain's pattern.
        drop: share of the examples whose conditions are dropped, for guidance.
        held_out: share of the groups kept for early stopping.
        sampler_steps: of a draw.
        steps, batch_size, learning_rate, patience, time_limit, precision: of the training.
        density_mean, density_std: log-normal law of the noise levels that are trained on.
    """

    widths: tuple[int, ...] = (48, 96, 144)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    dropout: float = 0.0
    checkpointing: bool = False
    levels: int = 1
    components: int = 20
    reach: float = 0.8
    floor: float = 1e-2
    folds: int = 4
    blank: float = 0.4
    drop: float = 0.1
    held_out: float = 0.1
    sampler_steps: int = 20
    steps: int = 4000
    batch_size: int = 4
    learning_rate: float = 1e-3
    patience: int | None = 10
    time_limit: float | None = None
    precision: str = "fp32"
    density_mean: float = -0.4
    density_std: float = 1.4

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> GridSettings:
        """From plain JSON; lists become tuples, unknown names are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known})

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
            density=LogNormalDensity(self.density_mean, self.density_std),
            validate_every=max(self.steps // 40, 20),
            validation_draws=max(1, 64 // max(1, round(examples * self.held_out))),
            patience=self.patience,
            checkpoint_every=max(self.steps // 40, 20),
            precision="bf16" if self.precision == "bf16" else "fp32",
            time_limit=self.time_limit,
        )


@dataclass(frozen=True)
class GridData:
    """What a model of a grid learns from.

    Args:
        values: (n, C, *S) in model space, 0 where unknown; may be held in half precision.
        observed: bool, same shape; None where everything is.
        condition: labels, covariates, tokens and channels of the n examples.
        groups: (n,) int64, whose example it is: all of a subject's stay on one side of every split.
    """

    values: Tensor
    observed: Tensor | None = None
    condition: Condition = NOTHING
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def owners(self) -> Tensor:
        return torch.arange(len(self.values)) if self.groups is None else self.groups

    def __getitem__(self, rows: Tensor) -> GridData:
        seen = None if self.observed is None else self.observed[rows]
        return GridData(self.values[rows], seen, self.condition[rows], self.owners[rows])


@dataclass(frozen=True)
class _Hiding:
    """Examples of which a random part is hidden; `Examples` for a training."""

    data: GridData
    fold: Tensor | None
    pattern: Pattern
    blank: float
    drop: float
    augmentation: Augmentation | None
    done: int = 0  # numbers that tell what an augmentation did

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        part = self.data[indices]
        x = part.values.float()
        seen = torch.ones_like(x, dtype=torch.bool) if part.observed is None else part.observed
        done = torch.zeros(len(x), self.done)
        if self.augmentation is not None:
            # What is observed is moved along with the values.
            both, done = self.augmentation(keys, torch.cat([x, seen.to(x)], 1))
            x, seen = both[:, : x.shape[1]], both[:, x.shape[1] :] > 0.999
            x = x * seen
        stays = self.pattern(keys, tuple(x.shape[1:])) & seen
        stays &= (keys.uniform((), "blank") >= self.blank).reshape(-1, *(1,) * (x.ndim - 1))
        condition = drop_randomly(part.condition, self.drop, keys.uniform((), "drop"))
        condition = _with_done(condition, done)
        fold = None if self.fold is None else self.fold[indices]
        known = Encoded(x * stays, stays)
        return Batch(x, replace(condition, known=known, fold=fold), seen & ~stays)


def _with_done(condition: Condition, done: Tensor) -> Condition:
    """The condition with what an augmentation did as further covariates."""
    if not done.shape[1]:
        return condition
    given = [] if condition.covariates is None else [condition.covariates]
    return replace(condition, covariates=torch.cat([*given, done], 1))


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
    """

    shape: tuple[int, ...]
    classes: int = 0
    covariates: int = 0
    token_width: int = 0
    context: int = 0
    done: int = 0


class GridModel:
    """Made by `fit` or `from_state`; `generate` and `fill` are what it is for.

    Attributes:
        settings, form: how it was made and for what.
        denoiser: E[x_0 | x_t, what is known, condition].
    """

    def __init__(self, settings: GridSettings, form: GridShape, denoiser: CentredDenoiser) -> None:
        self.settings, self.form, self.denoiser = settings, form, denoiser

    @classmethod
    def untrained(cls, settings: GridSettings, form: GridShape, centre: GaussianCentre | CrossFitted) -> GridModel:
        """A new network around a centre: at once the exact denoiser of that Gaussian."""
        network = PackedNetwork(
            len(form.shape) - 1,
            form.shape[0],
            settings.levels,
            form.context + 2 * form.shape[0],
            classes=form.classes,
            covariates=form.covariates + form.done,
            token_width=form.token_width,
            **settings.network(),
        )
        return cls(settings, form, CentredDenoiser(network, EDM(), centre))

    @classmethod
    def fit(
        cls,
        data: GridData,
        settings: GridSettings,
        pattern: Pattern,
        *,
        classes: int = 0,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> tuple[GridModel, Trained]:
        """Fit the centre, then train the network.

        Args:
            data: n examples.
            settings: how.
            pattern: what is hidden in training, beside the examples in which nothing is observed.
            classes: how many labels there are.
            augmentation: changes examples by key.
            seed: of the network's first weights and of the training.
            folder, resume, device, progress: as `shared.training.train`.

        Raises:
            ValueError: fewer than two groups.
            InputError, Diverged, Interrupted: as `shared.training.train`.
        """
        tell = progress or (lambda label, fraction: None)
        tell("fitting the centre", 0.0)
        held = _held_out(data.owners, settings.held_out, seed)
        learning, kept = data[(~held).nonzero()[:, 0]], data[held.nonzero()[:, 0]]
        centre = CrossFitted.fit(
            learning.values.float(),
            learning.observed,
            learning.owners,
            folds=settings.folds,
            components=settings.components,
            reach=settings.reach,
            floor=settings.floor,
        )
        done = 0 if augmentation is None else _marks(augmentation, data)
        told = data.condition
        form = GridShape(
            tuple(data.values.shape[1:]),
            classes,
            0 if told.covariates is None else told.covariates.shape[1],
            0 if told.tokens is None else told.tokens.shape[2],
            0 if told.channels is None else told.channels.shape[1],
            done,
        )
        with torch.random.fork_rng():
            torch.manual_seed(key_of(seed, "network") % 2**31)
            model = cls.untrained(settings, form, centre)

        def examples(part: GridData, changes: Augmentation | None, drop: float) -> _Hiding:
            return _Hiding(part, centre.fold(part.owners), pattern, settings.blank, drop, changes, done)

        trained = train(
            model.denoiser,
            examples(learning, augmentation, settings.drop),
            settings.training(len(data)),
            held_out=examples(kept, None, 0.0) if len(kept) else None,
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=lambda label, fraction: tell(label, 0.02 + 0.98 * fraction),
        )
        model.denoiser.centre = centre.whole.to(next(model.denoiser.parameters()).device)
        return model, trained

    # ----------------------------------------------------------------------------------------- inference

    @property
    def micro_batch(self) -> int:
        """Examples computed at once."""
        return max(1, min(64, _MICRO // math.prod(self.form.shape)))

    def sampler(self, steps: int | None = None) -> Sampler:
        """The sampler of `generate` and `fill`."""
        return Heun(steps or self.settings.sampler_steps)

    def generate(
        self,
        keys: Keys,
        condition: Condition = NOTHING,
        *,
        guidance: float = 1.0,
        sampler: Sampler | None = None,
        start: Tensor | None = None,
        t_start: float = 1.0,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draw from nothing, or (with `start`) vary what there is by noising it up to `t_start`.

        Args:
            keys: B of them.
            condition: of the B samples; fields that are absent are unknown.
            guidance: scale of classifier-free guidance; 1 is none.
            sampler: `sampler()` by default.
            start, t_start: as for `Sampler`.

        Returns:
            (B, C, *S) in model space.
        """
        denoiser = self._guided(guidance)

        def some(rows: Tensor) -> Tensor:
            begin = None if start is None else start[rows].to(self.device)
            return (sampler or self.sampler())(
                denoiser,
                self.form.shape,
                keys[rows],
                self._told(condition[rows], len(rows)).to(self.device),
                like=torch.empty(0, device=self.device),
                start=begin,
                t_start=t_start,
            )

        return self._in_batches(some, len(keys), "generating", progress)

    def fill(
        self,
        known: Encoded,
        keys: Keys,
        condition: Condition = NOTHING,
        *,
        guidance: float = 1.0,
        sampler: Sampler | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draw what is unknown given what is known: (B, C, *S), known entries bit for bit."""
        denoiser = self._guided(guidance)

        def some(rows: Tensor) -> Tensor:
            part = Encoded(known.values[rows].to(self.device), known.observed[rows].to(self.device))
            told = self._told(condition[rows], len(rows)).to(self.device)
            return fill(denoiser, part, keys[rows], told, sampler=sampler or self.sampler())

        return self._in_batches(some, len(keys), "filling", progress)

    def _guided(self, scale: float) -> Denoiser:
        return self.denoiser if scale == 1 else Guided(self.denoiser, scale, self._unconditional)

    def _unconditional(self, condition: Condition) -> Condition:
        """Without label, covariates and tokens, but still not augmented."""
        dropped, done = condition.drop(), self.form.done
        if done and condition.covariates is not None and dropped.covariates is not None:
            kept = torch.cat([dropped.covariates[:, :-done], condition.covariates[:, -done:]], 1)
            dropped = replace(dropped, covariates=kept)
        return dropped

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def _told(self, condition: Condition, count: int) -> Condition:
        """With the marks of an example that was not augmented."""
        done = torch.zeros(count, self.form.done)
        if self.form.done and self.form.covariates and condition.covariates is None:
            condition = replace(condition, covariates=torch.full((count, self.form.covariates), torch.nan))
        return _with_done(condition, done)

    def _in_batches(
        self, work: Callable[[Tensor], Tensor], count: int, label: str, progress: Progress | None
    ) -> Tensor:
        """Rows in batches of one size, the last filled up with its last row."""
        parts, size = [torch.empty(0, *self.form.shape)], self.micro_batch
        for first in range(0, count, size):
            rows = torch.arange(first, first + size).clamp(max=count - 1)
            with torch.no_grad():
                parts.append(work(rows).cpu()[: count - first])
            if progress is not None:
                progress(label, min(1.0, (first + size) / count))
        return torch.cat(parts)

    # --------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain JSON and tensors, for `shared.artifacts.write_model`; weights in half precision."""
        centre = self.denoiser.centre
        assert isinstance(centre, GaussianCentre)
        config = {
            "settings": asdict(self.settings),
            "form": asdict(self.form),
            "components": centre.loadings.shape[1],
        }
        tensors = {f"network.{n}": t for n, t in self.denoiser.network.state_dict().items()}
        tensors |= {f"centre.{n}": t for n, t in centre.state_dict().items()}
        return config, {n: t.detach().cpu().half().contiguous() for n, t in tensors.items()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GridModel:
        """What `state` wrote."""
        form = {k: tuple(v) if isinstance(v, list) else v for k, v in config["form"].items()}
        shape = GridShape(**form)
        settings = GridSettings.from_dict(config["settings"])
        centre = GaussianCentre.blank(shape.shape, config["components"], settings.reach)
        model = cls.untrained(settings, shape, centre)
        held: dict[str, dict[str, Tensor]] = {"network": {}, "centre": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            held[part][rest] = tensor.float()
        model.denoiser.network.load_state_dict(held["network"])
        centre.load_state_dict(held["centre"])
        model.denoiser.eval()
        return model


def _marks(augmentation: Augmentation, data: GridData) -> int:
    """How many numbers an augmentation tells of what it did."""
    one = data.values[:1].float()
    return augmentation(Keys.range(0, 1), torch.cat([one, torch.ones_like(one)], 1))[1].shape[1]


def _held_out(owners: Tensor, share: float, seed: int) -> Tensor:
    """bool (n,), all examples of a group alike; at least one group where there are ten or more."""
    names = owners.unique()
    count = round(share * len(names)) if len(names) < 10 else max(1, round(share * len(names)))
    order = torch.tensor([key_of(seed, "held out", int(name)) for name in names]).argsort()
    return torch.isin(owners, names[order[:count]])

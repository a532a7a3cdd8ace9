r"""A model of data on a grid (images, volumes): generate and fill, with one set of weights.

A centre (`centre`) knows mean and spread in closed form, given whatever is observed; a U-Net (`unet`) on
Haar-packed grids (`latent`) corrects it, trained by hiding random patterns of what is observed. Everything
but the network's inside works on the grid itself: masks need not fit the packing, and white noise stays
white, because the packing is orthonormal.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from .centre import CentredDenoiser, CrossFitted, GaussianCentre
from .data import NOTHING, Condition, Encoded
from .denoisers import Denoiser
from .distillation import FewStepGrid, JumpingCentre, Told, distil, walked
from .errors import InputError
from .guidance import Guided
from .hiding import Augmentation, GridData, Hiding, held_out, marks, with_done
from .latent import PackedNetwork
from .masking import Pattern
from .noise import Keys, key_of
from .samplers import DDIM, Heun, Sampler, UniPC
from .schedules import EDM, Density, LogNormalDensity, Schedule, log_snr_grid
from .settings import computes_bfloat16
from .training import Trained, TrainingSettings, device_of, train
from .words import WIDTH, WordEncoder, WordNetwork

Progress = Callable[[str, float], None]

_GRID = partial(log_snr_grid, floor=-8.0, ceiling=9.0)
"""Positions of a grid go together: along its first component clothes vary fifteen times as much as at one
position, and noise has not won at the log-SNR of -6 where it has for records. Steps spent there are what few
steps need most (docs/explanation/core.md)."""
_STUDENT = 1.86  # 90 % of |t| with 8 degrees of freedom: draws whose spread was measured on eight
_ROUNDS = 4  # of EM where data are missing: what it has not found by then, the network finds
_DRAWN = 2**22  # entries drawn to calibrate by: half a minute of one core
_MICRO = 2**17  # positions computed at once in inference: fixed, so that an answer does not depend on company


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
        components, reach, floor: of the low-rank Gaussian centre. The floor is high, because a position that
            never varies in training may do so in use.
        folds: of the centre's cross-fitting.
        blank: share of the examples in which nothing is observed, beside those of the domain's pattern.
        drop: share of the examples whose conditions are dropped, for guidance. drop_channels: the same of the
            images that a condition lays beside the data, which 0 everywhere stands for.
        held_out: share of the groups kept for early stopping.
        sampler_steps: of a draw.
        steps, batch_size, learning_rate, patience, time_limit, precision: of the training.
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
    components: int = 20
    reach: float = 0.8
    floor: float = 1e-2
    folds: int = 4
    blank: float = 0.4
    drop: float = 0.1
    drop_channels: float = 0.3
    held_out: float = 0.1
    sampler_steps: int = 20
    steps: int = 4000
    batch_size: int = 4
    learning_rate: float = 1e-3
    patience: int | None = 10
    time_limit: float | None = None
    precision: str = "fp32"
    density_mean: float = -0.6
    density_std: float = 1.4
    mean_share: float = 0.06

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> GridSettings:
        """From plain JSON; lists become tuples, unknown names are left out."""
        known = {f.name for f in fields(cls)}
        held: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known
        }
        return cls(**held)

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


@dataclass(frozen=True)
class Trust:
    """How what is filled leans on network and centre, found on held-out examples as for tables.

    Args:
        weight: of the network's conditional mean, 0 to 1; the rest is the centre's.
        spread: factor on the scatter of draws around the mean.
    """

    weight: float = 1.0
    spread: float = 1.0


class GridModel:
    """Made by `fit` or `from_state`; `generate` and `fill` are what it is for.

    Attributes:
        settings, form: how it was made and for what.
        denoiser: E[x_0 | x_t, what is known, condition].
        trust: how it fills, found on held-out examples.
        jumps: the steps of a distilled model, which draws in these alone, and does not fill; 0 of others.
    """

    def __init__(
        self,
        settings: GridSettings,
        form: GridShape,
        denoiser: CentredDenoiser,
        trust: Trust | None = None,
        jumps: int = 0,
    ) -> None:
        self.settings, self.form, self.denoiser, self.trust = settings, form, denoiser, trust or Trust()
        self.jumps = jumps

    @classmethod
    def untrained(
        cls,
        settings: GridSettings,
        form: GridShape,
        centre: GaussianCentre | CrossFitted | JumpingCentre,
        jumps: int = 0,
    ) -> GridModel:
        """A new network around a centre: at once the exact denoiser of that Gaussian."""
        network: nn.Module = PackedNetwork(
            len(form.shape) - 1,
            form.shape[0],
            settings.levels,
            form.context + 2 * form.shape[0],
            classes=form.classes,
            covariates=form.covariates + form.done,
            token_width=form.token_width,
            coordinates=settings.coordinates,
            **settings.network(),
        )
        if form.words:
            network = WordNetwork(network, WordEncoder(form.words, form.length, form.token_width))
        return cls(settings, form, CentredDenoiser(network, EDM(), centre), jumps=jumps)

    @classmethod
    def fit(
        cls,
        data: GridData,
        settings: GridSettings,
        pattern: Pattern,
        *,
        classes: int = 0,
        words: int = 0,
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
            words: how many ids there are, where the tokens are ids of words.
            augmentation: changes examples by key.
            seed: of the network's first weights and of the training.
            folder, resume, device, progress: as `shared.training.train`.

        Raises:
            ValueError: fewer than two groups.
            InputError, Diverged, Interrupted: as `shared.training.train`.
        """
        tell = progress or (lambda label, fraction: None)
        tell("fitting the centre", 0.0)
        apart = held_out(data.owners, settings.held_out, seed)
        learning, kept = data[(~apart).nonzero()[:, 0]], data[apart.nonzero()[:, 0]]
        centre = CrossFitted.fit(
            learning.values.float(),
            learning.observed,
            learning.owners,
            folds=settings.folds,
            components=settings.components,
            reach=settings.reach,
            floor=settings.floor,
            rounds=_ROUNDS,
        )
        done = 0 if augmentation is None else marks(augmentation, data)
        told = data.condition
        form = GridShape(
            tuple(data.values.shape[1:]),
            classes,
            0 if told.covariates is None else told.covariates.shape[1],
            0 if told.tokens is None else WIDTH if words else told.tokens.shape[2],
            0 if told.channels is None else told.channels.shape[1],
            done,
            words,
            told.tokens.shape[1] if words and told.tokens is not None else 0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(key_of(seed, "network") % 2**31)
            model = cls.untrained(settings, form, centre)

        def examples(part: GridData, changes: Augmentation | None, drop: float) -> Hiding:
            blind = settings.drop_channels if drop else 0.0
            return Hiding(part, centre.fold(part.owners), pattern, settings.blank, drop, changes, done, blind)

        trained = train(
            model.denoiser,
            examples(learning, augmentation, settings.drop),
            settings.training(len(data)),
            held_out=examples(kept, None, 0.0) if len(kept) else None,
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            progress=lambda label, fraction: tell(label, 0.02 + 0.95 * fraction),
        )
        model.denoiser.centre = centre.whole.to(next(model.denoiser.parameters()).device)
        if len(kept):

            def calibrating(label: str, share: float) -> None:
                tell("calibrating on held-out examples", 0.97 + 0.03 * share)

            model.trust = _calibrated(model, examples(kept, None, 0.0), seed, progress=calibrating)
        return model, trained

    def distilled(
        self,
        told: Told,
        *,
        steps: int = 2,
        guidance: float = 1.0,
        paths: int = 20_000,
        calls: int = 16,
        passes: int = 5,
        batch_size: int = 32,
        learning_rate: float = 5e-4,
        seed: int = 0,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> tuple[GridModel, Trained]:
        """A model that draws in a few steps what this one draws in many.

        Args:
            told: what each sample is to be, by key: conditions as they will be asked for.
            steps: of the student, one call of the network each.
            guidance: that the student follows its condition with, from then on.
            paths, calls: as for `walked`.
            passes, batch_size, learning_rate: of the student's training: how often it sees each jump.
            seed: of paths and lessons.
            folder, resume, device, progress: as for `shared.training.train`.

        Raises:
            InputError: `distilled`: it is such a model itself; as `shared.training.train`.
        """
        if self.jumps:
            what = f"this model was distilled before, to {self.jumps} steps"
            raise InputError("distilled", what, "", "distil the model that it was made from")
        tell = progress or (lambda label, fraction: None)
        self.denoiser.to(device_of(device))
        found = walked(
            self._guided(guidance),
            self.form.shape,
            lambda keys: self.told(told(keys), len(keys)),
            paths,
            steps=steps,
            calls=calls,
            start=self.denoiser.centre.prior()[0].cpu(),
            batch=self.micro_batch,
            seed=seed,
            folder=None if folder is None else folder / "paths",
            device=self.device,
            half=self.half,
            progress=lambda label, share: tell(label, 0.5 * share),
        )
        centre = self.denoiser.centre
        assert isinstance(centre, GaussianCentre)
        jumping = JumpingCentre(centre, self.denoiser.schedule, steps)
        student = GridModel.untrained(self.settings, self.form, jumping, steps)
        student.denoiser.network.load_state_dict(self.denoiser.network.state_dict())
        lessons = max(10, round(passes * paths * steps / batch_size))
        settings = replace(
            self.settings.training(paths),
            steps=lessons,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=min(100, lessons // 10 + 1),
            validate_every=max(lessons // 20, 20),
            validation_draws=1,
            checkpoint_every=max(lessons // 20, 20),
            patience=None,
        )
        trained = distil(
            student.denoiser,
            found,
            settings,
            seed=seed,
            folder=None if folder is None else folder / "lessons",
            resume=resume,
            device=device,
            progress=lambda label, share: tell(label, 0.5 + 0.5 * share),
        )
        return student, trained

    # ----------------------------------------------------------------------------------------- inference

    @property
    def micro_batch(self) -> int:
        """Examples computed at once."""
        return max(1, min(32, _MICRO // math.prod(self.form.shape[1:])))

    @property
    def half(self) -> bool:
        """Whether the network computes in bfloat16: it was trained so, and the machine does it fast."""
        able = self.device.type == "cuda" or computes_bfloat16()
        return self.settings.precision == "bf16" and able

    def sampler(self, steps: int | None = None) -> Sampler:
        """The sampler of `generate`.

        Raises:
            InputError: `steps`, where a distilled model is asked for others than its own.
        """
        if not self.jumps:
            return UniPC(steps or self.settings.sampler_steps, _GRID)
        if steps not in (None, self.jumps):
            what = f"this model was distilled to {self.jumps} steps and knows no others"
            raise InputError(
                "steps", what, "--steps", "leave it away, or use the model that it was made from"
            )
        return DDIM(self.jumps, FewStepGrid())

    def filler(self, steps: int | None = None) -> Sampler:
        """The sampler of `fill`, whose draws' spread was calibrated with it."""
        return Heun(steps or self.settings.sampler_steps)

    def generate(
        self,
        keys: Keys,
        condition: Condition = NOTHING,
        *,
        guidance: float = 1.0,
        negative: Tensor | None = None,
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
            negative: (1, T, D) tokens to be led away from, in place of no tokens at all.
            sampler: `sampler()` by default.
            start, t_start: as for `Sampler`.

        Returns:
            (B, C, *S) in model space.
        """
        denoiser = self._guided(guidance, negative)

        def some(rows: Tensor) -> Tensor:
            begin = self.denoiser.centre.prior()[0] if start is None else start[rows].to(self.device)
            return self._run(denoiser, keys[rows], condition[rows], sampler, begin, t_start)

        return self._in_batches(some, len(keys), "generating", progress)

    def _run(
        self,
        denoiser: Denoiser,
        keys: Keys,
        condition: Condition,
        sampler: Sampler | None,
        start: Tensor,
        t_start: float = 1.0,
    ) -> Tensor:
        """One batch. Noise begins around `start`, the centre's mean where there is nothing to vary: from
        zero, what is left of the mean at the last noise level would be missing."""
        told = self.told(condition, len(keys)).to(self.device)
        start = start.expand(len(keys), *self.form.shape)
        return (sampler or self.sampler())(
            denoiser, self.form.shape, keys, told, like=start[:0], start=start, t_start=t_start
        )

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
        """Draw what is unknown given what is known.

        Draws scatter around `expected`, by the factor that made intervals cover on held-out examples.

        Args:
            known: (B, C, *S) values and what of them is observed.
            keys: B of them: draws of one example share the item.
            condition, guidance, progress: as for `generate`.
            sampler: `filler()` by default.

        Returns:
            (B, C, *S): known entries bit for bit, the others drawn.
        """
        denoiser, told = self._guided(guidance), replace(condition, known=known)

        def some(rows: Tensor) -> Tensor:
            part, own = told[rows], keys[rows]
            network, centre = self._means(denoiser, own, part)
            drawn = self._run(denoiser, own, part, sampler or self.filler(), centre)
            moved = self._between(network, centre) + self.trust.spread * (drawn - network)
            return torch.where(part.known.observed, part.known.values, moved.cpu())  # type: ignore[union-attr]

        return self._in_batches(some, len(keys), "filling", progress)

    def expected(
        self, known: Encoded, keys: Keys, condition: Condition = NOTHING, *, guidance: float = 1.0
    ) -> Tensor:
        """(B, C, *S) the conditional mean of what is unknown, known entries bit for bit: the network's and
        the centre's, weighted. One call of the network, and no draws."""
        denoiser, told = self._guided(guidance), replace(condition, known=known)

        def some(rows: Tensor) -> Tensor:
            return self._between(*self._means(denoiser, keys[rows], told[rows]))

        return self._in_batches(some, len(keys), "filling", None)

    def _between(self, network: Tensor, centre: Tensor) -> Tensor:
        return centre + self.trust.weight * (network - centre)

    def _means(self, denoiser: Denoiser, keys: Keys, condition: Condition) -> tuple[Tensor, Tensor]:
        """Conditional means by the network and by the centre. At the highest noise level a denoiser's answer
        does not depend on the noise: it is the mean. (The noise is that of one draw of the item, -1.)"""
        told = self.told(condition, len(keys)).to(self.device)
        assert told.known is not None
        centre = self.denoiser.centre.posterior(told.known)[0]
        own = Keys(keys.seed, keys.items, torch.full_like(keys.draws, -1))
        t = torch.ones((), dtype=torch.float64, device=self.device)
        alpha, sigma = (float(c) for c in self.denoiser.schedule(t))
        noise = own.normal(self.form.shape, "mean", centre.dtype).to(centre)
        with torch.no_grad():
            return denoiser(alpha * centre + sigma * noise, t, told), centre

    def _guided(self, scale: float, negative: Tensor | None = None) -> Denoiser:
        def reference(condition: Condition) -> Condition:
            dropped = self._unconditional(condition)
            if negative is None or dropped.tokens is None:
                return dropped
            return replace(dropped, tokens=negative.to(dropped.tokens).expand_as(dropped.tokens))

        return self.denoiser if scale == 1 else Guided(self.denoiser, scale, reference)

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

    def told(self, condition: Condition, count: int) -> Condition:
        """With the marks of an example that was not augmented, and blank channels where none are told."""
        done = torch.zeros(count, self.form.done)
        if self.form.context and condition.channels is None:
            blank = torch.zeros(1, self.form.context, *self.form.shape[1:])
            condition = replace(condition, channels=blank.expand(count, *blank.shape[1:]))
        if self.form.done and self.form.covariates and condition.covariates is None:
            condition = replace(condition, covariates=torch.full((count, self.form.covariates), torch.nan))
        return with_done(condition, done)

    def _in_batches(
        self, work: Callable[[Tensor], Tensor], count: int, label: str, progress: Progress | None
    ) -> Tensor:
        """Rows in batches of one size, the last filled up with its last row."""
        parts, size = [torch.empty(0, *self.form.shape)], self.micro_batch
        for first in range(0, count, size):
            rows = torch.arange(first, first + size).clamp(max=count - 1)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                parts.append(work(rows).float().cpu()[: count - first])
            if progress is not None:
                progress(label, min(1.0, (first + size) / count))
        return torch.cat(parts)

    # --------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain JSON and tensors, for `shared.artifacts.write_model`; weights in half precision."""
        centre = self.denoiser.centre
        if isinstance(centre, JumpingCentre):
            centre = centre.centre
        assert isinstance(centre, GaussianCentre)
        config: dict[str, Any] = {
            "settings": asdict(self.settings),
            "form": asdict(self.form),
            "components": centre.loadings.shape[1],
            "trust": asdict(self.trust),
        }
        if self.jumps:
            config["jumps"] = self.jumps
        tensors = {f"network.{n}": t for n, t in self.denoiser.network.state_dict().items()}
        tensors |= {f"centre.{n}": t for n, t in centre.state_dict().items()}
        return config, {n: t.detach().cpu().half().contiguous() for n, t in tensors.items()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GridModel:
        """What `state` wrote."""
        form: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["form"].items()}
        shape = GridShape(**form)
        settings = GridSettings.from_dict(config["settings"])
        centre = GaussianCentre.blank(shape.shape, config["components"], settings.reach)
        jumps = int(config.get("jumps", 0))
        model = cls.untrained(
            settings, shape, JumpingCentre(centre, EDM(), jumps) if jumps else centre, jumps
        )
        held: dict[str, dict[str, Tensor]] = {"network": {}, "centre": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            held[part][rest] = tensor.float()
        model.denoiser.network.load_state_dict(held["network"])
        centre.load_state_dict(held["centre"])
        model.denoiser.eval()
        model.trust = Trust(**config["trust"])
        return model


def _calibrated(
    model: GridModel,
    examples: Hiding,
    seed: int,
    draws: int = 8,
    most: int | None = None,
    progress: Progress | None = None,
) -> Trust:
    """The weight that errs least, and the spread with which 90 % intervals cover 90 %, on hidden entries of
    held-out examples; counted where examples differ (most of a scan is air). `most` examples; None takes
    fewer the larger they are, for as many entries drawn."""
    model.denoiser.eval()
    if most is None:
        most = max(4, min(48, _DRAWN // (draws * math.prod(model.form.shape[1:]))))
    keys = Keys.range(key_of(seed, "calibration"), min(most, 4 * len(examples)))
    batch = replace(examples, blank=0.0).batch(keys.items % len(examples), keys)
    known = batch.condition.known
    assert known is not None
    condition = replace(batch.condition, known=None, fold=None)
    if model.form.done:  # the model adds the marks of an example that was not augmented itself
        given = batch.condition.covariates[:, : model.form.covariates]  # type: ignore[index]
        condition = replace(condition, covariates=given if model.form.covariates else None)
    network, centre = (
        GridModel(model.settings, model.form, model.denoiser, Trust(weight)).expected(known, keys, condition)
        for weight in (1.0, 0.0)
    )
    varies = model.denoiser.centre.prior()[1].cpu()
    where = batch.where & (varies >= varies.mean())
    if not where.any():
        return Trust()
    toward, missed = (network - centre)[where], (batch.x_0 - centre)[where]
    weight = float(((toward * missed).sum() / (toward**2).sum().clamp(min=1e-9)).clamp(0, 1))
    middle = centre + weight * (network - centre)
    rows = torch.arange(len(keys)).repeat_interleave(draws)
    every = Keys(keys.seed, keys.items[rows], torch.arange(draws).repeat(len(keys)))
    drawn = model.fill(known[rows], every, condition[rows], sampler=model.filler(8), progress=progress)
    spread = (drawn - network[rows]).unflatten(0, (-1, draws)).square().mean(1).sqrt()
    far = ((batch.x_0 - middle).abs() / spread.clamp(min=1e-6))[where]
    far = far[:: len(far) // 2**22 + 1]  # quantiles are taken of 16 million numbers at most
    return Trust(weight, float(far.quantile(0.9)) / _STUDENT)


def probe(settings: GridSettings, form: GridShape, tries: int = 2) -> dict[str, float]:
    """Minutes, memory and disk of a training, from a few of its steps on noise."""
    centre = GaussianCentre.blank(form.shape, settings.components, settings.reach)
    model = GridModel.untrained(settings, form, centre)
    x = torch.randn(settings.batch_size, *form.shape)
    seen = torch.rand(x.shape) < 0.5
    condition = model.told(Condition(known=Encoded(x * seen, seen)), len(x))
    t = model.denoiser.schedule.time(torch.ones(len(x), dtype=torch.float64))
    seconds = []
    for _ in range(tries):
        begun = monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = model.denoiser.loss(x, torch.randn_like(x), t, condition, ~seen)
        loss.mean().backward()
        seconds.append(monotonic() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state()[1].values())
    folds = (settings.folds + 1) * centre.loadings.numel() * 4
    return {
        # Reading, masks, augmentation and validation take about a quarter more.
        "minutes": round(1.25 * min(seconds) * settings.steps / 60, 1),
        "memory_mb": round((peak + folds) / 2**20),
        "disk_mb": round(weights / 2**20, 1),
    }

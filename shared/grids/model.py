"""The model of a grid itself: a denoiser that generates and fills."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..centre import CrossFitted, GaussianCentre
from ..data import NOTHING, Condition, Encoded
from ..denoisers import CentredDenoiser, Denoiser
from ..distillation import FewStepGrid, JumpingCentre
from ..errors import InputError
from ..guidance import AwayFromCentre, Guided
from ..hiding import with_done
from ..latent import PackedNetwork
from ..noise import Keys
from ..samplers import DDIM, Heun, Sampler, UniPC
from ..schedules import EDM, log_snr_grid
from ..settings import computes_bfloat16
from ..windows import Windowed
from ..words import WordEncoder, WordNetwork
from .settings import GridSettings, GridShape

Progress = Callable[[str, float], None]

_GRID = partial(log_snr_grid, floor=-8.0, ceiling=9.0)
"""Positions of a grid go together: along its first component clothes vary fifteen times as much as at one
position, and noise has not won at the log-SNR of -6 where it has for records. Steps spent there are what few
steps need most (docs/explanation/core.md)."""
_MICRO = 2**17  # positions computed at once in inference: fixed, so that an answer does not depend on company
_ROUNDS = 4  # of the centre where data are missing: what is not found by then, the network finds
_VOLUMES = 5  # axes of (n, C, *S): pictures keep positions, with packets small ones followed captions less
_MIDDLE = (0.4, 6.0)  # sigma / alpha while a condition is followed more closely than it was learnt
_LITTLE_NOISE = (0.0, 1.0)  # sigma / alpha while detail is decided; more noise decides how bright all is


def centre_of(settings: GridSettings, values: Tensor, observed: Tensor | None, owners: Tensor) -> CrossFitted:
    """The centre of examples (n, C, *S), of what is observed of them, cross-fitted by their owners (n,)."""
    return CrossFitted.fit(
        values,
        observed,
        owners,
        folds=settings.folds,
        components=settings.components,
        reach=settings.reach,
        floor=settings.floor,
        rounds=_ROUNDS,
        packed=values.ndim == _VOLUMES,
    )


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
    """Made by `fit_model` or `from_state`; `generate` and `fill` are what it is for.

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
        ndim, patch = len(form.shape) - 1, settings.patch
        network: nn.Module = PackedNetwork(
            ndim,
            form.shape[0],
            settings.levels,
            form.context + 2 * form.shape[0] + (0 if patch is None else ndim),
            classes=form.classes,
            covariates=form.covariates + form.done,
            token_width=form.token_width,
            coordinates=settings.coordinates and patch is None,
            **settings.network(),
        )
        if patch is not None:
            network = Windowed(network, patch, 2**settings.levels)
        if form.words:
            network = WordNetwork(network, WordEncoder(form.words, form.length, form.token_width))
        return cls(settings, form, CentredDenoiser(network, EDM(), centre), jumps=jumps)

    # ----------------------------------------------------------------------------------------- inference

    @property
    def core(self) -> GridModel:
        """What diffuses: itself."""
        return self

    def into(self, x: Tensor) -> Tensor:
        """The grid to where it diffuses: as it is."""
        return x

    def out(self, z: Tensor) -> Tensor:
        """And back."""
        return z

    @property
    def description(self) -> list[str]:
        """Lines for people: none, of a model of the grid itself."""
        return []

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
            guidance: scale of classifier-free guidance; 1 is none. Text is followed at every noise level, for
                it may say where things are; all else in the middle of the way (Kynkaanniemi et al. 2024),
                where that costs variety less.
            negative: (1, T, D) tokens to be led away from, in place of no tokens at all.
            sampler: `sampler()` by default.
            start, t_start: as for `Sampler`.

        Returns:
            (B, C, *S) in model space.
        """
        interval = _MIDDLE if condition.tokens is None else (0.0, math.inf)
        denoiser = self.guided(guidance, negative, self._drawing(condition), interval)

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
        denoiser, told = self.guided(guidance), replace(condition, known=known)

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
        return self._between(*self.means(known, keys, condition, guidance=guidance))

    def means(
        self, known: Encoded, keys: Keys, condition: Condition = NOTHING, *, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Conditional means by the network and by the centre, each (B, C, *S)."""
        denoiser, told = self.guided(guidance), replace(condition, known=known)

        def some(rows: Tensor) -> Tensor:
            return torch.stack(self._means(denoiser, keys[rows], told[rows]), 1)

        network, centre = self._in_batches(some, len(keys), "filling", None, 2).unbind(1)
        return network, centre

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

    def guided(
        self,
        scale: float,
        negative: Tensor | None = None,
        denoiser: Denoiser | None = None,
        interval: tuple[float, float] = (0.0, math.inf),
    ) -> Denoiser:
        """Classifier-free guidance of a denoiser, the model's own by default, while sigma / alpha lies in an
        interval."""
        denoiser = denoiser or self.denoiser

        def reference(condition: Condition) -> Condition:
            dropped = self._unconditional(condition)
            if negative is None or dropped.tokens is None:
                return dropped
            return replace(dropped, tokens=negative.to(dropped.tokens).expand_as(dropped.tokens))

        return denoiser if scale == 1 else Guided(denoiser, scale, reference, interval)

    def _drawing(self, condition: Condition) -> Denoiser:
        """The denoiser, with the guidance that the settings ask for when samples are made from nothing."""
        denoiser: Denoiser = self.denoiser
        if self.jumps:
            return denoiser
        if self.settings.autoguidance != 1:
            denoiser = AwayFromCentre(self.denoiser, self.settings.autoguidance, _LITTLE_NOISE)
        if self.settings.channel_guidance != 1 and condition.channels is not None:
            denoiser = Guided(denoiser, self.settings.channel_guidance, _without_channels)
        return denoiser

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
        self,
        work: Callable[[Tensor], Tensor],
        count: int,
        label: str,
        progress: Progress | None,
        *more: int,
    ) -> Tensor:
        """Rows in batches of one size, the last filled up with its last row."""
        parts, size = [torch.empty(0, *more, *self.form.shape)], self.micro_batch
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
        centre = GaussianCentre.blank(
            shape.shape, config["components"], settings.reach, "centre.bands" in tensors
        )
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


def _without_channels(condition: Condition) -> Condition:
    """Blank, as in a share of the training."""
    assert condition.channels is not None
    return replace(condition, channels=torch.zeros_like(condition.channels))

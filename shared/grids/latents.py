"""A model of a large grid: it works in the latents of an autoencoder, and is asked in pixels or voxels.

What is to be filled is guessed smoothly first (`smooth`), because an encoder takes no holes. The network is
shown the latents of that guess, and which share of each latent's block was observed; latents that see
nothing of a hole are known, to centre and network alike. What is decoded is moved by what the observed
entries say of the decoder's error, smoothly continued into the hole, so that no seam is left around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import NOTHING, Condition, Encoded
from ..errors import InputError
from ..latent import Autoencoder, haar_known
from ..noise import Keys
from ..samplers import Sampler
from ..smooth import smoothly_filled
from .model import GridModel, Trust
from .settings import GridSettings, GridShape

Progress = Callable[[str, float], None]

_AT_ONCE = 2**17  # positions in a batch: fixed, so that an answer does not depend on company
_REACH = 1  # latents around a hole that see it


def autoencoder_of(settings: GridSettings, shape: tuple[int, ...]) -> Autoencoder:
    """A new one for a grid (C, *S).

    Raises:
        InputError: `bad-setting`: there is no such autoencoder.
    """
    held = (settings.latent, *settings.latent_widths, settings.latent_steps)
    if not settings.latent_widths or min(held) < 1 or settings.latent_crop < settings.factor:
        what = (
            "latent, latent_widths and latent_steps must be 1 or more, latent_crop at least a latent's block"
        )
        raise InputError("bad-setting", what, "model", "change them, or set latent to 0")
    return Autoencoder(len(shape) - 1, shape[0], latent=settings.latent, widths=settings.latent_widths)


class LatentModel:
    """Made by `fit_model` or `from_state`; asked as a `GridModel` is.

    Attributes:
        autoencoder: between the grid and the latents.
        core: the model of the latents; its trust was found on the grid itself.
        form: what is modelled, (C, *S) and its conditions.
        error: root mean square error of decoded held-out examples, in standard deviations.
    """

    def __init__(
        self, autoencoder: Autoencoder, core: GridModel, form: GridShape, error: float | None = None
    ) -> None:
        self.autoencoder, self.core, self.form, self.error = autoencoder.eval(), core, form, error

    @classmethod
    def shaped(cls, settings: GridSettings, form: GridShape) -> GridShape:
        """What the core is made for: latents, and beside them the condition's channels, the latents of the
        guess, and the observed shares."""
        channels, *size = form.shape
        latent = (settings.latent, *(-(-n // settings.factor) for n in size))
        return replace(form, shape=latent, context=form.context + settings.latent + channels)

    # ---------------------------------------------------------------------------------- as a `GridModel`

    @property
    def settings(self) -> GridSettings:
        return self.core.settings

    @property
    def trust(self) -> Trust:
        return self.core.trust

    @property
    def jumps(self) -> int:
        return self.core.jumps

    def sampler(self, steps: int | None = None) -> Sampler:
        """As `GridModel.sampler`."""
        return self.core.sampler(steps)

    def filler(self, steps: int | None = None) -> Sampler:
        """As `GridModel.filler`."""
        return self.core.filler(steps)

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
        """As `GridModel.generate`: (B, C, *S)."""
        made = self.core.generate(
            keys,
            self.told(condition, None),
            guidance=guidance,
            negative=negative,
            sampler=sampler,
            start=None if start is None else self.into(start),
            t_start=t_start,
            progress=progress,
        )
        return self.out(made)

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
        """As `GridModel.fill`: known entries bit for bit, the others drawn."""

        def drawn(rows: Tensor, known: Encoded, told: Condition) -> Tensor:
            return self.core.fill(known, keys[rows], told, guidance=guidance, sampler=sampler)

        return self._filled(known, condition, drawn, progress)

    def expected(
        self, known: Encoded, keys: Keys, condition: Condition = NOTHING, *, guidance: float = 1.0
    ) -> Tensor:
        """As `GridModel.expected`: what the conditional mean of the latents is decoded to."""

        def mean(rows: Tensor, known: Encoded, told: Condition) -> Tensor:
            return self.core.expected(known, keys[rows], told, guidance=guidance)

        return self._filled(known, condition, mean)

    def means(
        self, known: Encoded, keys: Keys, condition: Condition = NOTHING, *, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """As `GridModel.means`: what the two means of the latents are decoded to."""

        def mean(which: int, rows: Tensor, known: Encoded, told: Condition) -> Tensor:
            return self.core.means(known, keys[rows], told, guidance=guidance)[which]

        network, centre = (self._filled(known, condition, partial(mean, which)) for which in (0, 1))
        return network, centre

    # -------------------------------------------------------------------------------- there and back again

    def into(self, x: Tensor) -> Tensor:
        """(B, C, *S) to latents (B, L, *s)."""
        tile, overlap = self._tiles
        return self._in_batches(lambda part: self.autoencoder.encode(part, tile, overlap), x)

    def out(self, z: Tensor) -> Tensor:
        """Latents (B, L, *s) to (B, C, *S)."""
        size, (tile, overlap) = self.form.shape[1:], self._tiles
        return self._in_batches(lambda part: self.autoencoder.decode(part, size, tile, overlap), z)

    def known(self, given: Encoded) -> tuple[Encoded, Tensor]:
        """What of the latents is known, and (B, L + C, *s) what the network is shown beside them: the latents
        of a smooth guess, and the observed share of each block; zero where nothing is observed."""
        share = _shares(given.observed, self.autoencoder.factor)
        z = self.into(smoothly_filled(given.values, given.observed))
        some = given.observed.flatten(1).any(1).reshape(-1, *(1,) * (z.ndim - 1))
        z = torch.where(some, z, 0)
        sure = _sure(given.observed, self.autoencoder.factor, _REACH).expand_as(z)
        return Encoded(z * sure, sure), torch.cat([z, share], 1)

    def told(self, condition: Condition, beside: Tensor | None) -> Condition:
        """A condition of the grid as one of the latents: its channels by their means over blocks, and
        `beside` (see `known`; None is nothing observed). None of either is left to the core."""
        if not self.form.context or condition.channels is None:
            if beside is None:
                return replace(condition, channels=None)
            own = beside.new_zeros(len(beside), self.form.context, *beside.shape[2:])
        else:
            own = _shares(condition.channels, self.autoencoder.factor)
            if beside is None:
                width = self.core.form.context - self.form.context
                beside = own.new_zeros(len(own), width, *own.shape[2:])
        return replace(condition, channels=torch.cat([own, beside], 1))

    def _filled(
        self,
        given: Encoded,
        condition: Condition,
        work: Callable[[Tensor, Encoded, Condition], Tensor],
        progress: Progress | None = None,
    ) -> Tensor:
        """What `work` makes of rows, what is known of their latents and what is told, decoded; the decoder's
        error on what was observed is taken off, and smoothly continued where it was not."""
        parts, size = [torch.empty(0, *self.form.shape)], self.core.micro_batch
        for rows in torch.arange(len(given.values)).split(size):
            part = given[rows]
            known, beside = self.known(part)
            made = self.out(work(rows, known, self.told(condition[rows], beside)))
            left = torch.where(part.observed, part.values - made, 0)
            made = made + smoothly_filled(left, part.observed)
            parts.append(torch.where(part.observed, part.values, made))
            if progress is not None:
                progress("filling", min(1.0, (int(rows[-1]) + 1) / len(given.values)))
        return torch.cat(parts)

    @property
    def _tiles(self) -> tuple[int | None, int]:
        """Edge of the tiles and what they share, in latents. What is larger than the crops of the training is
        encoded and decoded in tiles of their size: in bounded memory, and by the statistics over a group of
        channels that the autoencoder knows."""
        edge = self.settings.latent_crop
        if max(self.form.shape[1:]) <= edge:
            return None, 0
        tile = max(2, -(-edge // self.settings.factor))
        return tile, tile // 4

    def _in_batches(self, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """In batches of one size, the last filled up with its last row."""
        size, parts = max(1, min(32, _AT_ONCE // math.prod(self.form.shape[1:]))), []
        device = self.core.device
        self.autoencoder.to(device)
        for first in range(0, len(x), size):
            rows = torch.arange(first, first + size).clamp(max=len(x) - 1)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.core.half):
                parts.append(work(x[rows].float().to(device)).float().cpu()[: len(x) - first])
        return torch.cat(parts)

    # --------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As `GridModel.state`."""
        config, tensors = self.core.state()
        held = {f"autoencoder.{n}": t for n, t in self.autoencoder.state_dict().items()}
        tensors |= {n: t.detach().cpu().half().contiguous() for n, t in held.items()}
        return {**config, "latent": {"form": asdict(self.form), "error": self.error}}, tensors

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LatentModel:
        """What `state` wrote."""
        prefix = "autoencoder."
        core = GridModel.from_state(config, {n: t for n, t in tensors.items() if not n.startswith(prefix)})
        held = config["latent"]
        shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held["form"].items()}
        form = GridShape(**shape)
        autoencoder = autoencoder_of(core.settings, form.shape)
        own = {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}
        autoencoder.load_state_dict(own)
        return cls(autoencoder, core, form, held["error"])

    @property
    def description(self) -> list[str]:
        """Lines for people."""
        channels, *size = self.core.form.shape
        told = "" if self.error is None else f", which errs by {self.error:.2f} standard deviations"
        return [f"latents     {channels} x {' x '.join(map(str, size))}, of an autoencoder{told}"]


def _shares(x: Tensor, factor: int) -> Tensor:
    """(B, K, *S) to its means over blocks of `factor` along each axis, fewer at the far borders."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[x.ndim - 2]
    return pool(x.float(), factor, ceil_mode=True, count_include_pad=False)


def _sure(observed: Tensor, factor: int, reach: int) -> Tensor:
    """(B, 1, *s) bool: latents of which the block, and those of `reach` neighbours on each side, were
    observed whole in every channel."""
    whole = haar_known(observed.all(1, keepdim=True), factor.bit_length() - 1)[:, :1]
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[observed.ndim - 2]
    hidden = pool((~whole).float(), 2 * reach + 1, stride=1, padding=reach)
    return hidden == 0


AnyModel = GridModel | LatentModel


def model_from_state(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AnyModel:
    """What `state` of either wrote."""
    kind = LatentModel if "latent" in config else GridModel
    return kind.from_state(config, tensors)

r"""Smaller spaces to diffuse in: lossless Haar packing, and a learned autoencoder.

Packing (one level of the Haar wavelet transform on each axis) turns (C, *S) into (2^n C, *S / 2) without
losing anything: fewer positions, more channels, a shorter network pass; `PackedNetwork` is a U-Net that works
there. The autoencoder is for grids where that is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import NOTHING, Condition, like
from .unet import UNet
from .windows import blended, fill_up, positions, window


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    return x[window((0,) * len(size), size)]


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Low and high band along one axis: orthonormal for real numbers, and for whole numbers the lifting
    steps of the S-transform, which lose no bit (Calderbank et al. 1998, "Wavelet transforms that map
    integers to integers")."""
    a, b = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    if x.is_floating_point():
        return (a + b) * math.sqrt(0.5), (a - b) * math.sqrt(0.5)
    high = a - b
    return b + (high >> 1), high


def _join(low: Tensor, high: Tensor, axis: int) -> Tensor:
    """The inverse of `_split`."""
    if low.is_floating_point():
        a, b = (low + high) * math.sqrt(0.5), (low - high) * math.sqrt(0.5)
    else:
        b = low - (high >> 1)
        a = b + high
    return torch.stack([a, b], axis + 1).flatten(axis, axis + 1)


def haar_pack(x: Tensor, levels: int = 1) -> Tensor:
    """Haar wavelet packets: (B, C, *S) -> (B, C 2^(n levels), *ceil(S / 2^levels)), n spatial axes.

    Real numbers: orthonormal, so white noise stays white and a norm stays a norm, where sizes divide (an
    odd size is filled up by repeating its last entry). Whole numbers: returned in int32 (int64 from 32 bits
    up), and the inverse gives back every bit. The 2^n bands of a channel are neighbours, the mean first.
    """
    if not x.is_floating_point():
        x = x.to(torch.int64 if x.dtype.itemsize >= 4 else torch.int32)
    x = fill_up(x, 2**levels)
    for _ in range(levels):
        bands = x.unsqueeze(2)
        for axis in range(3, bands.ndim):
            bands = torch.cat(_split(bands, axis), 2)
        x = bands.flatten(1, 2)
    return x


def haar_unpack(x: Tensor, size: Sequence[int], levels: int = 1, dtype: torch.dtype | None = None) -> Tensor:
    """The inverse of `haar_pack`, cropped to the spatial `size`, as `dtype` (that of x when None)."""
    for _ in range(levels):
        bands = x.unflatten(1, (-1, 2 ** (x.ndim - 2)))
        for axis in reversed(range(3, bands.ndim)):
            low, high = bands.chunk(2, 2)
            bands = _join(low, high, axis)
        x = bands.squeeze(2)
    return _crop(x, size).to(dtype or x.dtype)


class PackedNetwork(nn.Module):
    """A U-Net that works on Haar-packed grids and is called in voxels.

    Values and mask of the known part, and the channels of the condition, are packed beside the noisy data.

    Args:
        ndim: spatial dimensions.
        channels: C of the data.
        levels: how often each axis is halved by packing; 0 packs nothing.
        context: channels of `condition.channels`.
        coordinates: lay beside them where each position is: a convolution does not know, and what a text
            says may be about places.
        settings: of the `UNet` inside.
    """

    def __init__(
        self,
        ndim: int,
        channels: int,
        levels: int,
        context: int,
        *,
        coordinates: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.levels, bands, self.coordinates = levels, 2 ** (ndim * levels), coordinates
        context += ndim if coordinates else 0
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
        if self.coordinates:
            beside.append(positions(x))
        told = replace(condition, known=None, channels=haar_pack(torch.cat(beside, 1), self.levels))
        out = self.inner(haar_pack(x, self.levels), noise_level, told)
        return haar_unpack(out, x.shape[2:], self.levels)


def haar_known(observed: Tensor, levels: int = 1) -> Tensor:
    """bool, shaped like the packed: coefficients whose block was observed whole, and so are known."""
    blocks = fill_up(observed, 2**levels)
    for axis in range(2, observed.ndim):
        blocks = blocks.unflatten(axis, (-1, 2**levels)).all(axis + 1)
    return blocks.repeat_interleave(2 ** ((observed.ndim - 2) * levels), 1)


# --- the autoencoder ----------------------------------------------------------------------------


def tiled(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int, factor: int) -> Tensor:
    """Decode in overlapping tiles, blended by weights that rise linearly from their edges: bounded memory.

    Args:
        decode: (B, C, *s) -> (B, C', *(factor s)).
        z: (B, C, *S).
        tile, overlap: edge of a tile, and what neighbours share, in positions of z.
        factor: how many output positions one of z becomes, along each axis.

    Returns:
        (B, C', *(factor S)). Exact where `decode` acts on each position alone; elsewhere the seams differ
        from whole decoding by what lies beyond the overlap, and by statistics taken over a tile.
    """
    n = z.ndim - 2
    return blended(lambda where: decode(z[where]), z.shape[2:], (tile,) * n, (overlap,) * n, factor)


class Autoencoder(nn.Module):
    """MONAI's AutoencoderKL, whose latents are brought to zero mean and unit variance channel by channel.

    Args:
        ndim: spatial dimensions.
        channels: of the data.
        latent: channels of the latents.
        widths: channels of each level; each level but the first halves the size.
        blocks: residual blocks a level.
    """

    def __init__(
        self, ndim: int, channels: int, latent: int = 4, widths: Sequence[int] = (32, 64, 64), blocks: int = 1
    ) -> None:
        super().__init__()
        from monai.networks.nets.autoencoderkl import AutoencoderKL  # takes seconds, and only latents need it

        self.ndim, self.channels, self.factor = ndim, channels, 2 ** (len(widths) - 1)
        self.network = AutoencoderKL(
            spatial_dims=ndim,
            in_channels=channels,
            out_channels=channels,
            num_res_blocks=blocks,
            channels=tuple(widths),
            attention_levels=(False,) * len(widths),
            latent_channels=latent,
            norm_num_groups=next(
                g for g in range(min(32, min(widths)), 0, -1) if not any(w % g for w in widths)
            ),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        with torch.no_grad():  # a new one is nearly certain: noise of unit variance would drown what it says
            certainty: Any = self.network.quant_conv_log_sigma
            certainty.conv.weight.zero_()
            certainty.conv.bias.fill_(-4.0)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("std", torch.ones(latent))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of the latents, before scaling."""
        mean, std = self.network.encode(fill_up(x, self.factor))
        return mean, std

    def encode(self, x: Tensor, tile: int | None = None, overlap: int = 4) -> Tensor:
        """x (B, C, *S) -> (B, latent, *ceil(S / factor)), zero mean and unit variance after `fit_scale`; with
        `tile`, in tiles of so many latent positions."""
        mean, std = (like(c[None], x) for c in (self.mean, self.std))

        if tile is None:
            return (self.moments(x)[0] - mean) / std
        levels = self.factor.bit_length() - 1

        def encoded(blocks: Tensor) -> Tensor:
            return self.moments(haar_unpack(blocks, [self.factor * n for n in blocks.shape[2:]], levels))[0]

        # Packed, a latent's block of positions is one position, so that tiles are counted in latents.
        return (tiled(encoded, haar_pack(x, levels), tile, overlap, 1) - mean) / std

    def decode(self, z: Tensor, size: Sequence[int], tile: int | None = None, overlap: int = 4) -> Tensor:
        """z -> (B, C, *size); with `tile`, in tiles of so many latent positions (`tiled`)."""
        raw = z * like(self.std[None], z) + like(self.mean[None], z)
        x = (
            self.network.decode(raw)
            if tile is None
            else tiled(self.network.decode, raw, tile, overlap, self.factor)
        )
        return _crop(x, size)

    @torch.no_grad()
    def fit_scale(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and standard deviation of each latent channel over `batches` (at least one)."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for x in batches:
            z = self.moments(x.to(self.mean))[0].double().cpu().transpose(0, 1).flatten(1)
            count, total, squares = count + z.shape[1], total + z.sum(1), squares + z.square().sum(1)
        if not count:
            raise ValueError("fit_scale needs at least one batch")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean**2).clamp(min=1e-12).sqrt())


@dataclass(frozen=True)
class AutoencoderSettings:
    """How an autoencoder is trained.

    Args:
        steps, learning_rate: of Adam.
        kl: weight of the divergence from N(0, 1), per latent number, beside the mean absolute error; it keeps
            the latents smooth, and small values are usual because decoding matters more.
        adversarial: weight of a patch discriminator's least-squares loss (0: none), from half-way on. It
            sharpens texture; it also invents it.
        seed: of the latent noise.
        half: compute in bfloat16.
    """

    steps: int = 1000
    learning_rate: float = 3e-4
    kl: float = 1e-6
    adversarial: float = 0.0
    seed: int = 0
    half: bool = False


def train_autoencoder(
    autoencoder: Autoencoder,
    batches: Iterable[Tensor],
    settings: AutoencoderSettings = AutoencoderSettings(),
    *,
    scale_on: Iterable[Tensor] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[dict[str, float]]:
    """Train on `batches` (gone through again and again), then measure the latent scale on one pass through
    them, or through `scale_on`. Batches are brought to where the autoencoder is.

    Returns:
        What each step cost: reconstruction, kl, and with an adversary fooled (its score of reconstructions,
        1 when taken for real) and judged (its own loss).
    """
    optimiser = torch.optim.Adam(autoencoder.parameters(), settings.learning_rate)
    adversary = _Adversary(autoencoder, settings) if settings.adversarial else None
    generator = torch.Generator().manual_seed(settings.seed)
    device = autoencoder.mean.device
    history = []
    for index, given in enumerate(islice(_again(batches), settings.steps)):
        x = given.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.half):
            mean, std = autoencoder.moments(x)
            eps = torch.randn(mean.shape, generator=generator).to(mean)
            made = _crop(autoencoder.network.decode(mean + std * eps), x.shape[2:]).float()
        mean, std = mean.float(), std.float()
        reconstruction = F.l1_loss(made, x)
        kl = 0.5 * (mean**2 + std**2 - 2 * std.clamp(min=1e-12).log() - 1).mean()
        loss = reconstruction + settings.kl * kl
        costs = {"reconstruction": reconstruction.item(), "kl": kl.item()}
        if adversary is not None and 2 * index >= settings.steps:
            fooled = adversary.score(made)
            loss = loss + settings.adversarial * ((fooled - 1) ** 2).mean()
            costs |= {"fooled": fooled.mean().item()}
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if "fooled" in costs and adversary is not None:
            costs["judged"] = adversary.learn(x, made.detach())
        history.append(costs)
        if progress is not None:
            line = f"step {index + 1} of {settings.steps}, error {costs['reconstruction']:.4f}"
            progress(f"training the autoencoder: {line}", (index + 1) / settings.steps)
    autoencoder.fit_scale(batches if scale_on is None else scale_on)
    return history


class _Adversary:
    """A discriminator of patches that learns to tell data (1) from reconstructions (0)."""

    def __init__(self, autoencoder: Autoencoder, settings: AutoencoderSettings) -> None:
        from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

        self.network = PatchDiscriminator(
            spatial_dims=autoencoder.ndim, channels=16, in_channels=autoencoder.channels, num_layers_d=2
        ).to(next(autoencoder.parameters()))
        self.optimiser = torch.optim.Adam(self.network.parameters(), settings.learning_rate)

    def score(self, x: Tensor) -> Tensor:
        """How real each patch looks: about 0 for no, 1 for yes."""
        return self.network(x)[-1]  # type: ignore[no-any-return]

    def learn(self, real: Tensor, made: Tensor) -> float:
        loss = 0.5 * (((self.score(real) - 1) ** 2).mean() + (self.score(made) ** 2).mean())
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


def _again(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from batches

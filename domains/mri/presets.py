"""What suits a collection of scans and a machine: the grid, the network, what is hidden in training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ...shared.grids import GridSettings, step_bytes
from ...shared.masking import Boxes, Cells, Channels, EveryKth, Half, Mixture, Pattern, Slices
from ...shared.settings import computes_bfloat16


def pattern(modalities: int) -> Pattern:
    """What is hidden of a scan in training: boxes, slices, thick slices, halves, single voxels, channels."""
    across = (Boxes(2, 0.15, 0.6), Slices(0.2, 0.9), EveryKth((2, 3, 4, 6)), Half(), Cells(0.1, 0.9))
    if modalities == 1:
        return Mixture(across, (3, 2, 3, 1, 1))
    return Mixture((*across, Channels(0.0, 1.0)), (3, 2, 3, 1, 1, 5))


@dataclass(frozen=True)
class Preset:
    """What fits a machine.

    Args:
        voxels: of the grid at most; a finer one is made coarser, unless a spacing is asked for.
        widths: of the network.
        steps, batch_size: of the training.
        memory: bytes that a step may take. A grid of which one volume, packed once, needs more is seen
            through windows; one that is merely large is packed twice.
        patch: edge of these.
        seconds: of the training at most, on a grid of no more than `voxels`.
        latent_steps, latent_crop: of the autoencoder's, for large volumes.
    """

    voxels: int
    widths: tuple[int, ...]
    steps: int
    batch_size: int
    memory: float
    patch: int
    seconds: float | None = None
    latent_steps: int = 2000
    latent_crop: int = 32


PRESETS = {
    "cpu": Preset(100_000, (40, 80, 112), 1000, 4, 2e9, 48, 600.0),
    "4gb": Preset(300_000, (48, 96, 144), 6000, 4, 3e9, 64, latent_steps=6000),
    "16gb": Preset(1_500_000, (64, 128, 192), 20_000, 4, 13e9, 96, latent_steps=20_000, latent_crop=48),
    "80gb": Preset(8_000_000, (96, 192, 320), 50_000, 8, 70e9, 128, latent_steps=30_000, latent_crop=64),
}
_LOADINGS = 2**25
"""Numbers of the centre's components, all together."""
LATENT_FROM = 128
"""Side of the volumes from which a model works in latents."""


def preset_for(device: str) -> str:
    """The preset of the machine at hand."""
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    free = torch.cuda.mem_get_info()[0]
    return "80gb" if free > 60 * 2**30 else "16gb" if free > 12 * 2**30 else "4gb"


def recommended(shape: tuple[int, ...], subjects: int, preset: str = "cpu") -> GridSettings:
    """Settings for a grid (C, *S), so many subjects and a machine."""
    chosen, voxels = PRESETS[preset], int(np.prod(shape[1:]))
    # A quarter of each side, packed once more. An autoencoder would take a processor too long.
    latent = preset != "cpu" and voxels >= LATENT_FROM**3
    settings = GridSettings(
        widths=chosen.widths,
        levels=1 if latent or voxels <= 300_000 else 2,
        latent=4 if latent else 0,
        latent_steps=chosen.latent_steps,
        latent_crop=chosen.latent_crop,
        components=max(1, min(2 * subjects // 3, 24, _LOADINGS // int(np.prod(shape)))),
        steps=chosen.steps,
        # Of what is far beyond the preset (a spacing was asked for), one at a time fits memory.
        batch_size=chosen.batch_size if latent or voxels <= 4 * chosen.voxels else 1,
        learning_rate=6e-4,
        patience=None,
        # Who asks for a finer grid than the preset's asks for the time, too.
        time_limit=chosen.seconds if voxels <= chosen.voxels else None,
        precision="bf16" if preset != "cpu" or computes_bfloat16() else "fp32",
        checkpointing=not latent and voxels > 1_000_000,
        channel_guidance=1.35,
    )
    fine = replace(settings, levels=1, batch_size=1, checkpointing=False)
    if latent or step_bytes(fine, shape) <= chosen.memory:
        return settings
    windows = [replace(fine, patch=chosen.patch, batch_size=n) for n in range(chosen.batch_size, 0, -1)]
    return next((one for one in windows if step_bytes(one, shape) <= chosen.memory), windows[-1])

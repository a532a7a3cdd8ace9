"""Features to compare sets of pictures by: of a small network that learns on the same real data, offline and
in seconds; and Inception's, where their weights lie on this machine already.

The small network is a convolutional classifier of the classes, or, where there are none, of how far a
picture was turned (RotNet: Gidaris, Singh & Komodakis 2018). Its features are what its last layer sees.
Distances by them compare models on one data set; they do not compare with published figures, which are
Inception's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 64
"""Pixels of the longer side that the network sees; larger pictures are made smaller by averaging."""
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The file that torch-fidelity, which torchmetrics asks for Inception, keeps in torch's folder of
checkpoints."""
Extractor = Callable[[Tensor], Tensor]
"""(n, C, H, W) in [0, 1] -> (n, D)."""


class FeatureNetwork(nn.Module):
    """Three levels of convolutions, then the mean over positions: features of length 4 `width`.

    Args:
        channels: of pictures.
        classes: of the task that it learns.
        side: pixels of the shorter side; from 16 on the first convolution halves it.
        width: channels of the first level.
    """

    def __init__(self, channels: int, classes: int, side: int, width: int = 32) -> None:
        super().__init__()
        stride = 2 if side >= 16 else 1
        self.stem = nn.Conv2d(channels, width, 3 + stride - 1, stride, padding=1)
        widths = (width, width, 2 * width, 4 * width)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))
            for a, b in pairwise(widths)
        )
        self.norm = nn.GroupNorm(4, widths[-1])
        self.head = nn.Linear(4 * widths[-1], classes)

    def maps(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) standardised -> (B, D, H', W')."""
        x = self.stem(x)
        for k, level in enumerate(self.levels):
            if k and min(x.shape[-2:]) > 3:
                x = F.avg_pool2d(x, 2)
            x = level(x)
        return F.silu(self.norm(x))

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) standardised -> (B, D)."""
        return self.maps(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, classes), from the means of the four quarters: where things are matters."""
        return self.head(F.adaptive_avg_pool2d(self.maps(x), 2).flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Learnt:
    """A network that has learnt, with the scale of what it learnt on.

    Args:
        network: in evaluation mode.
        mean, std: (C, 1, 1) of its training pictures.
        task: "classes" or "rotations".
    """

    network: FeatureNetwork
    mean: Tensor
    std: Tensor
    task: str

    @torch.no_grad()
    def _run(self, pixels: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        parts = (function(prepared(part, self.mean, self.std)) for part in pixels.split(256))
        return torch.cat(list(parts))

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1] -> features (n, D)."""
        return self._run(pixels, self.network.features)

    def predict(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1] -> classes (n,)."""
        return self._run(pixels, self.network).argmax(1)


def prepared(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardised, and not larger than the network looks at."""
    x = (pixels.float() - mean) / std
    shrink = math.ceil(max(x.shape[-2:]) / LARGEST)
    return F.avg_pool2d(x, shrink) if shrink > 1 else x


def learn(
    pixels: Tensor,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    steps: int = 1200,
    batch: int = 32,
    rate: float = 3e-3,
) -> Learnt:
    """Train a `FeatureNetwork`: the same network for the same data and seed on the same machine.

    Args:
        pixels: (n, C, H, W) in [0, 1].
        labels: (n,) classes; -1 is left out. Without any, or with one class alone, it learns rotations.
        seed: of its weights and of the order of the pictures.
        steps, batch, rate: of Adam, the rate falling to 0 along a cosine.
    """
    chosen = labels >= 0 if labels is not None else None
    told = labels is not None and chosen is not None and len(labels[chosen].unique()) > 1
    if told and labels is not None and chosen is not None:
        pixels, labels = pixels[chosen], labels[chosen]
    generator = torch.Generator().manual_seed(seed)
    mean = pixels.float().mean((0, 2, 3))[:, None, None]
    std = pixels.float().std((0, 2, 3))[:, None, None].clamp(min=1e-3)
    classes = int(labels.max()) + 1 if told and labels is not None else 4
    network = FeatureNetwork(pixels.shape[1], classes, min(pixels.shape[-2:]))
    _begin(network, generator)
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for rows in _order(len(pixels), steps, batch, generator):
        x = prepared(pixels[rows], mean, std)
        if told and labels is not None:
            target = labels[rows]
        else:
            x, target = rotated(x, torch.randint(4, (len(rows),), generator=generator))
        optimiser.zero_grad()
        F.cross_entropy(network(x), target).backward()
        optimiser.step()
        schedule.step()
    network.eval().requires_grad_(False)
    return Learnt(network, mean, std, "classes" if told else "rotations")


def _begin(network: nn.Module, generator: torch.Generator) -> None:
    """Weights drawn from a generator of their own (He et al. 2015), so that no global state decides."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _order(count: int, steps: int, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of each step: every picture once before any comes again."""
    epochs = math.ceil(steps * batch / count)
    rows = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return list(rows[: steps * batch].split(batch))


def rotated(x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """The middle squares of pictures, each turned by 0 ... 3 quarters, and by how many."""
    side = min(x.shape[-2:])
    top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
    square = x[..., top : top + side, left : left + side]
    made = [torch.rot90(one, int(k), (1, 2)) for one, k in zip(square, turns, strict=True)]
    return torch.stack(made), turns


def inception() -> tuple[Extractor | None, str]:
    """(Inception's features (n, 2048), "") where torch-fidelity and its weights are on this machine; else
    (None, why not). Nothing is downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if find_spec("torch_fidelity") is None:
        return None, "Inception features are left out: torch-fidelity is not installed"
    if not weights.is_file():
        return None, f"Inception features are left out: {INCEPTION} is not among torch's checkpoints"
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))

    @torch.no_grad()
    def extract(pixels: Tensor) -> Tensor:
        parts = []
        for part in pixels.split(64):
            colour = part[:, :3] if part.shape[1] >= 3 else part.expand(-1, 3, -1, -1)
            parts.append(network((colour * 255).round().to(torch.uint8)))
        return torch.cat(parts)

    return extract, ""

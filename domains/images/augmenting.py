"""Changes that leave a picture plausible: mirrored, moved a little, with another light.

The network is told what was done (`shared.hiding.Augmentation`), so that samples, drawn with zeros, are not
augmented (Karras et al. 2020, 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.data import like
from ...shared.noise import Keys
from .samples import LUMA


@dataclass(frozen=True)
class PictureAugmentation:
    """A keyed augmentation of pictures in model space.

    Args:
        mean, std: of the channels: [0, 1] = mean + std x model space.
        mirror: chance of exchanging left and right.
        move: chance of a shift with a change of size; what comes in at the border is the mirror image.
        tone: chance of another brightness, contrast and (of colours) saturation; opacity keeps its values.
        shift, scale: largest shift, as a share of each axis; largest change of size.
        light: largest change of the three factors.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: float = 0.0
    move: float = 0.0
    tone: float = 0.0
    shift: float = 0.06
    scale: float = 0.1
    light: float = 0.2

    def __call__(self, keys: Keys, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 2 C, H, W), values and what of them is observed, changed alike; and (B, 3) what was done to
        each: mirrored, moved, toned."""
        chances = torch.tensor([self.mirror, self.move, self.tone], dtype=torch.float64)
        done = keys.uniform((3,), "augment") < chances
        x = torch.where(like(done[:, 0], x), x.flip(-1), x)
        if done[:, 1].any():
            x = torch.where(like(done[:, 1], x), self._moved(keys, x), x)
        if done[:, 2].any():
            channels = len(self.mean)
            toned = torch.cat([self._toned(keys, x[:, :channels]), x[:, channels:]], 1)
            x = torch.where(like(done[:, 2], x), toned, x)
        return x, done.to(x)

    def _moved(self, keys: Keys, x: Tensor) -> Tensor:
        drawn = 2 * keys.uniform((3,), "motion").to(x) - 1
        size = 1 + self.scale * drawn[:, 0]
        # In affine_grid's units an axis is 2 long.
        shift = 2 * self.shift * drawn[:, 1:]
        turn = torch.diag_embed(size[:, None].expand(-1, 2))
        grid = F.affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def _toned(self, keys: Keys, x: Tensor) -> Tensor:
        bright, contrast, saturation = (1 + self.light * (2 * keys.uniform((3,), "tone").to(x) - 1)).unbind(1)
        std, mean = (torch.tensor(c).to(x)[:, None, None] for c in (self.std, self.mean))
        kept = 1 if len(self.mean) == 1 else 3
        light = (x * std + mean)[:, :kept] * like(bright, x)
        middle = light.mean((1, 2, 3), keepdim=True)
        light = middle + (light - middle) * like(contrast, x)
        if kept == 3:
            grey = torch.einsum("bchw,c->bhw", light, torch.from_numpy(LUMA).to(x))[:, None]
            light = grey + (light - grey) * like(saturation, x)
        return torch.cat([(light.clamp(0, 1) - mean[:kept]) / std[:kept], x[:, kept:]], 1)

"""Changes that leave a scan plausible: mirrored, slightly moved, with another contrast and a bias field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.data import like
from ...shared.noise import Keys


@dataclass(frozen=True)
class ScanAugmentation:
    """A keyed augmentation of volumes in model space (`shared.hiding.Augmentation`).

    Args:
        background: the value of air in model space, channel by channel.
        bright: the value of bright tissue, channel by channel; further channels keep their tone.
        mirror: chance of exchanging left and right (the first axis, in RAS).
        move: chance of a small rigid motion with scaling.
        tone: chance of another contrast and a bias field.
        degrees, shift, scale: largest rotation; shift, as a share of each axis; change of size.
        gamma, bias: largest change of the exponent; largest change of brightness across the volume.
    """

    background: tuple[float, ...]
    bright: tuple[float, ...]
    mirror: float = 0.5
    move: float = 0.4
    tone: float = 0.4
    degrees: float = 3.0
    shift: float = 0.015
    scale: float = 0.03
    gamma: float = 0.15
    bias: float = 0.15

    def __call__(self, keys: Keys, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 2 C + K, D, H, W), values, what of them is observed and label maps (1 inside, -1 outside),
        changed alike; and (B, 3) what was done to each: mirrored, moved, toned."""
        chances = torch.tensor([self.mirror, self.move, self.tone], dtype=torch.float64)
        done = keys.uniform((3,), "augment") < chances
        x = torch.where(like(done[:, 0], x), x.flip(2), x)
        if done[:, 1].any():
            x = torch.where(like(done[:, 1], x), self._moved(keys, x), x)
        images = len(self.bright)
        toned = torch.cat([self._toned(keys, x[:, :images]), x[:, images:]], 1)
        return torch.where(like(done[:, 2], x), toned, x), done.to(x)

    def _moved(self, keys: Keys, x: Tensor) -> Tensor:
        """Rotated about the three axes, shifted and scaled; what comes in from outside is background."""
        drawn = 2 * keys.uniform((9,), "motion").to(x) - 1
        angles = drawn[:, :3] * self.degrees * torch.pi / 180
        size = torch.tensor(x.shape[2:]).to(x).flip(0)  # affine_grid counts x, y, z from the last axis
        turn = _rotation(angles) * (1 + self.scale * drawn[:, 3:6])[:, None, :]
        # In affine_grid's units an axis is 2 long whatever its size: turn in voxels, not in those.
        turn = turn * size[None, None, :] / size[None, :, None]
        shift = 2 * self.shift * drawn[:, 6:, None]
        grid = F.affine_grid(torch.cat([turn, shift], 2), list(x.shape), align_corners=False)
        # What comes in from outside: background, and observed; none of the labels.
        count = len(self.background)
        beyond = [*self.background, *[1.0] * count, *[-1.0] * (x.shape[1] - 2 * count)]
        outside = torch.tensor(beyond).to(x).reshape(1, -1, 1, 1, 1)
        return F.grid_sample(x - outside, grid, align_corners=False) + outside

    def _toned(self, keys: Keys, x: Tensor) -> Tensor:
        """Raised to a power, and multiplied by a field that is a polynomial of degree 2."""
        drawn = 2 * keys.uniform((10,), "tone").to(x) - 1
        dark, bright = (
            torch.tensor(v[: x.shape[1]]).to(x).reshape(1, -1, 1, 1, 1)
            for v in (self.background, self.bright)
        )
        share = ((x - dark) / (bright - dark)).clamp(min=0)
        power = 1 + self.gamma * drawn[:, 0]
        axes = [torch.linspace(-1, 1, n).to(x) for n in x.shape[2:]]
        a, b, c = torch.meshgrid(*axes, indexing="ij")
        terms = torch.stack([a, b, c, a * b, b * c, a * c, a * a, b * b, c * c])
        field = self.bias * torch.einsum("bk,kdhw->bdhw", drawn[:, 1:], terms)[:, None] / 2
        toned = share ** like(power, x) * (1 + field).clamp(min=0.2)
        return torch.where(share > 0, toned * (bright - dark) + dark, x)


def _rotation(angles: Tensor) -> Tensor:
    """(B, 3) angles about three axes, radians -> (B, 3, 3)."""
    zero, one = torch.zeros_like(angles[:, 0]), torch.ones_like(angles[:, 0])
    (sa, sb, sc), (ca, cb, cc) = angles.sin().unbind(1), angles.cos().unbind(1)
    first = torch.stack([one, zero, zero, zero, ca, -sa, zero, sa, ca], 1).reshape(-1, 3, 3)
    second = torch.stack([cb, zero, sb, zero, one, zero, -sb, zero, cb], 1).reshape(-1, 3, 3)
    third = torch.stack([cc, -sc, zero, sc, cc, zero, zero, zero, one], 1).reshape(-1, 3, 3)
    return third @ second @ first

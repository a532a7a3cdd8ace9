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
    """A keyed augmentation of volumes in model space (`shared.grids.Augmentation`).

    Args:
        background, bright: the values of air and of bright tissue in model space.
        mirror: chance of exchanging left and right (the first axis, in RAS).
        move: chance of a small rigid motion with scaling.
        tone: chance of another contrast and a bias field.
        degrees, shift, scale: largest rotation; shift, as a share of each axis; change of size.
        gamma, bias: largest change of the exponent; largest change of brightness across the volume.
    """

    background: float
    bright: float
    mirror: float = 0.5
    move: float = 0.4
    tone: float = 0.4
    degrees: float = 3.0
    shift: float = 0.015
    scale: float = 0.03
    gamma: float = 0.15
    bias: float = 0.15

    def __call__(self, keys: Keys, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 2 C, D, H, W), values and what of them is observed, changed alike; and (B, 3) what was done
        to each: mirrored, moved, toned."""
        chances = torch.tensor([self.mirror, self.move, self.tone], dtype=torch.float64)
        done = keys.uniform((3,), "augment") < chances
        x = torch.where(like(done[:, 0], x), x.flip(2), x)
        if moved := done[:, 1].any():
            x = torch.where(like(done[:, 1], x), self._moved(keys, x), x) if moved else x
        values, seen = x.chunk(2, 1)
        values = torch.where(like(done[:, 2], values), self._toned(keys, values), values)
        return torch.cat([values, seen], 1), done.to(x)

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
        values, seen = (x[:, : x.shape[1] // 2] - self.background), x[:, x.shape[1] // 2 :]
        both = F.grid_sample(torch.cat([values, seen - 1], 1), grid, align_corners=False)
        values, seen = both.chunk(2, 1)
        return torch.cat([values + self.background, seen + 1], 1)

    def _toned(self, keys: Keys, x: Tensor) -> Tensor:
        """Raised to a power, and multiplied by a field that is a polynomial of degree 2."""
        drawn = 2 * keys.uniform((10,), "tone").to(x) - 1
        share = ((x - self.background) / (self.bright - self.background)).clamp(min=0)
        power = 1 + self.gamma * drawn[:, 0]
        axes = [torch.linspace(-1, 1, n).to(x) for n in x.shape[2:]]
        a, b, c = torch.meshgrid(*axes, indexing="ij")
        terms = torch.stack([a, b, c, a * b, b * c, a * c, a * a, b * b, c * c])
        field = self.bias * torch.einsum("bk,kdhw->bdhw", drawn[:, 1:], terms)[:, None] / 2
        toned = share ** like(power, x) * (1 + field).clamp(min=0.2)
        return torch.where(share > 0, toned * (self.bright - self.background) + self.background, x)


def _rotation(angles: Tensor) -> Tensor:
    """(B, 3) angles about three axes, radians -> (B, 3, 3)."""
    zero, one = torch.zeros_like(angles[:, 0]), torch.ones_like(angles[:, 0])
    (sa, sb, sc), (ca, cb, cc) = angles.sin().unbind(1), angles.cos().unbind(1)
    first = torch.stack([one, zero, zero, zero, ca, -sa, zero, sa, ca], 1).reshape(-1, 3, 3)
    second = torch.stack([cb, zero, sb, zero, one, zero, -sb, zero, cb], 1).reshape(-1, 3, 3)
    third = torch.stack([cc, -sc, zero, sc, cc, zero, zero, zero, one], 1).reshape(-1, 3, 3)
    return third @ second @ first

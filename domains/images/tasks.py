"""What is known, and where sampling begins, for each job on pictures. Pure functions.

=============  ==========================================  ===========================================
job            what is known                               where sampling begins
=============  ==========================================  ===========================================
inpaint        all but the hidden part                     noise
outpaint       the picture, amid a border (`widened`)      noise
enlarge        every k-th pixel (`holes.enlarged`)         noise
vary, SDEdit   nothing                                     a picture or drawing, noised
interpolate    nothing                                     a mixture of two pictures' noise (`to_noise`,
                                                           `slerp`, `GivenNoise`)
=============  ==========================================  ===========================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.data import NOTHING, Condition, like
from ...shared.denoisers import Denoiser
from ...shared.errors import InputError
from ...shared.noise import Keys, White
from ...shared.samplers import Heun, NoiseSource, Step
from ...shared.schedules import knee_grid
from .pictures import Picture

# --- outpainting --------------------------------------------------------------------------------


def borders(border: int | Sequence[int]) -> tuple[int, int, int, int]:
    """(top, right, bottom, left) from one number, or two (top and bottom, right and left), or four.

    Raises:
        InputError: `border`: another number of them, a negative one, or none above 0.
    """
    given = (border,) if isinstance(border, int) else tuple(border)
    if len(given) not in (1, 2, 4) or min(given) < 0 or max(given) == 0:
        remedy = "give 1, 2 or 4 widths in pixels: top, right, bottom, left"
        raise InputError("border", f"{given} is not a border", "", remedy)
    top, right, bottom, left = (given * 4)[:4]
    return top, right, bottom, left


def widened(picture: Picture, border: int | Sequence[int]) -> tuple[Picture, np.ndarray]:
    """A larger canvas with the picture in it, and (H, W) bool where it is to be filled. Give both to
    `ImageSpace.encode`.

    Args:
        border: see `borders`.
    """
    top, right, bottom, left = borders(border)
    sides = ((top, bottom), (left, right))
    pixels = np.pad(picture.pixels, (*sides, (0, 0)))
    hidden = np.pad(np.zeros(picture.size, bool), sides, constant_values=True)
    return replace(picture, pixels=pixels), hidden


# --- interpolation ------------------------------------------------------------------------------


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Between two batches along the great circle (Shoemake 1985), whose every point is as likely under white
    noise as the ends; along the straight line where they point the same way.

    Args:
        a, b: (B, ...).
        weight: 0 gives a, 1 gives b; one number, or (B,).
    """
    w = like(torch.as_tensor(weight, dtype=a.dtype, device=a.device).expand(len(a)), a)
    flat_a, flat_b = F.normalize(a.flatten(1).double(), dim=1), F.normalize(b.flatten(1).double(), dim=1)
    angle = like((flat_a * flat_b).sum(1).clamp(-1, 1).acos().to(a), a)
    sine = angle.sin()
    straight = sine.abs() < 1e-4
    safe = torch.where(straight, torch.ones_like(sine), sine)
    round_ = (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / safe
    return torch.where(straight, (1 - w) * a + w * b, round_)


@torch.no_grad()
def to_noise(denoiser: Denoiser, x_0: Tensor, condition: Condition = NOTHING, *, steps: int = 40) -> Tensor:
    """The noise from which a deterministic sampler would come back to a picture: the probability-flow ODE
    followed upwards with Heun's steps (DDIM inversion is its first-order form).

    Args:
        x_0: (B, C, *S) in model space.
        steps: two evaluations each.

    Returns:
        (B, C, *S), about white and of unit variance. Give it to a sampler as `GivenNoise`.
    """
    times = knee_grid(denoiser.schedule, steps).flip(0)
    alpha, sigma = ([float(c) for c in column] for column in denoiser.schedule(times))
    solver, nobody = Heun(), Keys.range(0, len(x_0))
    x: Tensor = alpha[0] * x_0
    for k in range(len(times) - 1):
        step = Step(k, times[k], times[k + 1], alpha[k], sigma[k], alpha[k + 1], sigma[k + 1])
        x = solver.step(denoiser, x, step, condition, nobody)
    return x / math.hypot(alpha[-1], sigma[-1])


@dataclass(frozen=True)
class GivenNoise:
    """A noise source for samplers that begins with noise that is given; later noise comes from `others`.

    Args:
        start: (B, C, *S).
        items: (B,) whose noise it is, in rising order.
    """

    start: Tensor
    items: Tensor
    others: NoiseSource = field(default_factory=White)

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor:
        if stream != "start":
            return self.others(keys, x, stream)
        return self.start[torch.searchsorted(self.items, keys.items).to(self.start.device)].to(x)

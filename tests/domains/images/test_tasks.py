"""Jobs on pictures, against closed forms where there are any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ebbtide.domains.images.pictures import Picture
from ebbtide.domains.images.space import ImageSpace
from ebbtide.domains.images.tasks import (
    GivenNoise,
    borders,
    slerp,
    to_noise,
    widened,
)
from ebbtide.shared.errors import InputError
from ebbtide.shared.exact import GaussianDenoiser
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import Heun
from ebbtide.shared.schedules import Cosine, LinearVP, Schedule, start_time


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(shape: tuple[int, int, int], schedule: Schedule) -> GaussianDenoiser:
    """Pixels whose covariance falls with their distance, variance 1, mean not 0."""
    c, h, w = shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack([y.flatten(), x.flatten()], 1).double().repeat(c, 1)
    kind = torch.arange(c).repeat_interleave(h * w)
    covariance = torch.exp(-torch.cdist(at, at) / 2) * torch.where(kind[:, None] == kind, 1.0, 0.5)
    return GaussianDenoiser(torch.linspace(-0.5, 0.5, c * h * w, dtype=torch.float64), covariance, schedule)


def test_borders_are_told_by_one_two_or_four_numbers() -> None:
    assert borders(3) == (3, 3, 3, 3) and borders((1, 2)) == (1, 2, 1, 2)
    assert borders([1, 0, 0, 4]) == (1, 0, 0, 4)
    for wrong in (0, -1, (1, 2, 3), (0, 0)):
        with pytest.raises(InputError, match="border"):
            borders(wrong)


def test_a_canvas_holds_the_picture_and_the_space_takes_it() -> None:
    picture = Picture(np.random.default_rng(0).integers(1, 256, (10, 14, 3)).astype(np.uint8), "RGB")
    wide, hidden = widened(picture, (0, 6, 0, 0))
    space = ImageSpace((3, 16, 16), torch.full((3,), 0.5), torch.ones(3))
    placed = space.encode(wide, hidden)
    back = space.decode(torch.ones(3, 16, 16), placed.frame)
    assert back.shape == (10, 20, 3) and np.array_equal(back[:, :14], picture.pixels)
    assert (back[:, 14:] == 255).all()


@pytest.mark.parametrize("schedule", [Cosine(), LinearVP()])
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_strength_is_the_share_of_noise_under_every_schedule(schedule: Schedule, strength: float) -> None:
    alpha, sigma = schedule(torch.tensor(start_time(strength, schedule), dtype=torch.float64))
    assert float(sigma / (alpha + sigma)) == pytest.approx(strength, abs=1e-6)
    assert start_time(1, schedule) == 1
    for wrong in (0, -0.1, 1.1):
        with pytest.raises(InputError, match="strength"):
            start_time(wrong, schedule)


def test_variations_stay_nearer_the_less_they_are_noised() -> None:
    denoiser, schedule = gaussian((1, 3, 3), Cosine()), Cosine()
    start = draws(1, 1, 3, 3).expand(100, -1, -1, -1)
    away = [
        Heun(15)(
            denoiser, (1, 3, 3), Keys.range(0, 100), like=start, start=start, t_start=start_time(s, schedule)
        )
        .sub(start)
        .square()
        .mean()
        for s in (0.1, 0.3, 0.6)
    ]
    assert 0.001 < away[0] < away[1] / 2 < away[2] / 4


def test_slerp_keeps_the_length_and_the_proportions_of_the_angle() -> None:
    a, b = draws(3, 2, 5, 5), draws(3, 2, 5, 5, seed=1)
    assert torch.allclose(slerp(a, b, 0.0), a) and torch.allclose(slerp(a, b, 1.0), b)
    unit_a, unit_b = (v / v.flatten(1).norm(dim=1)[:, None, None, None] for v in (a, b))
    middle = slerp(unit_a, unit_b, 0.3)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    whole, part = ((unit_a * v).flatten(1).sum(1).acos() for v in (unit_b, middle))
    torch.testing.assert_close(part, 0.3 * whole)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert torch.allclose(slerp(a, b, torch.tensor([0.0, 1.0, 0.0]))[1], b[1])


def test_noise_is_found_by_the_flows_closed_form_and_leads_back() -> None:
    schedule = Cosine()
    denoiser = gaussian((1, 3, 3), schedule)
    x_0 = draws(4, 1, 3, 3)
    noise = to_noise(denoiser, x_0, steps=60)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = schedule(ends)
    expected = denoiser.flow(alpha[0] * x_0, ends[0], ends[1]) / torch.hypot(alpha[1], sigma[1])
    torch.testing.assert_close(noise, expected, rtol=0, atol=5e-3)
    back = Heun(60, noise=GivenNoise(noise, torch.arange(4)))(denoiser, (1, 3, 3), Keys.range(0, 4), like=x_0)
    assert (back - x_0).abs().max() < 5e-3


def test_given_noise_is_for_the_start_alone() -> None:
    source, x, keys = GivenNoise(torch.ones(2, 1, 3), torch.arange(2)), torch.zeros(2, 1, 3), Keys.range(0, 2)
    assert torch.equal(source(keys, x, "start"), torch.ones(2, 1, 3))
    assert not torch.equal(source(keys, x, "step 1"), source(keys, x, "step 2"))

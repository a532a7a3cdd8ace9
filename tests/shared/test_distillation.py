"""Few-step students of exact teachers: the law of their samples is the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.data import Condition
from ebbtide.shared.denoisers import NetworkDenoiser
from ebbtide.shared.distillation import FewStepGrid, distil, walk
from ebbtide.shared.embeddings import NoiseEmbedding
from ebbtide.shared.exact import GaussianDenoiser
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import steps_of
from ebbtide.shared.schedules import EDM, Cosine, RectifiedFlow, Schedule


class Small(nn.Module):
    """Two hidden layers, told the noise level."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.level, self.first, self.second = NoiseEmbedding(48), nn.Linear(size, 48), nn.Linear(48, 48)
        self.last = nn.Linear(48, size)

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        h = torch.nn.functional.silu(self.first(x) + self.level(noise_level))
        out: Tensor = self.last(torch.nn.functional.silu(self.second(h)))
        return out


def gaussian(schedule: Schedule) -> GaussianDenoiser:
    mean = torch.tensor([0.5, -0.2], dtype=torch.float64)
    return GaussianDenoiser(mean, torch.tensor([[0.8, 0.3], [0.3, 0.4]], dtype=torch.float64), schedule)


@dataclass(frozen=True)
class Two:
    """Two Gaussians on a line, in closed form: 40 % at -1 and 60 % at 0.8, each of standard deviation 0.3."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (float(c) for c in self.schedule(t))
        variance, means = alpha**2 * 0.09 + sigma**2, torch.tensor([-1.0, 0.8])
        away = x_t - alpha * means  # (B, 2)
        weights = ((0.4 / 0.6) ** torch.tensor([1.0, 0.0])).log() - away**2 / (2 * variance)
        return (weights.softmax(1) * (means + alpha * 0.09 / variance * away)).sum(1, keepdim=True)

    def sample(self, keys: Keys) -> Tensor:
        means = torch.where(keys.uniform((1,)) < 0.4, -1.0, 0.8)
        return means.float() + 0.3 * keys.normal((1,))


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_the_teachers_walk_follows_the_exact_flow(schedule: Schedule) -> None:
    teacher = gaussian(schedule)
    x = torch.randn(50, 2, dtype=torch.float64) * schedule(torch.tensor(1.0, dtype=torch.float64))[1]
    first, second = steps_of(schedule, FewStepGrid()(schedule, 2))
    exact = teacher.flow(x, first.t, second.t)
    assert (walk(teacher, x, first, Condition(), 16) - exact).abs().max() < 0.01 * exact.std()


def test_the_grid_divides_the_way_evenly() -> None:
    schedule = RectifiedFlow()
    assert FewStepGrid()(schedule, 1).tolist() == [1.0]
    # On the straight path sigma / (alpha + sigma) is sigma: quarters of it, but for where the path ends.
    sigma = schedule(FewStepGrid()(schedule, 4))[1]
    assert torch.allclose(sigma, torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64), atol=2e-3)


@pytest.mark.parametrize(("schedule", "steps"), [(Cosine(), 1), (RectifiedFlow(), 2)])
def test_students_draw_the_right_law(schedule: Schedule, steps: int) -> None:
    torch.manual_seed(0)
    teacher = Two(schedule)
    student = NetworkDenoiser(Small(1), schedule)

    def batches(keys: Keys) -> tuple[Tensor, Condition]:
        return teacher.sample(keys), Condition()

    sampler = distil(
        teacher,
        student,
        batches,
        steps=steps,
        updates=250 * steps,
        batch_size=256,
        learning_rate=5e-3,
    )
    keys = Keys.range(1, 10000)
    drawn, plain = (sampler(denoiser, (1,), keys) for denoiser in (student, teacher))
    truth = teacher.sample(Keys.range(2, 10000))
    assert drawn.mean().item() == pytest.approx(0.4 * -1.0 + 0.6 * 0.8, abs=0.05)
    assert drawn.std().item() == pytest.approx((0.09 + 1.8**2 * 0.24) ** 0.5, rel=0.05)
    assert (drawn < 0).double().mean().item() == pytest.approx(0.4, abs=0.03)
    # Wasserstein distance; the teacher itself in as few steps of DDIM is far from the law.
    distances = [(x.sort(0).values - truth.sort(0).values).abs().mean() for x in (drawn, plain)]
    assert distances[0] < 0.12 and distances[1] > 3 * distances[0]


def test_refuses_another_schedule() -> None:
    student = NetworkDenoiser(Small(1), RectifiedFlow())
    with pytest.raises(ValueError, match="the student is on"):
        distil(Two(Cosine()), student, lambda keys: (torch.zeros(len(keys), 1), Condition()))

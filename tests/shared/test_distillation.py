"""Few-step students of exact teachers: the law of their samples is the teacher's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.denoisers import NetworkDenoiser
from ebbtide.shared.distillation import (
    FewStepGrid,
    JumpingCentre,
    Paths,
    distil,
    jumps_of,
    walk,
    walked,
)
from ebbtide.shared.embeddings import NoiseEmbedding
from ebbtide.shared.exact import GaussianDenoiser
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import DDIM
from ebbtide.shared.schedules import EDM, Cosine, RectifiedFlow, Schedule
from ebbtide.shared.settings import TrainingSettings


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
    teacher, jumps = gaussian(schedule), jumps_of(schedule, 2)
    x = torch.randn(50, 2, dtype=torch.float64) * schedule(torch.tensor(1.0, dtype=torch.float64))[1]
    ends = walk(teacher, x, jumps, calls=40)
    exact = teacher.flow(x, jumps[0].t, jumps[1].t)
    assert ends.shape == (2, 50, 2)
    assert (ends[0] - exact).abs().max() < 0.02 * exact.std()
    clean = teacher.flow(x, jumps[0].t, torch.zeros((), dtype=torch.float64))
    assert (ends[1] - clean).abs().max() < 0.03 * clean.std()


def test_the_estimates_of_a_path_lead_along_it() -> None:
    """DDIM's step by the estimate that is taught ends where the teacher's path does."""
    teacher, schedule = gaussian(Cosine()), Cosine()
    paths = walked(teacher, (2,), lambda keys: Condition(), 6, steps=3, calls=12, batch=4)
    batch = paths.batch(torch.arange(18), Keys.range(0, 18))
    assert batch.noise is not None and batch.t is not None
    alpha, sigma = (c[:, None] for c in schedule(batch.t))
    x_t = alpha * batch.x_0 + sigma * batch.noise
    for k, jump in enumerate(paths.jumps):
        mine = torch.arange(18) % 3 == k
        x_s = jump.alpha_s * batch.x_0[mine] + jump.sigma_s * batch.noise[mine]
        assert torch.allclose(x_s.float(), paths.ends[:, k].float(), atol=1e-3)
        begins = paths.ends[:, k - 1] if k else paths.begins
        assert torch.allclose(x_t[mine].float(), begins.float(), atol=1e-3)


def test_paths_do_not_depend_on_the_batch_and_go_on(tmp_path: Path) -> None:
    teacher = gaussian(Cosine())

    def found(batch: int, count: int = 600, folder: Path | None = None) -> Paths:
        return walked(teacher, (2,), lambda keys: Condition(), count, calls=8, batch=batch, folder=folder)

    one, other = found(7), found(32, folder=tmp_path)
    assert torch.equal(one.ends, other.ends) and torch.equal(one.begins, other.begins)
    files = sorted(tmp_path.glob("*/weights.safetensors"))
    assert len(files) == 2
    shutil.rmtree(files[1].parent)
    written = files[0].stat().st_mtime_ns
    assert torch.equal(found(32, folder=tmp_path).ends, one.ends)
    assert files[0].stat().st_mtime_ns == written and files[1].is_file()
    assert torch.equal(found(7, 100).ends, one.ends[:100])


def test_an_untaught_student_draws_from_the_centres_gaussian() -> None:
    torch.manual_seed(0)
    loadings = 3 * torch.linalg.qr(torch.randn(20, 2)).Q
    centre = GaussianCentre(torch.randn(1, 4, 5), loadings, 0.1 + 0.4 * torch.rand(20))
    jumping = JumpingCentre(centre, EDM(), 2, calls=16)
    x = 80 * torch.randn(4000, 1, 4, 5)
    for jump in jumping.jumps:
        level = torch.ones(len(x), 1, 1, 1)
        aim, _ = jumping.denoise(x, jump.alpha_t * level, jump.sigma_t * level, None)
        x = jump.alpha_s * aim + jump.sigma_s / jump.sigma_t * (x - jump.alpha_t * aim)
    truth = loadings @ loadings.T + centre.variance.diag()
    assert (x.flatten(1).T.cov() - truth).abs().max() < 0.1 * truth.max()
    assert (x.flatten(1).mean(0) - centre.mean).abs().max() < 0.15
    with pytest.raises(ValueError, match="does not fill"):
        jumping.posterior(Encoded(torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 4, 5, dtype=torch.bool)))


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
    paths = walked(teacher, (1,), lambda keys: Condition(), 8000, steps=steps, calls=24, batch=1000)
    settings = TrainingSettings(
        steps=250 * steps, batch_size=256, learning_rate=5e-3, warmup=10, validate_every=50
    )
    trained = distil(student, paths, settings, device="cpu")
    assert trained.history[-1]["held_out"] < trained.history[0]["held_out"]
    sampler, keys = DDIM(steps, FewStepGrid()), Keys.range(1, 10000)
    drawn, plain = (sampler(denoiser, (1,), keys) for denoiser in (student, teacher))
    truth = teacher.sample(Keys.range(2, 10000))
    assert drawn.mean().item() == pytest.approx(0.4 * -1.0 + 0.6 * 0.8, abs=0.05)
    assert drawn.std().item() == pytest.approx((0.09 + 1.8**2 * 0.24) ** 0.5, rel=0.05)
    assert (drawn < 0).double().mean().item() == pytest.approx(0.4, abs=0.03)
    # Wasserstein distance; the teacher itself in as few steps of DDIM is far from the law.
    distances = [(x.sort(0).values - truth.sort(0).values).abs().mean() for x in (drawn, plain)]
    assert distances[0] < 0.12 and distances[1] > 3 * distances[0]


def test_refuses_another_schedule() -> None:
    paths = walked(Two(Cosine()), (1,), lambda keys: Condition(), 40)
    with pytest.raises(ValueError, match="the student is on"):
        distil(NetworkDenoiser(Small(1), RectifiedFlow()), paths, TrainingSettings(steps=1))

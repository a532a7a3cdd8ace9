"""Refinements of training against what they should come to in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.denoisers import MinSNR, NetworkDenoiser, Parametrisation
from ebbtide.shared.ema import PowerFunction
from ebbtide.shared.noise import Keys
from ebbtide.shared.objective import (
    Augment,
    LossByLevel,
    SelfConditioned,
    Snapshot,
    Unaugmented,
    mixing,
    reconstruct,
)
from ebbtide.shared.samplers import DDIM
from ebbtide.shared.schedules import Cosine, RectifiedFlow


class Constant(nn.Module):
    """A network that says the same whatever it sees."""

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        return torch.full_like(x, 0.3)


@pytest.mark.parametrize(
    ("target", "weight"),
    [
        ("epsilon", lambda snr, gamma: snr.clamp(max=gamma) / snr),
        ("x0", lambda snr, gamma: snr.clamp(max=gamma)),
        ("v", lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1)),
    ],
)
def test_min_snr_has_the_published_weight_for_each_target(target: str, weight: object) -> None:
    """Hang et al. 2023, as factors of the plain error of the target."""
    schedule = Cosine()
    t = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    denoiser = NetworkDenoiser(Constant(), schedule, Parametrisation(target))  # type: ignore[arg-type]
    x_0, noise = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    given = (x_0, noise, t, Condition(), torch.ones(4, 3, dtype=torch.bool))
    ratio = denoiser.loss(*given, weighting=MinSNR(5.0)) / denoiser.loss(*given)
    assert torch.allclose(ratio, weight(schedule.log_snr(t).exp(), 5.0).float(), rtol=1e-5)  # type: ignore[operator]


class Shown(nn.Module):
    """A network that keeps what context it is shown, and answers with half of its input."""

    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.gain = [], nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
        assert condition.channels is not None
        self.seen.append(condition.channels)
        return self.gain * x


def test_self_conditioning_shows_the_estimate_of_the_step_before() -> None:
    network = Shown()
    denoiser = SelfConditioned(network, Cosine())
    estimates = []
    given = Condition(channels=torch.ones(2, 1, 4))
    DDIM(steps=3)(denoiser, (1, 4), Keys.range(0, 2), given)
    assert [c.shape[1] for c in network.seen] == [2, 2, 2]
    assert all(torch.equal(c[:, :1], given.channels) for c in network.seen)
    assert not network.seen[0][:, 1:].any() and network.seen[1][:, 1:].any()
    network.seen.clear()
    x = torch.randn(2, 1, 4)
    for t in (0.9, 0.4, 0.6):
        estimates.append(denoiser(x, torch.tensor(t), given))
    # Time rose from the last run: zeros. Then the last estimate; then it rose again.
    assert not network.seen[0][:, 1:].any()
    assert torch.equal(network.seen[1][:, 1:], estimates[0])
    assert not network.seen[2][:, 1:].any()
    denoiser.forget()
    denoiser(x, torch.tensor(0.1), given)
    assert not network.seen[3][:, 1:].any()


def test_self_conditioned_loss_shows_half_of_the_elements_their_first_guess() -> None:
    network = Shown()
    denoiser = SelfConditioned(network, RectifiedFlow(), Parametrisation("x0"))
    n = 2000
    x_0, noise = torch.randn(n, 1, 3), torch.randn(n, 1, 3)
    t, where = torch.full((n,), 0.5), torch.ones(n, 1, 3, dtype=torch.bool)
    loss = denoiser.loss(x_0, noise, t, Condition(), where)
    blind, shown = network.seen
    assert not blind.any() and not shown.requires_grad
    told = shown.flatten(1).any(1)
    assert told.double().mean().item() == pytest.approx(0.5, abs=4.5 * 0.5 / n**0.5)
    # The coin says nothing about the noise that it is read from.
    assert (noise[told].mean(0) / (1 / told.sum()) ** 0.5).abs().max() < 4.5
    network.seen.clear()
    few = slice(5, 9)
    again = denoiser.loss(x_0[few], noise[few], t[few], Condition(), where[few])
    assert torch.allclose(again, loss[few])
    loss.mean().backward()
    assert network.gain.grad is not None and network.gain.grad != 0


def averaged(path: Tensor, std: float) -> list[Tensor]:
    """The running average of `path` (steps, n) under a power-function profile."""
    average, profile, out = path[0].clone(), PowerFunction(std), []
    for k, theta in enumerate(path, 1):
        average = profile.beta(k) * average + (1 - profile.beta(k)) * theta
        out.append(average)
    return out


def test_any_average_is_found_after_training() -> None:
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(0, 3, 2000, dtype=torch.float64)[:, None].sqrt()
    path = drift + torch.randn(2000, 5, generator=generator, dtype=torch.float64).cumsum(0) / 30
    runs = {std: averaged(path, std) for std in (0.05, 0.10)}
    snapshots = [Snapshot(k, std, {"w": runs[std][k - 1]}) for std in runs for k in range(200, 2001, 200)]
    moved = (path[-1] - path[0]).abs().mean()
    # One that was kept comes back as it was.
    kept = reconstruct(snapshots, 1400, 0.05)["w"]
    assert torch.allclose(kept, runs[0.05][1399], atol=1e-6)
    for std in (0.04, 0.07, 0.15):
        error = (reconstruct(snapshots, 2000, std)["w"] - averaged(path, std)[-1]).abs().max() / moved
        assert error < 0.03, (std, error)
        assert mixing(snapshots, 2000, std).sum().item() == pytest.approx(1, abs=0.02)
    # The nearest kept average is a good deal further away.
    assert (runs[0.05][-1] - averaged(path, 0.07)[-1]).abs().max() / moved > 0.03
    with pytest.raises(ValueError, match="not covered"):
        reconstruct(snapshots, 2001, 0.05)


def test_losses_are_told_by_noise_level() -> None:
    losses, schedule = LossByLevel((-1.0, 0.0, 1.0)), Cosine()
    ratio = torch.tensor([0.1, 0.5, 0.6, 2.0, 50.0], dtype=torch.float64)
    losses.add(schedule, schedule.time(ratio), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    losses.add(schedule, schedule.time(ratio[:1]), torch.tensor([3.0]))
    assert losses.means() == {"below to -1": 2.0, "-1 to 0": 3.0, "0 to 1": 8.0, "1 to above": 16.0}


@pytest.mark.parametrize("size", [(7,), (6, 5), (4, 5, 3)])
def test_augmentation_moves_everything_alike_and_tells_what_it_did(size: tuple[int, ...]) -> None:
    ndim, keys = len(size), Keys.range(0, 60)
    augment = Augment(flips=(0,), shift=0.34, chance=0.7)
    x = torch.randn(60, 2, *size)
    observed = torch.rand(60, 2, *size) < 0.5
    condition = Condition(channels=x[:, :1], known=Encoded(x * observed, observed))
    moved, where, told = augment(keys, x, observed, condition)
    assert torch.equal(told.channels[:, :1], moved[:, :1])
    assert torch.equal(told.known.values, moved * told.known.observed)
    assert torch.equal(told.known.observed, where)
    vector = told.channels[:, 1:].flatten(2)
    assert vector.shape[1] == augment.width(ndim) == 1 + ndim
    assert torch.equal(vector, vector[..., :1].expand_as(vector))
    # The network can undo it from what it is told: mirrored or not, and by how much shifted.
    untouched = ~vector.flatten(1).any(1)
    assert torch.equal(moved[untouched], x[untouched]) and 0 < untouched.sum() < 60
    for k in range(60):
        expected = x[k].flip(1) if vector[k, 0, 0] else x[k]
        for axis, n in enumerate(size):
            by = round(vector[k, 1 + axis, 0].item() * n)
            assert abs(by) <= 0.34 * n
            expected = expected.index_select(axis + 1, (torch.arange(n) - by).clamp(0, n - 1))
        assert torch.equal(moved[k], expected)
    few = augment(keys[3:5], x[3:5], observed[3:5], condition[3:5])
    assert torch.equal(few[0], moved[3:5]) and torch.equal(few[2].channels, told.channels[3:5])


def test_sampling_is_told_that_nothing_was_done() -> None:
    network = Shown()
    denoiser = Unaugmented(NetworkDenoiser(network, Cosine()), 3)
    out = DDIM(steps=2)(denoiser, (1, 4), Keys.range(0, 2))
    assert out.shape == (2, 1, 4)
    assert all(c.shape == (2, 3, 4) and not c.any() for c in network.seen)

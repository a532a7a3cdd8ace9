"""Every parametrisation against its closed form: on the exact network all are the exact denoiser."""

import pytest
import torch
from torch import nn

from ebbtide.shared.data import Condition, Encoded, like
from ebbtide.shared.denoisers import MinSNR, NetworkDenoiser, Parametrisation, SigmoidWeighting
from ebbtide.shared.exact import GaussianDenoiser
from ebbtide.shared.schedules import EDM, Cosine, RectifiedFlow

TARGETS = ["edm", "x0", "epsilon", "v", "flow"]
SCHEDULES = [Cosine(), EDM(), RectifiedFlow()]


class Fixed(nn.Module):
    """A network that answers with a given tensor, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, level, condition):
        self.asked = x, level, condition
        return self.answer


def ideal(target, x_0, eps, alpha, sigma, data_std=1.0):
    """The target's definition."""
    match target:
        case "x0":
            return x_0
        case "epsilon":
            return eps
        case "v":
            return alpha * eps - sigma * x_0
        case "flow":
            return eps - x_0
        case "edm":
            m2 = alpha**2 * data_std**2 + sigma**2
            skip, out = alpha * data_std**2 / m2, sigma * data_std / m2.sqrt()
            return (x_0 - skip * (alpha * x_0 + sigma * eps)) / out


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("target", TARGETS)
def test_the_ideal_output_gives_back_x_0(target, schedule):
    x_0, eps = drawn(2, 5, 3, 4)
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = (like(c, x_0) for c in schedule(t))
    network = Fixed(ideal(target, x_0, eps, alpha, sigma))
    denoiser = NetworkDenoiser(network, schedule, Parametrisation(target))
    got = denoiser(alpha * x_0 + sigma * eps, t)
    assert torch.allclose(got, x_0, atol=1e-9)
    everything = torch.ones_like(x_0, dtype=torch.bool)
    assert denoiser.loss(x_0, eps, t, Condition(), everything).max() < 1e-12


@pytest.mark.parametrize("target", TARGETS)
def test_the_exact_network_gives_the_exact_denoiser(target):
    """Targets are linear in x_0, so their optimum is the target of E[x_0 | x_t]."""
    exact = GaussianDenoiser(torch.full((2,), 0.3), torch.tensor([[0.5, 0.2], [0.2, 0.4]]), Cosine())
    x_t, t = drawn(6, 2), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    alpha, sigma = (c[:, None] for c in Cosine()(t))
    x_0 = exact(x_t, t)
    network = Fixed(ideal(target, x_0, (x_t - alpha * x_0) / sigma, alpha, sigma))
    assert torch.allclose(NetworkDenoiser(network, Cosine(), Parametrisation(target))(x_t, t), x_0, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_loss_is_the_plain_error_of_the_target(target):
    x_0, eps = drawn(2, 3, 2, 8)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = (like(c, x_0) for c in Cosine()(t))
    wrong = ideal(target, x_0, eps, alpha, sigma) + 0.5
    where = torch.zeros_like(x_0, dtype=torch.bool)
    where[:, 0] = True
    denoiser = NetworkDenoiser(Fixed(wrong), Cosine(), Parametrisation(target))
    loss = denoiser.loss(x_0, eps, t, Condition(), where)
    assert loss.tolist() == pytest.approx([0.25] * 3, rel=1e-5)
    nowhere = torch.zeros_like(where)
    assert denoiser.loss(x_0, eps, t, Condition(), nowhere).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (MinSNR(5.0), lambda snr: snr.clamp(max=5.0)),
        (SigmoidWeighting(0.0), lambda snr: snr / (1 + snr)),
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_weightings_multiply_the_error_of_x_0(target, weighting, expected):
    """The weight is of x_0's error whatever the network predicts: the very slip that diffusers made."""
    x_0, eps = drawn(2, 3, 2, 8)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = (like(c, x_0) for c in Cosine()(t))
    wrong = ideal(target, x_0 + 0.5, eps - 0.5 * alpha / sigma, alpha, sigma)  # x_0 off by 0.5, same x_t
    denoiser = NetworkDenoiser(Fixed(wrong), Cosine(), Parametrisation(target))
    loss = denoiser.loss(x_0, eps, t, Condition(), torch.ones_like(x_0, dtype=torch.bool), weighting)
    snr = (alpha / sigma).flatten() ** 2
    assert torch.allclose(loss.double(), 0.25 * expected(snr), rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_network_sees_unit_variance_and_the_noise_level(schedule):
    network = Fixed(torch.zeros(2, 1, 50_000))
    x_0, eps = torch.randn(2, 2, 1, 50_000, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.3, 0.7])
    alpha, sigma = (like(c, x_0) for c in schedule(t))
    NetworkDenoiser(network, schedule)(alpha * x_0 + sigma * eps, t)
    x, level, _ = network.asked
    assert x.std(dim=(1, 2)).tolist() == pytest.approx([1.0, 1.0], rel=0.02)
    assert level.tolist() == pytest.approx((schedule.ratio(t).log() / 4).tolist(), rel=1e-5)


def test_known_entries_go_in_clean_and_come_out_exactly():
    known = Encoded(torch.tensor([[0.7, 0.0]]), torch.tensor([[True, False]]))
    network = Fixed(torch.full((1, 2), 9.0))
    out = NetworkDenoiser(network, Cosine())(
        torch.tensor([[5.0, 5.0]]), torch.tensor(0.5), Condition(known=known)
    )
    assert network.asked[0][0, 0] == known.values[0, 0]
    assert out[0, 0] == known.values[0, 0]
    assert out[0, 1] != 0


def test_coefficients_are_finite_at_zero_terminal_signal():
    for target in ("edm", "x0", "v", "flow"):
        denoiser = NetworkDenoiser(Fixed(torch.ones(1, 2)), RectifiedFlow(), Parametrisation(target))
        assert denoiser(torch.ones(1, 2), torch.tensor(1.0)).isfinite().all()


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="expected edm"):
        Parametrisation("score").coefficients(torch.ones(1), torch.ones(1))

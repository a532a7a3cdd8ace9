"""Laws of every schedule, density and grid."""

import math

import pytest
import torch

from ebbtide.shared.schedules import (
    EDM,
    VE,
    Cosine,
    LinearVP,
    LogitNormalDensity,
    LogNormalDensity,
    RectifiedFlow,
    ScaledLinearVP,
    Shifted,
    SigmoidVP,
    Stratified,
    SubVP,
    UniformDensity,
    Until,
    ZeroTerminal,
    karras_grid,
    knee_grid,
    log_snr_grid,
    uniform_grid,
)

VP = [
    Cosine(),
    LinearVP(),
    ScaledLinearVP(),
    SigmoidVP(),
    Shifted(Cosine(), 3.0),
    ZeroTerminal(LinearVP()),
    ZeroTerminal(ScaledLinearVP()),
]
ALL = [*VP, SubVP(), VE(), EDM(), RectifiedFlow(), Shifted(RectifiedFlow(), 2.0), Until(Cosine(), 0.6)]
GRIDS = [uniform_grid, karras_grid, knee_grid, log_snr_grid]


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_time_inverts_ratio(schedule):
    t = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    assert torch.allclose(schedule.time(schedule.ratio(t)), t, atol=1e-7)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_log_snr_falls_strictly(schedule):
    t = torch.linspace(0, 1, 500, dtype=torch.float64)
    assert (schedule.log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_ends_are_nearly_clean_and_nearly_noise(schedule):
    alpha, sigma = schedule(double(0.0, 1.0))
    assert sigma[0] / alpha[0] < 0.08 and sigma[0] > 0
    assert (alpha[1] / sigma[1] < 0.02) or isinstance(schedule, Until) or schedule == ScaledLinearVP()
    assert (alpha >= 0).all()


@pytest.mark.parametrize("schedule", VP, ids=repr)
def test_variance_preserving(schedule):
    alpha, sigma = schedule(torch.linspace(0, 1, 50, dtype=torch.float64))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-12)


def test_beta_integrals_are_those_of_the_papers():
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for schedule, beta in [
        (LinearVP(), 0.1 + 19.9 * u),
        (ScaledLinearVP(), (0.85**0.5 + (12**0.5 - 0.85**0.5) * u) ** 2),
    ]:
        assert float(schedule.integral(double(1.0))) == pytest.approx(
            float(torch.trapezoid(beta, u)), rel=1e-8
        )
    alpha, sigma = LinearVP(start=0.0)(double(0.5))
    assert float(alpha) == pytest.approx(math.exp(-(0.1 * 0.5 + 19.9 * 0.125) / 2))
    _, sub = SubVP(start=0.0)(double(0.5))
    assert float(sub) == pytest.approx(float(sigma) ** 2)


def test_edm_is_karras_equation_5():
    sigma = EDM()(double(0.0, 0.25, 1.0))[1]
    expected = (0.002 ** (1 / 7) + 0.25 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert sigma.tolist() == pytest.approx([0.002, expected, 80.0])


def test_variance_exploding_is_geometric():
    assert float(VE()(double(0.5))[1]) == pytest.approx(math.sqrt(0.002 * 80))


def test_shift_multiplies_the_noise_to_signal_ratio():
    t = torch.linspace(0, 0.99, 50, dtype=torch.float64)
    for schedule in (Cosine(), RectifiedFlow()):
        assert torch.allclose(Shifted(schedule, 4.0).ratio(t), 4 * schedule.ratio(t))


@pytest.mark.parametrize("schedule", [ZeroTerminal(LinearVP()), SigmoidVP(), RectifiedFlow()], ids=repr)
def test_zero_terminal_signal_is_exactly_zero(schedule):
    assert schedule(double(1.0))[0].item() == 0.0
    assert schedule(torch.ones(1))[0].item() == 0.0
    assert schedule.time(double(math.inf)).item() == pytest.approx(1.0, abs=1e-12)


def test_zero_terminal_keeps_the_clean_end_and_refuses_others():
    t = double(0.0)
    assert ZeroTerminal(LinearVP())(t)[0].item() == pytest.approx(LinearVP()(t)[0].item())
    with pytest.raises(ValueError, match="variance-preserving"):
        ZeroTerminal(EDM())


def test_until_walks_the_first_part():
    assert Until(Cosine(), 0.5)(double(1.0))[0].item() == Cosine()(double(0.5))[0].item()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", ALL, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_grids_fall_from_one_to_zero(grid, schedule, steps):
    times = grid(schedule, steps)
    assert times.dtype == torch.float64 and times.shape == (steps,)
    assert times[0] == 1.0
    assert (times.diff() < 0).all()
    assert steps == 1 or times[-1].item() == pytest.approx(0.0, abs=2e-3)


def test_grids_are_uniform_in_what_they_say():
    ratio = EDM().ratio(karras_grid(EDM(), 9))
    assert torch.allclose((ratio ** (1 / 7)).diff().diff(), double(0.0), atol=1e-10)
    ratio = Cosine().ratio(knee_grid(Cosine(), 9))
    assert torch.allclose((ratio / (0.3 + ratio)).diff().diff(), double(0.0), atol=1e-10)
    level = Cosine().log_snr(log_snr_grid(Cosine(), 9))[1:]
    assert torch.allclose(level.diff().diff(), double(0.0), atol=1e-8)


def test_densities_have_their_quantiles():
    u = double(0.5, 0.8413447460685429)  # 0 and 1 standard deviation
    ratio = EDM().ratio(LogNormalDensity(-1.2, 1.2).sample(EDM(), u))
    assert ratio.log().tolist() == pytest.approx([-1.2, 0.0], abs=1e-6)
    t = LogitNormalDensity(0.5, 2.0).sample(Cosine(), u)
    assert torch.logit(t).tolist() == pytest.approx([0.5, 2.5], abs=1e-6)
    assert UniformDensity().sample(Cosine(), u).tolist() == u.tolist()


def test_stratified_times_fall_one_in_each_stratum():
    u = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = Stratified().sample(Cosine(), u)
    assert (t * 64).floor().tolist() == list(range(64))
    ratio = EDM().ratio(Stratified(LogNormalDensity()).sample(EDM(), u)).log()
    assert ratio.mean().item() == pytest.approx(
        -1.2, abs=0.06
    )  # 64 independent ones: a standard error of 0.15

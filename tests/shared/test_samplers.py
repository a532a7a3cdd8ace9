"""Samplers against priors whose answer is known: spread, order of convergence, joint laws, invariance.

Most of it has no randomness. With an exact Gaussian denoiser every step is affine in the state and in the
noise, so feeding chosen numbers for noise reads off the law of the result exactly.
"""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch

import ebbtide.shared
from ebbtide.shared.data import NOTHING
from ebbtide.shared.denoisers import NetworkDenoiser
from ebbtide.shared.exact import GaussianDenoiser, MixtureDenoiser
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import (
    DDIM,
    DDPM,
    Churned,
    DPMSolver2M,
    DPMSolver3M,
    DPMSolverSDE,
    Euler,
    Heun,
    PredictorCorrector,
    Sampler,
    UniPC,
    exponential_weights,
    steps_of,
)
from ebbtide.shared.schedules import (
    EDM,
    VE,
    Cosine,
    LinearVP,
    RectifiedFlow,
    Shifted,
    SigmoidVP,
    SubVP,
    ZeroTerminal,
    uniform_grid,
)

SCHEDULES = [
    Cosine(),
    LinearVP(),
    SubVP(),
    VE(),
    EDM(),
    RectifiedFlow(),
    ZeroTerminal(SigmoidVP()),
    Shifted(Cosine(), 2.0),
]
F64 = torch.empty(0, dtype=torch.float64)
MEAN = 0.3


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def prior(schedule, std=0.5):
    return GaussianDenoiser(double(MEAN), double(std**2)[None], schedule)


@dataclass
class Directions:
    """Noise along one new direction at each use: with a denoiser that is linear along the last axis, the
    result's squared norm is its variance."""

    used: list[str] = field(default_factory=list)

    def __call__(self, keys, x, stream):
        assert stream not in self.used, "a noise stream was used twice"
        self.used.append(stream)
        z = torch.zeros_like(x)
        z[..., len(self.used) - 1] = 1.0
        return z


@dataclass
class Linear:
    """The denoiser of N(0, std^2), a standard deviation for each row."""

    schedule: object
    std: torch.Tensor

    def __call__(self, x_t, t, condition):
        alpha, sigma = self.schedule(t)
        return alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x_t


STDS = (0.1, 0.3, 0.5, 1.0)


def exact_std(sampler, schedule, stds=STDS):
    """The standard deviations of what a sampler draws from N(0, std^2), without Monte Carlo."""
    noise = Directions()
    sampler.noise = noise
    if isinstance(sampler, PredictorCorrector):
        sampler.predictor.noise = noise
    denoiser, size = Linear(schedule, double(*stds)[:, None]), 4 * sampler.steps + 4
    return sampler(denoiser, (size,), Keys.range(0, len(stds)), like=F64).norm(dim=1)


def worst(sampler, schedule):
    """Largest relative error of the standard deviation over STDS."""
    return float((exact_std(sampler, schedule) / double(*STDS) - 1).abs().max())


ACCURATE = {  # relative error of the standard deviation allowed at 5, 10, 20 and 50 steps
    "heun": (Heun, (0.16, 0.034, 0.008, 0.0012)),
    "2m": (DPMSolver2M, (0.4, 0.041, 0.0145, 0.0025)),
    "3m": (DPMSolver3M, (0.4, 0.08, 0.0035, 0.002)),
    "unipc": (UniPC, (0.4, 0.07, 0.0035, 0.002)),
    "unipc2": (partial(UniPC, order=2), (0.4, 0.1, 0.015, 0.002)),
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", ACCURATE)
def test_deterministic_solvers_have_the_right_spread(name, schedule):
    """For data of standard deviation 0.1 to 1, at every number of steps; within 2 % at 20."""
    make, allowed = ACCURATE[name]
    assert allowed[2] < 0.02
    for steps, bound in zip((5, 10, 20, 50), allowed, strict=True):
        assert worst(make(steps), schedule) < bound, steps


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", ACCURATE)
def test_deterministic_solvers_have_the_right_mean(name, schedule):
    keys = Keys.range(0, 2)
    sampler = ACCURATE[name][0](20)
    x = sampler(prior(schedule), (1,), keys, like=F64)
    z = keys.normal((1,), "start", torch.float64)
    slope = (x[0] - x[1]) / (z[0] - z[1])
    assert float(x[0] - slope * z[0]) == pytest.approx(MEAN, abs=0.005)
    assert abs(float(slope)) == pytest.approx(0.5, rel=0.02)


STOCHASTIC = {
    "sde": (DPMSolverSDE, (0.5, 0.055, 0.034, 0.007)),
    "churned": (Churned, (0.26, 0.095, 0.037, 0.0075)),
    "predictor-corrector": (PredictorCorrector, (0.14, 0.025, 0.008, 0.015)),
}


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_have_the_right_spread(name, schedule):
    make, allowed = STOCHASTIC[name]
    for steps, bound in zip((5, 10, 20, 50), allowed, strict=True):
        assert worst(make(steps), schedule) < bound, steps


def ancestral_std(schedule, times, std, eta):
    """The standard deviation of the discretised chain, by its recursion, written out independently."""
    alpha, sigma = (c.tolist() for c in schedule(times))
    variance = alpha[0] ** 2 + sigma[0] ** 2
    for i in range(len(times)):
        gain = alpha[i] * std**2 / (alpha[i] ** 2 * std**2 + sigma[i] ** 2)
        if i == len(times) - 1:
            return gain * math.sqrt(variance)
        # q(x_s | x_t, x_0): x_t = (alpha_t / alpha_s) x_s + noise of the remaining variance
        added = sigma[i] ** 2 - (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2
        fresh = eta**2 * added * sigma[i + 1] ** 2 / sigma[i] ** 2
        kept = math.sqrt(sigma[i + 1] ** 2 - fresh) / sigma[i]
        slope = alpha[i + 1] * gain + kept * (1 - alpha[i] * gain)
        variance = slope**2 * variance + fresh
    return None


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("make", "eta"), [(DDIM, 0.0), (partial(DDIM, eta=0.5), 0.5), (DDPM, 1.0), (Euler, 0.0)]
)
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_ancestral_samplers_are_their_discretised_chain(make, eta, schedule, steps):
    sampler = make(steps)
    expected = ancestral_std(schedule, sampler.grid(schedule, steps), 0.5, eta)
    assert float(exact_std(sampler, schedule, [0.5])) == pytest.approx(expected, rel=1e-9)


def test_ancestral_sampling_converges_and_is_nowhere_near_the_error_of_peers():
    """A DDPM scheduler in use gives 0.936 for 0.5 at 50 steps."""
    assert float(exact_std(DDPM(50), Cosine(), [0.5])) == pytest.approx(0.5, rel=0.06)
    assert float(exact_std(DDPM(), Cosine(), [0.5])) == pytest.approx(0.5, rel=0.012)


def test_ancestral_draws_have_that_spread():
    """The same by Monte Carlo, so that the keyed noise is in it: 4.5 standard errors (7e-6 a test)."""
    n, sampler = 20_000, DDPM(20)
    x = sampler(prior(Cosine()), (1,), Keys.range(0, n), like=F64)
    expected = ancestral_std(Cosine(), sampler.grid(Cosine(), 20), 0.5, 1.0)
    assert abs(x.std() / expected - 1) < 4.5 / math.sqrt(2 * n)
    assert abs(x.mean() - MEAN) < 0.003 + 4.5 * expected / math.sqrt(n)


# --- mixtures -------------------------------------------------------------------------------------


class Quantiles:
    """Normal quantiles as the start: the draws of a deterministic sampler in one dimension then are
    quantiles too, and their moments have no Monte Carlo error."""

    def __call__(self, keys, x, stream):
        levels = (torch.arange(len(keys), dtype=torch.float64) + 0.5) / len(keys)
        return torch.special.ndtri(levels)[:, None]


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", ACCURATE)
def test_mixture_mean_spread_and_mode_weights(name, schedule):
    """0.3 N(-1, 0.2^2) + 0.7 N(0.8, 0.4^2): mean 0.26, standard deviation 0.898."""
    two = MixtureDenoiser(
        double(0.3, 0.7), double(-1, 0.8)[:, None], double(0.04, 0.16)[:, None, None], schedule
    )
    mean = 0.3 * -1 + 0.7 * 0.8
    std = math.sqrt(0.3 * (0.04 + 1) + 0.7 * (0.16 + 0.64) - mean**2)
    for steps, bound in [(5, 0.06 if name == "heun" else 0.3), (10, 0.07), (20, 0.01), (50, 0.004)]:
        sampler = ACCURATE[name][0](steps, noise=Quantiles())
        x = sampler(two, (1,), Keys.range(0, 2000), like=F64)
        assert abs(float(x.std()) / std - 1) < bound, steps
        assert abs(float(x.mean()) - mean) < bound, steps
        assert abs(float((x < -0.35).double().mean()) - 0.3) < bound, steps


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_on_a_correlated_mixture(name):
    """Two dimensions, 4,000 draws; 4.5 standard errors and what the discretisation adds."""
    n, covariance = 4000, double(0.2, 0.12, 0.12, 0.1).reshape(2, 2)
    means = double(-1, 0, 1, 0.5).reshape(2, 2)
    two = MixtureDenoiser(double(0.4, 0.6), means, covariance.expand(2, 2, 2), Cosine())
    x = STOCHASTIC[name][0](50)(two, (2,), Keys.range(0, n), like=F64)
    mean, spread = (m[0] for m in two.moments())
    assert ((x.mean(0) - mean).abs() < 0.01 + 4.5 * (spread.diagonal() / n).sqrt()).all()
    assert torch.allclose(x.T.cov(), spread, atol=4.5 * math.sqrt(2 / n) * float(spread.max()))
    weight = float(two.weights(x_t=x)[:, 0].mean())
    assert abs(weight - 0.4) < 0.01 + 4.5 * math.sqrt(0.24 / n)


# --- order of convergence -------------------------------------------------------------------------


def walk(sampler, schedule, steps, start, stop, std):
    """Error against the exact flow x_s = x_t sqrt(var_s / var_t) from `start` to `stop`."""
    grid = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    spread = [math.sqrt(float(a) ** 2 * std**2 + float(b) ** 2) for a, b in zip(*schedule(grid), strict=True)]
    x = torch.ones(1, 1, dtype=torch.float64)
    sampler.begin()
    for step in steps_of(schedule, grid)[:-1]:
        if step.index < 4:  # a history on the exact path: the low-order first steps are not the question
            x = torch.full_like(x, spread[step.index] / spread[0])
            if getattr(sampler, "_from", None):
                sampler._from = (torch.full_like(x, spread[step.index - 1] / spread[0]), sampler._from[1])
        x = sampler.step(Linear(schedule, double(std)), x, step, NOTHING, Keys.range(0, 1))
    return abs(float(x) - spread[-1] / spread[0])


ORDERS = {
    "DDIM": (DDIM, 1),
    "Euler": (Euler, 1),
    "Heun": (Heun, 2),
    "Churned without churn": (partial(Churned, churn=0.0), 2),
    "2M": (DPMSolver2M, 2),
    "multistep 1": (partial(DPMSolver3M, order=1), 1),
    "multistep 2": (partial(DPMSolver3M, order=2), 2),
    "3M": (DPMSolver3M, 3),
    "multistep 4": (partial(DPMSolver3M, order=4), 4),
    "UniPC 1": (partial(UniPC, order=1), 2),
    "UniPC 2": (partial(UniPC, order=2), 3),
    "UniPC 3": (UniPC, 4),
}


@pytest.mark.parametrize("schedule", [Cosine(), LinearVP(), EDM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, schedule):
    make, order = ORDERS[name]
    coarse, fine = (walk(make(), schedule, steps, 0.6, 0.3, 1.0) for steps in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15 if order < 3 else 0.2)


def test_exponential_weights_integrate_polynomials():
    for h in (0.01, 0.3, 0.999, 1.001, 4.0):
        u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        nodes = [0.0, -0.8, -2.1, 1.0]
        weights = exponential_weights(h, nodes)
        for k in range(4):
            integral = float(torch.trapezoid(h * (h * (u - 1)).exp() * u**k, u))
            assert sum(w * n**k for w, n in zip(weights, nodes, strict=True)) == pytest.approx(
                integral, rel=1e-6
            )


# --- joint laws: how much noise a step refreshes ---------------------------------------------------


def refreshed(sampler, schedule, std, t, s):
    """Variance of x_s that x_t does not explain, and the same for the exact reverse diffusion."""
    step = steps_of(schedule, double(t, s))[0]
    sampler.noise = noise = Directions()
    if isinstance(sampler, PredictorCorrector):
        sampler.predictor.noise = noise
    sampler.begin()
    x_t = torch.zeros(1, 9, dtype=torch.float64)
    x_s = sampler.step(Linear(schedule, double(std)), x_t, step, NOTHING, Keys.range(0, 1))
    var_t, var_s = (
        a**2 * std**2 + b**2 for a, b in ((step.alpha_t, step.sigma_t), (step.alpha_s, step.sigma_s))
    )
    explained = (step.alpha_t / step.alpha_s * var_s) ** 2 / var_t
    return float(x_s.norm() ** 2), var_s - explained, step


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("make", [DDPM, DPMSolverSDE])
def test_reverse_diffusions_refresh_the_right_amount_of_noise(make, schedule):
    for std in (0.1, 0.5, 1.0):
        fresh, exact, _ = refreshed(make(), schedule, std, 0.5, 0.495)
        assert fresh / exact == pytest.approx(1, abs=0.1)


def test_a_stochastic_predictor_and_its_corrections_use_noise_of_their_own():
    corrected = exact_std(PredictorCorrector(20, predictor=DDPM(), corrections=2), Cosine())
    assert (corrected / double(*STDS) - 1).abs().max() < 0.15
    alone = ancestral_std(Cosine(), PredictorCorrector().grid(Cosine(), 20), 0.5, 1.0)
    assert abs(float(corrected[2]) - 0.5) < abs(alone - 0.5)


def test_half_of_eta_refreshes_a_quarter_of_the_variance():
    full, *_ = refreshed(DDIM(eta=1.0), Cosine(), 0.5, 0.5, 0.4)
    half, *_ = refreshed(DDIM(eta=0.5), Cosine(), 0.5, 0.5, 0.4)
    assert half == pytest.approx(full / 4)


def test_churn_raises_the_noise_by_its_factor():
    """The noise added before the step, carried through it by the exact flow's slope."""
    sampler = Churned(steps=100, churn=20.0)
    fresh, _, step = refreshed(sampler, EDM(), 0.5, 0.4, 0.395)
    added = step.sigma_t**2 * (1.2**2 - 1)
    slope = (0.25 + step.sigma_s**2) / (0.25 + (1.2 * step.sigma_t) ** 2)
    assert fresh / (added * slope) == pytest.approx(1, abs=0.02)
    assert refreshed(Churned(churn=20.0, high=0.01), EDM(), 0.5, 0.4, 0.395)[0] == 0


def test_langevin_corrections_refresh_what_their_rate_says():
    fresh, _, step = refreshed(PredictorCorrector(rate=0.2), Cosine(), 0.5, 0.5, 0.4)
    assert fresh == pytest.approx((2 * 0.2 - 0.2**2) * step.sigma_s**2)


# --- the loop --------------------------------------------------------------------------------------

EVERY = [DDIM, DDPM, Euler, Heun, Churned, DPMSolver2M, DPMSolverSDE, DPMSolver3M, UniPC, PredictorCorrector]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
def test_element_k_has_the_same_bits_in_any_batch(make, schedule):
    denoiser = GaussianDenoiser(double(0.3, -0.2), double(0.5, 0.2, 0.2, 0.3).reshape(2, 2), schedule)
    sampler, keys = make(7), Keys.range(5, 67)
    whole = sampler(denoiser, (2,), keys)
    assert whole.dtype == torch.float32 and whole.isfinite().all()
    for rows in (torch.tensor([40]), torch.tensor([66, 3]), torch.arange(10, 30)):
        assert torch.equal(sampler(denoiser, (2,), keys[rows]), whole[rows])
    assert torch.equal(sampler(denoiser, (2,), keys), whole), "a sampler must forget its last run"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", EVERY)
def test_a_gpu_gives_the_same_numbers_to_rounding(make):
    """The keyed noise is made on the CPU and copied, so that only the arithmetic differs: 2e-5 in float32."""
    denoiser, keys = NetworkDenoiser(Wave(), Cosine()), Keys.range(5, 33)
    here = make(7)(denoiser, (2, 4), keys)
    there = make(7)(denoiser, (2, 4), keys, like=torch.empty(0, device="cuda"))
    assert there.device.type == "cuda"
    assert (there.cpu() - here).abs().max() < 2e-5


class Wave(torch.nn.Module):
    def forward(self, x, level, condition):
        return torch.sin(3 * x) * level.reshape(-1, 1, 1)


@pytest.mark.parametrize("make", EVERY)
def test_callback_sees_every_step(make):
    seen = []
    out = make(6)(prior(Cosine()), (1,), Keys.range(0, 3), callback=lambda step, x: seen.append((step, x)))
    assert [step.index for step, _ in seen] == list(range(6))
    assert seen[-1][0].s is None and torch.equal(seen[-1][1], out)
    assert all(a.s == b.t for (a, _), (b, _) in itertools.pairwise(seen))


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=repr)
def test_partial_noising_follows_the_exact_flow(schedule):
    denoiser, keys, start = (
        prior(schedule),
        Keys.range(0, 5),
        torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None],
    )
    got = Heun(200)(denoiser, (1,), keys, like=F64, start=start, t_start=0.5)
    alpha, sigma = schedule(double(0.5)[0])
    x_t = alpha * start + sigma * keys.normal((1,), "start", torch.float64)
    expected = denoiser(denoiser.flow(x_t, double(0.5)[0], double(0.0)[0]), double(0.0)[0])
    assert torch.allclose(got, expected, atol=1e-4)


def test_partial_noising_leaves_little_changed_and_needs_a_start():
    start = torch.tensor([[0.1], [0.9]])
    near = Heun(5)(prior(Cosine()), (1,), Keys.range(0, 2), start=start, t_start=0.01)
    assert (near - start).abs().max() < 0.05
    with pytest.raises(ValueError, match="t_start"):
        Heun(5)(prior(Cosine()), (1,), Keys.range(0, 2), t_start=0.5)
    with pytest.raises(ValueError, match="t_start"):
        Heun(5)(prior(Cosine()), (1,), Keys.range(0, 2), start=start, t_start=0.0)


def test_half_precision_is_for_the_denoiser_alone():
    exact, seen = prior(Cosine()), set()

    @dataclass
    class Spy:
        schedule: object = field(default_factory=Cosine)

        def __call__(self, x_t, t, condition):
            seen.add(x_t.dtype)
            return exact(x_t, t)

    keys = Keys.range(0, 500)
    states = []
    low = Heun(20)(
        Spy(), (1,), keys, like=torch.empty(0, dtype=torch.bfloat16), callback=lambda _, x: states.append(x)
    )
    full = Heun(20)(exact, (1,), keys)
    assert seen == {torch.bfloat16} and low.dtype == torch.bfloat16
    assert {x.dtype for x in states} == {torch.float32}
    assert (low.float() - full).abs().max() < 0.03
    assert low.float().std().item() == pytest.approx(full.std().item(), rel=0.01)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 3), (1, 2, 3, 2)])
def test_any_dimension_of_space(shape):
    size = math.prod(shape)
    denoiser = GaussianDenoiser(torch.zeros(shape), torch.eye(size) * 0.25, Cosine())
    x = DPMSolver2M(20)(denoiser, shape, Keys.range(0, 300))
    assert x.shape == (300, *shape)
    assert x.std().item() == pytest.approx(0.5, rel=4.5 / math.sqrt(600 * size) + 0.02)


def test_a_sampler_is_step_and_its_formula():
    class Jump(Sampler):
        def step(self, denoiser, x_t, step, condition, keys):
            return denoiser(x_t, step.t, condition)

    out = Jump(1, grid=uniform_grid)(prior(RectifiedFlow()), (1,), Keys.range(0, 3))
    assert out.flatten().tolist() == pytest.approx([MEAN] * 3)


# --- test the tests --------------------------------------------------------------------------------

MUTANTS = [
    ("samplers", "return (x_t - alpha * x_0) / sigma", "return (x_t + alpha * x_0) / sigma"),
    ("samplers", "kept = step.alpha_t * step.sigma_s", "kept = step.alpha_s * step.sigma_s"),
    ("samplers", "* math.sqrt(max(1 - kept**2, 0.0))", "* max(1 - kept**2, 0.0)"),
    ("samplers", "max(step.sigma_s**2 - tau**2, 0.0)", "max(step.sigma_s**2 + tau**2, 0.0)"),
    ("samplers", "(eps + eps_s - x_0 - x_0_s)", "(eps + eps - x_0 - x_0_s)"),
    ("samplers", "(h / (2 * h_before))", "(h_before / (2 * h))"),
    ("samplers", "fresh = 1 - shrink**2", "fresh = 1 - shrink"),
    ("samplers", "math.factorial(n + k + 1)", "math.factorial(n + k + 2)"),
    ("samplers", "1 - k / h * moments[-1]", "1 + k / h * moments[-1]"),
    ("samplers", "x_0), *self._past], step.sigma_t", "x_0)], step.sigma_t"),
    ("samplers", "sigma**2 - (kept * step.sigma_t) ** 2", "sigma**2 - step.sigma_t**2 / 2"),
    ("samplers", "2 * self.rate - self.rate**2", "self.rate - self.rate**2"),
    ("samplers", 'f"step {step.index} correction {k}"', 'f"step {step.index}"'),
    (
        "samplers",
        "self._last: tuple[Tensor, float] | None = None",
        "self._last = getattr(self, '_last', None)",
    ),
    ("schedules", "return (-integral / 2).exp(), (-torch", "return (-integral).exp(), (-torch"),
    ("schedules", "return 1 - u, u", "return 1 - u, u * 1.01"),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", range(len(MUTANTS)), ids=[old for _, old, _ in MUTANTS])
def test_flipped_symbols_turn_the_suite_red(mutant, tmp_path):
    """Each symbol is flipped in a temporary copy of `shared`, and the tests above must fail on it."""
    module, old, new = MUTANTS[mutant]
    package = tmp_path / "ebbtide" / "shared"
    package.mkdir(parents=True)
    (tmp_path / "ebbtide" / "__init__.py").touch()
    (source,) = (Path(folder) for folder in ebbtide.shared.__path__)
    for name in ("__init__", "data", "schedules", "noise", "denoisers", "samplers", "exact"):
        (package / f"{name}.py").write_text((source / f"{name}.py").read_text())
    text = (package / f"{module}.py").read_text()
    assert text.count(old) == 1, "the mutation list is out of date"
    (package / f"{module}.py").write_text(text.replace(old, new))
    names = [f"test_{name}.py" for name in ("samplers", "schedules")]
    for name in names:
        (tmp_path / name).write_text(Path(__file__).with_name(name).read_text())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-k",
        "not flipped",
        "-p",
        "no:cacheprovider",
        *names,
    ]
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert run.returncode in (1, 2), run.stdout[-2000:] + run.stderr[-2000:]
    assert "ImportError" not in run.stdout and "SyntaxError" not in run.stdout

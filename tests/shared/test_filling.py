"""Every way of filling against the exact posterior; known entries come back bit for bit."""

import math

import pytest
import torch

from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.exact import GaussianDenoiser, MixtureDenoiser
from ebbtide.shared.filling import MomentMatched, RePaint, Twisted, fill
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import DDIM, DPMSolver2M, Heun
from ebbtide.shared.schedules import Cosine, RectifiedFlow


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(schedule=None, size=4):
    factor = drawn(size, size, seed=1)
    covariance = factor @ factor.T / size + 0.1 * torch.eye(size, dtype=torch.float64)
    return GaussianDenoiser(drawn(size, seed=2) / 3, covariance, schedule or Cosine())


def two_modes(schedule=None):
    """Modes that the first entry tells apart only in part; the others follow the mode."""
    means = torch.tensor([[-0.4, -1.0, -1.0], [0.4, 1.0, 1.0]], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([0.3, 0.05, 0.05], dtype=torch.float64))
    return MixtureDenoiser(torch.tensor([0.5, 0.5]), means, covariance.expand(2, 3, 3), schedule or Cosine())


class WithoutMasks:
    """A denoiser that never heard of known entries."""

    def __init__(self, exact):
        self.exact, self.schedule, self.calls = exact, exact.schedule, 0

    def __call__(self, x_t, t, condition):
        assert condition.known is None, "the known part must not reach a denoiser without masks"
        self.calls += 1
        return self.exact(x_t, t)


def repeated(values, observed, n):
    return Encoded(torch.tensor(values).double().expand(n, -1), torch.tensor(observed).expand(n, -1))


ONE = ([0.3, -0.5, 0.0, 0.0], [True, True, False, False])


def check_posterior(x, exact, known, mean_bias, std_bias):
    """Mean and standard deviation of the unknown entries within 4.5 standard errors and a stated bias."""
    n, u = len(x), ~known.observed[0]
    first, second = (m[0] for m in exact.moments(Condition(known=known[torch.tensor([0])])))
    std = second.diagonal()[u].sqrt()
    z = (x.mean(0)[u] - first[u]).abs() / std
    assert z.max() < mean_bias + 4.5 / math.sqrt(n), z
    ratio = x.std(0)[u] / std
    assert ((ratio - 1).abs() < std_bias + 4.5 / math.sqrt(2 * n)).all(), ratio
    return ratio


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("sampler", [None, DPMSolver2M(20)], ids=["default", "2m"])
def test_the_default_is_exact_given_an_exact_conditional_denoiser(schedule, sampler):
    n, exact = 3000, gaussian(schedule)
    known = repeated(*ONE, n)
    x = fill(exact, known, Keys.range(0, n), sampler=sampler)
    assert torch.equal(x[known.observed], known.values[known.observed])
    check_posterior(x, exact, known, 0.01, 0.02)


def test_default_mode_weights_and_interval_coverage():
    """Records and their known entries drawn from the prior: 90 % intervals cover 90 %."""
    exact, n, draws = two_modes(), 400, 40
    truth = exact.sample(Keys.range(9, n))
    observed = torch.tensor([True, False, False]).expand(n, 3)
    known = Encoded(truth * observed, observed)
    each = torch.arange(n).repeat_interleave(draws)
    keys = Keys(0, each, torch.arange(draws).repeat(n))
    x = fill(exact, known[each], keys).reshape(n, draws, 3)
    low, high = x.quantile(0.05, dim=1), x.quantile(0.95, dim=1)
    covered = ((truth >= low) & (truth <= high))[:, 1:].double().mean()
    # 40 draws: the interpolated quantiles hold 0.876; two entries of a record go together
    assert abs(float(covered) - 0.876) < 4.5 * math.sqrt(0.09 / n)
    weight = exact.weights(Condition(known=known))[:, 1]
    found = (x[:, :, 1] > 0).double().mean(1)
    assert abs(float((found - weight).mean())) < 4.5 * math.sqrt(0.25 / (n * draws))
    assert float((found - weight).abs().mean()) < 0.08  # of 40 draws: 0.06 is sampling noise


@pytest.mark.parametrize(
    ("way", "mean_bias", "std_bias"),
    [("matched", 0.02, 0.03), ("repaint", 0.08, 0.1), ("twisted", 0.06, 0.1)],
)
def test_ways_without_masks_on_a_gaussian(way, mean_bias, std_bias):
    n = 1500 if way == "matched" else 500
    exact, known, keys = gaussian(), repeated(*ONE, n), Keys.range(0, n)
    denoiser = WithoutMasks(exact)
    if way == "matched":
        x = fill(MomentMatched(denoiser), known, keys)
    else:
        x = fill(denoiser, known, keys, sampler=RePaint(50, repeats=8) if way == "repaint" else Twisted(80))
    assert torch.equal(x[known.observed], known.values[known.observed])
    check_posterior(x, exact, known, mean_bias, std_bias)


def test_moment_matching_is_the_exact_conditional_denoiser_of_a_gaussian():
    exact, x_t = gaussian(), drawn(5, 4, seed=4)
    known = repeated(*ONE, 5)
    for t in (0.2, 0.5, 0.8):
        got = MomentMatched(exact, noise=1e-6)(x_t, torch.tensor(t), Condition(known=known))
        assert torch.allclose(got, exact(x_t, torch.tensor(t), Condition(known=known)), atol=1e-4)


@pytest.mark.parametrize("make", [lambda d: MomentMatched(d), lambda d: d], ids=["matched", "twisted"])
def test_element_k_does_not_depend_on_its_batch(make):
    """The fault of a well-known sampler of this kind: its guidance shrinks with the batch."""
    denoiser = make(two_modes())
    sampler = Heun(6) if isinstance(denoiser, MomentMatched) else Twisted(6, particles=4)
    known, keys = repeated([0.5, 0.0, 0.0], [True, False, False], 9), Keys.range(0, 9)
    whole = fill(denoiser, known, keys, sampler=sampler)
    row = torch.tensor([7])
    assert torch.allclose(fill(denoiser, known[row], keys[row], sampler=sampler)[0], whole[7], atol=1e-10)


def mode_error(x, exact, known):
    weight = float(exact.weights(Condition(known=known[torch.tensor([0])]))[0, 1])
    return abs(float((x[:, 1] > 0).double().mean()) - weight)


def test_particles_find_the_mode_weights_where_replacement_does_not():
    exact, n = two_modes(), 400
    known, keys = repeated([0.8, 0.0, 0.0], [True, False, False], n), Keys.range(0, n)
    weight = float(exact.weights(Condition(known=known[torch.tensor([0])]))[0, 1])
    assert weight == pytest.approx(0.894, abs=0.001)  # odds e^(2 * 0.4 * 0.8 / 0.3)
    noise = 4.5 * math.sqrt(weight * (1 - weight) / n)
    denoiser, sampler = WithoutMasks(exact), Twisted(60, particles=16)
    x = fill(denoiser, known, keys, sampler=sampler)
    assert mode_error(x, exact, known) < 0.03 + noise
    assert denoiser.calls == 60
    assert sampler.effective_.shape == (n,) and 0 < sampler.effective_.min() <= sampler.effective_.max() <= 1
    plain = fill(WithoutMasks(exact), known, keys, sampler=RePaint(60, repeats=1))
    assert mode_error(plain, exact, known) > 0.1


def test_repaint_steps_there_and_back():
    denoiser = WithoutMasks(gaussian())
    fill(denoiser, repeated(*ONE, 2), Keys.range(0, 2), sampler=RePaint(5, repeats=4))
    assert denoiser.calls == 4 * 4 + 1
    once = RePaint(5, repeats=1)
    fill(denoiser, repeated(*ONE, 2), Keys.range(0, 2), sampler=once)
    assert isinstance(once.inner, DDIM) and once.inner.eta == 1.0


def test_without_known_entries_the_training_free_ways_say_so():
    for sampler in (RePaint(3), Twisted(3)):
        with pytest.raises(ValueError, match="filling needs"):
            sampler(gaussian(), (4,), Keys.range(0, 2))
    with pytest.raises(ValueError, match="not for Twisted"):
        Twisted(3)(gaussian(), (4,), Keys.range(0, 2), start=torch.zeros(2, 4), t_start=0.5)

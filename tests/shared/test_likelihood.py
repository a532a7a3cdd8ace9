"""Likelihood and surprise against exact densities."""

import math

import pytest
import torch

from ebbtide.shared.data import NOTHING, Condition, Encoded
from ebbtide.shared.exact import GaussianDenoiser, MixtureDenoiser
from ebbtide.shared.likelihood import bits_per_dimension, log_likelihood, surprise
from ebbtide.shared.noise import Keys
from ebbtide.shared.schedules import EDM, Cosine, LinearVP, RectifiedFlow

SIZE = 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(schedule, size=SIZE):
    factor = drawn(size, size, seed=1)
    covariance = 0.6 * factor @ factor.T / size + 0.2 * torch.eye(size, dtype=torch.float64)
    return GaussianDenoiser(drawn(size, seed=2) / 5, covariance, schedule)


@pytest.mark.parametrize("schedule", [Cosine(), LinearVP(), EDM(), RectifiedFlow()], ids=repr)
def test_bits_per_dimension_of_a_gaussian(schedule):
    prior, keys = gaussian(schedule), Keys.range(0, 20)
    x = prior.sample(keys)
    truth = bits_per_dimension(prior.log_density(x), SIZE)
    exact = bits_per_dimension(log_likelihood(prior, x, keys, steps=30, probes=None), SIZE)
    assert (exact - truth).abs().max() < 0.01


def test_hutchinson_is_unbiased():
    prior, n = gaussian(Cosine()), 300
    x = prior.sample(Keys.range(0, 1)).expand(n, -1)
    estimates = bits_per_dimension(log_likelihood(prior, x, Keys.range(7, n), steps=10), SIZE)
    truth = bits_per_dimension(log_likelihood(prior, x[:1], Keys.range(7, 1), steps=10, probes=None), SIZE)
    assert abs(float(estimates.mean() - truth)) < 4.5 * float(estimates.std()) / math.sqrt(n)
    assert estimates.std() < 0.3
    four = bits_per_dimension(log_likelihood(prior, x, Keys.range(7, n), steps=10, probes=4), SIZE)
    assert float(four.std() / estimates.std()) == pytest.approx(0.5, abs=0.1)


def test_a_mixture_and_a_conditional_density():
    means = torch.tensor([[-0.7, 0.5, 0.0], [0.8, -0.4, 0.2]], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)).expand(2, 3, 3)
    prior, keys = MixtureDenoiser(torch.tensor([0.4, 0.6]), means, covariance, Cosine()), Keys.range(0, 12)
    x = prior.sample(keys)
    observed = torch.tensor([True, False, False]).expand(12, 3)
    for condition in (NOTHING, Condition(known=Encoded(x * observed, observed))):
        got = log_likelihood(prior, x, keys, condition, steps=30, probes=None)
        assert (got - prior.log_density(x, condition=condition)).abs().max() < 0.02


def test_surprise_is_the_conditional_density_of_each_part():
    prior, keys = gaussian(Cosine(), 3), Keys.range(0, 6)
    x = prior.sample(keys)
    x[3, 1] += 5.0  # an outlier
    parts = torch.eye(3, dtype=torch.bool)
    got = surprise(prior, x, parts, keys, steps=20, probes=None)
    for p, part in enumerate(parts):
        rest = (~part).expand(6, 3)
        truth = -prior.log_density(x, condition=Condition(known=Encoded(x * rest, rest)))
        assert torch.allclose(got[:, p], truth, rtol=0.02, atol=0.02)
    assert got.argmax().item() == 3 * 3 + 1


def test_surprise_with_missing_entries_integrates_over_them():
    prior, keys = gaussian(Cosine(), 3), Keys.range(0, 5)
    x = prior.sample(keys)
    observed = torch.tensor([True, True, False]).expand(5, 3)
    got = surprise(
        prior, x, torch.tensor([[True, False, False]]), keys, observed=observed, steps=20, probes=None
    )
    got = got[:, 0]
    keep = torch.tensor([0, 1])
    pair = GaussianDenoiser(prior.means[0, keep], prior.covariances[0][keep][:, keep], Cosine())
    rest = torch.tensor([False, True]).expand(5, 2)
    truth = -pair.log_density(x[:, keep], condition=Condition(known=Encoded(x[:, keep] * rest, rest)))
    assert torch.allclose(got, truth, rtol=0.02, atol=0.02)

"""The closed forms against other closed forms, Monte Carlo and automatic differentiation."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from ebbtide.shared.data import NOTHING, Condition, Encoded
from ebbtide.shared.exact import FiniteSetDenoiser, GaussianDenoiser, MixtureDenoiser, rows
from ebbtide.shared.noise import Keys
from ebbtide.shared.schedules import EDM, Cosine, RectifiedFlow


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(size=4, schedule=None, seed=0):
    factor = drawn(size, size, seed=seed)
    return GaussianDenoiser(
        drawn(size, seed=seed + 1), factor @ factor.T / size + 0.1 * torch.eye(size), schedule or Cosine()
    )


def mixture(size=3, count=3, schedule=None):
    factors = drawn(count, size, size, seed=5)
    covariances = factors @ factors.mT / size + 0.05 * torch.eye(size)
    weights = torch.tensor([0.5, 0.3, 0.2])[:count]
    return MixtureDenoiser(weights, 2 * drawn(count, size, seed=6), covariances, schedule or Cosine())


def some_known(batch, size, seed=3):
    generator = torch.Generator().manual_seed(seed)
    observed = torch.rand(batch, size, generator=generator) < 0.5
    return Condition(known=Encoded(drawn(batch, size, seed=seed) * observed, observed))


def test_gaussian_is_the_textbook_formula():
    prior, x_t, t = gaussian(), drawn(7, 4, seed=9), torch.tensor(0.4)
    alpha, sigma = Cosine()(t)
    mean, covariance = prior.means[0], prior.covariances[0]
    gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(4))
    assert torch.allclose(prior(x_t, t), mean + (x_t - alpha * mean) @ gain.T)
    first, second = prior.moments(NOTHING, x_t, t)
    assert torch.allclose(first, prior(x_t, t))
    assert torch.allclose(second, (covariance - alpha * gain @ covariance).expand(7, 4, 4))


@pytest.mark.parametrize(
    "prior", [gaussian(), mixture(), gaussian(schedule=EDM()), mixture(schedule=RectifiedFlow())]
)
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_tweedie_the_denoiser_is_the_score_of_the_density(prior, t):
    """E[x_0 | x_t] = (x_t + sigma^2 grad log p) / alpha; its Jacobian is alpha / sigma^2 Cov[x_0 | x_t]."""
    size, t = prior.means.shape[1], torch.tensor(t)
    x_t = drawn(5, size, seed=2).requires_grad_()
    alpha, sigma = prior.schedule(t)
    (score,) = torch.autograd.grad(prior.log_density(x_t, t).sum(), x_t)
    assert torch.allclose(prior(x_t, t), (x_t + sigma**2 * score) / alpha)
    jacobian = torch.autograd.functional.jacobian(lambda x: prior(x, t).sum(0), x_t).permute(1, 0, 2)
    covariance = prior.moments(NOTHING, x_t, t)[1]
    assert torch.allclose(jacobian, alpha / sigma**2 * covariance, atol=1e-8)


@pytest.mark.parametrize("prior", [gaussian(), mixture()])
def test_tweedie_holds_given_known_entries(prior):
    size, t = prior.means.shape[1], torch.tensor(0.5)
    condition, x_t = some_known(6, size), drawn(6, size, seed=2).requires_grad_()
    alpha, sigma = prior.schedule(t)
    (score,) = torch.autograd.grad(prior.log_density(x_t, t, condition).sum(), x_t)
    expected, observed = (x_t + sigma**2 * score) / alpha, condition.known.observed
    assert torch.allclose(prior(x_t, t, condition)[~observed], expected[~observed])
    assert torch.equal(prior(x_t, t, condition)[observed], condition.known.values[observed])


def test_densities_are_those_of_torch():
    prior, x = mixture(), drawn(5, 3, seed=2)
    parts = [
        MultivariateNormal(m, c).log_prob(x) for m, c in zip(prior.means, prior.covariances, strict=True)
    ]
    expected = (torch.stack(parts, 1) + prior.log_weights).logsumexp(1)
    assert torch.allclose(prior.log_density(x), expected)


def test_chain_rule_of_densities():
    """log p(x_o) + log p(x_u | x_o) = log p(x), the first from the marginal prior."""
    prior, x = mixture(), drawn(5, 3, seed=2)
    observed = torch.tensor([True, False, True]).expand(5, 3)
    given = prior.log_density(x, condition=Condition(known=Encoded(x * observed, observed)))
    keep = torch.tensor([0, 2])
    marginal = MixtureDenoiser(
        prior.log_weights.exp(), prior.means[:, keep], prior.covariances[:, keep][:, :, keep], Cosine()
    )
    assert torch.allclose(marginal.log_density(x[:, keep]) + given, prior.log_density(x))


def test_conditioning_a_gaussian_is_the_regression():
    prior, x = gaussian(2), torch.tensor([[1.3, 0.0]])
    known = Condition(known=Encoded(x, torch.tensor([[True, False]])))
    mean, c = prior.means[0], prior.covariances[0]
    first, second = prior.moments(known)
    assert first[0].tolist() == pytest.approx([1.3, float(mean[1] + c[1, 0] / c[0, 0] * (1.3 - mean[0]))])
    expected = torch.tensor([[0.0, 0.0], [0.0, float(c[1, 1] - c[1, 0] ** 2 / c[0, 0])]])
    assert torch.allclose(second[0], expected, atol=1e-12)


def test_mixture_weights_given_known_are_bayes():
    prior = MixtureDenoiser(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[-1.0, 5.0], [1.0, -5.0]]),
        torch.eye(2).expand(2, 2, 2),
        Cosine(),
    )
    known = Condition(known=Encoded(torch.tensor([[0.4, 0.0]]), torch.tensor([[True, False]])))
    odds = 0.25 / 0.75 * torch.tensor(-0.5 * (1.4**2 - 0.6**2)).exp()
    assert prior.weights(known)[0, 0].item() == pytest.approx(float(odds / (1 + odds)))
    assert prior.moments(known)[0][0, 1].item() == pytest.approx(float(5 * (odds - 1) / (1 + odds)))


ONE_KNOWN = Condition(known=Encoded(torch.tensor([[0.8, 0.0, 0.0]]), torch.tensor([[True, False, False]])))


@pytest.mark.parametrize("condition", [NOTHING, ONE_KNOWN], ids=["free", "given"])
def test_sample_has_the_exact_moments(condition):
    prior, keys, n = mixture(), Keys.range(0, 40_000), 40_000
    repeated = condition.map(lambda held: held.expand(n, -1))
    x = prior.sample(keys, repeated)
    mean, covariance = (m[0] for m in prior.moments(condition))
    error = (x.mean(0) - mean) / (covariance.diagonal() / n).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 4.5
    assert torch.allclose(x.T.cov(), covariance, atol=0.02 * float(covariance.max()))
    if condition.known is not None:
        observed = repeated.known.observed
        assert torch.equal(x[observed].float(), repeated.known.values[observed])


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("given", [False, True])
def test_the_flow_solves_the_probability_flow_ode(schedule, given):
    """d/ds flow = D alpha' + eps sigma', by differences."""
    prior, x_t = gaussian(schedule=schedule), drawn(3, 4, seed=4)
    condition = some_known(3, 4) if given else NOTHING
    t, s, h = torch.tensor(0.8), torch.tensor(0.5), 1e-5
    x_s = prior.flow(x_t, t, s, condition)
    slope = (prior.flow(x_t, t, s + h, condition) - prior.flow(x_t, t, s - h, condition)) / (2 * h)
    (alpha, sigma), up, down = schedule(s), schedule(s + h), schedule(s - h)
    x_0 = prior(x_s, s, condition)
    expected = x_0 * (up[0] - down[0]) / (2 * h) + (x_s - alpha * x_0) / sigma * (up[1] - down[1]) / (2 * h)
    assert torch.allclose(slope, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(prior.flow(x_t, t, t, condition), x_t)


def test_finite_set_is_the_narrow_limit_of_a_mixture():
    points, t = drawn(5, 3), torch.tensor(0.3)
    narrow = MixtureDenoiser(torch.ones(5), points, 1e-10 * torch.eye(3).expand(5, 3, 3), Cosine())
    x_t = drawn(8, 3, seed=3)
    assert torch.allclose(FiniteSetDenoiser(points, Cosine())(x_t, t), narrow(x_t, t), atol=1e-6)


def test_finite_set_given_known_entries_keeps_the_points_that_agree():
    points = torch.tensor([[1.0, 2.0], [1.0, 4.0], [-1.0, 9.0]])
    known = Condition(known=Encoded(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])))
    x_0 = FiniteSetDenoiser(points, RectifiedFlow())(torch.zeros(1, 2), torch.tensor(1.0), known)
    assert x_0.tolist() == [[1.0, pytest.approx(3.0)]]


def test_any_dimension_of_space_and_any_dtype():
    covariance = gaussian(12).covariances[0]
    flat = GaussianDenoiser(torch.zeros(12), covariance, Cosine())
    x_t, t = drawn(3, 12), torch.tensor([0.2, 0.5, 0.9])
    for shape in [(1, 12), (3, 2, 2), (1, 3, 2, 2)]:
        shaped = GaussianDenoiser(torch.zeros(shape), covariance, Cosine())(x_t.reshape(3, *shape).float(), t)
        assert shaped.shape == (3, *shape) and shaped.dtype == torch.float32
        assert torch.allclose(shaped.flatten(1).double(), flat(x_t, t), atol=1e-6)


@pytest.mark.parametrize("size", [3, 70])
def test_rows_have_the_same_bits_in_any_batch(size):
    x, matrix = drawn(150, size), drawn(size, size, seed=1)
    whole = rows(x, matrix)
    assert torch.allclose(whole, x @ matrix)
    for k in (0, 63, 64, 149):
        assert torch.equal(rows(x[k : k + 1], matrix)[0], whole[k])
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows(x[order], matrix), whole[order])


@pytest.mark.parametrize(
    "prior",
    [gaussian(3), mixture(), FiniteSetDenoiser(drawn(9, 3), Cosine(), 0.5)],
    ids=["gaussian", "mixture", "set"],
)
@pytest.mark.parametrize("given", [False, True])
def test_element_k_has_the_same_bits_in_any_batch(prior, given):
    x_t, t = drawn(70, 3, seed=8), torch.linspace(0.1, 0.9, 70)
    condition = some_known(70, 3) if given else NOTHING
    whole = prior(x_t, t, condition)
    for k in (0, 13, 69):
        row = torch.tensor([k])
        assert torch.equal(prior(x_t[row], t[row], condition[row])[0], whole[k])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="2 means of 3 entries"):
        MixtureDenoiser(torch.ones(2), torch.zeros(2, 3), torch.ones(2, 2, 2), Cosine())

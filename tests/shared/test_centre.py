"""The Gaussian centre against dense linear algebra, and denoisers around it against exact ones."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ebbtide.shared import centre as centre_module
from ebbtide.shared.centre import CrossFitted, GaussianCentre
from ebbtide.shared.data import NOTHING, Condition, Encoded
from ebbtide.shared.denoisers import CentredDenoiser
from ebbtide.shared.exact import GaussianDenoiser
from ebbtide.shared.guidance import AutoGuided, AwayFromCentre
from ebbtide.shared.latent import haar_unpack
from ebbtide.shared.noise import Keys
from ebbtide.shared.samplers import Heun
from ebbtide.shared.schedules import EDM, Cosine, RectifiedFlow

SHAPE, SIZE, RANK = (2, 3, 2), 12, 3
SCHEDULES = [Cosine(), EDM(), RectifiedFlow()]


class Zero(nn.Module):
    """An untrained network."""

    def forward(self, x, level, condition):
        self.asked = x, level, condition
        return torch.zeros_like(x)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centre(seed=0):
    variance = 0.05 + drawn(SIZE, seed=seed + 2).square() / 4
    return GaussianCentre(drawn(*SHAPE, seed=seed), drawn(SIZE, RANK, seed=seed + 1), variance)


def dense(gauss):
    return gauss.mean, gauss.loadings @ gauss.loadings.T + gauss.variance.diag()


def exact(gauss, schedule):
    mean, covariance = dense(gauss)
    return GaussianDenoiser(mean.reshape(SHAPE), covariance, schedule)


def some_known(batch, share=0.5, seed=3):
    observed = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(seed)) < share
    return Encoded(drawn(batch, *SHAPE, seed=seed) * observed, observed)


def test_posterior_is_the_dense_one():
    gauss, known = centre(), some_known(6)
    mean, std = gauss.posterior(known)
    first, second = exact(gauss, Cosine()).moments(Condition(known=known))
    assert torch.allclose(mean.flatten(1), first)
    assert torch.allclose(std.flatten(1), second.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt(), atol=1e-7)
    assert torch.equal(mean[known.observed], known.values[known.observed])
    assert not std[known.observed].any()


def test_prior_is_the_posterior_of_nothing():
    gauss = centre()
    nothing = Encoded(torch.zeros(1, *SHAPE).double(), torch.zeros(1, *SHAPE, dtype=torch.bool))
    for a, b in zip(gauss.prior(), gauss.posterior(nothing), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("known", [None, some_known(5)], ids=["free", "given"])
def test_an_untrained_network_around_it_is_exact_on_a_gaussian(schedule, known):
    gauss, x_t, t = centre(), drawn(5, *SHAPE, seed=9), torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    condition = Condition(known=known)
    denoiser, truth = CentredDenoiser(Zero(), schedule, gauss), exact(gauss, schedule)
    assert torch.allclose(denoiser(x_t, t, condition), truth(x_t, t, condition), atol=1e-8)
    out = denoiser.precondition(x_t, t, condition).out
    second = truth.moments(condition, x_t, t)[1].diagonal(dim1=1, dim2=2).clamp(min=0)
    assert torch.allclose(out.flatten(1), second.sqrt(), atol=1e-7)


def test_sampling_it_untrained_gives_the_gaussian_and_its_conditionals():
    gauss, n = centre(), 2000
    denoiser, known = CentredDenoiser(Zero(), RectifiedFlow(), gauss), some_known(1)
    repeated = Encoded(known.values.expand(n, *SHAPE), known.observed.expand(n, *SHAPE))
    for condition in (NOTHING, Condition(known=repeated)):
        x = Heun(20)(denoiser, SHAPE, Keys.range(0, n), condition, like=torch.empty(0).double()).flatten(1)
        one = Condition(known=known) if condition.known is not None else NOTHING
        first, second = (m[0] for m in exact(gauss, Cosine()).moments(one))
        std = second.diagonal().clamp(min=0).sqrt()
        assert ((x.mean(0) - first).abs() < 4.5 * std / math.sqrt(n) + 0.02 * std + 1e-9).all()
        assert torch.allclose(x.std(0), std, rtol=0.02 + 4.5 / math.sqrt(2 * n), atol=1e-9)


def test_the_network_sees_unit_variance_and_standardised_values():
    gauss, n = centre(), 20_000
    network, keys = Zero(), Keys.range(0, n)
    x_0, known = gauss.sample(keys), some_known(n)
    known = Encoded(x_0 * known.observed, known.observed)
    alpha, sigma = Cosine()(torch.tensor(0.5).double())
    x_t = alpha * x_0 + sigma * keys.normal(SHAPE, "noise", torch.float64)
    CentredDenoiser(network, Cosine(), gauss)(x_t, torch.tensor(0.5), Condition(known=known))
    x, _, told = network.asked
    assert torch.allclose(x.mean(0), torch.zeros(SHAPE).double(), atol=4.5 / math.sqrt(n))
    assert torch.allclose(x.std(0), torch.ones(SHAPE).double(), atol=0.03)
    assert torch.equal(x[known.observed], told.known.values[known.observed])
    assert told.channels.shape == (n, 2 * SHAPE[0], *SHAPE[1:])


def test_its_ideal_output_has_unit_variance_and_its_loss_is_finite():
    """(x_0 - E) / std_gauss is standard normal where hidden, so an untrained loss is 1 in the mean."""
    gauss, n = centre(), 4000
    keys, network = Keys.range(0, n), Zero()
    denoiser, x_0, mask = CentredDenoiser(network, Cosine(), gauss), gauss.sample(keys), some_known(n)
    condition = Condition(known=Encoded(x_0 * mask.observed, mask.observed))
    noise, t = keys.normal(SHAPE, "noise", torch.float64), keys.uniform(())
    loss = denoiser.loss(x_0, noise, t, condition, ~mask.observed)
    hidden = (~mask.observed).flatten(1).any(1)
    assert loss.isfinite().all()
    assert loss[hidden].mean().item() == pytest.approx(1.0, abs=0.05)


def test_away_from_the_centre_is_autoguidance_by_it_while_there_is_little_noise():
    """D_gauss + scale (D - D_gauss) to rounding: as two denoisers say, at one call of the network."""
    gauss = centre()

    class Some(nn.Module):
        def forward(self, x, level, condition):
            return 0.3 + 0.1 * x

    denoiser, alone = CentredDenoiser(Some(), EDM(), gauss), CentredDenoiser(Zero(), EDM(), gauss)
    x_t = gauss.sample(Keys.range(0, 3))
    away = AwayFromCentre(denoiser, 1.7, (0.0, 1.0))
    little, much = (EDM().time(torch.tensor(ratio, dtype=torch.float64)) for ratio in (0.5, 2.0))
    expected = AutoGuided(denoiser, alone, 1.7)(x_t, little, NOTHING)
    assert torch.allclose(away(x_t, little), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(away(x_t, little), denoiser(x_t, little), atol=1e-3)
    assert torch.equal(away(x_t, much), denoiser(x_t, much))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_fit_recovers_a_low_rank_gaussian(missing):
    gauss, n = centre(), 4000
    x = gauss.sample(Keys.range(0, n))
    observed = Keys.range(1, n).uniform(SHAPE) >= missing
    fitted = GaussianCentre.fit(x * observed, None if missing == 0 else observed, components=RANK, rounds=40)
    mean, covariance = dense(gauss)
    got_mean, got = dense(fitted)
    assert torch.allclose(got_mean, mean, atol=4.5 * math.sqrt(float(covariance.max()) / n) * 1.3)
    error = (got - covariance).norm() / covariance.norm()
    assert error < 0.11


def test_fit_of_few_records_does_not_promise_too_much():
    """30 records of 500 positions: new records fall within the stated spread."""
    true = GaussianCentre(torch.zeros(1, 500).double(), drawn(500, 3), torch.full((500,), 0.25).double())
    fitted = GaussianCentre.fit(true.sample(Keys.range(0, 30)), components=10)
    new = true.sample(Keys.range(0, 100, start=100))
    observed = torch.arange(500).expand(100, 1, 500) % 2 == 0
    mean, std = fitted.posterior(Encoded(new * observed, observed))
    z = ((new - mean) / std)[~observed]
    assert 0.9 < z.square().mean() < 1.25


def test_positions_never_seen_get_a_standard_normal():
    observed = torch.ones(10, 1, 4, dtype=torch.bool)
    observed[:, :, 2] = False
    x = drawn(10, 1, 4) * observed
    mean, std = GaussianCentre.fit(x, observed, components=2).prior()
    assert mean[0, 0, 2].item() == pytest.approx(0.0, abs=1e-6)
    assert std[0, 0, 2].item() == pytest.approx(1.0, rel=0.05)
    assert std.isfinite().all()


def test_no_components_is_a_template_with_its_spread():
    x = drawn(50, 1, 4) * 2 + 1
    fitted = GaussianCentre.fit(x, components=0)
    assert torch.allclose(fitted.prior()[0][0], x.mean(0))
    assert torch.allclose(fitted.prior()[1][0], x.std(0), rtol=0.05)
    mean, _ = fitted.posterior(Encoded(x, torch.ones_like(x, dtype=torch.bool)))
    assert torch.equal(mean, x)


def test_too_few_records_for_components_may_lack_entries_too():
    x = drawn(3, *SHAPE)
    seen = drawn(3, *SHAPE, seed=1) < 0.8
    fitted = GaussianCentre.fit(x * seen, seen, components=2)
    assert fitted.loadings.shape[1] == 0
    often = seen.all(0)  # where nothing lacks, the mean is the mean, up to the prior at 0
    mean = fitted.mean.reshape(SHAPE)
    assert (mean - x.mean(0))[often].abs().max() < 0.3 * x.mean(0)[often].abs().max()


def test_cross_fit_holds_out_whole_groups():
    x, groups = drawn(24, 1, 6), torch.arange(24) // 3 + 100
    crossed = CrossFitted.fit(x, None, groups, folds=3, components=2)
    fold = crossed.fold(groups)
    assert set(fold.tolist()) == {0, 1, 2}
    assert all(len(set(fold[groups == g].tolist())) == 1 for g in groups.unique())
    assert crossed.fold(torch.tensor([99, 105, 999])).tolist()[::2] == [-1, -1]
    known = Encoded(torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool))
    mean, _ = crossed.posterior(known, fold)
    for f in range(3):
        expected = x[fold != f].mean(0)
        assert torch.allclose(mean[fold == f], expected.expand_as(mean[fold == f]), atol=1e-9)
    assert torch.allclose(crossed.posterior(known)[0][0], x.mean(0))
    assert torch.allclose(crossed.prior(fold)[0], mean)


def test_a_cross_fitted_denoiser_uses_each_records_own_fold():
    x, groups = drawn(12, 1, 6), torch.arange(12)
    crossed = CrossFitted.fit(x, None, groups, folds=2, components=2)
    fold, t = crossed.fold(groups), torch.tensor(0.5)
    got = CentredDenoiser(Zero(), Cosine(), crossed)(x, t, Condition(fold=fold))
    for f in range(2):
        alone = CentredDenoiser(Zero(), Cosine(), crossed.parts[f])(x[fold == f], t)
        assert torch.allclose(got[fold == f], alone)


def test_one_group_cannot_be_cross_fitted():
    with pytest.raises(ValueError, match="two groups"):
        CrossFitted.fit(drawn(4, 1, 6), None, torch.zeros(4, dtype=torch.int64))


def test_state_round_trip():
    gauss = centre()
    again = GaussianCentre.blank(SHAPE, RANK).double()
    again.load_state_dict(gauss.state_dict())
    known = some_known(3)
    assert torch.equal(again.posterior(known)[0], gauss.posterior(known)[0])


# --- what is left over, in packets --------------------------------------------------------------


def smooth(n, size=16, seed=0):
    """Fields whose neighbours go together: noise blurred over five positions, of unit variance."""
    noise = drawn(n, 1, size + 4, size + 4, seed=seed)
    return F.avg_pool2d(noise, 5, stride=1) * 5


def test_in_packets_it_is_the_exact_denoiser_of_a_gaussian_that_is_independent_there():
    shape, levels = (2, 8, 4), 2
    bands = drawn(64, seed=1).square() + 0.1
    basis = haar_unpack(torch.eye(64).double().reshape(64, 32, 2, 1), shape[1:], levels).flatten(1)
    covariance = basis.T @ bands.diag() @ basis
    mean = drawn(*shape)
    gauss = GaussianCentre(mean, torch.zeros(64, 0).double(), covariance.diagonal().clone(), bands=bands)
    truth, x_t = GaussianDenoiser(mean, covariance, EDM()), drawn(5, *shape, seed=2)
    t = EDM().time(torch.tensor([0.05, 0.3, 1.0, 2.0, 20.0]).double())
    denoiser = CentredDenoiser(Zero(), EDM(), gauss)
    assert torch.allclose(denoiser(x_t, t, NOTHING), truth(x_t, t, NOTHING), atol=1e-8)
    second = truth.moments(NOTHING, x_t, t)[1].diagonal(dim1=1, dim2=2)
    assert torch.allclose(denoiser.precondition(x_t, t, NOTHING).out.flatten(1), second.sqrt(), atol=1e-7)
    drawn_ones = gauss.sample(Keys.range(0, 20_000)).flatten(1)
    assert (torch.cov(drawn_ones.T) - covariance).norm() < 0.1 * covariance.norm()


def test_packets_take_noise_off_where_neighbours_go_together():
    x, new = smooth(200), smooth(100, seed=1)
    plain, packed = (GaussianCentre.fit(x, components=4, packed=choice) for choice in (False, True))
    assert plain.bands is None and packed.bands is not None
    sigma = torch.full((100, 1, 1, 1), 0.5).double()
    x_t, one = new + sigma * drawn(*new.shape, seed=2), torch.ones_like(sigma)
    observed = (torch.arange(16) < 4).expand(100, 1, 16, 16)
    for known in (None, Encoded(new * observed, observed)):
        errors = []
        for fitted in (plain, packed):
            mean, std = fitted.denoise(x_t, one, sigma, known)
            hidden = torch.ones_like(observed) if known is None else ~observed
            assert torch.equal(mean[~hidden], new[~hidden])
            errors.append((mean - new)[hidden].square().mean())
            assert std[hidden].square().mean().item() == pytest.approx(errors[-1].item(), rel=0.2)
        assert errors[1] < 0.75 * errors[0]


def test_white_fields_lose_nothing_by_packets():
    x, new = drawn(400, 1, 8, 8), drawn(200, 1, 8, 8, seed=1)
    sigma = torch.full((200, 1, 1, 1), 0.7).double()
    x_t = new + sigma * drawn(*new.shape, seed=2)
    errors = [
        (
            GaussianCentre.fit(x, components=2, packed=choice).denoise(
                x_t, torch.ones_like(sigma), sigma, None
            )[0]
            - new
        )
        .square()
        .mean()
        for choice in (False, True)
    ]
    assert errors[1].item() == pytest.approx(errors[0].item(), rel=0.01)


def test_packets_hold_the_variance_of_their_block_also_where_data_are_missing():
    x = smooth(300, 8)
    seen = drawn(300, 1, 8, 8, seed=3) < 1.0
    for observed in (None, seen):
        fitted = GaussianCentre.fit(x if observed is None else x * seen, observed, components=3, packed=True)
        blocks = F.avg_pool2d(fitted.variance.reshape(1, 1, 8, 8), 4).flatten()
        assert torch.allclose(fitted.bands.reshape(16, 4).mean(0), blocks, rtol=0.01)
        # the mean of a block varies more than what is finest in it
        assert (fitted.bands.reshape(16, 4)[0] > 3 * fitted.bands.reshape(16, 4)[-1]).all()


@pytest.mark.parametrize("size", [(7, 8), (1, 5)])
def test_sizes_that_cannot_be_halved_are_not_packed(size):
    assert GaussianCentre.fit(drawn(30, 1, *size), components=2, packed=True).bands is None


def test_copies_of_a_record_promise_nothing():
    """What is left over is measured on other groups: with copies the spread is what it is without."""
    x = drawn(31, 1, 64)
    alone = GaussianCentre.fit(x, components=8)
    groups = torch.arange(31).repeat(3)
    copied = GaussianCentre.fit(x.repeat(3, 1, 1), components=8, groups=groups)
    assert torch.allclose(copied.variance, alone.variance, rtol=1e-6)
    careless = GaussianCentre.fit(x.repeat(3, 1, 1), components=8)
    assert careless.variance.mean() < 0.9 * alone.variance.mean()


def test_single_precision_is_near_double():
    gauss, known = centre(), some_known(6)
    single = GaussianCentre(*(v.float() for v in (gauss.mean.reshape(SHAPE), gauss.loadings, gauss.variance)))
    mean, std = single.posterior(Encoded(known.values.float(), known.observed))
    expected = gauss.posterior(known)
    assert (mean - expected[0]).abs().max() < 1e-4 and (std - expected[1]).abs().max() < 1e-4


def test_autocast_does_not_round_it():
    """64 components of positions that go together: in bfloat16 their system would not be definite."""
    size = 2000
    axes, turned = (torch.linalg.qr(drawn(n, 64, seed=n)).Q.float() for n in (size, 64))
    loadings = axes * torch.logspace(2.5, -1, 64) @ turned
    found = GaussianCentre(torch.zeros(1, size), loadings, torch.full((size,), 1e-2))
    x, sigma = found.sample(Keys.range(0, 3)), torch.full((3, 1, 1), 0.01)
    exact = found.denoise(x, torch.ones_like(sigma), sigma, None)
    known = Encoded(x * (torch.arange(size) % 2), (torch.arange(size) % 2 > 0).expand(3, 1, -1))
    posterior = found.posterior(known)
    with torch.autocast("cpu", torch.bfloat16):
        for halved, full in (
            (found.denoise(x, torch.ones_like(sigma), sigma, None), exact),
            (found.posterior(known), posterior),
        ):
            assert all(torch.equal(a, b) for a, b in zip(halved, full, strict=True))


def test_axes_of_many_positions_and_records_are_those_of_few():
    x = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 300) ** 2
    x = x - x.mean(0)
    exact = centre_module._axes(x, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(centre_module, "_LARGE", 100)
        found = centre_module._axes(x, 10)
    captured = [(x @ axes).square().sum(0) for axes in (exact, found)]
    assert torch.allclose(*captured, rtol=1e-3)
    assert torch.allclose(found.T @ found, torch.eye(10), atol=1e-5)

"""A model over a grid: exact before training, better after it, the same in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.grids import GridModel, GridSettings, GridShape, Trust, fit_model
from ebbtide.shared.grids.fitting import calibrated
from ebbtide.shared.hiding import GridData, Hiding, with_copies
from ebbtide.shared.latent import PackedNetwork
from ebbtide.shared.masking import Boxes, Cells, Mixture
from ebbtide.shared.noise import Keys

SHAPE = (1, 6, 5)
SETTINGS = GridSettings(
    widths=(8, 12), components=3, reach=0.0, floor=1e-4, steps=60, batch_size=16, held_out=0.2, folds=2
)
PATTERN = Mixture((Boxes(1), Cells(0.2, 0.8)))


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def law(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, loadings and noise variance of a Gaussian over the grid."""
    g = torch.Generator().manual_seed(seed)
    loadings = torch.randn(30, 3, generator=g) * 0.6
    return torch.randn(SHAPE, generator=g), loadings, 0.05 + 0.3 * torch.rand(30, generator=g)


@pytest.fixture
def exact() -> GridModel:
    return GridModel.untrained(SETTINGS, GridShape(SHAPE), GaussianCentre(*law()))


def drawn(n: int, seed: int = 1) -> Tensor:
    return GaussianCentre(*law()).sample(Keys.range(seed, n))


def test_before_training_it_generates_its_centre(exact: GridModel) -> None:
    x = exact.generate(Keys.range(0, 512)).flatten(1)
    mean, loadings, variance = law()
    covariance = loadings @ loadings.T + variance.diag()
    error = (x.mean(0) - mean.flatten()) / (covariance.diag() / len(x)).sqrt()
    assert error.abs().max() < 4.5
    ratio = x.var(0) / covariance.diag()
    assert ratio.sub(1).abs().max() < 4.5 * (2 / len(x)) ** 0.5 + 0.03  # the solver's own error


def test_before_training_it_fills_as_the_gaussian_does(exact: GridModel) -> None:
    truth = drawn(1)
    observed = torch.zeros(SHAPE, dtype=torch.bool)
    observed[:, :4] = True
    known = Encoded((truth * observed).expand(512, *SHAPE), observed.expand(512, *SHAPE))
    x = exact.fill(known, Keys.range(5, 512))
    assert torch.equal(x[:, observed], known.values[:, observed])
    mean, loadings, variance = law()
    covariance = loadings @ loadings.T + variance.diag()
    o, h = observed.flatten(), ~observed.flatten()
    gain = covariance[h][:, o] @ covariance[o][:, o].inverse()
    expected = mean.flatten()[h] + gain @ (truth.flatten() - mean.flatten())[o]
    spread = covariance[h][:, h] - gain @ covariance[o][:, h]
    found = x.flatten(1)[:, h]
    assert ((found.mean(0) - expected) / (spread.diag() / len(x)).sqrt()).abs().max() < 4.5
    assert (found.var(0) / spread.diag()).sub(1).abs().max() < 4.5 * (2 / len(x)) ** 0.5 + 0.03


def test_sample_i_is_the_same_in_any_company(exact: GridModel) -> None:
    with torch.no_grad():  # a network that does something
        for parameter in exact.denoiser.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    every = exact.generate(Keys.range(0, 70))
    assert torch.equal(exact.generate(Keys.range(0, 3)), every[:3])
    assert torch.equal(exact.generate(Keys.range(0, 5, start=65)), every[65:])


@pytest.mark.parametrize("size", [(7,), (8, 5), (6, 7, 4)])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_packed_network_takes_any_size(size: tuple[int, ...], levels: int) -> None:
    network = PackedNetwork(len(size), 2, levels, 1, widths=(8, 12), blocks=1)
    x = torch.randn(3, 2, *size)
    known = Encoded(torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool))
    told = Condition(channels=torch.randn(3, 1, *size), known=known)
    out = network(x, torch.zeros(3), told)
    assert out.shape == x.shape and torch.equal(out, torch.zeros_like(x))  # a new network says nothing
    assert torch.equal(network(x, torch.zeros(3), Condition(channels=told.channels)), out)


def coins(n: int, seed: int = 0) -> Tensor:
    """Records that no Gaussian knows: one entry in five is 2.5 (above) or -2.5 (below), the others 0."""
    g = torch.Generator().manual_seed(seed)
    sign = torch.where(torch.arange(SHAPE[1])[:, None] < SHAPE[1] // 2, 2.5, -2.5)
    return (torch.rand(n, *SHAPE, generator=g) < 0.2) * sign + 0.05 * torch.randn(n, *SHAPE, generator=g)


def flipped(keys: Keys, x: Tensor) -> tuple[Tensor, Tensor]:
    """Turned upside down, and told so."""
    done = keys.uniform((1,), "flip") < 0.5
    return torch.where(done[:, :, None, None], x.flip(2), x), done.to(x)


LEARNING = GridSettings(
    widths=(32,),
    levels=0,
    components=1,
    reach=0.0,
    blank=0.9,
    density_mean=-1.2,
    density_std=1.0,
    steps=160,
    batch_size=64,
    learning_rate=4e-3,
    patience=None,
)


def at_the_atoms(x: Tensor) -> float:
    """Share of entries near to a coin's two values."""
    return float((torch.minimum(x.abs(), (x.abs() - 2.5).abs()) < 0.25).float().mean())


def test_what_was_changed_in_training_is_not_changed_in_samples() -> None:
    data = GridData(coins(500), None, Condition(covariates=torch.zeros(500, 1)))
    model, _ = fit_model(data, replace(LEARNING, steps=60), PATTERN, augmentation=flipped, device="cpu")
    assert model.form == GridShape(SHAPE, covariates=1, done=1)
    # training saw half of them upside down
    x = model.generate(Keys.range(0, 64))
    assert x[:, :, :3].mean() > 0.35 and x[:, :, 3:].mean() < -0.35
    told = Condition(covariates=torch.zeros(2, 1))
    guided = model.generate(Keys.range(0, 2), told, guidance=2.0)
    assert guided.isfinite().all() and not torch.equal(guided, model.generate(Keys.range(0, 2), told))


def test_what_lies_beside_the_data_moves_with_it_and_is_left_out_at_times() -> None:
    values = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(3))
    beside = torch.where(values[:, :1] > 0, 1.0, -1.0)
    beside[:50] = 0  # not known of these
    data = GridData(values, None, Condition(channels=beside))
    hidden = Hiding(data, None, PATTERN, 0.5, 0.1, flipped, 1, drop_channels=0.3)
    batch = hidden.batch(torch.arange(200), Keys.range(0, 200))
    told = batch.condition.channels
    assert told is not None and not told[:50].any()
    blank = ~told[50:].flatten(1).any(1)
    assert 0.15 < blank.float().mean() < 0.45
    same = torch.where(batch.x_0[50:, :1] > 0, 1.0, -1.0)
    assert torch.equal(told[50:][~blank], same[~blank])
    assert not torch.equal(batch.x_0, values)  # some were turned


def test_few_examples_are_joined_by_copies_of_their_own_and_many_are_not() -> None:
    x = torch.arange(20 * 6.0).reshape(20, 1, 6)
    seen = torch.ones(20, 1, 6, dtype=torch.bool)
    seen[3, 0, 0] = False

    def flipped(keys: Keys, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flip(2), torch.ones(len(x), 1)

    few = GridData(x * seen, seen, groups=torch.arange(20) // 2)
    found = with_copies(few, flipped, 0)
    assert len(found) == 80 and torch.equal(found.owners, few.owners.repeat(4))
    assert torch.equal(found.values[:20], few.values) and torch.equal(found.values[60:], few.values.flip(2))
    assert found.observed is not None and (~found.observed).sum() == 4 and not found.observed[23, 0, 5]
    many = GridData(x.repeat(15, 1, 1))
    assert with_copies(many, flipped, 0) is many and with_copies(few, None, 0) is few


def test_a_model_of_channels_needs_none() -> None:
    centre = GaussianCentre.blank(SHAPE, 1)
    model = GridModel.untrained(LEARNING, GridShape(SHAPE, context=2), centre)
    with torch.no_grad():
        for parameter in model.denoiser.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    keys = Keys.range(0, 3)
    blank = Condition(channels=torch.zeros(3, 2, *SHAPE[1:]))
    some = Condition(channels=torch.ones(3, 2, *SHAPE[1:]))
    assert torch.equal(model.generate(keys), model.generate(keys, blank))
    assert not torch.equal(model.generate(keys), model.generate(keys, some))


def test_settings_guide_by_channels_and_away_from_the_centre(exact: GridModel) -> None:
    """Without a network there is nothing but the centre, and without channels nothing to follow."""
    keys = Keys.range(0, 3)
    away = GridModel(replace(SETTINGS, autoguidance=2.0), exact.form, exact.denoiser)
    assert torch.allclose(away.generate(keys), exact.generate(keys), atol=1e-5)
    plain = GridModel.untrained(LEARNING, GridShape(SHAPE, context=2), GaussianCentre.blank(SHAPE, 1))
    with torch.no_grad():
        for parameter in plain.denoiser.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    closely = GridModel(replace(LEARNING, channel_guidance=3.0), plain.form, plain.denoiser)
    away = GridModel(replace(LEARNING, autoguidance=2.0), plain.form, plain.denoiser)
    some = Condition(channels=torch.ones(3, 2, *SHAPE[1:]))
    assert torch.equal(plain.generate(keys), closely.generate(keys))
    assert not torch.allclose(plain.generate(keys, some), closely.generate(keys, some), atol=1e-3)
    assert not torch.allclose(plain.generate(keys), away.generate(keys), atol=1e-3)


def test_training_learns_what_the_centre_cannot_know() -> None:
    model, trained = fit_model(GridData(coins(1000)), LEARNING, PATTERN, device="cpu")
    losses = [row["held_out"] for row in trained.history]
    assert losses[-1] < 0.85 * losses[0], losses
    x = model.generate(Keys.range(0, 64))
    untrained = GridModel.untrained(model.settings, model.form, model.denoiser.centre)
    assert at_the_atoms(x) > 1.5 * at_the_atoms(untrained.generate(Keys.range(0, 64)))
    config, tensors = model.state()
    again = GridModel.from_state(config, tensors)
    assert again.form == model.form and again.settings == model.settings
    # weights are kept in half precision: samples are nearly the same
    assert (again.generate(Keys.range(0, 8)) - x[:8]).abs().mean() < 0.05


def test_what_the_centre_knows_of_neighbours_is_kept_with_the_model() -> None:
    x = torch.randn(40, 1, 10, 6, 6, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.avg_pool3d(x, 3, stride=1) * 5  # 8 x 4 x 4, and neighbours go together
    model, _ = fit_model(GridData(x), replace(SETTINGS, steps=4), PATTERN, device="cpu")
    config, tensors = model.state()
    assert "centre.bands" in tensors
    again, keys = GridModel.from_state(config, tensors), Keys.range(0, 4)
    assert (again.generate(keys) - model.generate(keys)).abs().mean() < 0.02
    # a model of an earlier version holds none, and is read as it is
    del tensors["centre.bands"]
    older = GridModel.from_state(config, tensors)
    assert older.denoiser.centre.bands is None
    assert (older.generate(keys) - model.generate(keys)).abs().mean() > 0.05


def test_unknown_entries_teach_nothing() -> None:
    values, observed = coins(60), torch.ones(60, *SHAPE, dtype=torch.bool)
    observed[:, :, 0] = False
    data = [GridData(torch.where(observed, values, junk) * observed, observed) for junk in (0.0, 9.0)]
    a, b = (fit_model(one, SETTINGS, PATTERN, device="cpu")[0] for one in data)
    assert all(torch.equal(a.state()[1][name], tensor) for name, tensor in b.state()[1].items())


def test_the_mean_needs_no_draws(exact: GridModel) -> None:
    truth = drawn(1)
    observed = torch.zeros(SHAPE, dtype=torch.bool)
    observed[:, :, :3] = True
    known = Encoded((truth * observed), observed[None])
    mean = exact.expected(known, Keys.range(0, 1))
    assert torch.allclose(mean, exact.denoiser.centre.posterior(known)[0], atol=0.03)
    assert torch.equal(mean[known.observed], known.values[known.observed])


def test_trust_widens_draws_around_the_mean(exact: GridModel) -> None:
    known = Encoded(torch.zeros(2, *SHAPE), torch.zeros(2, *SHAPE, dtype=torch.bool))
    wide = GridModel(exact.settings, exact.form, exact.denoiser, Trust(1.0, 2.0))
    plain, wider = (model.fill(known, Keys.range(0, 2)) for model in (exact, wide))
    mean = exact.expected(known, Keys.range(0, 2))
    assert torch.allclose(wider - mean, 2 * (plain - mean), atol=1e-4)


def test_calibration_finds_what_a_wrong_network_needs() -> None:
    """A centre that holds every position for as uncertain as it is (so its draws cover), and one that is told
    half of that: found are spreads of about 1 and 2."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(200, *SHAPE, generator=g)
    pattern = Cells(0.3, 0.7)
    for held, spread in ((1.0, 1.0), (0.25, 2.0)):
        centre = GaussianCentre(torch.zeros(SHAPE), torch.zeros(30, 0), torch.full((30,), held))
        model = GridModel.untrained(SETTINGS, GridShape(SHAPE), centre)
        found = calibrated(model, Hiding(GridData(x), None, pattern, 0.0, 0.0, None), seed=0, most=100)
        assert found.spread == pytest.approx(spread, rel=0.12)

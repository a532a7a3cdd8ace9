"""Models of grids that work in latents: asked in pixels, exact where pixels are known, better than a mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.errors import InputError
from ebbtide.shared.grids import (
    GridSettings,
    GridShape,
    LatentModel,
    distil_model,
    fit_model,
    model_from_state,
    probe,
)
from ebbtide.shared.grids.latent_fitting import InLatents
from ebbtide.shared.grids.latents import _sure
from ebbtide.shared.hiding import GridData, Hiding
from ebbtide.shared.masking import Boxes, EveryKth, Half, Mixture
from ebbtide.shared.noise import Keys
from ebbtide.shared.smooth import smoothly_filled

SIZE = 12
SETTINGS = GridSettings(
    widths=(24, 32),
    levels=0,
    components=6,
    folds=2,
    held_out=0.2,
    blank=0.4,
    steps=120,
    batch_size=16,
    learning_rate=3e-3,
    patience=None,
    latent=3,
    latent_widths=(12, 24),
    latent_steps=160,
    latent_crop=SIZE,
)
PATTERN = Mixture((Boxes(2, 0.3, 0.7), Half(), EveryKth((2, 3), grid=True)))


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def bars(n: int, seed: int = 0) -> Tensor:
    """(n, 1, 12, 12): a bright bar across or along, somewhere, with soft edges; what no mean shows."""
    g = torch.Generator().manual_seed(seed)
    place, turned = 2 + 8 * torch.rand(n, 1, generator=g), torch.rand(n, 1, 1, generator=g) < 0.5
    line = (-((torch.arange(SIZE) - place) ** 2) / 4).exp()
    across = line[:, :, None].expand(-1, -1, SIZE)
    x = torch.where(turned, across, across.transpose(1, 2))[:, None]
    return (x - 0.29) / 0.35


@pytest.fixture(scope="module")
def model() -> LatentModel:
    torch.set_default_dtype(torch.float32)
    made, _ = fit_model(GridData(bars(200)), SETTINGS, PATTERN, device="cpu")
    assert isinstance(made, LatentModel)
    return made


def hidden(x: Tensor) -> Encoded:
    """Of which the right half is not known."""
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[..., SIZE // 2 :] = False
    return Encoded(x * observed, observed)


# --- the smooth guess ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(9,), (8, 13), (5, 6, 7)])
def test_a_guess_keeps_what_is_known_and_continues_it(size: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    observed = torch.rand(3, 2, *size, generator=g) < 0.3
    observed[1, 1], observed[2, 0] = False, True
    x = torch.randn(3, 2, *size, generator=g)
    filled = smoothly_filled(x * observed, observed)
    assert torch.equal(filled[observed], x[observed])
    assert not filled[1, 1].any()  # nothing to go by
    low, high = (x.masked_fill(~observed, -sign * 9).mul(sign).flatten(2).amax(2) * sign for sign in (-1, 1))
    some = observed.flatten(2).any(2)
    inside = (filled.flatten(2) >= low[..., None] - 1e-5) & (filled.flatten(2) <= high[..., None] + 1e-5)
    assert inside[some].all()
    assert torch.equal(smoothly_filled((x * observed)[:1], observed[:1]), filled[:1])
    level = smoothly_filled(torch.full_like(x, 0.7) * observed, observed)
    assert (level[some] - 0.7).abs().max() < 1e-5


def test_a_guess_between_lines_is_linear() -> None:
    x = torch.arange(17.0).expand(1, 1, 17, 17) + 2 * torch.arange(17.0)[:, None]
    observed = torch.zeros_like(x, dtype=torch.bool)
    observed[..., ::2] = True
    assert (smoothly_filled(x * observed, observed) - x)[..., 4:-4, 4:-4].abs().max() < 0.1


# --- what of the latents is known ---------------------------------------------------------------


def test_a_latent_is_known_when_it_and_its_neighbours_see_no_hole() -> None:
    observed = torch.ones(1, 2, 16, 14, dtype=torch.bool)
    observed[0, 1, 9, 1] = False  # block (2, 0) of four
    sure = _sure(observed, 4, 1)[0, 0]
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[1:4, :2] = False
    assert torch.equal(sure, expected)


def test_examples_are_the_same_in_any_company(model: LatentModel) -> None:
    """Bit for bit, kept or made anew: what a resumed training needs."""
    hiding = Hiding(GridData(bars(12, 3)), None, PATTERN, 0.5, 0.0, None)
    fold = torch.full((12,), -1)
    rows = torch.arange(12)
    every = InLatents(hiding, model, fold).batch(rows, Keys.range(1, 12))
    other = InLatents(hiding, model, fold)
    other.batch(rows[3:5], Keys.range(1, 12)[rows[3:5]])
    some = other.batch(rows[2:7], Keys.range(1, 12)[rows[2:7]])
    assert torch.equal(some.x_0, every.x_0[2:7]) and torch.equal(some.where, every.where[2:7])
    assert some.condition.channels is not None and every.condition.channels is not None
    assert torch.equal(some.condition.channels, every.condition.channels[2:7])
    blank = ~every.condition.channels[:, 3:].flatten(1).any(1)
    assert 0 < int(blank.sum()) < 12 and not every.condition.channels[blank].any()


# --- the model ----------------------------------------------------------------------------------


def test_it_fills_better_than_the_mean_and_keeps_what_is_known(model: LatentModel) -> None:
    truth = bars(40, 9)
    known = hidden(truth)
    mean = model.expected(known, Keys.range(0, 40))
    assert torch.equal(mean[known.observed], truth[known.observed])
    drawn = model.fill(known, Keys.range(0, 40))
    assert torch.equal(drawn[known.observed], truth[known.observed])
    missing, average = ~known.observed, bars(200).mean(0)

    def error(x: Tensor) -> float:
        return float((x - truth)[missing].square().mean())

    assert error(mean) < 0.5 * error(average.expand_as(truth))
    smooth = smoothly_filled(known.values, known.observed)
    assert error(mean) < 0.8 * error(smooth)


def test_intervals_of_its_draws_cover_pixels(model: LatentModel) -> None:
    """90 % prediction intervals of Student's law from eight draws, on new examples hidden as in training."""
    count, draws = 24, 8
    truth, seen = bars(count, 11), PATTERN(Keys.range(4, count), (1, SIZE, SIZE))
    known = Encoded(truth * seen, seen)
    rows = torch.arange(count).repeat_interleave(draws)
    keys = Keys(3, rows, torch.arange(draws).repeat(count))
    drawn = model.fill(known[rows], keys).unflatten(0, (count, draws))
    half = 1.895 * (1 + 1 / draws) ** 0.5 * drawn.std(1)
    inside = ((truth - drawn.mean(1)).abs() <= half)[~seen]
    assert 0.8 < inside.float().mean() < 0.98


def test_what_it_generates_has_bars(model: LatentModel) -> None:
    x, real = model.generate(Keys.range(0, 48)), bars(200)
    assert x.shape == (48, 1, SIZE, SIZE)
    assert abs(float(x.mean() - real.mean())) < 0.25 and abs(float(x.std() / real.std()) - 1) < 0.25
    # In one direction a bar varies, in the other it does not.
    across, along = x.mean(3).std(2), x.mean(2).std(2)
    uneven = torch.maximum(across, along) / torch.minimum(across, along).clamp(min=1e-3)
    assert uneven.median() > 3


def test_an_answer_does_not_depend_on_company(model: LatentModel) -> None:
    every = model.generate(Keys.range(0, 35))
    assert torch.equal(model.generate(Keys.range(0, 3)), every[:3])
    assert torch.equal(model.generate(Keys.range(0, 2, start=33)), every[33:])
    known = hidden(bars(35, 5))
    filled = model.fill(known, Keys.range(2, 35))
    rows = torch.tensor([33, 4])
    assert torch.equal(model.fill(known[rows], Keys.range(2, 35)[rows]), filled[rows])


def test_a_variation_stays_near(model: LatentModel) -> None:
    start = bars(6, 4)
    near, far = (model.generate(Keys.range(0, 6), start=start, t_start=t) for t in (0.2, 0.9))
    assert (near - start).square().mean() < 0.5 * (far - start).square().mean()


def test_it_is_kept_whole(model: LatentModel) -> None:
    config, tensors = model.state()
    again = model_from_state(config, tensors)
    assert isinstance(again, LatentModel)
    assert again.form == model.form and again.settings == model.settings and again.trust == model.trust
    assert again.error == model.error and 0 < model.error < 0.5
    x = bars(4, 8)
    assert (again.out(again.into(x)) - model.out(model.into(x))).abs().max() < 0.05
    keys = Keys.range(0, 8)
    assert (again.generate(keys) - model.generate(keys)).abs().mean() < 0.08
    assert again.description == model.description and "3 x 6 x 6" in model.description[0]


def test_it_is_distilled_as_any_other(model: LatentModel) -> None:
    fast, _ = distil_model(
        model, lambda keys: Condition(), steps=2, paths=40, calls=4, passes=2, device="cpu"
    )
    assert isinstance(fast, LatentModel) and fast.jumps == 2
    assert fast.generate(Keys.range(0, 3)).shape == (3, 1, SIZE, SIZE)


def test_tiles_are_decoded_and_encoded_as_the_whole(
    model: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = bars(2, 6)
    z = model.into(x)
    whole = model.out(z)
    assert model._tiles == (None, 0)
    monkeypatch.setattr(model.core, "settings", replace(SETTINGS, latent_crop=9))
    assert model._tiles == (5, 1)
    assert (model.into(x) - z).square().mean() < 0.1  # group statistics are those of a tile
    assert (model.out(z) - whole).square().mean() < 0.1


# --- training -----------------------------------------------------------------------------------

QUICK = replace(SETTINGS, steps=6, latent_steps=3, widths=(8,), latent_widths=(4, 8), batch_size=8)


def weights(model: object) -> dict[str, Tensor]:
    assert isinstance(model, LatentModel)
    return model.state()[1]


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Stopped(Exception):
        """The power is gone."""

    def until(words: str) -> object:
        def progress(label: str, fraction: float) -> None:
            if words in label:
                raise Stopped

        return progress

    def fit(folder: Path, **more: object) -> LatentModel:
        made, _ = fit_model(
            GridData(bars(30)),
            QUICK,
            PATTERN,
            device="cpu",
            seed=2,
            folder=folder,
            **more,  # type: ignore[arg-type]
        )
        assert isinstance(made, LatentModel)
        return made

    whole = weights(fit(tmp_path / "whole"))
    with pytest.raises(Stopped):
        fit(tmp_path / "a", progress=until("autoencoder: step 2"))
    assert not (tmp_path / "a" / "autoencoder").exists()
    with pytest.raises(Stopped):
        fit(tmp_path / "a", progress=until("fitting the centre"), resume=True)
    assert (tmp_path / "a" / "autoencoder" / "manifest.json").is_file()
    said: list[str] = []
    again = weights(fit(tmp_path / "a", resume=True, progress=lambda label, fraction: said.append(label)))
    assert not any("autoencoder" in label for label in said)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    with pytest.raises(InputError, match="another"):
        fit_model(
            GridData(bars(30)), replace(QUICK, latent_steps=4), PATTERN, device="cpu", seed=2,
            folder=tmp_path / "a", resume=True,
        )  # fmt: skip


def test_labels_maps_covariates_and_unseen_parts_are_taken(tmp_path: Path) -> None:
    """Volumes of an odd size and two channels, of which one is missing at times; a map beside them."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, 9, 8, 10, generator=g)
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[:4, 1], observed[:, :, 0] = False, False
    told = Condition(covariates=torch.randn(12, 1, generator=g), channels=(x[:, :1] > 0).float())
    settings = replace(QUICK, channel_guidance=1.5)
    made, _ = fit_model(GridData(x * observed, observed, told), settings, PATTERN, device="cpu")
    assert made.form == GridShape((2, 9, 8, 10), covariates=1, context=1)
    assert made.core.form.shape == (3, 5, 4, 5) and made.core.form.context == 1 + 3 + 2
    keys = Keys.range(0, 2)
    with_map, without = made.generate(keys, told[:2]), made.generate(keys, replace(told[:2], channels=None))
    assert with_map.shape == without.shape == (2, 2, 9, 8, 10)
    known = Encoded((x * observed)[:2], observed[:2])
    filled = made.fill(known, keys, told[:2], guidance=1.5)
    assert torch.equal(filled[known.observed], known.values[known.observed]) and filled.isfinite().all()
    assert probe(settings, made.form)["minutes"] >= 0


def test_latents_that_cannot_be_are_refused() -> None:
    for wrong in ({"latent": -1}, {"latent_widths": ()}, {"latent_crop": 1}, {"latent_steps": 0}):
        with pytest.raises(InputError, match="latent"):
            fit_model(GridData(bars(8)), replace(QUICK, **wrong), PATTERN, device="cpu")  # type: ignore[arg-type]


def test_the_plan_says_so() -> None:
    assert GridSettings().notes == []
    assert "latent: 0" in GridSettings(latent=4).notes[0]
    assert GridSettings.from_dict({"widths": [8]}).latent == 0  # models saved before know nothing of it

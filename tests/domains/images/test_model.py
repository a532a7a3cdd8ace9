"""The model of pictures: what a caption asks for appears, and a picture can be varied or led to another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ebbtide.domains.images.collection import Collection, collect
from ebbtide.domains.images.model import FittedImages, recommended
from ebbtide.domains.images.pictures import Picture
from ebbtide.domains.images.space import ImageSpace
from ebbtide.shared.centre import GaussianCentre
from ebbtide.shared.data import NOTHING
from ebbtide.shared.errors import InputError
from ebbtide.shared.grids import GridModel, GridSettings, GridShape
from ebbtide.shared.noise import Keys

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220)}
SIDES = ("left", "right")


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Squares of three colours on either side, 240 of 8 x 8 pixels, captioned in two ways."""
    root, rng = tmp_path_factory.mktemp("captioned"), np.random.default_rng(0)
    rows = ["file_name,caption"]
    for k in range(240):
        colour, side = list(COLOURS)[k % 3], SIDES[k // 3 % 2]
        pixels = np.full((8, 8, 3), 20.0)
        top, left = rng.integers(1, 4), 0 if side == "left" else 4
        pixels[top : top + 4, left : left + 4] = COLOURS[colour]
        pixels += rng.normal(0, 6, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{k:03d}.png")
        rows.append(f"{k:03d}.png,{'a ' if k % 2 else ''}{colour} square on the {side}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return collect(root)


def seen(picture: np.ndarray) -> tuple[str, str]:
    """The colour and the side of the square in a picture."""
    bright = picture.max(-1) > 100
    mean = picture[bright].mean(0) if bright.any() else np.zeros(3)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
    return colour, SIDES[int(bright[:, 4:].sum() > bright[:, :4].sum())]


def test_what_a_prompt_says_appears(captioned: Collection) -> None:
    settings = GridSettings(
        widths=(24, 32), attention=(1,), levels=1, components=8, folds=2, blank=0.7, steps=260,
        batch_size=24, learning_rate=3e-3, sampler_steps=8, patience=None, held_out=0.05,
        coordinates=True, density_mean=0.6, density_std=1.6,
    )  # fmt: skip
    fitted = FittedImages.fit(captioned, settings=settings, device="cpu")
    assert fitted.can == ("generate", "impute", "vary", "prompt")
    right, count = 0, 12
    for colour in COLOURS:
        for side in SIDES:
            keys = Keys.range(1, count)
            condition = fitted.condition(keys, {}, f"a {colour} square on the {side}")
            made = fitted.generate(keys, condition, guidance=3.0)
            right += sum(seen(picture) == (colour, side) for picture in made)
    assert right / (6 * count) >= 0.9
    keys = Keys.range(2, 48)
    without = fitted.generate(keys, fitted.condition(keys, {}), guidance=3.0, negative="red")
    plain = fitted.generate(keys, fitted.condition(keys, {}))
    reds = [sum(seen(picture)[0] == "red" for picture in some) for some in (without, plain)]
    assert reds[0] <= reds[1] / 3


def gaussian(pictures: Collection) -> FittedImages:
    """An untrained network: the exact denoiser of the centre's Gaussian."""
    space = ImageSpace.fit(pictures)
    values = space.standardised(space.scaled(space.pixels(pictures)))
    settings = GridSettings(widths=(8,), levels=0, components=8, sampler_steps=30)
    centre = GaussianCentre.fit(values, components=8)
    return FittedImages(space, GridModel.untrained(settings, GridShape(space.shape), centre), {})


def test_a_variation_stays_nearer_the_weaker_it_is(shapes: Path) -> None:
    pictures = collect(shapes)
    fitted, keys = gaussian(pictures), Keys.range(0, 16)
    given = pictures.read(3)
    away = [
        np.abs(fitted.generate(keys, NOTHING, like=[given], strength=s).astype(float) - given.pixels).mean()
        for s in (0.05, 0.4, 1.0)
    ]
    assert away[0] < 8 < away[1] < away[2]
    with pytest.raises(InputError, match="strength"):
        fitted.generate(keys, NOTHING, like=[given], strength=0)


def test_a_way_between_two_pictures_has_them_at_its_ends(shapes: Path) -> None:
    pictures = collect(shapes)
    fitted = gaussian(pictures)
    ends: tuple[Picture, Picture] = pictures.read(0), pictures.read(20)
    keys = Keys.range(7, 40, start=3)  # more than are computed at once
    made = fitted.between(ends, torch.linspace(0, 1, 40), keys, NOTHING).astype(float)
    first, last = (np.abs(made - end.pixels).mean((1, 2, 3)) for end in ends)
    assert first[0] < 4 and last[-1] < 4 and first[-1] > 15 and last[0] > 15
    assert (np.diff(first) > -1).all() and (np.diff(last) < 1).all()
    some = fitted.between(ends, torch.linspace(0, 1, 40)[10:12], keys[torch.arange(10, 12)], NOTHING)
    assert np.array_equal(some, made[10:12])


def test_captions_are_attended_to_where_things_have_a_shape() -> None:
    plain, told = (recommended((3, 16, 16), 2000, captions=captions) for captions in (False, True))
    assert plain.attention == (2,) and not plain.coordinates
    assert told.attention == (1, 2) and told.coordinates
    differs = {name for name, value in asdict(told).items() if value != asdict(plain)[name]}
    assert differs == {"attention", "coordinates", "density_mean", "density_std"}


def test_large_pictures_are_modelled_in_latents() -> None:
    small, large = (recommended((3, n, 256), 2000) for n in (255, 256))
    assert small.latent == 0 and not small.notes
    assert large.latent == 4 and large.levels == 1 and "autoencoder" in large.notes[0]

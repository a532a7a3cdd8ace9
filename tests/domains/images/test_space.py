"""To model space and back: nothing known is lost, nothing hidden is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from ebbtide.domains.images.augmenting import PictureAugmentation
from ebbtide.domains.images.collection import collect
from ebbtide.domains.images.conditions import Conditions
from ebbtide.domains.images.framing import around, middle
from ebbtide.domains.images.pictures import MODES, Picture
from ebbtide.domains.images.space import ImageSpace
from ebbtide.shared.covariates import Covariate, Covariates
from ebbtide.shared.errors import InputError
from ebbtide.shared.noise import Keys

Noise = Callable[..., np.ndarray]


def space_of(shape: tuple[int, int, int], bits: int = 8, reduces: bool = False) -> ImageSpace:
    mean, std = torch.linspace(0.3, 0.5, shape[0]), torch.linspace(0.2, 0.3, shape[0])
    return ImageSpace(shape, mean, std, bits, reduces=reduces)


def test_model_space_has_zero_mean_and_unit_variance(shapes: Path) -> None:
    found = collect(shapes)
    space = ImageSpace.fit(found)
    assert space.shape == (1, 12, 12) and space.bits == 8 and space.notes == ()
    values = space.standardised(space.scaled(space.pixels(found)))
    assert abs(values.mean()) < 1e-5 and abs(values.std() - 1) < 1e-5
    assert torch.equal(space.encode(found.read(7)).values, values[7])
    assert np.array_equal(space.decode_generated(values)[7], found.read(7).pixels)


def test_what_is_saved_comes_back(shapes: Path) -> None:
    space = ImageSpace.fit(collect(shapes))
    config, tensors = space.state()
    again = ImageSpace.from_state(json.loads(json.dumps(config)), tensors)
    assert again.shape == space.shape and again.conditions == space.conditions and again.notes == space.notes
    assert torch.equal(again.mean, space.mean) and torch.equal(again.std, space.std)


@given(
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    channels=st.integers(1, 4),
    bits=st.sampled_from([8, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_known_pixels_come_back_bit_for_bit(
    height: int, width: int, channels: int, bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2**bits, (height, width, channels)).astype(f"uint{bits}")
    picture, hidden = Picture(pixels, MODES[channels]), np.zeros((height, width), bool)
    top, left = rng.integers(height), rng.integers(width)
    hidden[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    placed = space_of((4, 16, 12)).encode(picture, hidden)
    assert not placed.values[~placed.observed].any() and torch.isfinite(placed.values).all()
    back = space_of((4, 16, 12)).decode(torch.full((4, 16, 12), 100.0), placed.frame)
    assert back.dtype == pixels.dtype and np.array_equal(back[~hidden], pixels[~hidden])
    assert (
        back[hidden] == np.iinfo(pixels.dtype).max
    ).all()  # every hidden pixel is filled, the last one too


@given(height=st.integers(4, 60), width=st.integers(4, 60), seed=st.integers(0, 1000))
def test_the_window_holds_what_is_hidden(height: int, width: int, seed: int) -> None:
    hidden = np.random.default_rng(seed).random((height, width)) < 0.02
    window = around(hidden, (9, 7))
    rows, columns = np.nonzero(hidden)
    assert ((rows >= window.top) & (rows < window.top + window.height)).all()
    assert ((columns >= window.left) & (columns < window.left + window.width)).all()
    plain = middle((height, width), (9, 7))
    assert plain.top >= 0 and plain.top + plain.height <= height and plain.left + plain.width <= width


def test_nothing_hidden_is_looked_at(noise: Noise) -> None:
    pixels, hidden = noise(50, 70), np.zeros((50, 70), bool)
    hidden[11:29, 20:43] = True
    space = space_of((3, 24, 24))
    first = space.encode(Picture(pixels, "RGB"), hidden)
    changed = np.where(hidden[..., None], 255 - pixels, pixels)
    assert torch.equal(space.encode(Picture(changed, "RGB"), hidden).values, first.values)
    whole = space.encode(Picture(pixels, "RGB"), np.zeros((50, 70), bool))
    assert first.frame.window == middle((50, 70), (24, 24))  # it holds what is hidden: it need not move
    assert (first.values - whole.values)[first.observed].abs().max() < 1e-3
    assert 0.1 < (~first.observed).float().mean() < 0.35


def test_a_known_picture_of_the_models_size_is_not_blurred(noise: Noise) -> None:
    space = space_of((3, 20, 20), bits=16)
    for bits in (8, 16):
        picture = Picture(noise(20, 20, 3, bits), "RGB")
        placed = space.encode(picture)
        assert placed.observed.all() and np.array_equal(
            space.decode(placed.values, placed.frame), picture.pixels
        )


def test_scaling_down_averages(noise: Noise) -> None:
    y, x = np.mgrid[:64, :64]
    checks = Picture((255 * ((x + y) % 2)).astype(np.uint8)[..., None], "L")
    values = space_of((1, 16, 16)).unstandardised(space_of((1, 16, 16)).encode(checks).values)
    assert (values[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.05  # without antialiasing it would be 0 or 1


def test_a_photograph_is_filled_where_it_is_hidden() -> None:
    photo = load_sample_images().images[0]
    picture, hidden = Picture(photo, "RGB"), np.zeros(photo.shape[:2], bool)
    hidden[300:380, 500:600] = True
    space = space_of((3, 64, 64))
    placed = space.encode(picture, hidden)
    clean = space.encode(picture, np.zeros_like(hidden))
    window = placed.frame.window
    assert window.height == window.width == 427 and window.left > clean.frame.window.left
    back = space.decode(placed.values, placed.frame)
    assert np.array_equal(back[~hidden], photo[~hidden])
    # 0 in model space is the mean.
    assert np.abs(back[320:360, 520:580] - 255 * space.mean.numpy()).max() <= 0.5


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_reduced_on_purpose_only(noise: Noise, mode: str, channels: int) -> None:
    picture = Picture(noise(8, 8, {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]), mode)
    needed = {"L": 1, "LA": 4, "RGB": 3, "RGBA": 4}[mode]
    if needed > channels:
        with pytest.raises(InputError, match="image-channels"):
            space_of((channels, 8, 8)).encode(picture)
    space = space_of((channels, 8, 8), reduces=True)
    placed = space.encode(picture)
    back = space.decode(placed.values, placed.frame)
    assert back.shape == picture.pixels.shape
    if needed <= channels:
        assert np.abs(back.astype(int) - picture.pixels).max() <= 1


def test_the_most_demanding_picture_decides_and_is_told(tmp_path: Path, noise: Noise) -> None:
    Image.fromarray(noise(40, 30)).save(tmp_path / "a.png")
    Image.fromarray(noise(20, 24, 1, 16)[..., 0]).save(tmp_path / "b.png")
    Image.fromarray(noise(30, 60, 4)).save(tmp_path / "c.png")
    space = ImageSpace.fit(collect(tmp_path))
    assert space.shape == (4, 30, 30) and space.bits == 16 and len(space.notes) == 3
    assert "1 L, 1 RGB, 1 RGBA" in space.notes[1]
    assert space.decode_generated(torch.zeros(2, 4, 30, 30)).dtype == np.uint16
    grey = ImageSpace.fit(collect(tmp_path), channels=1, size=(8, 12))
    assert grey.shape == (1, 8, 12) and grey.pixels(collect(tmp_path)).dtype == torch.int32
    Image.fromarray(noise(300, 600)).save(tmp_path / "big.png")
    big = ImageSpace.fit(collect(tmp_path / "big.png"))
    assert big.shape == (3, 128, 256) and "600" in big.notes[0]
    assert ImageSpace.fit(collect(tmp_path), size=300).shape == (4, 300, 300)


def test_a_mask_of_another_size_is_refused(noise: Noise) -> None:
    with pytest.raises(InputError, match="image-mask"):
        space_of((3, 8, 8)).encode(Picture(noise(9, 9), "RGB"), np.zeros((8, 9), bool))


# --- conditions ---------------------------------------------------------------------------------


@pytest.fixture
def asked() -> Conditions:
    age = Covariate("age", 40.0, 10.0, quantiles=(20.0, 40.0, 60.0))
    dose = Covariate("dose", 2.0, 0.5, quantiles=(1.0, 3.0))
    return Conditions(("T-shirt", "dress", "7"), Covariates((age, dose)))


def test_what_is_typed_becomes_a_condition(asked: Conditions) -> None:
    told = asked.parse({"class": "dress", "age": "30"}, Keys.range(0, 3))
    assert told.label is not None and told.label.tolist() == [1, 1, 1]
    assert told.covariates is not None and told.covariates[:, 0].tolist() == [-1, -1, -1]
    assert told.covariates[:, 1].isnan().all() and told.covariates.dtype == torch.float32
    ranged = asked.parse({"age": "30..50", "dose": "any"}, Keys.range(0, 50)).covariates
    assert ranged is not None and ranged[:, 1].isnan().all()
    assert ranged[:, 0].min() < -0.8 and ranged[:, 0].max() > 0.8 and ranged[:, 0].abs().max() <= 1
    nothing = asked.parse({}, Keys.range(0, 1))
    assert nothing.label is not None and nothing.label.tolist() == [-1]
    assert [asked.label_of(t) for t in ("DRESS", " dress", "7", "0", "any")] == [1, 1, 2, 0, -1]
    assert asked.beyond({"age": "80"})[0].code == "condition-beyond" and asked.beyond({"age": "40..60"}) == []
    assert len(asked.beyond({"age": "50..70", "dose": "0"})) == 2
    facts, tensors = asked.state()
    assert Conditions.from_state(json.loads(json.dumps(facts)), tensors) == asked
    assert Conditions().parse({}, Keys.range(0, 1)).label is None


@pytest.mark.parametrize(
    "given, said",
    [
        ({"class": "drees"}, "did you mean 'dress'"),
        ({"class": "9"}, "there are: T-shirt, dress, 7"),
        ({"agee": "3"}, "did you mean 'age'"),
        ({"sex": "f"}, "there are: class, age, dose"),
        ({"age": "old"}, "age is a number"),
        ({"age": "inf"}, "age is a number"),
    ],
)
def test_a_slip_is_one_line_that_says_what_there_is(
    asked: Conditions, given: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        asked.parse(given, Keys.range(0, 1))
    assert "\n" not in str(caught.value)


def test_conditions_are_learnt_from_what_is_known(tmp_path: Path, noise: Noise) -> None:
    rows = ["file_name,label,age,flat"]
    for k, age in enumerate(["10", "", "30", "20"]):
        Image.fromarray(noise(6, 6)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{'ab'[k % 2]},{age},5")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = collect(tmp_path)
    told = Conditions.fit(found)
    assert [(c.mean, c.quantiles[0]) for c in told.facts.columns] == [(20.0, 10.0), (5.0, 5.0)]
    encoded = told.of(found).covariates
    assert encoded is not None and encoded[0, 0] == pytest.approx(-np.sqrt(1.5)) and encoded[1, 0].isnan()
    assert (encoded[:, 1] == 0).all()


# --- augmentation -------------------------------------------------------------------------------


def test_augmentation_depends_on_keys_alone_and_tells_what_it_did() -> None:
    space = ImageSpace((3, 9, 12), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]))
    changes = PictureAugmentation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), mirror=0.5, move=0.3, tone=0.3)
    pixels = torch.rand(40, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    keys, both = Keys.range(3, 40), torch.cat([space.standardised(pixels), torch.ones(40, 3, 9, 12)], 1)
    made, done = changes(keys, both)
    assert done.shape == (40, 3) and (done.mean(0) > 0.1).all() and set(done.unique().tolist()) == {0, 1}
    rows = torch.tensor([31, 7])
    again, marks = changes(keys[rows], both[rows])
    torch.testing.assert_close(again, made[rows])
    assert torch.equal(marks, done[rows])
    untouched, only = done.sum(1) == 0, (done[:, 0] == 1) & (done.sum(1) == 1)
    assert untouched.any() and torch.equal(made[untouched], both[untouched])
    assert only.any() and torch.equal(made[only], both[only].flip(-1))
    torch.testing.assert_close(made[:, 3:], both[:, 3:])  # all stays observed
    shown = made[:, :3] * space.std[:, None, None] + space.mean[:, None, None]
    assert shown.min() > -1e-4 and shown.max() < 1 + 1e-4


def test_opacity_keeps_its_values_when_the_light_changes() -> None:
    changes = PictureAugmentation((0.0,) * 4, (1.0,) * 4, tone=1.0)
    x = torch.rand(5, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    made, _ = changes(Keys.range(0, 5), x)
    assert torch.equal(made[:, 3:], x[:, 3:]) and (made[:, :3] - x[:, :3]).abs().mean() > 0.02
    grey, _ = PictureAugmentation((0.0,), (1.0,), tone=1.0)(Keys.range(0, 5), x[:, :2])
    assert torch.equal(grey[:, 1:], x[:, 1:2]) and not torch.equal(grey[:, :1], x[:, :1])

"""What is written: pictures that say what they are, and sheets of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ebbtide.domains.images.pictures import read_picture
from ebbtide.domains.images.sheets import Completion, before_after, contact_sheet, shown
from ebbtide.domains.images.writing import Provenance, png_bytes, read_provenance, require_kept, write_png
from ebbtide.shared.errors import InputError

Noise = Callable[..., np.ndarray]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_kind_of_pixel_is_written_without_loss(
    tmp_path: Path, noise: Noise, channels: int, bits: int
) -> None:
    pixels = noise(13, 9, channels, bits)
    write_png(pixels, tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png").pixels, pixels)


def test_a_picture_says_what_it_is(tmp_path: Path, noise: Noise) -> None:
    about = Provenance("SYNTHETIC", 7, 3, 2, "ab" * 32, {"class": "Kleid ü 猫"}, {"strength": "0.4"})
    write_png(noise(5, 5), tmp_path / "a.png", about)
    said = read_provenance(tmp_path / "a.png")
    assert (said["kind"], said["seed"], said["item"], said["draw"]) == ("SYNTHETIC", "7", "3", "2")
    assert said["model"] == "ab" * 32 and "Kleid ü 猫" in said["condition"] and said["strength"] == "0.4"
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Comment"].startswith("SYNTHETIC") and "ebbtide" in image.text["Software"]  # type: ignore[attr-defined]
    Image.new("L", (3, 3)).save(tmp_path / "b.png")
    assert read_provenance(tmp_path / "b.png") == {}


def test_nothing_is_overwritten_unasked(tmp_path: Path, noise: Noise) -> None:
    write_png(noise(5, 5), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for attempt in (
        lambda: write_png(noise(5, 5), tmp_path / "a.png"),
        lambda: contact_sheet([noise(5, 5)], tmp_path / "a.png"),
    ):
        with pytest.raises(InputError, match="output-exists"):
            attempt()
    assert (tmp_path / "a.png").read_bytes() == before
    write_png(noise(5, 5, 1), tmp_path / "a.png", overwrite=True)
    assert read_picture(tmp_path / "a.png").mode == "L" and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_files_are_no_larger_than_pillow_makes_them(tmp_path: Path) -> None:
    photo = load_sample_images().images[1][:200, :300]
    Image.fromarray(photo).save(tmp_path / "p.png")
    assert len(png_bytes(photo)) < 1.05 * (tmp_path / "p.png").stat().st_size


def test_what_would_change_known_pixels_is_not_written(noise: Noise) -> None:
    original, hidden = noise(6, 6), np.zeros((6, 6), bool)
    hidden[2:4] = True
    filled = np.where(hidden[..., None], 0, original).astype(np.uint8)
    require_kept(filled, original, hidden, "a.png")
    filled[0, 0, 0] ^= 1
    with pytest.raises(InputError, match="known-changed"):
        require_kept(filled, original, hidden, "a.png")


def test_a_sheet_shows_every_picture_with_square_pixels(tmp_path: Path, noise: Noise) -> None:
    images = [noise(8, 8), noise(8, 8, 1, 16), noise(6, 8, 4), noise(8, 8), noise(8, 5)]
    titles = ["one", "a very long title that has no room", "", "δέκα", "five"]
    contact_sheet(images, tmp_path / "s.png", titles, columns=3, heading="five pictures")
    sheet = read_picture(tmp_path / "s.png").pixels
    first = shown(images[0]).repeat(12, 0).repeat(12, 1)
    rows = [r for r in range(60) if np.array_equal(sheet[r, 14:110], first[0])]
    assert rows and np.array_equal(sheet[rows[0] : rows[0] + 96, 14:110], first)
    assert (sheet[:, -10:] == 255).all() and (sheet[-10:] == 255).all()
    with pytest.raises(ValueError, match="titles"):
        contact_sheet(images, tmp_path / "t.png", ["one"])


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    contact_sheet([np.full((900, 1600, 3), 77, np.uint8)] * 4, tmp_path / "s.png", columns=4)
    sheet = read_picture(tmp_path / "s.png").pixels
    assert sheet.shape[1] < 2500 and (sheet[100, 100] == 77).all()


def test_before_and_after(tmp_path: Path, noise: Noise) -> None:
    original, hidden = noise(8, 8, 1), np.zeros((8, 8), bool)
    hidden[:, 4:] = True
    draws = np.repeat(original[None], 3, 0)
    draws[:, hidden] = np.array([0, 60, 120], np.uint8)[:, None, None]
    before_after([Completion(original, hidden, draws, "first", True)], tmp_path / "s.png", draws=2)
    sheet = read_picture(tmp_path / "s.png").pixels
    assert (sheet == (235, 169, 177)).all(-1).sum() == 32 * 144  # hidden pixels, each 12 x 12
    assert (sheet == 60).all(-1).sum() >= 2 * 32 * 144  # the second draw and the mean, which is equal
    with pytest.raises(ValueError, match="no draw"):
        before_after([], tmp_path / "t.png")

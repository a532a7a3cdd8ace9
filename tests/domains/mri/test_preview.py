"""Pictures show the right slice the right way round, in true proportions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from ebbtide.domains.mri.preview import before_after, montage


def picture(path: Path) -> np.ndarray:
    """(rows, columns) grey, 0 to 1."""
    return np.asarray(matplotlib.image.imread(path)[..., :3].mean(-1))


def corner_marked(axes: str, scenes: Any) -> tuple[np.ndarray, np.ndarray]:
    """A grey box with a bright block at its right, anterior, superior corner, in any orientation."""
    values = np.full((20, 20, 20), 40.0, "f4")
    values[12:, 12:, 12:] = 200
    order = ["RLAPSI".index(letter) // 2 for letter in axes]
    turned = np.flip(values.transpose(order), tuple(i for i, c in enumerate(axes) if c in "LPI"))
    return turned, scenes.affine((1, 1, 1), axes)


def bright_part(image: np.ndarray, part: int) -> tuple[float, float]:
    """(row, column) of the bright block within one third of a montage, from -1 to 1."""
    width = image.shape[1] // 3
    third = image[:, part * width : (part + 1) * width]
    box, block = np.argwhere(third > 0.12), np.argwhere(third > 0.9)
    low, high = box.min(0), box.max(0)
    row, column = 2 * (np.median(block, 0) - low) / (high - low) - 1
    return float(row), float(column)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "IAL"])
def test_right_is_on_the_left_and_front_and_head_are_up(tmp_path: Path, axes: str, scenes: Any) -> None:
    montage([corner_marked(axes, scenes)], tmp_path / "m.png")
    image = picture(tmp_path / "m.png")
    for part in range(3):  # axial, coronal, sagittal: up, and to the left (the nose, in the last)
        row, column = bright_part(image, part)
        assert row < -0.15 and column < -0.15


def test_proportions_are_those_of_the_body(tmp_path: Path) -> None:
    values = np.full((30, 30, 10), 100.0, "f4")
    values[:3] = 90  # not of one value
    montage([(values, np.diag([1.0, 1, 3, 1]))], tmp_path / "m.png")  # a cube of 30 mm
    image = picture(tmp_path / "m.png")
    width = image.shape[1] // 3
    coronal = np.argwhere(image[:, width : 2 * width] > 0.3)
    height, breadth = np.ptp(coronal, 0)
    assert height / breadth == pytest.approx(1, abs=0.06)


def test_borders_of_labels_lie_around_them(tmp_path: Path) -> None:
    values = np.full((20, 20, 20), 40.0, "f4")
    values[9:17, 10:18, 11:18] = 200
    labels = (values > 100).astype(np.uint8)
    for name, held in (("plain", np.zeros_like(labels)), ("marked", labels)):
        montage([(values, np.diag([1.0, 1, 1, 1]))], tmp_path / f"{name}.png", labels=[held])
    plain, marked = (
        np.asarray(matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3]) for name in ("plain", "marked")
    )
    assert np.allclose(plain[..., 0], plain[..., 2])  # grey
    lines = marked[..., 0] - marked[..., 2] > 0.2  # orange
    width = marked.shape[1] // 3
    for part in range(3):
        third = slice(part * width, (part + 1) * width)
        around = np.argwhere(lines[:, third])
        bright = np.add(np.argwhere(marked[10:, third].min(-1) > 0.99), (10, 0))
        for end in (np.min, np.max):
            assert np.abs(end(around, 0) - end(bright, 0)).max() <= 3


def test_many_volumes_and_titles(tmp_path: Path, scenes: Any) -> None:
    volumes = [(scenes.brain(seed=i), scenes.affine()) for i in range(5)]
    montage(volumes, tmp_path / "m.png", rows=2, titles=[f"s{i}" for i in range(5)], heading="five")
    image = picture(tmp_path / "m.png")
    assert image.shape[1] > image.shape[0] and image.max() > 0.9
    assert not list(tmp_path.glob("*.partial"))


def test_before_and_after_show_the_hole_and_what_filled_it(tmp_path: Path, scenes: Any) -> None:
    before = scenes.brain((30, 30, 30))
    mask = np.zeros(before.shape, bool)
    mask[12:19, 12:19, 12:19] = True
    filled = np.where(mask, 60.0, before)
    before_after(
        tmp_path / "b.png", scenes.affine(), before, mask, filled, np.where(mask, 5.0, 0.0), heading="x"
    )
    image = matplotlib.image.imread(tmp_path / "b.png")[..., :3]
    blue = (image[..., 2] > 0.7) & (image[..., 0] < 0.2)
    assert blue.sum() > 500  # the hole, blotted out in three planes
    columns = np.flatnonzero(blue.sum(0) > 20)
    assert columns.max() < image.shape[1] / 3  # in the first column alone


def test_a_hole_of_everything_can_be_drawn(tmp_path: Path, scenes: Any) -> None:
    made = scenes.brain()
    before_after(tmp_path / "b.png", scenes.affine(), np.zeros_like(made), np.ones(made.shape, bool), made)
    assert (tmp_path / "b.png").stat().st_size > 1000

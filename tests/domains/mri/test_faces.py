"""A head without its face is told from a whole one, and from a brain without its skull."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from ebbtide.domains.mri.faces import defaced

SHAPE, SPACING = (64, 76, 72), 3.0


def head(seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Axes right, anterior, superior: a skull, a face with a nose before it, a neck; blurred skin."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    skull = ((x - 32) / 24) ** 2 + ((y - 36) / 30) ** 2 + ((z - 44) / 24) ** 2 < 1
    face = ((x - 32) / 17) ** 2 + ((y - 46) / 22) ** 2 + ((z - 22) / 21) ** 2 < 1
    nose = ((x - 32) / 4) ** 2 + ((y - 68) / 6) ** 2 + ((z - 28) / 6) ** 2 < 1
    neck = (((x - 32) / 14) ** 2 + ((y - 34) / 16) ** 2 < 1) & (z < 30)
    solid = (skull | face | nose | neck).astype(float)
    tissue = 400 + 120 * ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 2) * 8
    values = ndimage.gaussian_filter(solid, 0.7) * np.clip(tissue, 150, 900)
    values[values < 4] = 0
    if noise:
        values += np.abs(rng.normal(0, noise, SHAPE)) + 0.01
    return values.astype(np.float32)


def cut(values: np.ndarray, slope: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The face set to zero before a plane that leans back below the brow; and what was."""
    y, z = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[2]), indexing="ij")
    before = (y > 58 - slope * (34 - z)) & (z < 34)
    removed = np.broadcast_to(before, SHAPE)
    return np.where(removed, 0, values).astype(np.float32), removed


AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 6.0])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_removed_face_is_recognised(seed: int, noise: float, slope: float) -> None:
    whole = head(seed, noise)
    assert defaced(whole, AFFINE) is None
    without, removed = cut(whole, slope)
    region = defaced(without, AFFINE)
    assert region is not None
    lost = removed & (ndimage.gaussian_filter(head(seed), 0.5) > 40)  # where there was a face
    assert region[lost].mean() > 0.8
    assert removed[region].mean() > 0.9


@pytest.mark.parametrize("axes", ["LPS", "PSR", "AIL"])
def test_in_any_orientation(axes: str, scenes: Any) -> None:
    without, _ = cut(head())
    want = defaced(without, AFFINE)
    spatial = scenes.affine((SPACING,) * 3, axes)
    order = ["RLAPSI".index(letter) // 2 for letter in axes]
    flips = tuple(i for i, letter in enumerate(axes) if letter in "LPI")
    turned = np.flip(without.transpose(order), flips)
    region = defaced(np.ascontiguousarray(turned), spatial)
    assert want is not None and region is not None
    np.testing.assert_array_equal(region, np.flip(want.transpose(order), flips))


def test_a_brain_without_its_skull_is_not_defaced() -> None:
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    brain = ((x - 32) / 22) ** 2 + ((y - 36) / 28) ** 2 + ((z - 40) / 22) ** 2 < 1
    brain &= ~((y > 50) & (z < 30))  # flat below the frontal lobes
    assert defaced(np.where(brain, head() + 100, 0).astype("f4"), AFFINE) is None


def test_a_head_that_was_cut_at_its_back_too_is_recognised() -> None:
    without, _ = cut(head())
    without[:, :12] = 0
    assert defaced(without, AFFINE) is not None


def test_what_ends_sharply_on_most_sides_was_stripped() -> None:
    """Even when it does so less than at the front, as brains do whose mask was laid on a finer image."""
    without, _ = cut(head())
    without[:, :9], without[:9], without[56:] = 0, 0, 0
    assert defaced(without, AFFINE) is None


def test_a_head_that_its_image_cuts_is_not_defaced() -> None:
    assert defaced(head()[:, :56], AFFINE) is None


def test_what_is_no_head_is_not_defaced(scenes: Any) -> None:
    assert defaced(scenes.crop((40, 40, 40)), np.diag([1.0, 1, 1, 1])) is None
    assert defaced(cut(head())[0], np.diag([0.5, 0.5, 0.5, 1])) is None  # the size of a mouse
    assert defaced(np.zeros(SHAPE, "f4"), AFFINE) is None

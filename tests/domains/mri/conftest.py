"""Small volumes that look enough like scans for the tests, and files of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest


def brain(
    shape: tuple[int, int, int] = (24, 28, 26),
    seed: int = 0,
    radius: float = 0.38,
    centre: tuple[float, float, float] = (0.5, 0.5, 0.5),
    bright: float = 200.0,
) -> np.ndarray:
    """An ellipsoid with smooth structure in it, zero all around, float32."""
    rng = np.random.default_rng(seed)
    x = [(np.arange(n) + 0.5) / n - c for n, c in zip(shape, centre, strict=True)]
    x, y, z = np.meshgrid(*x, indexing="ij")
    a, b, c = rng.uniform(5, 9, 3)
    texture = 0.7 + 0.15 * np.sin(a * x) * np.cos(b * y) + 0.15 * np.sin(c * z)
    return np.where(x**2 + y**2 + z**2 < radius**2, bright * texture, 0).astype(np.float32)


def crop(shape: tuple[int, int, int] = (14, 18, 13), seed: int = 0, bright: float = 90.0) -> np.ndarray:
    """Tissue to the border, without background, float32."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(shape)
    return (bright * (1.2 + np.sin(x / 3 + rng.uniform()) * np.cos(y / 4) + 0.3 * np.sin(z / 2))).astype(
        np.float32
    )


def affine(spacing: tuple[float, float, float] = (2, 2, 2), axes: str = "RAS") -> np.ndarray:
    """(4, 4), its voxel axes pointing the way the letters say."""
    out = np.zeros((4, 4))
    for column, letter in enumerate(axes):
        pair = next(i for i, letters in enumerate(("RL", "AP", "SI")) if letter in letters)
        out[pair, column] = spacing[column] * (1 if letter in "RAS" else -1)
    out[:, 3] = [-20.0, 31.0, 7.0, 1.0]
    return out


def save(path: Path, values: np.ndarray, spatial: np.ndarray | None = None, dtype: str = "f4") -> Path:
    """Write a NIfTI file with sform and qform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(values, dtype), affine() if spatial is None else spatial)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.fixture(scope="session")
def scenes() -> SimpleNamespace:
    """The functions above, as tests cannot import a file beside them."""
    return SimpleNamespace(brain=brain, crop=crop, affine=affine, save=save)

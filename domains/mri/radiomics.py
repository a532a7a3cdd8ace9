"""What a scan is like, in numbers that radiologists and physicists have names for.

Names and formulas follow the Image Biomarker Standardisation Initiative (Zwanenburg et al. 2020) where it
has them, on intensities that run from 0 (the dark end) to 1 (the bright end of the image's own scale, see
`intensity`): absolute MR intensities mean nothing. All are computed on one grid in right-anterior-superior
order, so that they compare between scans.

- `first`: mean, std, skewness, excess kurtosis, 10th and 90th percentile, entropy (bits, 32 bins) of the
  object's voxels.
- `glcm`: grey-level co-occurrence (Haralick 1973) of neighbours within the object, 16 levels, all 13
  directions merged: contrast, correlation, joint energy, joint entropy, inverse difference.
- `detail`: standard deviation of what averaging over boxes of 3, then 5, then 9 voxels takes away; mean
  gradient per voxel. Grain, blur and checkerboards show here.
- `mirror symmetry`: correlation with the mirror image.
- `air`: level and spread of what lies outside the object, where there is a background.
- `shape`: volume (ml), surface over volume (1/mm), elongation, flatness, extent (mm).
- `label`: of each label its volume (ml), elongation, flatness, and its middle from the object's (mm).
- `layout`: means over blocks, of each channel; where tissue lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from scipy import ndimage, stats

LEVELS, TOP = 16, 1.25
"""Grey levels of the co-occurrence matrix, from 0 to TOP."""
OBJECT = 0.1
"""Intensity above which a voxel is not background."""
BLOCKS = 6
"""Blocks along each axis of `layout`."""
_FEW = 64  # voxels below which texture says nothing
_HALF = [d for d in product((-1, 0, 1), repeat=3) if d > (0, 0, 0)]


def radiomics(
    values: np.ndarray, known: np.ndarray, backgrounds: Mapping[str, bool], spacing: np.ndarray
) -> dict[str, float]:
    """Features of one scan, NaN where they cannot be told; the shape is that of the first channel's object.

    Args:
        values: (C, X, Y, Z), 0 dark to 1 bright. known: bool, what of it was observed.
        backgrounds: for each channel by name, whether its images have a dark background around the object.
        spacing: (3,) mm.
    """
    found: dict[str, float] = {}
    for channel, seen, (name, background) in zip(values, known, backgrounds.items(), strict=True):
        inside = seen & (object_in(channel) if background else np.ones_like(seen))
        own = intensity(channel, inside)
        own["mirror symmetry"] = symmetry(channel)
        if background:
            own |= air(channel, seen, inside)
        if background and not any("shape volume" in held for held in found):
            found |= shape(inside, spacing)
        found |= {f"{word}, {name}" if len(backgrounds) > 1 else word: value for word, value in own.items()}
    return found


def object_in(values: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: the largest piece that is not background, its holes filled."""
    pieces, count = ndimage.label(ndimage.binary_opening(values > OBJECT))
    if count == 0:
        return np.asarray(values > OBJECT)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_dilation(largest) & (values > OBJECT)))


def intensity(values: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """First order, co-occurrence and detail of what is inside."""
    names = (
        *(f"first {n}" for n in ("mean", "std", "skewness", "kurtosis", "10 %", "90 %", "entropy")),
        *(f"glcm {n}" for n in ("contrast", "correlation", "energy", "entropy", "inverse difference")),
        *(f"detail {n}" for n in ("3", "5", "9", "gradient")),
    )
    if inside.sum() < _FEW:
        return dict.fromkeys(names, float("nan"))
    seen = values[inside].astype(np.float64)
    bins = np.histogram(seen, 32, (0, TOP))[0] / seen.size
    skewness, kurtosis = (stats.skew(seen), stats.kurtosis(seen)) if seen.std() > 1e-9 else (0.0, 0.0)
    first = (seen.mean(), seen.std(), skewness, kurtosis, *np.percentile(seen, [10, 90]), _entropy(bins))
    numbers = (*first, *_glcm(values, inside), *_detail(values, inside))
    return dict(zip(names, map(float, numbers), strict=True))


def air(values: np.ndarray, seen: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Of the background two voxels away from the object and farther."""
    outside = values[seen & ~ndimage.binary_dilation(inside, iterations=2)]
    if outside.size < _FEW:
        return {"air level": float("nan"), "air spread": float("nan")}
    return {"air level": float(outside.mean()), "air spread": float(outside.std())}


def shape(inside: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Of an object."""
    voxel = float(np.prod(spacing))
    points = np.argwhere(inside) * spacing
    names = ("volume", "surface over volume", "elongation", "flatness", *(f"extent {a}" for a in "RAS"))
    if len(points) < _FEW:
        return dict.fromkeys((f"shape {name}" for name in names), float("nan"))
    faces = sum(
        np.diff(np.pad(inside, 1).astype(np.int8), axis=axis).astype(bool).sum() * voxel / spacing[axis]
        for axis in range(3)
    )
    extent = np.ptp(points, axis=0) + spacing
    numbers = (len(points) * voxel / 1000, faces / (len(points) * voxel), *_axes(points), *extent)
    return {f"shape {name}": float(number) for name, number in zip(names, numbers, strict=True)}


def symmetry(values: np.ndarray) -> float:
    """Correlation of a volume with its mirror image across the middle sagittal plane."""
    own = values - values.mean()
    power = float((own**2).sum())
    return float((own * own[::-1]).sum() / power) if power > 1e-9 else float("nan")


def label_shapes(
    labels: np.ndarray, names: Sequence[int], middle: np.ndarray, spacing: np.ndarray
) -> dict[str, float]:
    """Of each label: volume, elongation, flatness, and where its middle lies.

    Args:
        labels: (X, Y, Z) integers. names: which. middle: (3,) the point that places are told from, voxels.
        spacing: (3,) mm.
    """
    found: dict[str, float] = {}
    for name in names:
        points = np.argwhere(labels == name)
        told = [float(len(points) * np.prod(spacing) / 1000)]
        if len(points) >= _FEW // 4:
            told += [*_axes(points * spacing), *((points.mean(0) - middle) * spacing)]
        else:
            told += [float("nan")] * 5
        words = ("volume", "elongation", "flatness", *(f"place {a}" for a in "RAS"))
        found |= {f"label {name} {word}": number for word, number in zip(words, told, strict=True)}
    return found


def layout(values: np.ndarray) -> np.ndarray:
    """(C, X, Y, Z) to (C * blocks,) means over blocks, at most BLOCKS along each axis."""
    for axis in range(1, 4):
        edges = np.linspace(0, values.shape[axis], min(BLOCKS, values.shape[axis]) + 1).astype(int)
        sums = np.add.reduceat(values, edges[:-1], axis)
        widths = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(4)])
        values = sums / widths
    return np.asarray(values.ravel(), np.float64)


def table(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], np.ndarray]:
    """Names of the features that all rows have, and (n, F) their numbers."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return names, np.array([[row[name] for name in names] for row in rows], np.float64).reshape(
        -1, len(names)
    )


def _entropy(shares: np.ndarray) -> float:
    held = shares[shares > 0]
    return float(-(held * np.log2(held)).sum())


def _glcm(values: np.ndarray, inside: np.ndarray) -> tuple[float, ...]:
    """Contrast, correlation, energy, entropy, inverse difference of all directions' symmetric matrix."""
    level = np.clip(values * (LEVELS / TOP), 0, LEVELS - 1).astype(np.int64)
    counts = np.zeros(LEVELS**2)
    for step in _HALF:
        a, b = (
            tuple(
                slice(max(s * sign, 0), n + min(s * sign, 0)) for s, n in zip(step, inside.shape, strict=True)
            )
            for sign in (1, -1)
        )
        both = inside[a] & inside[b]
        counts += np.bincount(level[a][both] * LEVELS + level[b][both], minlength=LEVELS**2)
    share = counts.reshape(LEVELS, LEVELS)
    share = (share + share.T) / max(2 * share.sum(), 1)
    i, j = np.indices(share.shape)
    mean = (i * share).sum()
    spread = ((i - mean) ** 2 * share).sum()
    together = ((i - mean) * (j - mean) * share).sum() / spread if spread > 1e-9 else 1.0
    return (
        float(((i - j) ** 2 * share).sum()),
        float(together),
        float((share**2).sum()),
        _entropy(share),
        float((share / (1 + np.abs(i - j))).sum()),
    )


def _detail(values: np.ndarray, inside: np.ndarray) -> tuple[float, ...]:
    """Spread of what each wider box takes away, and the mean gradient per voxel."""
    found, left = [], np.where(inside, values, 0).astype(np.float32)
    for width in (3, 5, 9):
        # Averaged with a box and put back: what remains is finer than the box.
        smooth = ndimage.uniform_filter(np.where(inside, values, 0).astype(np.float32), width)
        weight = ndimage.uniform_filter(inside.astype(np.float32), width)
        smooth = np.where(inside, smooth / np.maximum(weight, 1e-3), 0)
        found.append(float((left - smooth)[inside].std()))
        left = smooth
    slopes = np.sqrt(sum(np.square(g) for g in np.gradient(values.astype(np.float32))))
    return (*found, float(slopes[ndimage.binary_erosion(inside)].mean() if inside.any() else 0.0))


def _axes(points: np.ndarray) -> tuple[float, float]:
    """Elongation and flatness: second and third principal axis over the first."""
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(points.T)), 0))
    return float(spread[1] / max(spread[2], 1e-9)), float(spread[0] / max(spread[2], 1e-9))

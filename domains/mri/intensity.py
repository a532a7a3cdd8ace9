"""What an image's numbers mean: its background, its object, and a scale that outliers cannot bend.

MR intensities have no unit. Each image is put on a scale where 0 is its background (or the dark end, where
there is no background) and 1 the bright end of the object; beyond, the scale grows with the logarithm, so
that a bright vessel or a spike does not flatten all else. Every step can be undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, stats

_DARK, _BRIGHT = 1.0, 99.5  # percentiles
_KNEE = 0.5  # beyond -0.5 and 1.5 the scale is logarithmic
_FACE = 0.02  # a face of the image with less of the object is background


class Scale(NamedTuple):
    """raw = low is 0, raw = high is 1.

    Example:
        >>> scale = Scale(100.0, 300.0)
        >>> scale.decode(scale.encode(np.array([100.0, 200, 300, 5000]))).round(3)
        array([ 100.,  200.,  300., 5000.], dtype=float32)
    """

    low: float
    high: float

    def encode(self, raw: np.ndarray) -> np.ndarray:
        unit = np.atleast_1d((np.asarray(raw, np.float64) - self.low) / (self.high - self.low))
        return _beyond_knees(unit, np.log1p).astype(np.float32)

    def decode(self, scaled: np.ndarray) -> np.ndarray:
        unit = _beyond_knees(np.array(scaled, np.float64), lambda beyond: np.expm1(np.minimum(beyond, 30)))
        return (unit * (self.high - self.low) + self.low).astype(np.float32)


@dataclass(frozen=True)
class Channel:
    """What is known of one modality.

    Args:
        background: whether its images have a dark background around the object.
        scale: the typical one, for images that are made rather than measured.
        mean, std: over what was observed, on the images' own scales.
        dtype: in which its images are written.
    """

    background: bool
    scale: Scale
    mean: float
    std: float
    dtype: str

    def encode(self, raw: np.ndarray, scale: Scale) -> np.ndarray:
        return np.asarray((scale.encode(raw) - np.float32(self.mean)) / np.float32(self.std))

    def decode(self, values: np.ndarray, scale: Scale) -> np.ndarray:
        return scale.decode(np.asarray(values, np.float64) * self.std + self.mean)


_TONES, _MOST = 257, 2**22  # quantiles, and values that they are taken of at most


@dataclass(frozen=True)
class Tones:
    """A curve for each channel that gives generated intensities the distribution of the training's.

    Every training image runs from its dark to its bright end; what a network draws has the right mean and
    spread, but tails like a Gaussian's, which take contrast away from all else once an image is shown from
    its darkest to its brightest voxel. The curve never falls, so no edge is turned round.

    Args:
        made, real: (C, Q) quantiles in model space, of samples and of what was observed in training; closest
            together at both ends.
    """

    made: np.ndarray
    real: np.ndarray

    @classmethod
    def between(cls, made: list[np.ndarray], real: list[np.ndarray]) -> Tones:
        """From the values of each channel, any numbers of them."""
        levels = stats.norm.cdf(np.linspace(-4, 4, _TONES))
        made_at, real_at = (
            np.stack([np.quantile(v[:: len(v) // _MOST + 1].astype(np.float64), levels) for v in one])
            for one in (made, real)
        )
        return cls(made_at.astype(np.float32), real_at.astype(np.float32))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """(B, C, *S) samples; beyond the ends lies the end."""
        out = np.empty_like(samples)
        for c, (made, real) in enumerate(zip(self.made, self.real, strict=True)):
            out[:, c] = np.interp(samples[:, c], made, real)
        return out


class Look(NamedTuple):
    """What one image is like.

    Args:
        object: (X, Y, Z) bool, the voxels that are not background.
        background: whether there is a background at all.
        open: (3, 2) bool, whether the object reaches beyond the first and the last slice of each axis.
        dark, bright: raw values: of the background (or the dark end), and of the object's bright end.
    """

    object: np.ndarray
    background: bool
    open: np.ndarray
    dark: float
    bright: float


def look(values: np.ndarray, hidden: np.ndarray | None = None, background: bool | None = None) -> Look:
    """Find background and object.

    Args:
        values: (X, Y, Z) float32; NaN is unknown.
        hidden: bool, voxels that must not be looked at.
        background: False when it is known that there is none.
    """
    known = np.isfinite(values) if hidden is None else np.isfinite(values) & ~hidden
    seen = values[known]
    if not seen.size:
        return Look(np.zeros(values.shape, bool), False, np.ones((3, 2), bool), 0.0, 1.0)
    level, threshold = _background(values, known, seen)
    if level is None or background is False:
        dark, bright = _percentiles(seen, [_DARK, _BRIGHT])
        return Look(known, False, np.ones((3, 2), bool), dark, _above(dark, bright))
    inside = known & (values > threshold)
    bright = _percentiles(values[inside], [_BRIGHT])[0] if inside.any() else level
    faces = [
        [_open(_face(inside, axis, end), _face(known, axis, end)) for end in (0, -1)] for axis in range(3)
    ]
    return Look(inside, True, np.array(faces), level, _above(level, bright))


def box(inside: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    """(3, 2) first and last slice that hold the object's largest piece; the whole image if there is none.

    Args:
        inside: (X, Y, Z) bool, the object.
        hidden: voxels where it cannot be told; they go with the nearest known ones.
    """
    step = max(1, max(inside.shape) // 96)
    coarse = _any_of(inside, step)
    if hidden is not None and hidden.any():
        known = _any_of(~hidden, step)
        if known.any() and not known.all():
            nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
            coarse = coarse[tuple(nearest)]
    opened = ndimage.binary_opening(coarse) if min(coarse.shape) > 2 else coarse
    pieces, count = ndimage.label(opened if opened.any() else coarse)
    if count == 0:
        return np.array([[0, n - 1] for n in inside.shape])
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    # Opening takes a voxel off a tip: what touches the largest piece belongs to it.
    whole = (ndimage.binary_dilation(pieces == largest) & coarse).astype(np.int8)
    slices = ndimage.find_objects(whole)[0]
    limits = zip(slices, inside.shape, strict=True)
    return np.array([[s.start * step, min(n, s.stop * step) - 1] for s, n in limits])


def as_dtype(values: np.ndarray, dtype: str | np.dtype[Any]) -> np.ndarray:
    """To a type, clipped to its range; rounded where it holds integers.

    Example:
        >>> as_dtype(np.array([-7.0, 1.5, 2.5, 300]), "uint8")
        array([  0,   2,   2, 255], dtype=uint8)
    """
    kind = np.dtype(dtype)
    wide = np.asarray(values, np.float64)
    if kind.kind == "f":
        return np.clip(wide, np.finfo(kind).min, np.finfo(kind).max).astype(kind)
    ends, rounded = np.iinfo(kind), np.rint(wide)
    # float64 cannot hold the ends of 64-bit integers, and would wrap round there.
    top = rounded >= float(ends.max)
    inside = np.clip(np.where(top, 0, rounded), float(ends.min), None)
    return np.where(top, kind.type(ends.max), inside.astype(kind)).astype(kind)


def _any_of(mask: np.ndarray, step: int) -> np.ndarray:
    """Blocks of `step` voxels a side that hold any of the mask."""
    if step == 1:
        return mask
    padded = np.pad(mask, [(0, -n % step) for n in mask.shape])
    a, b, c = (n // step for n in padded.shape)
    return np.asarray(padded.reshape(a, step, b, step, c, step).any((1, 3, 5)))


def _beyond_knees(unit: np.ndarray, bend: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`unit` (changed in place) with what lies beyond -0.5 and 1.5 bent."""
    for beyond, sign in ((unit - 1 - _KNEE, 1), (-unit - _KNEE, -1)):
        out = beyond > 0
        unit[out] += sign * (bend(beyond[out]) - beyond[out])
    return unit


def _percentiles(values: np.ndarray, wanted: list[float]) -> list[float]:
    """Of a large array by an even part of it, which is close enough."""
    step = max(1, values.size // 200_000)
    return [float(v) for v in np.percentile(values[::step], wanted)]


def _background(values: np.ndarray, known: np.ndarray, seen: np.ndarray) -> tuple[float | None, float]:
    """The background's level and what is above it for certain; None when the image is filled to its edge."""
    low, high = _percentiles(seen, [0.5, _BRIGHT])
    threshold = low + 0.1 * (high - low)
    border = np.concatenate(
        [_face(values, axis, end)[_face(known, axis, end)] for axis in range(3) for end in (0, -1)]
    )
    dim = border[border <= threshold] if border.size else border
    # A head touches its image's border here and there; a crop of tissue touches it everywhere.
    if border.size == 0 or dim.size < 0.4 * border.size or (seen <= threshold).mean() < 0.05:
        return None, threshold
    level = float(np.median(dim))
    noise = 1.4826 * float(np.median(np.abs(dim - level)))
    return level, max(threshold, level + 4 * noise)


def _face(array: np.ndarray, axis: int, end: int) -> np.ndarray:
    """One of the six sides of a volume."""
    return np.asarray(np.moveaxis(array, axis, 0)[end])


def _open(face: np.ndarray, known: np.ndarray) -> bool:
    return bool(not known.any() or face[known].mean() > _FACE)


def _above(low: float, high: float) -> float:
    """`high`, or something above `low` when an image has no contrast."""
    return high if high > low + 1e-6 * max(abs(low), 1e-30) else low + max(abs(low), 1.0)

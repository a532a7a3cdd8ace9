"""What is learned from a collection before any training: spacing, size, intensities of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from .collection import Read, Subject
from .intensity import Channel, Scale, box, look
from .nifti import Volume, spacing_of
from .placing import canonical, canonical_box, same_grid

Item = TypeVar("Item")
_COVER = 95  # per cent of subjects whose object fits into the grid, along each axis
_MULTIPLE = 4  # what a U-Net of two levels, or of one on Haar packing, can halve


class Seen(NamedTuple):
    """One image: its grid, its scale, whether there is a background, in which type it is kept."""

    shape: tuple[int, ...]
    affine: np.ndarray
    scale: Scale
    background: bool
    dtype: str


@dataclass(frozen=True)
class Facts:
    """One subject.

    Args:
        affine: (4, 4) of its first image, turned to canonical axes.
        whole, object: (3, 2) first and last voxel along those axes, of the image and of what is in it.
        images: by modality.
    """

    affine: np.ndarray
    whole: np.ndarray
    object: np.ndarray
    images: Mapping[str, Seen]

    @classmethod
    def of(cls, subject: Subject, modalities: Sequence[str], read: Read) -> Facts | None:
        """None for a subject without any of the modalities."""
        first, images = None, {}
        for name in modalities:
            if name not in subject.images:
                continue
            volume = read(subject.images[name])
            seen = look(volume.values())
            scale = Scale(seen.dark, seen.bright)
            images[name] = Seen(volume.shape, volume.affine, scale, seen.background, _dtype(volume, scale))
            if first is None:
                first = (volume, box(seen.object))
        if first is None:
            return None
        volume, inside = first
        turn = canonical(volume.affine, volume.shape)
        whole = np.array([[0, n - 1] for n in volume.shape])
        return cls(volume.affine @ turn, canonical_box(whole, turn), canonical_box(inside, turn), images)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, spread over all."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def modalities_of(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """All that occur, most frequent first."""
    counts = Counter(name for subject in subjects for name in sorted(subject.images))
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def on_one_grid(facts: Sequence[Facts]) -> bool:
    """Whether all images have the same shape and affine."""
    grids = [(seen.shape, seen.affine) for fact in facts for seen in fact.images.values()]
    return all(same_grid(grids[0], other) for other in grids)


def spacing_for(facts: Sequence[Facts], wanted: float | Sequence[float] | None) -> np.ndarray:
    """(3,) mm: what is wanted, or the median along each axis, to a thousandth."""
    if wanted is not None:
        return np.broadcast_to(np.asarray(wanted, np.float64), (3,)).copy()
    median = np.median([spacing_of(fact.affine) for fact in facts], axis=0)
    return np.asarray(np.round(median, 3))


def size_for(
    facts: Sequence[Facts], spacing: np.ndarray, wanted: Sequence[int] | None, aligned: bool
) -> tuple[int, ...]:
    """The grid's shape: what is wanted, or all of the shared grid, or what holds the object of nearly all."""
    if wanted is None:
        boxes = [fact.whole if aligned else fact.object for fact in facts]
        extents = [
            (np.diff(b, axis=1)[:, 0] + 1) * spacing_of(f.affine) for b, f in zip(boxes, facts, strict=True)
        ]
        wanted = np.percentile(extents, _COVER, axis=0, method="higher") / spacing
    # A hair above a whole number is rounding of the affine, not another voxel.
    return tuple(int(np.ceil(n / _MULTIPLE - 1e-3) * _MULTIPLE) for n in wanted)


def coarsened(facts: Sequence[Facts], spacing: np.ndarray, aligned: bool, most: int) -> np.ndarray:
    """(3,) mm: the spacing, made larger in steps of a half until the grid has at most so many voxels."""
    factor = 1.0
    while np.prod(size_for(facts, spacing * factor, None, aligned)) > max(most, _MULTIPLE**3):
        factor += 0.5
    return spacing * factor


def channel_for(facts: Sequence[Facts], modality: str) -> Channel:
    """What is typical of a modality; its mean and standard deviation are learned later."""
    seen = [fact.images[modality] for fact in facts if modality in fact.images]
    background = sum(image.background for image in seen) * 2 > len(seen)
    alike = [image for image in seen if image.background == background]
    low, high = np.median([image.scale for image in alike], axis=0)
    dtype = Counter(image.dtype for image in seen).most_common(1)[0][0]
    return Channel(background, Scale(float(low), float(high)), 0.0, 1.0, dtype)


def _dtype(volume: Volume, scale: Scale) -> str:
    """The type that fits the image's values (not the numbers stored, which may be scaled)."""
    stored = volume.stored.dtype
    if stored.kind == "f":
        return "float32"
    if (volume.slope, volume.intercept) == (1.0, 0.0):
        return stored.newbyteorder("=").name
    return "int16" if scale.high - scale.low >= 200 and scale.high < 16_000 else "float32"

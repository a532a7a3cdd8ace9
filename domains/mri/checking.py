"""What is wrong with a collection of volumes, all of it at once, before any work is done on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...shared.errors import Fault, InputError
from .. import Progress
from .collection import Collection, collect, read_image
from .faces import defaced
from .intensity import look
from .nifti import Volume
from .placing import canonical, same_grid
from .slices import axis_name, bad_slices, numbers

FEW = 10
"""Subjects; below, a model learns them by heart."""
_ODD = 6.0  # robust standard deviations
_ENOUGH = 8  # images from which it can be told what is odd
_LISTED = 5


class Seen(NamedTuple):
    """One image that could be read."""

    subject: str
    modality: str
    path: Path
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: str
    median: float
    bright: float
    digest: str


def check(
    path: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    segmentation: Path | str | None = None,
    covariates: Path | str | None = None,
    assume_spacing: bool = False,
    missing_nan: bool = False,
    progress: Progress | None = None,
) -> list[Fault]:
    """Every fault of what lies at `path`, errors first; options are those of `collect` and `read_image`."""
    try:
        found = collect(path, modalities=modalities, segmentation=segmentation, covariates=covariates)
    except InputError as error:
        return [error.fault]
    return check_collection(
        found,
        lambda file: read_image(file, assume_spacing=assume_spacing, missing_nan=missing_nan),
        progress,
    )


def check_collection(
    found: Collection, read: Callable[[Path], Volume] = read_image, progress: Progress | None = None
) -> list[Fault]:
    """The same for a collection that is known already; one image is held at a time."""
    faults = [_warning("assumed", note, str(found.path)) for note in found.notes]
    seen: list[Seen] = []
    for done, subject in enumerate(found):
        if progress is not None:
            progress("checking images", done / max(len(found), 1))
        grids = []
        for modality, file in subject.images.items():
            try:
                volume = read(file)
            except InputError as error:
                faults.append(error.fault)
                continue
            grids.append((volume.shape, volume.affine))
            one, more = _image(volume, subject.name, modality, file)
            seen.append(one)
            faults += more
        if subject.segmentation is not None:
            faults += _segmentation(subject.segmentation, grids, read)
    faults += _together(found, seen)
    return sorted(faults, key=lambda fault: fault.severity != "error")


def _warning(code: str, what: str, where: str, remedy: str = "") -> Fault:
    return Fault(code, what, where, remedy, "warning")


def _image(volume: Volume, subject: str, modality: str, file: Path) -> tuple[Seen, list[Fault]]:
    """What one image is like, and what is wrong with it alone."""
    values, where = volume.values(), str(file)
    finite = np.isfinite(values)
    known = values if finite.all() else np.where(finite, values, np.nanmin(values[finite], initial=0))
    faults = []
    seen = look(values)
    if np.ptp(known) == 0:
        faults.append(Fault("constant", "all voxels have one value", where, "leave the image out"))
    else:
        for bad in bad_slices(known, seen.object):
            kinds = [("blank", bad.blank), ("unlike both neighbours", bad.unlike)]
            what = " and ".join(f"slices {numbers(s)} are {kind}" for kind, s in kinds if s)
            axis = f"axis {bad.axis} ({axis_name(bad.axis, volume.affine)})"
            faults.append(
                _warning("bad-slices", f"along {axis}, {what}", where, "fill them in, or leave the image out")
            )
        if defaced(known, volume.affine) is not None:
            what = "the face was removed; it will not be filled in unless that is asked for"
            faults.append(_warning("defaced", what, where))
    if not finite.all():
        count = int((~finite).sum())
        faults.append(_warning("missing-voxels", f"{count:,} voxels are taken for missing", where))
    middle = values[seen.object & finite]
    return (
        Seen(
            subject, modality, file, volume.shape, tuple(np.round(volume.spacing, 3).tolist()),
            _axes(volume), float(np.median(middle)) if middle.size else 0.0, seen.bright,
            hashlib.sha256(repr(volume.shape).encode() + known.tobytes()).hexdigest(),
        ),
        faults,
    )  # fmt: skip


def _axes(volume: Volume) -> str:
    """Where the voxel axes point: "RAS"."""
    turn = canonical(volume.affine, volume.shape)
    letters = [""] * 3
    for world in range(3):
        axis = int(np.abs(turn[:3, world]).argmax())
        letters[axis] = ("RAS" if turn[axis, world] > 0 else "LPI")[world]
    return "".join(letters)


def _segmentation(
    file: Path, grids: Sequence[tuple[tuple[int, ...], np.ndarray]], read: Callable[[Path], Volume]
) -> list[Fault]:
    where = str(file)
    try:
        volume = read(file)
    except InputError as error:
        return [error.fault]
    values = volume.values()
    faults = []
    if not np.array_equal(values, np.round(values)) or values.min() < 0:
        what = "the segmentation holds numbers that are not 0, 1, 2, ..."
        faults.append(Fault("mask-values", what, where, "give label numbers"))
    elif not values.any():
        faults.append(_warning("mask-empty", "the segmentation is empty", where))
    own = (volume.shape, volume.affine)
    if grids and not any(same_grid(own, grid) for grid in grids):
        if any(_overlap(own, grid) for grid in grids):
            what = "the segmentation is on another grid than the image; the nearest voxel will be taken"
            faults.append(_warning("mask-grid", what, where))
        else:
            what = "the segmentation lies elsewhere than the image"
            faults.append(Fault("mask-grid", what, where, "resample it to the image, or leave it out"))
    return faults


def _overlap(a: tuple[tuple[int, ...], np.ndarray], b: tuple[tuple[int, ...], np.ndarray]) -> bool:
    """Whether the boxes around two images meet."""

    def ends(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        corners = np.array(
            [[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])]
        )
        points = (affine @ corners.T)[:3]
        return np.stack([points.min(1), points.max(1)])

    one, other = ends(*a), ends(*b)
    return bool((one[0] < other[1]).all() and (other[0] < one[1]).all())


def _together(found: Collection, seen: Sequence[Seen]) -> list[Fault]:
    """What can only be seen of all images side by side."""
    where = str(found.path)
    faults = _mixed(seen, where) + _odd(seen) + _twice(seen)
    if len(found) < FEW:
        what = f"{len(found)} subjects are so few that a model will learn them by heart"
        faults.append(_warning("few", what, where, f"give {FEW} at least, and some hundred for variety"))
    modalities = found.modalities
    for modality in modalities:
        without = [subject.name for subject in found if modality not in subject.images]
        if without:
            what = f"{len(without)} of {len(found)} subjects have no {modality} image ({_some(without)})"
            faults.append(_warning("modality-missing", what, where))
    if found.covariates:
        blank = [s.name for s in found if all(value is None for value in s.covariates.values())]
        if blank:
            what = f"{len(blank)} of {len(found)} subjects have no covariates ({_some(blank)})"
            faults.append(_warning("covariates-missing", what, where, "add their rows to the table"))
    return faults


def _mixed(seen: Sequence[Seen], where: str) -> list[Fault]:
    """Spacings, shapes and orientations that differ; none stops the work."""
    faults = []
    for modality in dict.fromkeys(image.modality for image in seen):
        images = [image for image in seen if image.modality == modality]
        spacings = Counter(_canonical_spacing(image) for image in images)
        shapes, axes = Counter(i.shape for i in images), Counter(i.axes for i in images)
        low, high = (np.array(list(spacings)).min(0), np.array(list(spacings)).max(0))
        if (high > 1.02 * low).any():
            what = f"{modality} voxels differ in size, from {_mm(low)} to {_mm(high)} mm; they are resampled"
            faults.append(_warning("mixed-spacing", what, where, "choose the spacing with --spacing"))
        elif len(shapes) > 1:
            sides = np.array(list(shapes))
            what = f"{modality} images have {len(shapes)} shapes, {_by(sides.min(0))} to {_by(sides.max(0))}"
            faults.append(_warning("mixed-shape", f"{what}; they are cropped and padded", where))
        if len(axes) > 1:
            listed = ", ".join(f"{count} {name}" for name, count in axes.most_common())
            faults.append(
                _warning("mixed-orientation", f"{modality} images are turned to RAS ({listed})", where)
            )
    return faults


def _canonical_spacing(image: Seen) -> tuple[float, ...]:
    """Spacing along right, anterior, superior."""
    places = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    ordered = sorted(zip(image.axes, image.spacing, strict=True), key=lambda pair: places[pair[0]])
    return tuple(step for _, step in ordered)


def _odd(seen: Sequence[Seen]) -> list[Fault]:
    """Images whose numbers are in another range than the others', one fault for each modality."""
    faults = []
    for modality in dict.fromkeys(image.modality for image in seen):
        images = [image for image in seen if image.modality == modality]
        if len(images) < _ENOUGH:
            continue
        scores = np.maximum(_robust([i.median for i in images]), _robust([i.bright for i in images]))
        odd = [(image, score) for image, score in zip(images, scores, strict=True) if score > _ODD]
        odd.sort(key=lambda pair: -pair[1])
        if odd:
            what = f"{len(odd)} of {len(images)} {modality} images are in another range than the others"
            what += f" (up to {odd[0][1]:.0f} robust standard deviations away)"
            names = _some([image.path.name for image, _ in odd])
            remedy = "look at them; each image is put on its own scale, so they may stay if they look right"
            faults.append(_warning("odd-intensities", what, names, remedy))
    return faults


def _robust(values: Sequence[float]) -> np.ndarray:
    """Distances from the median in units of the median distance, times 1.48; of logarithms where all are
    positive, as scanners differ by factors."""
    x = np.array(values)
    x = np.log(x) if (x > 0).all() else x / max(np.abs(x).max(), 1e-30)
    away = np.abs(x - np.median(x))
    return np.asarray(away / max(1.4826 * np.median(away), 0.02))


def _twice(seen: Iterable[Seen]) -> list[Fault]:
    by_content: dict[str, list[Seen]] = defaultdict(list)
    for image in seen:
        by_content[image.digest].append(image)
    return [
        _warning(
            "duplicate", f"the same voxels are in {', '.join(i.path.name for i in images[1:])}",
            str(images[0].path), "keep one: copies on both sides of a split make a test worthless",
        )
        for images in by_content.values()
        if len(images) > 1
    ]  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _mm(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def _by(shape: np.ndarray) -> str:
    return " x ".join(str(int(n)) for n in shape)

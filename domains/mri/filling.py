"""Filling the holes of one subject on its images' own grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .. import Request, Statistic
from .collection import Subject
from .faces import defaced
from .holes import Holes
from .model import FittedScans
from .nifti import Volume


@dataclass(frozen=True)
class FilledImage:
    """One image with its holes filled.

    Args:
        modality: of it.
        volume: as it was (on a finer grid where slices were thick; all zero where the modality was missing).
        mask: (X, Y, Z) bool, what was filled; no other voxel changes.
        values: (X, Y, Z) float32, the statistic asked for where `mask`, the image elsewhere.
        std: (X, Y, Z) float32, standard deviation of the draws, 0 outside of `mask`.
        draws: (n, X, Y, Z) float32, single draws.
        face: voxels that were left, because a face had been removed there.
        beyond: voxels that were left, because the model's grid does not reach them.
        measured: False where the whole modality was missing.
    """

    modality: str
    volume: Volume
    mask: np.ndarray
    values: np.ndarray
    std: np.ndarray
    draws: np.ndarray
    face: int = 0
    beyond: int = 0
    measured: bool = True


def fill_subject(
    fitted: FittedScans,
    subject: Subject,
    volumes: Mapping[str, Volume],
    holes: Holes,
    request: Request,
    faces: bool = False,
) -> list[FilledImage]:
    """Fill the holes of one subject, voxels that are not numbers, and modalities that it lacks.

    Args:
        volumes: of the subject.
        holes: what is to be filled.
        request: draws, statistic, seed.
        faces: fill where a face was removed, too.

    Returns:
        The images that had something to fill; (none when nothing had).

    Raises:
        InputError: holes outside the image, masks on other grids, no modality that the model knows.
    """
    known = {name: volume for name, volume in volumes.items() if name in fitted.space.modalities}
    images, hidden = holes.of(subject, known)
    kept = {}
    for name, volume in images.items():
        hidden[name] = hidden[name] | ~np.isfinite(volume.values())
        face = None if faces or not hidden[name].any() else defaced(volume.values(), volume.affine)
        kept[name] = hidden[name] & face if face is not None else np.zeros(volume.shape, bool)
    scan = fitted.encode(subject, hidden, images)
    if not any(mask.any() for mask in hidden.values()) and len(images) == len(fitted.space.modalities):
        return []
    draws = fitted.draw(scan, subject, request.seed, max(request.draws, 1))
    covered = fitted.space.covered(scan.frame)
    own = [fitted.space.decode(draw[: len(fitted.space.modalities)], scan.frame) for draw in draws]
    found = []
    for name in fitted.space.modalities:
        told = np.stack([one[name] for one in own])
        if name not in images:
            found.append(_missing(name, images, told, covered[name], request.statistic))
            continue
        mask = hidden[name] & ~kept[name]
        beyond = int((mask & ~covered[name]).sum())
        mask &= covered[name]
        if mask.any() or kept[name].any() or beyond:
            made = _filled(name, images[name], mask, told, request.statistic)
            found.append(replace(made, face=int(kept[name].sum()), beyond=beyond))
    return found


def point(draws: np.ndarray, statistic: Statistic) -> np.ndarray:
    """(n, ...) draws to one value: their mean, their median (also for the mode, which a few draws of a real
    number do not have), or the first of them."""
    match statistic:
        case "mean":
            return np.asarray(draws.mean(0))
        case "sample":
            return np.asarray(draws[0])
        case _:
            return np.asarray(np.median(draws, 0))


def _filled(
    name: str, volume: Volume, mask: np.ndarray, draws: np.ndarray, statistic: Statistic
) -> FilledImage:
    own = volume.values()
    values = np.where(mask, point(draws, statistic), own).astype(np.float32)
    spread = draws.std(0, ddof=1) if len(draws) > 1 else np.zeros(mask.shape)
    every = np.where(mask, draws, own).astype(np.float32)
    return FilledImage(name, volume, mask, values, np.where(mask, spread, 0).astype(np.float32), every)


def _missing(
    name: str, images: Mapping[str, Volume], draws: np.ndarray, covered: np.ndarray, statistic: Statistic
) -> FilledImage:
    """A modality that the subject lacks, on the grid of its first image."""
    like = next(iter(images.values()))
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    blank = replace(
        like, stored=np.zeros(like.shape, np.float32), slope=1.0, intercept=0.0, header=header, preamble=b""
    )
    made = _filled(name, blank, covered, draws, statistic)
    return replace(made, beyond=int((~covered).sum()), measured=False)


def picture_of(image: FilledImage) -> dict[str, np.ndarray]:
    """What `preview.before_after` needs."""
    return {
        "before": np.where(image.mask, np.nan, image.volume.values()).astype(np.float32),
        "mask": image.mask,
        "filled": image.values,
        "draw": image.draws[0],
        "std": image.std,
        "affine": image.volume.affine,
    }

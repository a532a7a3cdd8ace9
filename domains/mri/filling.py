"""Filling the holes of one subject on its images' own grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from ...shared.noise import Keys
from .. import Request, Statistic
from .collection import Read, Subject, read_image
from .faces import defaced
from .holes import Holes
from .model import FittedScans
from .nifti import Volume

_FAR = 0.02  # weight of nothing known around


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
    read: Read = read_image,
) -> list[FilledImage]:
    """Fill the holes of one subject, voxels that are not numbers, and modalities that it lacks.

    Args:
        volumes: of the subject.
        holes: what is to be filled.
        request: draws, statistic, seed.
        faces: fill where a face was removed, too.
        read: reads masks and the subject's label map.

    Returns:
        The images that had something to fill; (none when nothing had).

    Raises:
        InputError: holes outside the image, masks on other grids, no modality that the model knows.
    """
    volumes = fitted.named(volumes)
    known = {name: volume for name, volume in volumes.items() if name in fitted.space.modalities}
    images, hidden = holes.of(subject, known, read)
    kept = {}
    for name, volume in images.items():
        hidden[name] = hidden[name] | ~np.isfinite(volume.values())
        face = None if faces or not hidden[name].any() else defaced(volume.values(), volume.affine)
        kept[name] = hidden[name] & face if face is not None else np.zeros(volume.shape, bool)
    scan = fitted.encode(subject, hidden, images, read)
    if not any(mask.any() for mask in hidden.values()) and len(images) == len(fitted.space.modalities):
        return []
    draws = fitted.draw(scan, subject, request.seed, max(request.draws, 1))
    mean = fitted.mean(scan, subject, request.seed)
    covered = fitted.space.covered(scan.frame)
    own = [fitted.space.decode(one, scan.frame) for one in (mean, *draws)]
    keys = Keys(request.seed, *fitted.keys(subject, len(draws)))
    found = []
    for name, channel in fitted.space.channels.items():
        told = np.stack([one[name] for one in own])
        if name in images:
            reach = 0.5 * fitted.space.spacing.max() / images[name].spacing
            told, spread = detailed(told, images[name].values(), ~hidden[name], reach)
            if spread.any():
                for place in range(len(draws)):
                    rows = torch.tensor([place])
                    noise = keys[rows].normal(spread.shape, f"detail {name}", torch.float32)[0].numpy()
                    told[place + 1] += spread * noise
        if channel.background:  # nothing is darker than air
            told = np.maximum(told, np.float32(scan.frame.images[name].scale.low))
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


def detailed(
    decoded: np.ndarray, own: np.ndarray, known: np.ndarray, reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Add what the image shows beside a hole and the model's coarser grid does not: the difference at known
    voxels, carried on into the hole by a normalised convolution (Knutsson & Westin 1993).

    Args:
        decoded: (n, X, Y, Z) completed images from the model's grid.
        own: (X, Y, Z) the image. known: bool, where it may be looked at.
        reach: (3,) standard deviation of the convolution, in voxels.

    Returns:
        (n, X, Y, Z) with the detail, and (X, Y, Z) how far it is off in the hole: the local error of carrying
        it to each known voxel from the others. Where the grids are the same there is no detail, and no error.
    """

    def smooth(x: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(x.astype(np.float32), reach, mode="constant"))

    weight, made = smooth(known), np.empty_like(decoded)
    for place, one in enumerate(decoded):
        left = np.where(known, own - one, 0)
        made[place] = np.where(known, one, one + smooth(left) / (weight + _FAR))
    left = np.where(known, own - decoded[0], 0)
    impulse = np.zeros([2 * int(4 * r + 0.5) + 1 for r in reach], np.float32)
    impulse[tuple(n // 2 for n in impulse.shape)] = 1
    alone = float(smooth(impulse).max())  # a voxel's weight in its own mean
    others = (smooth(left) - alone * left) / (np.maximum(weight - alone, 0) + _FAR)
    error = np.where(known, left - others, 0) ** 2
    return made, np.where(known, 0, np.sqrt(smooth(error) / (weight + _FAR))).astype(np.float32)


def point(told: np.ndarray, statistic: Statistic) -> np.ndarray:
    """(1 + n, ...) the mean and n draws to one value: the mean, the draws' median (also for the mode, which a
    few draws of a real number do not have), or the first of them."""
    match statistic:
        case "mean":
            return np.asarray(told[0])
        case "sample":
            return np.asarray(told[1])
        case _:
            return np.asarray(np.median(told[1:], 0))


def _filled(
    name: str, volume: Volume, mask: np.ndarray, told: np.ndarray, statistic: Statistic
) -> FilledImage:
    own, draws = volume.values(), told[1:]
    values = np.where(mask, point(told, statistic), own).astype(np.float32)
    spread = draws.std(0, ddof=1) if len(draws) > 1 else np.zeros(mask.shape)
    every = np.where(mask, draws, own).astype(np.float32)
    return FilledImage(name, volume, mask, values, np.where(mask, spread, 0).astype(np.float32), every)


def _missing(
    name: str, images: Mapping[str, Volume], told: np.ndarray, covered: np.ndarray, statistic: Statistic
) -> FilledImage:
    """A modality that the subject lacks, on the grid of its first image."""
    like = next(iter(images.values()))
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    blank = replace(
        like, stored=np.zeros(like.shape, np.float32), slope=1.0, intercept=0.0, header=header, preamble=b""
    )
    made = _filled(name, blank, covered, told, statistic)
    return replace(made, beyond=int((~covered).sum()), measured=False)


def picture_of(image: FilledImage) -> dict[str, np.ndarray]:
    """What `preview.before_after` needs; one draw alone has no spread to show."""
    spread = {"std": image.std} if len(image.draws) > 1 else {}
    return {
        "before": np.where(image.mask, np.nan, image.volume.values()).astype(np.float32),
        "mask": image.mask,
        "filled": image.values,
        "draw": image.draws[0],
        "affine": image.volume.affine,
        **spread,
    }

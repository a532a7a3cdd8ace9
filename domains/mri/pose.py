"""A common pose: each scan is turned and shifted, rigidly, until it lies as the mean of all does.

Heads lie tilted in the scanner. How they do is found at low resolution, by the inverse compositional method
of Lucas and Kanade (Baker & Matthews 2004) with brightness and contrast left free, which maximises the
correlation with the mean. It begins where the scan lies, at its centre of mass and at its principal axes, and
the best end counts. Everything is deterministic and takes well under a second a scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

_MOST = 40  # positions along the longest axis of the low resolution
_ROOM = 0.15  # of each axis, by which a scan's own low resolution is larger on each side
_ROUNDS = 3  # of finding poses and averaging anew
_BLURS = (2.0, 0.7)  # positions; one after the other
_ITERATIONS = 12  # at each
_IN_SIGHT = 0.4  # of the mean's grid, at least
_FARTHEST = (np.pi / 4, 0.25)  # radians, and a share of the grid: what lies beyond is a mistake


class Low(NamedTuple):
    """A scan at low resolution, about the middle of its object.

    Args:
        values: (*S) on any scale. known: (*S) bool.
    """

    values: np.ndarray
    known: np.ndarray


def low_grid(size: Sequence[int], spacing: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and (3,) spacing of the low resolution of a model's grid; never finer than that."""
    extent = np.array(size) * spacing
    step = np.maximum(spacing, extent.max() / _MOST)
    return tuple(int(np.ceil(n - 1e-3)) for n in extent / step), step


def roomy(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a scan's own low resolution: larger, because it will be turned."""
    return tuple(n + 2 * int(np.ceil(_ROOM * n)) for n in shape)


@dataclass(frozen=True)
class Pose:
    """The common pose: what the mean of the scans looks like at low resolution.

    Args:
        spacing: (3,) mm.
        means: (*S) of each modality, about the middle of the model's grid.
    """

    spacing: np.ndarray
    means: Mapping[str, np.ndarray]

    @classmethod
    def fit(cls, scans: Sequence[Mapping[str, Low]], shape: Sequence[int], spacing: np.ndarray) -> Self:
        """Find the poses of scans, and their mean in these, in turn.

        Args:
            scans: one or more modalities of each, on `roomy(shape)`.
            shape, spacing: of the mean, by `low_grid`.
        """
        names = list(dict.fromkeys(name for scan in scans for name in scan))
        poses = [np.eye(4) for _ in scans]
        for _ in range(_ROUNDS):
            common = cls(spacing, _means(names, scans, poses, shape, spacing))
            poses = [common.found(scan) for scan in scans]
            # The mean itself is not to wander off.
            back = np.linalg.inv(_middle(poses))
            poses = [pose @ back for pose in poses]
        return cls(spacing, _means(names, scans, poses, shape, spacing))

    def found(self, scan: Mapping[str, Low]) -> np.ndarray:
        """(4, 4) rigid, from millimetres of the common pose to the scan's, each about its middle."""
        name = next(name for name in self.means if name in scan)
        mean, (values, known) = self.means[name], scan[name]
        ends = _starts(values, known, mean, self.spacing)
        for blur in _BLURS:
            fixed = _Fixed.of(ndimage.gaussian_filter(mean, blur, mode="nearest"), self.spacing)
            moving = _weighted(values, known, blur)
            ends = [max((fixed.refined(moving, end) for end in ends), key=lambda found: found[0])[1]]
        turned = Rotation.from_matrix(ends[0][:3, :3]).magnitude()
        moved = np.abs(ends[0][:3, 3]) / (np.array(mean.shape) * self.spacing)
        return np.eye(4) if turned > _FARTHEST[0] or moved.max() > _FARTHEST[1] else ends[0]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON and tensors for a model folder."""
        means = enumerate(self.means.values())
        tensors = {f"space.pose.{i}": torch.from_numpy(mean.astype(np.float32)) for i, mean in means}
        return {"spacing": self.spacing.tolist(), "modalities": list(self.means)}, tensors

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """What `state` wrote."""
        names = enumerate(config["modalities"])
        means = {name: tensors[f"space.pose.{i}"].double().numpy() for i, name in names}
        return cls(np.array(config["spacing"]), means)


@dataclass(frozen=True)
class _Fixed:
    """What scans are laid on.

    Args:
        values: (N,) of the mean. points: (N, 3) its positions, in mm about their middle.
        slopes: (N, 6) how the mean changes when it is turned about each axis (radian) and shifted (mm).
        spacing: (3,) mm.
    """

    values: Tensor
    points: np.ndarray
    slopes: Tensor
    spacing: np.ndarray

    @classmethod
    def of(cls, mean: np.ndarray, spacing: np.ndarray) -> Self:
        gradient = np.stack([g.ravel() for g in np.gradient(mean, *spacing)], 1)
        points = _points(mean.shape, spacing)
        slopes = np.concatenate([np.cross(points, gradient), gradient], 1)
        return cls(torch.from_numpy(mean.ravel()), points, torch.from_numpy(slopes), spacing)

    def refined(self, moving: Tensor, pose: np.ndarray) -> tuple[float, np.ndarray]:
        """The best correlation that is met on the way of least squares, and its pose."""
        best = (-1.0, pose)
        for _ in range(_ITERATIONS):
            seen, weight = _sampled(moving, self.points, pose, self.spacing)
            best = max(best, (_correlation(seen, self.values, weight), pose), key=lambda found: found[0])
            sides = torch.stack([seen, torch.ones_like(seen)], 1)
            left = sides @ _solved(sides, self.values, weight) - self.values
            change = _solved(self.slopes, left, weight).numpy()
            pose = pose @ np.linalg.inv(_rigid(change[:3], change[3:]))
        return best


def _solved(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted least squares of a x = b, a (N, k)."""
    weighed = a * weight[:, None]
    square = weighed.T @ a
    square.diagonal().add_(1e-9 * square.diagonal().mean())
    found: Tensor = torch.linalg.solve(square, weighed.T @ b)
    return found


def _correlation(a: Tensor, b: Tensor, weight: Tensor) -> float:
    """Weighted; -1 of a pose that pushes most of the scan out of sight."""

    def standard(x: Tensor) -> Tensor:
        x = x - (weight * x).sum() / weight.sum()
        return x / ((weight * x * x).sum() / weight.sum()).sqrt().clamp(min=1e-9)

    if weight.mean() < _IN_SIGHT:
        return -1.0
    return float((weight * standard(a) * standard(b)).sum() / weight.sum())


def _points(shape: Sequence[int], spacing: np.ndarray) -> np.ndarray:
    """(N, 3) mm of the positions of a grid about its middle."""
    return np.asarray((np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * spacing)


def _sampled(
    moving: Tensor, points: np.ndarray, pose: np.ndarray, spacing: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(N,) values and weights of a scan (`_weighted`) at points of the common pose; 0 beyond it."""
    half = (np.array(moving.shape[1:]) - 1) * spacing / 2
    own = (points @ pose[:3, :3].T + pose[:3, 3]) / half
    grid = torch.from_numpy(np.ascontiguousarray(own[None, None, None, :, ::-1]))
    found = F.grid_sample(moving[None], grid, align_corners=True)[0, :, 0, 0]
    weight = found[1]
    return torch.where(weight > 0, found[0] / weight.clamp(min=1e-6), 0), weight


def _weighted(values: np.ndarray, known: np.ndarray, blur: float) -> Tensor:
    """(2, *S) values times weight, and weight: blurred over what is known (a normalised convolution), which
    counts for less the less of it was."""
    share = np.asarray(known, np.float64)
    total = np.where(known, values, 0.0)
    if blur:
        share, total = (ndimage.gaussian_filter(x, blur, mode="nearest") for x in (share, total))
    weight = np.where(known, share**2, 0)
    return torch.from_numpy(np.stack([weight * total / np.maximum(share, 1e-6), weight]))


def _starts(values: np.ndarray, known: np.ndarray, mean: np.ndarray, spacing: np.ndarray) -> list[np.ndarray]:
    """As it lies; by its centre of mass; by its principal axes."""
    low = values[known].min() if known.any() else 0.0
    mass = np.where(known, values - low, 0)
    (there, theirs), (here, ours) = _moments(mass, spacing), _moments(mean - mean.min(), spacing)
    shifted, turned = np.eye(4), np.eye(4)
    shifted[:3, 3] = there - here
    signs = np.sign(np.sum(theirs * ours, 0))
    signs[2] *= np.sign(np.linalg.det(theirs * signs) * np.linalg.det(ours))
    turned[:3, :3] = (theirs * signs) @ ours.T
    turned[:3, 3] = there - turned[:3, :3] @ here
    return [np.eye(4), shifted, turned]


def _moments(mass: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3,) centre of mass in mm, and (3, 3) principal axes as columns."""
    points, weight = _points(mass.shape, spacing), mass.ravel() / max(mass.sum(), 1e-9)
    centre = weight @ points
    away = points - centre
    return centre, np.linalg.eigh((away * weight[:, None]).T @ away)[1]


def _rigid(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(4, 4) from a rotation vector (radians) and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_rotvec(turn).as_matrix(), shift
    return matrix


def _middle(poses: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of rigid motions that lie near to each other."""
    turn = Rotation.from_matrix(np.stack([pose[:3, :3] for pose in poses])).mean().as_rotvec()
    return _rigid(turn, np.mean([pose[:3, 3] for pose in poses], 0))


def _means(
    names: Sequence[str],
    scans: Sequence[Mapping[str, Low]],
    poses: Sequence[np.ndarray],
    shape: Sequence[int],
    spacing: np.ndarray,
) -> dict[str, np.ndarray]:
    """The mean of each modality over the scans in their poses, where they are known."""
    points, means = _points(shape, spacing), {}
    for name in names:
        total = count = torch.zeros(len(points), dtype=torch.float64)
        for scan, pose in zip(scans, poses, strict=True):
            if name in scan:
                low = scan[name]
                moving = torch.from_numpy(
                    np.stack([np.where(low.known, low.values, 0), low.known]).astype(float)
                )
                seen, weight = _sampled(moving, points, pose, spacing)
                total, count = total + weight * seen, count + weight
        average = torch.where(
            count > 0, total / count.clamp(min=1e-6), total.sum() / count.sum().clamp(min=1)
        )
        means[name] = average.reshape(*shape).numpy()
    return means

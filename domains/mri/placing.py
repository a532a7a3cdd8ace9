"""How the model's grid lies on an image, and what is needed to come back to the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .intensity import Scale
from .nifti import spacing_of
from .resampling import Resampling

_SAME = 1e-3  # relative; spacings closer than this are one


@dataclass(frozen=True)
class Seat:
    """One image of a subject, as far as it matters for the way back.

    Args:
        shape, affine: its own grid.
        scale: of its intensities.
        open: (3, 2) bool, on which sides the object goes on beyond the image.
        measured: False for a modality that the subject does not have; it borrows another's grid.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    scale: Scale
    open: np.ndarray
    measured: bool = True


@dataclass(frozen=True)
class Frame:
    """Where one subject lies in the model's grid.

    Args:
        shape: (S) of the model's grid. affine: (4, 4) from it to the subject's own millimetres in RAS.
        images: a seat for every modality of the space.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    images: Mapping[str, Seat]

    def onto(self, shape: tuple[int, ...], affine: np.ndarray) -> Resampling:
        """From the grid of an image to the model's."""
        return Resampling(shape, self.shape, np.linalg.inv(affine) @ self.affine)

    def back(self, shape: tuple[int, ...], affine: np.ndarray) -> Resampling:
        """From the model's grid to that of an image."""
        return Resampling(self.shape, shape, np.linalg.inv(self.affine) @ affine)


def canonical(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(4, 4) from voxel indices along right, anterior, superior (as nearly as may be) to the image's own.

    Example:
        >>> canonical(np.diag([-2.0, 2, 2, 1]), (5, 6, 7))[0]
        array([-1.,  0.,  0.,  4.])
    """
    cosines = affine[:3, :3] / spacing_of(affine)
    world, own = linear_sum_assignment(-np.abs(cosines))
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for row, axis in zip(world, own, strict=True):
        flipped = cosines[row, axis] < 0
        matrix[axis, row] = -1 if flipped else 1
        matrix[axis, 3] = shape[axis] - 1 if flipped else 0
    return matrix


def upright(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image (a view of it) along right, anterior, superior, and (3,) its spacing along them."""
    axes, flips = _turn(affine, values.shape)
    return np.flip(values.transpose(axes), flips), spacing_of(affine)[list(axes)]


def laid_back(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """What `upright` made, back along the axes of the image that has the affine."""
    axes, flips = _turn(affine, (1, 1, 1))
    return np.flip(values, flips).transpose(np.argsort(axes))


def _turn(affine: np.ndarray, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The image's axis for each of right, anterior, superior; and which of these run the other way."""
    matrix = canonical(affine, shape)
    axes = tuple(int(np.abs(matrix[:3, world]).argmax()) for world in range(3))
    return axes, tuple(world for world, axis in enumerate(axes) if matrix[axis, world] < 0)


def canonical_box(box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(3, 2) a box in the image's own indices to canonical ones."""
    inverse = np.linalg.inv(matrix)
    corners = inverse[:3, :3] @ box + inverse[:3, 3:]
    return np.sort(corners, 1)


def grid(affine: np.ndarray, box: np.ndarray, spacing: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The affine of a grid centred on a box, along an image's own axes.

    Where a voxel of the grid is a whole number of the image's (1 too), it covers whole voxels, so that
    nothing is interpolated.

    Args:
        affine: (4, 4) of the canonical image. box: (3, 2) first and last voxel in it.
        spacing: (3,) mm of the grid. shape: of the grid.
    """
    step = spacing / spacing_of(affine)
    whole = np.round(step)
    step = np.where((whole >= 1) & (np.abs(step - whole) < _SAME * step), whole, step)
    first = box.mean(1) - step * (np.array(shape) - 1) / 2
    covers = (step - 1) / 2  # how far before its middle a voxel of the grid begins
    first = np.where(step == np.round(step), np.round(first - covers) + covers, first)
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = first
    return np.asarray(affine @ matrix)


def same_grid(a: tuple[Sequence[int], np.ndarray], b: tuple[Sequence[int], np.ndarray]) -> bool:
    """Whether (shape, affine) of two images put every voxel at the same place, to a hundredth of one."""
    if tuple(a[0]) != tuple(b[0]):
        return False
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T
    corners = corners * np.array([*(np.array(a[0]) - 1), 1])[:, None]
    return bool(np.abs((a[1] - b[1]) @ corners).max() < 0.01 * spacing_of(a[1]).min())

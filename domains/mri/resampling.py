"""From one voxel grid to another: exact where they coincide, averaging where the new one is coarser.

Most grids differ by axes swapped or flipped, a shift and a spacing along each axis; then the map is a product
of three one-dimensional ones. A finer grid is interpolated linearly, a coarser one averages what each of its
voxels covers (point sampling would alias). Grids that are turned against each other go through
`scipy.ndimage`, smoothed beforehand where the new one is coarser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

_TOLERANCE = 1e-4  # voxels; below it a coordinate counts as whole


@dataclass(frozen=True)
class Line:
    """A linear map along one axis: out[t] = sum_k weight[t, k] * in[index[t, k]].

    Args:
        index: (T, K) int. weight: (T, K) float64, rows sum to 1.
        below, above: (T,) bool: the output lies outside the input, before its first or behind its last voxel.
    """

    index: np.ndarray
    weight: np.ndarray
    below: np.ndarray
    above: np.ndarray

    @classmethod
    def between(cls, source: int, target: int, step: float, start: float) -> Line:
        """Output voxel t sits at input coordinate start + step * t; source and target are lengths."""
        centre = start + step * np.arange(target)
        below, above = centre < -0.5 - _TOLERANCE, centre > source - 0.5 + _TOLERANCE
        width = abs(step)
        if width <= 1 + _TOLERANCE:
            centre = np.where(np.abs(centre - np.round(centre)) < _TOLERANCE, np.round(centre), centre)
            first = np.floor(centre)
            share = (centre - first)[:, None]
            index = first[:, None].astype(int) + np.arange(2)
            weight = np.concatenate([1 - share, share], 1)
            if not share.any():
                index, weight = index[:, :1], weight[:, :1]
        else:
            low, high = centre[:, None] - width / 2, centre[:, None] + width / 2
            first = np.floor(low + 0.5 + _TOLERANCE).astype(int)
            index = first + np.arange(int(np.ceil(width)) + 1)
            covered = np.minimum(high, index + 0.5) - np.maximum(low, index - 0.5)
            covered[covered < _TOLERANCE] = 0
            inside = np.where((index >= 0) & (index < source), covered, 0)
            weight = np.where(inside.sum(1, keepdims=True) > 0, inside, covered)
            weight /= weight.sum(1, keepdims=True)
            used = weight.any(0)
            index, weight = index[:, used], weight[:, used]
        return cls(np.clip(index, 0, source - 1), weight, below, above)

    def apply(self, values: np.ndarray, axis: int) -> np.ndarray:
        """The map along `axis`, in float32."""
        total = np.zeros((), np.float32)
        for k in range(self.index.shape[1]):
            part = np.take(values, self.index[:, k], axis)
            if self.index.shape[1] > 1:
                part = part * self._along(self.weight[:, k].astype(np.float32), axis, values.ndim)
            total = part if k == 0 else total + part
        return total

    def touches(self, mask: np.ndarray, axis: int) -> np.ndarray:
        """Where anything of a bool mask takes part in the output."""
        found = np.zeros((), bool)
        for k in range(self.index.shape[1]):
            weighs = self._along(self.weight[:, k] > 0, axis, mask.ndim)
            part = np.take(mask, self.index[:, k], axis) & weighs
            found = part if k == 0 else found | part
        return found

    @staticmethod
    def _along(line: np.ndarray, axis: int, ndim: int) -> np.ndarray:
        shape = [1] * ndim
        shape[axis] = -1
        return line.reshape(shape)


@dataclass(frozen=True)
class Resampling:
    """A linear map between two grids.

    Args:
        source, target: the shapes (3 axes each).
        matrix: (4, 4) from target voxel indices to source voxel indices.

    Example:
        >>> flip = np.diag([-1.0, 1, 1, 1]); flip[0, 3] = 2
        >>> Resampling((3, 1, 1), (3, 1, 1), flip).apply(np.array([[[1.0]], [[2]], [[3]]])).ravel()
        array([3., 2., 1.], dtype=float32)
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    matrix: np.ndarray

    @cached_property
    def axes(self) -> tuple[int, ...] | None:
        """The source axis that each target axis runs along; None when the grids are turned."""
        turn = np.abs(self.matrix[:3, :3])
        axes = turn.argmax(0)
        rest = turn.copy()
        rest[axes, np.arange(3)] = 0
        # What else there is must not move the far corner by as much as a hundredth of a voxel.
        aligned = len(set(axes)) == 3 and (rest * np.array(self.target)).max() < 0.01
        return tuple(int(axis) for axis in axes) if aligned else None

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """One for each target axis."""
        assert self.axes is not None
        return tuple(
            Line.between(self.source[a], self.target[t], self.matrix[a, t], self.matrix[a, 3])
            for t, a in enumerate(self.axes)
        )

    @property
    def exact(self) -> bool:
        """Whether values are only moved, never mixed."""
        return self.axes is not None and all(line.index.shape[1] == 1 for line in self.lines)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(X, Y, Z) on the source grid to float32 on the target; beyond the source its edge goes on."""
        values = np.asarray(values, np.float32)
        if self.axes is None:
            return self._turned(self._smoothed(values), 1)
        values = values.transpose(self.axes)
        for axis, line in enumerate(self.lines):
            values = line.apply(values, axis)
        return np.ascontiguousarray(values)

    def touches(self, mask: np.ndarray) -> np.ndarray:
        """(X, Y, Z) bool on the source grid to the target: where anything of the mask takes part."""
        if self.axes is None:
            reach = int(np.ceil(3 * max(self._blur)))
            wide = ndimage.binary_dilation(mask, iterations=reach) if reach and mask.any() else mask
            return self._turned(np.asarray(wide, np.float32), 1) > 0
        mask = mask.transpose(self.axes)
        for axis, line in enumerate(self.lines):
            mask = line.touches(mask, axis)
        return mask

    def nearest(self, labels: np.ndarray) -> np.ndarray:
        """(X, Y, Z) integers on the source grid to the target, each voxel its nearest; 0 beyond it."""
        points = np.floor(self._points() + 0.5 - _TOLERANCE).astype(int)
        inside = np.ones(self.target, bool)
        for axis, size in enumerate(self.source):
            inside &= (points[axis] >= 0) & (points[axis] < size)
            np.clip(points[axis], 0, size - 1, out=points[axis])
        return np.asarray(np.where(inside, labels[tuple(points)], labels.dtype.type(0)))

    def beyond(self) -> np.ndarray:
        """(3, 2, *target) bool: outside the source along its axis i, before its first or behind its last."""
        out = np.zeros((3, 2, *self.target), bool)
        if self.axes is None:
            points = self._points()
            for axis, size in enumerate(self.source):
                out[axis, 0] = points[axis] < -0.5 - _TOLERANCE
                out[axis, 1] = points[axis] > size - 0.5 + _TOLERANCE
            return out
        for t, (axis, line) in enumerate(zip(self.axes, self.lines, strict=True)):
            for side, outside in enumerate((line.below, line.above)):
                out[axis, side] = Line._along(outside, t, 3)
        return out

    def _points(self) -> np.ndarray:
        """(3, *target) source coordinates of the target's voxels."""
        grid = np.indices(self.target).reshape(3, -1)
        points = self.matrix[:3, :3] @ grid + self.matrix[:3, 3:]
        return np.asarray(points.reshape(3, *self.target))

    @property
    def _blur(self) -> tuple[float, ...]:
        """Standard deviations along the source axes that take away what the coarser grid cannot hold."""
        steps = np.sqrt((self.matrix[:3, :3] ** 2).sum(1))
        return tuple(float(np.sqrt(max(step**2 - 1, 0) / 12)) for step in steps)

    def _smoothed(self, values: np.ndarray) -> np.ndarray:
        if not any(self._blur):
            return values
        return np.asarray(ndimage.gaussian_filter(values, self._blur, mode="nearest", truncate=3))

    def _turned(self, values: np.ndarray, order: int) -> np.ndarray:
        affine: Callable[..., np.ndarray] = ndimage.affine_transform
        return affine(
            values, self.matrix[:3, :3], self.matrix[:3, 3], self.target, order=order, mode="nearest"
        )

"""Slices that do not belong: blank ones inside the object, and ones unlike both of their neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_UNLIKE = 2.0  # times what slices around show; sound ones reach 1.5 in 70 scans looked at
_AREA = 0.05  # of the largest cross-section: below, a slice is at the object's end
_AXES = ("right-left", "front-back", "top-bottom")


class BadSlices(NamedTuple):
    """Slices along one axis of the image's own grid (counted from 0)."""

    axis: int
    blank: tuple[int, ...]
    unlike: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(sorted({*self.blank, *self.unlike}))


def bad_slices(values: np.ndarray, inside: np.ndarray) -> list[BadSlices]:
    """Find them along every axis.

    A slice is blank when it holds one value, and the object goes on before and after it. It is unlike when
    its distance from the mean of its neighbours stands out from that of the slices around, and so does the
    ratio of it to what the neighbours differ by: anatomy that changes quickly is not taken for a fault.

    Args:
        values: (X, Y, Z) float32, finite. inside: bool, the object.
    """
    found = []
    for axis in range(3):
        planes = np.moveaxis(values, axis, 0)
        area = np.moveaxis(inside, axis, 0).sum((1, 2), dtype=float)
        # A corrupted slice's own area says nothing: what counts is that the object is before and behind it.
        large = area > _AREA * max(area.max(), 1)
        if not large.any():
            continue
        first, last = np.flatnonzero(large)[[0, -1]]
        flat = np.ptp(planes.reshape(len(planes), -1), 1) == 0
        blank = tuple(int(k) for k in range(first + 1, last) if flat[k])
        unlike = tuple(k for k in _unlike(planes, int(first), int(last)) if k not in blank)
        if blank or unlike:
            found.append(BadSlices(axis, blank, unlike))
    # A bad slice along one axis is a line in the slices of the others, and makes none of them bad.
    return found


def _unlike(planes: np.ndarray, first: int, last: int) -> list[int]:
    """Slices first < k < last that stand out."""
    if last - first < 6:
        return []
    inner = planes[first : last + 1].reshape(last - first + 1, -1).astype(np.float32)
    middle = np.abs(inner[1:-1] - (inner[:-2] + inner[2:]) / 2).mean(1)
    across = np.abs(inner[2:] - inner[:-2]).mean(1)
    share = middle / np.maximum(across, 1e-6 * max(float(across.max()), 1e-30))
    out = (middle > _UNLIKE * _usual(middle)) & (share > _UNLIKE * _usual(share))
    return [first + 1 + int(k) for k in np.flatnonzero(out)]


def _usual(line: np.ndarray) -> np.ndarray:
    """What is usual around each slice: the median of eleven, as an object's ends differ more than its middle;
    or of every second or third, where that is more, as in an image that interpolation made finer these are of
    one kind."""
    medians = [0.1 * np.median(line)]
    for step in (1, 2, 3):
        reach = 5 * step
        padded = np.pad(line, reach, mode="reflect" if len(line) > reach else "edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)[:, ::step]
        medians.append(np.median(around, axis=1))
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*medians)))


def axis_name(axis: int, affine: np.ndarray) -> str:
    """How an axis of the image runs through the body."""
    return _AXES[int(np.abs(affine[:3, axis]).argmax())]


def numbers(slices: tuple[int, ...]) -> str:
    """Slice numbers as people write them: 3, 5-8."""
    runs: list[list[int]] = []
    for k in slices:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)

"""Which part of a picture the model sees, and how it is scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A box in a picture's pixels; it may reach beyond the border."""

    top: int
    left: int
    height: int
    width: int

    def inside(self, size: tuple[int, int]) -> tuple[slice, slice, slice, slice]:
        """(rows, columns) of the picture within the window, (rows, columns) of the window that they fill."""
        a, b = max(0, self.top), min(size[0], self.top + self.height)
        c, d = max(0, self.left), min(size[1], self.left + self.width)
        return (
            slice(a, b),
            slice(c, d),
            slice(a - self.top, b - self.top),
            slice(c - self.left, d - self.left),
        )


def middle(size: tuple[int, int], shape: tuple[int, int], *, whole: bool = False) -> Window:
    """The window of the proportions `shape` in the middle of a picture of `size` (height, width): the largest
    within it, or the smallest that holds the whole."""
    height, width = _extent(size, shape, max if whole else min)
    return Window((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def _extent(
    size: tuple[int, int], shape: tuple[int, int], choose: Callable[[float, float], float]
) -> tuple[int, int]:
    unit = choose(size[0] / shape[0], size[1] / shape[1])
    return max(1, round(unit * shape[0])), max(1, round(unit * shape[1]))


def around(hidden: np.ndarray, shape: tuple[int, int]) -> Window:
    """The largest window within a picture, moved over what is hidden; the whole picture where that does not
    fit.

    Args:
        hidden: (H, W) bool.
        shape: (height, width) whose proportions the window has.
    """
    size = (int(hidden.shape[0]), int(hidden.shape[1]))
    window = middle(size, shape)
    rows, columns = (np.flatnonzero(hidden.any(axis)) for axis in (1, 0))
    if not len(rows):
        return window
    if np.ptp(rows) >= window.height or np.ptp(columns) >= window.width:
        return middle(size, shape, whole=True)
    top = _start(rows, window.top, window.height, size[0])
    return Window(top, _start(columns, window.left, window.width, size[1]), window.height, window.width)


def _start(hidden: np.ndarray, start: int, extent: int, length: int) -> int:
    """Where the window begins along an axis: where it does, if that covers what is hidden, else around it."""
    first, last = int(hidden[0]), int(hidden[-1])
    if start <= first and last < start + extent:
        return start
    return min(max((first + last + 1 - extent) // 2, 0), length - extent)


def cut(pixels: np.ndarray, window: Window) -> np.ndarray:
    """The window of (H, W, C), 0 beyond the border."""
    made = np.zeros((window.height, window.width, pixels.shape[-1]), pixels.dtype)
    rows, columns, window_rows, window_columns = window.inside((pixels.shape[0], pixels.shape[1]))
    made[window_rows, window_columns] = pixels[rows, columns]
    return made


def resize(pixels: Tensor, shape: tuple[int, int], *, smooth: bool = False) -> Tensor:
    """(..., H, W) floating point scaled to (..., *shape); a picture of that size already comes back as it is.

    Averages where it shrinks (no aliasing) and interpolates linearly where it grows, so that no weight is
    negative; `smooth` grows by cubic interpolation, which looks better and may overshoot.
    """
    if tuple(pixels.shape[-2:]) == tuple(shape):
        return pixels
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as scale

    grows = shape[0] * shape[1] > pixels.shape[-2] * pixels.shape[-1]
    way = InterpolationMode.BICUBIC if grows and smooth else InterpolationMode.BILINEAR
    made: Tensor = scale(pixels, list(shape), interpolation=way, antialias=True)
    return made

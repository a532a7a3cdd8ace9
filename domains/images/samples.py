"""Samples of a picture as numbers in [0, 1], and its channels as those of another."""

from __future__ import annotations

import numpy as np

from .pictures import Picture

NEEDS = {"L": 1, "LA": 4, "RGB": 3, "RGBA": 4}
"""Channels that can tell a mode without loss."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Grey of a colour (ITU-R BT.601)."""


def scaled(picture: Picture) -> np.ndarray:
    """(H, W, C) float32 in [0, 1]."""
    return picture.pixels.astype(np.float32) / np.float32(np.iinfo(picture.pixels.dtype).max)


def rounded(values: np.ndarray, dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> np.ndarray:
    """Numbers in [0, 1] as samples; beyond is clipped."""
    top = np.iinfo(dtype).max
    samples: np.ndarray = np.rint(np.clip(values, 0, 1) * top).astype(dtype)
    return samples


def _parts(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(colour or grey, opacity)."""
    if pixels.shape[-1] in (2, 4):
        return pixels[..., :-1], pixels[..., -1:]
    return pixels, np.ones_like(pixels[..., :1])


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 to 4) in [0, 1] with 1 (grey), 3 (colour) or 4 (and opacity) channels: grey is repeated,
    colour becomes luma, and opacity that does not fit is laid on white."""
    colour, opacity = _parts(pixels)
    if channels < 4 and pixels.shape[-1] in (2, 4):
        colour = colour * opacity + (1 - opacity)
    colour = _as_colour(colour, 1 if channels == 1 else 3)
    return colour if channels < 4 else np.concatenate([colour, opacity], -1)


def _as_colour(colour: np.ndarray, channels: int) -> np.ndarray:
    if colour.shape[-1] == channels:
        return colour
    return (colour @ LUMA)[..., None] if channels == 1 else np.repeat(colour, 3, -1)


def from_channels(values: np.ndarray, mode: str) -> np.ndarray:
    """(H, W, 1, 3 or 4) of the model with the channels of a picture's mode."""
    colour, opacity = _parts(values)
    colour = _as_colour(colour, 1 if mode in ("L", "LA") else 3)
    return np.concatenate([colour, opacity], -1) if mode in ("LA", "RGBA") else colour

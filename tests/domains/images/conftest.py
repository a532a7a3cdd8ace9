"""Pictures made on the spot, in every kind that a folder may hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_deep_png(pixels: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits from (H, W, C) uint16, written by hand because Pillow writes no such colour."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_deep_tiff(pixels: np.ndarray, order: str, deflate: bool) -> bytes:
    """A TIFF of 16 bits from (H, W, 3 or 4) uint16, one strip, either end first."""
    height, width, channels = pixels.shape
    strip = pixels.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if deflate else strip
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 0),
        (259, 3, 1, 8 if deflate else 1),
        (262, 3, 1, 2),
        (273, 4, 1, 0),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(strip)),
        *([(338, 3, 1, 2)] if channels == 4 else []),
    ]
    after = 8 + 2 + 12 * len(entries) + 4
    values = {258: after, 273: after + 2 * channels}
    body = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    body += struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        value = values.get(tag, value)
        packed = (
            struct.pack(f"{order}HH", value, 0)
            if kind == 3 and tag not in values
            else struct.pack(f"{order}I", value)
        )
        body += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return body + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + strip


@pytest.fixture
def deep_png() -> Callable[..., bytes]:
    return write_deep_png


@pytest.fixture
def deep_tiff() -> Callable[..., bytes]:
    return write_deep_tiff


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """(H, W, C) of random samples."""
    rng = np.random.default_rng(0)

    def made(height: int, width: int, channels: int = 3, bits: int = 8) -> np.ndarray:
        return rng.integers(0, 2**bits, (height, width, channels)).astype(f"uint{bits}")

    return made


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A folder of two classes, "disc" and "square": 12 grey pictures of 12 x 12 each."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:12, :12]
    for name in ("disc", "square"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for k in range(12):
            cy, cx, r = rng.integers(4, 8), rng.integers(4, 8), rng.integers(2, 4)
            inside = (
                (y - cy) ** 2 + (x - cx) ** 2 <= r * r
                if name == "disc"
                else np.maximum(abs(y - cy), abs(x - cx)) <= r
            )
            grey = np.where(inside, 200, 30) + rng.integers(0, 20, (12, 12))
            Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "shapes" / name / f"{k:02d}.png")
    return tmp_path / "shapes"

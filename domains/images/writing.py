"""PNG files that say what they are: synthetic or filled, by which model, from which seed.

Written here and not by Pillow, which has no PNG of 16-bit colour; one way for all. PNG is lossless, so that
known pixels of a filled picture stay as they were.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ...shared.artifacts import tool_version
from ...shared.errors import InputError
from ...shared.files import refuse_existing, replace_atomically, write_bytes
from .opening import explained, require_file

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's code for grey, grey and opacity, colour, colour and opacity, by the number of channels."""
KEYWORD = "ebbtide"
"""Every text that this package writes into a PNG begins with it."""


@dataclass(frozen=True)
class Provenance:
    """What a written picture says of itself.

    Args:
        kind: SYNTHETIC when no pixel was observed, FILLED when some were.
        seed: of the draw.
        item, draw: which of the run's pictures, and which draw of it.
        model: sha256 of the model.
        condition: what was asked for ({"class": "dress"}), as typed.
        more: anything else, name and text ("strength": "0.4").
    """

    kind: Literal["SYNTHETIC", "FILLED"]
    seed: int
    item: int | str = 0
    draw: int = 0
    model: str = ""
    condition: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """Keywords and texts for the file."""
        held = {
            "kind": self.kind,
            "seed": str(self.seed),
            "item": str(self.item),
            "draw": str(self.draw),
            "model": self.model,
            "version": tool_version(),
            "condition": json.dumps(dict(self.condition), ensure_ascii=False),
            **self.more,
        }
        said = {f"{KEYWORD}:{name}": text for name, text in held.items()}
        # Two keywords that other programs show.
        origin = "generated" if self.kind == "SYNTHETIC" else "partly filled in"
        return {
            "Software": f"ebbtide {tool_version()}",
            "Comment": f"{self.kind}: {origin} by a model",
            **said,
        }


def png_bytes(pixels: np.ndarray, about: Provenance | None = None) -> bytes:
    """A PNG file.

    Args:
        pixels: (H, W) or (H, W, 1 to 4), uint8 or uint16.
        about: what it says of itself.

    Raises:
        ValueError: when the pixels are not such an array.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    fits = pixels.ndim == 3 and pixels.shape[2] in COLOUR_TYPES
    if not fits or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"(H, W, 1 to 4) uint8 or uint16 is needed, got {pixels.shape} {pixels.dtype}")
    height, width, channels = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, 0)
    ordered = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    data = _filtered(ordered.view(np.uint8).reshape(height, -1), channels * depth // 8)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header)]
    for keyword, text in (about.texts() if about is not None else {}).items():
        # International text, uncompressed, of no stated language (PNG, section 11.3.4.5).
        parts.append(_chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()))
    return b"".join([*parts, _chunk(b"IDAT", zlib.compress(data, 6)), _chunk(b"IEND", b"")])


def _filtered(rows: np.ndarray, step: int) -> bytes:
    """Rows of bytes, each led by the number of PNG's filter that leaves the smallest differences (the rule of
    PNG, section 12.8); `step` bytes are a pixel."""
    padded = np.pad(rows.astype(np.int16), ((1, 0), (step, 0)))
    left, above, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    away = [np.abs(above - corner), np.abs(left - corner), np.abs(left + above - 2 * corner)]
    paeth = np.where(
        (away[0] <= away[1]) & (away[0] <= away[2]), left, np.where(away[1] <= away[2], above, corner)
    )
    guesses = (np.zeros_like(left), left, above, (left + above) // 2, paeth)
    made = np.stack([(rows - guess).astype(np.uint8) for guess in guesses])
    best = np.abs(made.view(np.int8).astype(np.int32)).sum(-1).argmin(0)
    chosen = made[best, np.arange(len(rows))]
    return bytes(np.concatenate([best[:, None].astype(np.uint8), chosen], 1).tobytes())


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(
    pixels: np.ndarray, path: Path, about: Provenance | None = None, *, overwrite: bool = False
) -> None:
    """Write a PNG whole or not at all; see `png_bytes`.

    Raises:
        InputError: `output-exists`, unless `overwrite`; a folder that cannot be written to.
        EbbtideError: a full disk.
    """
    data = png_bytes(pixels, about)
    refuse_existing(path, overwrite)
    with replace_atomically(path) as partial:
        write_bytes(partial, data)


def read_provenance(path: Path) -> dict[str, str]:
    """What a PNG of this package says of itself, without the keywords' prefix; empty for any other picture.

    Raises:
        InputError: not a picture, or a damaged one.
    """
    require_file(path)
    with explained(path), Image.open(path, formats=("PNG",)) as image:
        texts = dict(getattr(image, "text", {}))
    return {k.removeprefix(f"{KEYWORD}:"): str(v) for k, v in texts.items() if k.startswith(f"{KEYWORD}:")}


def require_kept(filled: np.ndarray, original: np.ndarray, hidden: np.ndarray, where: str) -> None:
    """Make sure that known pixels of a filled picture are the original's, bit for bit, before it is written.

    Raises:
        InputError: `known-changed`: a fault of this program, told rather than written.
    """
    same = filled.shape == original.shape and filled.dtype == original.dtype
    if not same or not np.array_equal(filled[~hidden], original[~hidden]):
        raise InputError(
            "known-changed", "known pixels would change; nothing was written", where, "report this"
        )

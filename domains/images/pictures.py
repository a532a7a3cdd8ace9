"""One picture from its file to an array, guarded: what is damaged is named, and nothing is squeezed in
silence.

Decoding is Pillow's. What this adds: a cap on size that is checked before anything is decoded, checksums of
PNG, 16 bits kept as 16 bits (Pillow gives colour pictures of 16 bits as 8), palettes and CMYK turned into
colours on purpose and told, EXIF orientation applied.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ...shared.errors import InputError
from .opening import explained, opened, require_file

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"])
PIXEL_LIMIT = 80_000_000
"""Pixels of one picture at most, unless the user raises it."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
Alpha = Literal["keep", "composite"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as an array.

    Args:
        pixels: (H, W, C) uint8 or uint16, upright.
        mode: what the channels are: L (grey), LA (grey and opacity), RGB, RGBA.
        path: the file it is from.
        info: `mode` as stored ("P", "CMYK", "RGB;16"), `format`, `converted` (what was done to it on
            purpose, or ""), `turned` (by its EXIF orientation), `frames` (only the first is read).

    Raises:
        ValueError: when the pixels are not such an array.
    """

    pixels: np.ndarray
    mode: str
    path: Path | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        p = self.pixels
        if p.ndim != 3 or MODES.get(p.shape[-1]) != self.mode or p.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"pixels must be (H, W, C) uint8 or uint16 in mode {self.mode}, got {p.shape} {p.dtype}"
            )

    @property
    def bits(self) -> int:
        """Bits of a sample: 8 or 16."""
        return 8 * int(self.pixels.dtype.itemsize)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    @property
    def where(self) -> str:
        """The file, for messages."""
        return str(self.path) if self.path is not None else "picture"


def read_picture(
    path: Path | str, *, pixel_limit: int = PIXEL_LIMIT, alpha: Alpha = "keep", background: int = 255
) -> Picture:
    """Read one picture: PNG, JPEG, TIFF, BMP or WebP, whatever its suffix says.

    Args:
        pixel_limit: pixels at most; a larger picture is refused from its header, before decoding.
        alpha: keep opacity as a channel, or lay the picture on a background.
        background: grey level 0 (black) ... 255 (white) that transparent pictures are laid on.

    Raises:
        InputError: `image-missing`, `image-empty`, `image-not-image`, `image-damaged`, `image-too-large`,
            `image-mode` (floating point and other kinds that cannot be kept whole).

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (4, 3), 7).save(file)
        >>> read_picture(file).pixels.shape
        (3, 4, 1)
    """
    path = Path(path)
    require_file(path)
    with explained(path):
        with opened(path, pixel_limit) as image:
            if image.format == "PNG":
                # The checksums of all chunks, which decoding does not look at. It spends the image.
                image.verify()
        picture = _decoded(path, pixel_limit)
    return flattened(picture, background) if alpha == "composite" else picture


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before it is decoded.

    Args:
        height, width: as stored, before any turning.
        mode: as stored ("L", "P", "RGB;16").
        format: PNG, JPEG, TIFF, BMP or WEBP.
        plain: whether it is decoded as it is: no palette, no transparent colour.
        frames: how many pictures the file holds.
    """

    height: int
    width: int
    mode: str
    format: str
    plain: bool
    frames: int


def read_header(path: Path | str) -> Header:
    """The header of a picture, whatever its size.

    Raises:
        InputError: as `read_picture`, but for what only decoding can tell.
    """
    path = Path(path)
    require_file(path)
    with explained(path), opened(path, sys.maxsize) as image:
        mode = _stored_mode(image)
        plain = mode in MODES.values() and "transparency" not in image.info
        frames = int(getattr(image, "n_frames", 1))
        return Header(image.height, image.width, mode, str(image.format), plain, frames)


class Glance(NamedTuple):
    """Size, mode and bits of a picture as it is read."""

    height: int
    width: int
    mode: str
    bits: int


def glance(path: Path | str, pixel_limit: int = PIXEL_LIMIT) -> Glance:
    """What the picture is that `read_picture` would give, from the header where that tells.

    The picture may lie on its side: an EXIF orientation is not looked at.
    """
    header = read_header(path)
    if header.plain and header.height * header.width <= pixel_limit:
        return Glance(header.height, header.width, header.mode, 8)
    return glance_at(read_picture(path, pixel_limit=pixel_limit))


def glance_at(picture: Picture) -> Glance:
    """The same of a picture in memory."""
    return Glance(*picture.size, picture.mode, picture.bits)


def flattened(picture: Picture, background: int = 255) -> Picture:
    """The picture laid on a grey background (0 ... 255); one without opacity comes back as it is."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    top = np.iinfo(picture.pixels.dtype).max
    colour, opacity = picture.pixels[..., :-1].astype(np.float64), picture.pixels[..., -1:] / top
    laid = colour * opacity + background / 255 * top * (1 - opacity)
    info = {**picture.info, "converted": _also(picture.info.get("converted", ""), "opacity")}
    return replace(
        picture, pixels=np.rint(laid).astype(picture.pixels.dtype), mode=picture.mode[:-1], info=info
    )


def picture_of(image: Image.Image, path: Path | None = None) -> Picture:
    """A picture from a Pillow image that is already open, as torchvision's data sets give."""
    stored = _stored_mode(image)
    return _turned(image, *_pixels(image), stored, path)


def _also(said: str, more: str) -> str:
    return f"{said}, {more}" if said else more


# --- decoding -----------------------------------------------------------------------------------


def _rawmode(image: Image.Image) -> str:
    """How samples lie in the file, by Pillow's name: "RGB;16B" are three of 16 bits, big end first."""
    tiles = getattr(image, "tile", None) or []
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_deep(image: Image.Image) -> bool:
    """Whether it has colour channels of 16 bits, of which Pillow would keep 8."""
    return image.format in ("PNG", "TIFF") and ";16" in _rawmode(image) and not image.mode.startswith("I")


def _stored_mode(image: Image.Image) -> str:
    return f"{_rawmode(image).split(';')[0]};16" if _is_deep(image) else image.mode


def _decoded(path: Path, pixel_limit: int) -> Picture:
    with opened(path, pixel_limit) as image:
        if not _is_deep(image):
            return picture_of(image, path)
        stored, key = _stored_mode(image), image.info.get("transparency")
        pixels, converted = _with_key(_deep_pixels(image, path, pixel_limit), key)
        return _turned(image, pixels, converted, stored, path)


def _turned(
    image: Image.Image, pixels: np.ndarray, converted: str, stored: str, path: Path | None
) -> Picture:
    """The picture, upright; `image` is loaded by now (Pillow turns TIFF itself while loading)."""
    orientation = int(image.getexif().get(0x0112, 1) or 1)
    info = {
        "mode": stored,
        "format": image.format or "",
        "converted": converted,
        "turned": orientation in range(2, 9),
        "frames": int(getattr(image, "n_frames", 1)),
    }
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    return Picture(pixels, MODES[pixels.shape[-1]], path, info)


def _deep_pixels(image: Image.Image, path: Path, pixel_limit: int) -> np.ndarray:
    """Colour of 16 bits: Pillow keeps the high byte of each sample, and, told that the other end comes
    first, the low one. Two passes give both."""
    raw = _rawmode(image)
    name, order = raw.split(";16")
    if name == "LA":  # Pillow knows no such image; its four bytes a pixel pass for four channels
        _lie(image, "RGBA")
        four = np.asarray(image).astype(np.uint16)
        joined: np.ndarray = four[..., 0::2] << 8 | four[..., 1::2]
        return joined
    if name not in ("RGB", "RGBA"):
        raise _unreadable_mode(path, f"{name} with 16 bits a sample")
    high = np.asarray(image).astype(np.uint16)
    with opened(path, pixel_limit) as again:
        little = order == "L" or (order == "N" and sys.byteorder == "little")
        _lie(again, f"{name};16{'B' if little else 'L'}")
        deep: np.ndarray = high << 8 | np.asarray(again)
        return deep


def _lie(image: Any, rawmode: str) -> None:
    """Let the decoder take the file's samples for `rawmode`."""
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _with_key(pixels: np.ndarray, key: Any) -> tuple[np.ndarray, str]:
    """Opacity from PNG's transparent colour, if it names one."""
    if key is None:
        return pixels, ""
    clear = (pixels == np.asarray(key).reshape(-1)).all(-1, keepdims=True)
    opacity = np.where(clear, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return np.concatenate([pixels, opacity], -1), "transparent colour"


def _pixels(image: Image.Image) -> tuple[np.ndarray, str]:
    """((H, W, C) samples, what was converted on purpose)."""
    mode, clear = image.mode, image.info.get("transparency") is not None
    if mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)[..., None]
        return _with_key(grey, image.info.get("transparency"))
    if mode == "I":
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > np.iinfo(np.uint16).max:
            raise _unreadable_mode(image, "32-bit integers beyond 0 ... 65,535")
        return wide.astype(np.uint16)[..., None], "32-bit integers"
    if mode in ("L", "RGB") and clear:
        return _array(image.convert("LA" if mode == "L" else "RGBA")), "transparent colour"
    if mode in MODES.values():
        return _array(image), ""
    if mode in ("P", "PA"):
        opaque = not (clear or mode == "PA" or (image.palette is not None and image.palette.mode == "RGBA"))
        return _grey_if_grey(_array(image.convert("RGB" if opaque else "RGBA"))), "palette"
    if mode == "1":
        return _array(image.convert("L")), "black and white"
    targets = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA"}
    if mode in targets:
        return _array(image.convert(targets[mode])), mode
    names = {"F": "floating-point samples"}
    raise _unreadable_mode(image, names.get(mode, f"mode {mode}"))


def _unreadable_mode(source: Path | Image.Image, what: str) -> InputError:
    where = source if isinstance(source, Path) else getattr(source, "filename", "")
    remedy = "convert it to PNG of 8 or 16 bits, scaled as you need"
    return InputError("image-mode", f"{what} cannot be kept whole", str(where), remedy)


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _grey_if_grey(pixels: np.ndarray) -> np.ndarray:
    """A palette of greys is a grey picture."""
    grey = (pixels[..., :3] == pixels[..., :1]).all()
    return np.concatenate([pixels[..., :1], pixels[..., 3:]], -1) if grey else pixels


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation, 1 ... 8 (EXIF 2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels

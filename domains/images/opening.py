"""Opening a picture's file with care: a cap on its size before anything is decoded, damage in one
sentence."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ...shared.errors import InputError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")

_LOCK = threading.Lock()
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files, depending on the format and on where the damage is."""
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"RIFF", "a WebP image"),
    (b"BM", "a BMP image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"<svg", "an SVG drawing"),
    (b"<", "HTML or XML text"),
)
_READABLE = frozenset(["a PNG image", "a JPEG image", "a TIFF image", "a WebP image", "a BMP image"])


def require_file(path: Path) -> None:
    if not path.is_file():
        what = "this is a folder, not a picture" if path.is_dir() else "there is no such file"
        raise InputError("image-missing", what, str(path), "check the path")
    if path.stat().st_size == 0:
        raise InputError("image-empty", "the file is empty", str(path), "copy it again or remove it")


@contextmanager
def opened(path: Path, pixel_limit: int) -> Iterator[Image.Image]:
    """The image with its header read and its size found acceptable."""
    with _LOCK:  # Pillow's own cap is one global number, and ours may be higher
        cap, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = cap
    with image:
        if image.width * image.height > pixel_limit:
            asked = f"the header asks for {image.width:,} x {image.height:,} pixels"
            raise InputError(
                "image-too-large",
                f"{asked}, more than the cap of {pixel_limit:,}",
                str(path),
                "raise the cap with --pixel-limit if the picture is real, or remove it",
            )
        yield image


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged file into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is decided here, or told by `check`
            yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(
            "image-unreadable", "the file may not be read", str(path), "change its permissions"
        ) from error
    except UnidentifiedImageError as error:
        found = detected(path)
        if found in _READABLE:
            raise damaged(path, f"it begins like {found}") from error
        raise InputError(
            "image-not-image",
            f"not a picture that can be read, but {found}",
            str(path),
            "remove it, or convert it to PNG",
        ) from error
    except _DAMAGE as error:
        raise damaged(path, str(error).split("\n")[0][:100] or type(error).__name__) from error


def damaged(path: Path, why: str) -> InputError:
    what = f"the file ends too early or is damaged ({why})"
    return InputError("image-damaged", what, str(path), "copy it again or remove it")


def detected(path: Path) -> str:
    """What a file is by its first bytes, in words."""
    with path.open("rb") as file:
        head = file.read(512)
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if len(head) > 132 and head[128:132] == b"DICM":
        return "a DICOM file"
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return "plain text" if head and printable else "unknown bytes"

"""Pictures that are not single files: arrays in a `.npz`, and torchvision's data sets. Nothing is downloaded.

No pickle is read from a `.npz`. Some of torchvision's own formats (CIFAR) are pickles; torchvision opens
them only after comparing their MD5 with the published one.
"""

from __future__ import annotations

import inspect
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...shared.errors import Fault, InputError
from .metadata import Described
from .pictures import MODES, Glance, Picture, glance_at, picture_of

Part = Literal["train", "test"]
PREFIX = "torchvision:"
BYTES_LIMIT = 8 * 2**30
"""Bytes that an array may take in memory."""


def numbered(count: int) -> tuple[str, ...]:
    """Names of pictures that have none: their positions, of one width so that they sort."""
    return tuple(f"{k:0{max(5, len(str(count)))}d}" for k in range(count))


# --- arrays -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Arrays:
    """Pictures as one array (n, H, W, C), uint8 or uint16."""

    pixels: np.ndarray
    path: Path

    def read(self, index: int) -> Picture:
        pixels = self.pixels[index]
        return Picture(
            pixels, MODES[pixels.shape[-1]], self.path, {"mode": "array", "converted": "", "frames": 1}
        )

    def raw(self, index: int) -> bytes:
        return (
            bytes(self.pixels[index].tobytes())
            + repr((self.pixels.shape[1:], str(self.pixels.dtype))).encode()
        )

    def glance(self, index: int) -> Glance:
        return glance_at(self.read(index))


def read_arrays(path: Path, part: Part = "train", labels: str | None = None) -> tuple[Arrays, Described]:
    """Pictures and classes from a `.npz`: `x_train` and `y_train` (or `_test`), or `images` and `labels`;
    perhaps `class_names`.

    Args:
        labels: the name of the array that holds the classes.

    Raises:
        InputError: `image-arrays-...`.
    """
    declared = _declared(path)
    image_name = _first_of(declared, (f"x_{part}", "images", "x", "X"), path, "images")
    if labels is not None and labels not in declared:
        _first_of(declared, (labels,), path, labels)
    label_name = labels or next((n for n in (f"y_{part}", "labels", "y") if n in declared), None)
    needed = [name for name in (image_name, label_name, "class_names") if name in declared]
    for name in needed:
        _require_small(declared[name], path, name)
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in needed}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    pixels, faults = _as_pictures(arrays[image_name], path, image_name)
    codes, class_names = np.full(len(pixels), -1, np.int64), tuple[str, ...]()
    if label_name is not None:
        names = arrays.get("class_names")
        codes, class_names = _as_labels(arrays[label_name], names, len(pixels), path, label_name)
    return Arrays(pixels, path), Described(codes, class_names, faults=faults)


def _declared(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array, from their headers alone."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                    found[member.removesuffix(".npy")] = (tuple(shape), dtype)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    return found


def _damaged(path: Path, why: str) -> InputError:
    what = f"not a whole .npz file ({why.splitlines()[0][:100] if why else 'unreadable'})"
    return InputError("image-arrays-damaged", what, str(path), "copy it again, or save it with numpy.savez")


def _first_of(declared: dict[str, Any], wanted: Sequence[str], path: Path, what: str) -> str:
    for name in wanted:
        if name in declared:
            return name
    there = ", ".join(declared) or "none"
    raise InputError(
        "image-arrays-missing",
        f"no array is called {' or '.join(wanted)}; there are: {there}",
        str(path),
        f"save the {what} under that name",
    )


def _require_small(declared: tuple[tuple[int, ...], np.dtype[Any]], path: Path, name: str) -> None:
    shape, dtype = declared
    if dtype.hasobject:
        what = f"array {name!r} holds Python objects, which are not read"
        raise InputError("image-arrays-objects", what, str(path), "save plain numbers or texts")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > BYTES_LIMIT:
        raise InputError(
            "image-arrays-too-large",
            f"array {name!r} would take {size / 2**30:,.1f} GiB of memory, more than {BYTES_LIMIT // 2**30}",
            str(path),
            "split it, or save the pictures as files",
        )


def _as_pictures(array: np.ndarray, path: Path, name: str) -> tuple[np.ndarray, tuple[Fault, ...]]:
    """(n, H, W, C) uint8 or uint16, and what was done to get there."""
    where, done = f"{path}, array {name!r}", []
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and shape[-1] not in MODES and shape[1] in MODES:
        array = array.transpose(0, 2, 3, 1)
        done.append(("image-arrays-channels", "the channels come first; they were put last"))
    if array.ndim != 4 or array.shape[-1] not in MODES or 0 in array.shape:
        raise InputError(
            "image-arrays-shape",
            f"shape {shape} is not (n, height, width) or (n, height, width, 1 to 4 channels)",
            where,
            "save the pictures in that shape",
        )
    if array.dtype not in (np.uint8, np.uint16):
        array = _whole_numbers(array, where)
        done.append(("image-arrays-type", f"whole numbers of type {shape and array.dtype} were made of it"))
    return array, tuple(Fault(code, what, where, severity="warning") for code, what in done)


def _whole_numbers(array: np.ndarray, where: str) -> np.ndarray:
    top = np.iinfo(np.uint16).max
    numeric = array.dtype.kind in "biuf"
    if (
        not numeric
        or not np.isfinite(array).all()
        or array.min() < 0
        or array.max() > top
        or (array % 1).any()
    ):
        raise InputError(
            "image-arrays-range",
            f"values of type {array.dtype} are not whole numbers in 0 ... {top:,}",
            where,
            "scale and round them to uint8 or uint16 first",
        )
    return array.astype(np.uint8 if array.max() < 256 else np.uint16)


def _as_labels(
    labels: np.ndarray, names: np.ndarray | None, count: int, path: Path, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    where = f"{path}, array {name!r}"
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (count,) or labels.dtype.kind not in "iuUS":
        what = f"{labels.dtype} of shape {labels.shape} are not one class for each of {count} pictures"
        raise InputError("image-arrays-labels", what, where, "save one whole number or text for each picture")
    if names is not None and labels.dtype.kind in "iu":
        told = tuple(str(n) for n in names.reshape(-1))
        if labels.max(initial=-1) >= len(told):
            what = f"class {labels.max()} has no name: class_names holds {len(told)}"
            raise InputError("image-arrays-labels", what, where, "give a name for each class")
        return np.maximum(labels.astype(np.int64), -1), told
    levels, codes = np.unique(
        labels[labels >= 0] if labels.dtype.kind in "iu" else labels, return_inverse=True
    )
    found = np.full(count, -1, np.int64)
    found[labels >= 0 if labels.dtype.kind in "iu" else slice(None)] = codes
    return found, tuple(n.decode() if isinstance(n, bytes) else str(n) for n in levels.tolist())


# --- torchvision --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TorchvisionSource:
    """A torchvision data set that gives (PIL image, target)."""

    data: Any
    name: str

    def read(self, index: int) -> Picture:
        image = self.data[index][0]
        return picture_of(image, Path(f"{self.name} {index}"))

    def raw(self, index: int) -> bytes:
        pixels = self.read(index).pixels
        return pixels.tobytes() + repr((pixels.shape, str(pixels.dtype))).encode()

    def glance(self, index: int) -> Glance:
        return glance_at(self.read(index))


def read_torchvision(
    spec: str, root: Path | None = None, part: Part = "train"
) -> tuple[TorchvisionSource, Described, Path]:
    """A data set by name, "torchvision:NAME" or "torchvision:NAME:FOLDER", from a folder that holds it
    already.

    Raises:
        InputError: `image-torchvision-...`: no such name, or the folder does not hold it.
    """
    from torchvision import datasets

    name, _, folder = spec.removeprefix(PREFIX).partition(":")
    where = Path(folder) if folder else root
    known = [n for n in datasets.__all__ if "root" in inspect.signature(getattr(datasets, n)).parameters]
    if name not in known:
        close = get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else "see torchvision.datasets for the names"
        raise InputError("image-torchvision-name", f"torchvision has no data set {name!r}", spec, hint)
    if where is None or not where.is_dir():
        what = "no folder is given" if where is None else f"there is no folder {where}"
        remedy = f"say where it lies: {PREFIX}{name}:FOLDER (nothing is downloaded)"
        raise InputError("image-torchvision-root", what, spec, remedy)
    try:
        data = getattr(datasets, name)(str(where), **_asked(getattr(datasets, name), part))
    except (RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:150]
        remedy = f"put {name} there as torchvision stores it (nothing is downloaded)"
        raise InputError(
            "image-torchvision-data", f"the data set cannot be opened: {why}", str(where), remedy
        ) from error
    return TorchvisionSource(data, name), _told(data), where


def _asked(maker: Any, part: Part) -> dict[str, Any]:
    """The arguments that choose the part and forbid a download, as far as the data set takes them."""
    takes = inspect.signature(maker).parameters
    asked: dict[str, Any] = {"download": False} if "download" in takes else {}
    if "train" in takes:
        asked["train"] = part == "train"
    elif "split" in takes and (part == "test" or takes["split"].default is inspect.Parameter.empty):
        asked["split"] = part
    return asked


def _told(data: Any) -> Described:
    """Classes as torchvision's data sets hold them, each under a name of its own."""
    held = next((getattr(data, n) for n in ("targets", "labels", "_labels") if hasattr(data, n)), None)
    pairs = next((getattr(data, n) for n in ("samples", "_samples") if hasattr(data, n)), None)
    if held is None and pairs is not None:
        held = [pair[1] for pair in pairs]
    labels = np.asarray(held if held is not None else [])
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu" or labels.max(initial=-1) < 0:
        return Described(np.full(len(data), -1, np.int64))
    classes = getattr(data, "classes", None) or range(int(labels.max()) + 1)
    names = tuple(", ".join(c) if isinstance(c, tuple) else str(c) for c in classes)
    return Described(np.maximum(labels.astype(np.int64), -1), names)

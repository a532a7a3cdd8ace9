"""A data set of pictures, whatever it lies in: names, classes, covariates and captions at once, pixels when
asked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ...shared.errors import Fault, InputError
from ...shared.noise import key_of
from .metadata import NAME, Described, coded, describe, read_metadata
from .pictures import PIXEL_LIMIT, SUFFIXES, Alpha, Glance, Picture, glance, read_picture
from .sources import PREFIX, Part, numbered, read_arrays, read_torchvision

Kind = Literal["classes", "metadata", "folder", "file", "arrays", "torchvision"]
SHEET, PREVIEW, MANIFEST = "contact_sheet.png", "preview.png", "manifest.json"
_LITTER = frozenset(["thumbs.db", "desktop.ini", "__macosx"])


class Source(Protocol):
    """Where pixels come from."""

    def read(self, index: int) -> Picture:
        """The picture at a position."""
        ...

    def raw(self, index: int) -> bytes:
        """The bytes it is made from, for a digest."""
        ...

    def glance(self, index: int) -> Glance:
        """Its size and mode, without decoding where that can be."""
        ...


@dataclass(frozen=True)
class Files:
    """Pictures in files, read when asked."""

    root: Path
    names: tuple[str, ...]
    pixel_limit: int = PIXEL_LIMIT
    alpha: Alpha = "keep"
    background: int = 255

    def read(self, index: int) -> Picture:
        path = self.root / self.names[index]
        return read_picture(path, pixel_limit=self.pixel_limit, alpha=self.alpha, background=self.background)

    def raw(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()

    def glance(self, index: int) -> Glance:
        found = glance(self.root / self.names[index], self.pixel_limit)
        opaque = found.mode.removesuffix("A") if self.alpha == "composite" else found.mode
        return found._replace(mode=opaque)


@dataclass(frozen=True)
class Chosen:
    """Some of another source's pictures."""

    source: Source
    indices: tuple[int, ...]

    def read(self, index: int) -> Picture:
        return self.source.read(self.indices[index])

    def raw(self, index: int) -> bytes:
        return self.source.raw(self.indices[index])

    def glance(self, index: int) -> Glance:
        return self.source.glance(self.indices[index])


@dataclass(frozen=True, eq=False)
class Collection:
    """Pictures, and what is known of each.

    Args:
        path: as the user gave it.
        kind: how it is laid out.
        names: n names, each once, sorted: paths relative to the folder, or positions.
        source: gives the pixels.
        labels: (n,) int64 positions in `class_names`, -1 where unknown.
        covariates: (n, K) float64, NaN where unknown; K may be 0.
        class_names: the classes; empty when there are none.
        covariate_names: K names.
        captions: n texts, None where there is none; empty when no picture has one.
        faults: warnings from laying it out.
    """

    path: str
    kind: Kind
    names: tuple[str, ...]
    source: Source
    labels: np.ndarray
    covariates: np.ndarray
    class_names: tuple[str, ...] = ()
    covariate_names: tuple[str, ...] = ()
    captions: tuple[str | None, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Picture:
        """The picture at a position. Raises InputError when its file is damaged."""
        return self.source.read(index)

    def glance(self, index: int) -> Glance:
        """Size and mode of the picture at a position."""
        return self.source.glance(index)

    def __iter__(self) -> Iterator[Picture]:
        return (self.read(index) for index in range(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Collection:
        """Some of the pictures, in the order given; classes keep their positions."""
        rows = np.asarray(indices, np.int64)
        return replace(
            self,
            names=tuple(self.names[k] for k in rows),
            source=Chosen(self.source, tuple(rows.tolist())),
            labels=self.labels[rows],
            covariates=self.covariates[rows],
            captions=tuple(self.captions[k] for k in rows) if self.captions else (),
        )

    def labels_among(self, class_names: Sequence[str]) -> np.ndarray:
        """(n,) int64 positions of the pictures' classes in other names, -1 where unknown there."""
        place = {name: k for k, name in enumerate(class_names)}
        there = [place.get(name, -1) for name in self.class_names]
        return np.array([there[k] if k >= 0 else -1 for k in self.labels.tolist()], np.int64)

    def split(self, held_out: float, seed: int = 0) -> tuple[Collection, Collection]:
        """(to train on, held out): round(held_out n) pictures are held out, chosen by their names and the
        seed, so that a new picture moves no other across as long as the number stays."""
        order = np.argsort([key_of(seed, "held out", name) for name in self.names], kind="stable")
        cut = round(held_out * len(self))
        return self.subset(np.sort(order[cut:])), self.subset(np.sort(order[:cut]))

    def digest(self) -> str:
        """sha256 over the names, the bytes and all that is known of each picture: the same data, the same
        digest."""
        seen = hashlib.sha256()
        for index, name in enumerate(self.names):
            label = self.class_names[self.labels[index]] if self.labels[index] >= 0 else ""
            caption = self.captions[index] if self.captions else None
            raw = self.source.raw(index)
            known = (name, label, self.covariates[index].tolist(), caption, len(raw))
            seen.update(repr(known).encode() + raw)
        return seen.hexdigest()


def looks_like_pictures(path: Path | str) -> bool:
    """Whether there are pictures at a path: a picture, a `.npz`, a folder with a picture in it or in a
    folder below it, or "torchvision:NAME"."""
    if str(path).startswith(PREFIX):
        return True
    path = Path(path)
    if path.is_file():
        return path.suffix.lower() in SUFFIXES | {".npz"}
    return path.is_dir() and any(
        entry.suffix.lower() in SUFFIXES for pattern in ("*", "*/*") for entry in path.glob(pattern)
    )


def collect(
    path: Path | str,
    *,
    labels: str | None = None,
    part: Part = "train",
    root: Path | None = None,
    pixel_limit: int = PIXEL_LIMIT,
    alpha: Alpha = "keep",
    background: int = 255,
    table: bool = True,
) -> Collection:
    """Lay out a data set; no pixel of a file is read yet.

    Args:
        path: a folder with a sub-folder for each class, a folder with a `metadata.csv`, a plain folder, a
            picture, a `.npz`, or "torchvision:NAME:FOLDER".
        labels: which column of `metadata.csv`, or array of the `.npz`, holds the class.
        part: of a data set that comes in two.
        root: where torchvision's data set lies, when the path does not say.
        pixel_limit, alpha, background: see `read_picture`.
        table: look at a folder's `metadata.csv`.

    Raises:
        InputError: nothing there, no picture in it, or a damaged table or archive.
    """
    given = str(path)
    if given.startswith(PREFIX):
        source, described, _ = read_torchvision(given, root, part)
        names = numbered(len(described.labels))
        return _made(given, "torchvision", names, source, described)
    path = Path(path)
    if path.is_dir():
        opened = partial(_files, path, pixel_limit, alpha, background)
        return _folder(path, labels if table else None, opened, table)
    if not path.is_file():
        raise InputError("image-missing", "there is no such file or folder", given, "check the path")
    if path.suffix.lower() == ".npz":
        arrays, described = read_arrays(path, part, labels)
        return _made(given, "arrays", numbered(len(arrays.pixels)), arrays, described)
    files = Files(path.parent, (path.name,), pixel_limit, alpha, background)
    return _made(given, "file", files.names, files, Described(np.array([-1])))


def _made(path: str, kind: Kind, names: tuple[str, ...], source: Source, told: Described) -> Collection:
    covariates = told.covariates if told.covariates is not None else np.empty((len(names), 0))
    return Collection(
        path,
        kind,
        names,
        source,
        told.labels,
        covariates,
        told.class_names,
        told.covariate_names,
        told.captions if any(told.captions) else (),
        told.faults,
    )


def _files(path: Path, pixel_limit: int, alpha: Alpha, background: int, names: tuple[str, ...]) -> Files:
    return Files(path, names, pixel_limit, alpha, background)


def _folder(
    path: Path, column: str | None, opened: Callable[[tuple[str, ...]], Files], table: bool
) -> Collection:
    names, others = _walk(path)
    if not names:
        held = f"; it holds {len(others)} other files, the first is {others[0]}" if others else ""
        remedy = f"give a folder of {', '.join(sorted(s[1:] for s in SUFFIXES))} files"
        raise InputError("image-none", f"there is no picture in this folder{held}", str(path), remedy)
    faults = _others(path, others)
    kind, described = _described(path, names, column, table)
    described = replace(described, faults=(*faults, *described.faults))
    return _made(str(path), kind, names, opened(names), described)


def _described(
    path: Path, names: tuple[str, ...], column: str | None, use_table: bool
) -> tuple[Kind, Described]:
    """What the folders' names and the table say of the pictures."""
    classes = _by_folder(path, names)
    table = path / NAME
    if not use_table or not table.is_file():
        if column is not None:
            what = f"a column {column!r} is asked for, and there is no {NAME}"
            raise InputError("metadata-missing", what, str(path), "add the table, or leave the option out")
        return ("classes" if classes.class_names else "folder"), classes
    described = describe(read_metadata(table), names, column)
    if not described.class_names and classes.class_names:
        faults = (*described.faults, *classes.faults)
        described = replace(described, labels=classes.labels, class_names=classes.class_names, faults=faults)
    return "metadata", described


def _walk(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """(pictures, other files) below a folder, as sorted relative paths; what is hidden or litter is passed
    over."""
    pictures: list[str] = []
    others: list[str] = []
    ours = (path / MANIFEST).is_file()
    for folder, below, files in os.walk(path):
        below[:] = [name for name in below if not _is_litter(name)]
        for name in files:
            found = (Path(folder) / name).relative_to(path).as_posix()
            if _is_litter(name) or found == NAME or (ours and _is_beside(found)):
                continue
            (pictures if Path(name).suffix.lower() in SUFFIXES else others).append(found)
    return tuple(sorted(pictures)), sorted(others)


def _is_beside(name: str) -> bool:
    """What this package writes beside the pictures of a run: sheets, cards, masks, spreads, draws."""
    folder, _, rest = name.partition("/")
    if rest:
        return folder in ("masks", "spread") or folder.startswith("draw_")
    return name in (SHEET, PREVIEW) or Path(name).suffix.lower() not in SUFFIXES


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _others(path: Path, others: Sequence[str]) -> tuple[Fault, ...]:
    if not others:
        return ()
    what = (
        f"{len(others)} files are not pictures by their names and are passed over, the first is {others[0]}"
    )
    return (Fault("image-other-files", what, str(path), "", "warning"),)


def _by_folder(path: Path, names: Sequence[str]) -> Described:
    """Classes by the first folder of each name."""
    folders = [name.split("/")[0] if "/" in name else "" for name in names]
    labels, class_names = coded(folders)
    loose = [name for name, folder in zip(names, folders, strict=True) if not folder]
    if not loose or not class_names:
        return Described(labels, class_names)
    what = f"{len(loose)} pictures lie beside the classes' folders and have no class, the first is {loose[0]}"
    fault = Fault("image-no-class", what, str(path), "move them into a class's folder", "warning")
    return Described(labels, class_names, faults=(fault,))

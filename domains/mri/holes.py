"""What of a scan is to be filled, as the user says it, on the image's own grid.

=======================  =====================================================================
`box:10-20,5-9,0-7`      a box of voxels, first to last of each axis
`slices:2:3,7-9`         slices across axis 0, 1 or 2, by number
`thick:2:3`              the image has every third slice along axis 2; make the two between
`bad-slices`             the slices that `check` finds blank, or unlike both neighbours
a file or a folder       a mask: what is not 0 is filled; a folder holds one for each image
=======================  =====================================================================

Axes and numbers count from 0, in the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...shared.errors import InputError
from .collection import Read, Subject, read_image
from .intensity import look
from .nifti import Volume, stem_of
from .slices import bad_slices

_SPAN = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Thick:
    """Every `factor`-th slice along `axis` is there."""

    axis: int
    factor: int

    def stretched(self, volume: Volume) -> tuple[Volume, np.ndarray]:
        """The image on the finer grid, the slices that are there in their places; and what is missing."""
        n = volume.shape[self.axis]
        shape = list(volume.shape)
        shape[self.axis] = (n - 1) * self.factor + 1
        stored = np.zeros(shape, volume.stored.dtype)
        place = [slice(None)] * 3
        place[self.axis] = slice(None, None, self.factor)
        stored[tuple(place)] = volume.stored
        hidden = np.ones(shape, bool)
        hidden[tuple(place)] = False
        affine = volume.affine.copy()
        affine[:, self.axis] /= self.factor
        header = volume.header.copy()
        header.set_data_shape(tuple(shape))
        for codes, setter in (("sform_code", header.set_sform), ("qform_code", header.set_qform)):
            setter(affine, int(header[codes]) or 1)
        return replace(volume, stored=stored, affine=affine, header=header, preamble=b""), hidden


@dataclass(frozen=True)
class Holes:
    """What is to be filled.

    Args:
        boxes: (first, last + 1) of each axis.
        slices: (axis, numbers).
        thick: a finer grid, or None.
        masks: files or folders.
        bad: the slices that `check` finds fault with.
    """

    boxes: tuple[tuple[tuple[int, int], ...], ...] = ()
    slices: tuple[tuple[int, tuple[int, ...]], ...] = ()
    thick: Thick | None = None
    masks: tuple[Path, ...] = ()
    bad: bool = False

    def __bool__(self) -> bool:
        return bool(self.boxes or self.slices or self.thick or self.masks or self.bad)

    def of(
        self, subject: Subject, volumes: Mapping[str, Volume], read: Read = read_image
    ) -> tuple[dict[str, Volume], dict[str, np.ndarray]]:
        """The images (on a finer grid where slices are thick) and what is hidden of each; `read` reads masks.

        Raises:
            InputError: a box or a slice outside the image; a mask that is missing, or on another grid.
        """
        images, hidden = {}, {}
        for modality, volume in volumes.items():
            if self.thick is not None:
                images[modality], hidden[modality] = self.thick.stretched(volume)
                continue
            mask = np.zeros(volume.shape, bool)
            for box in self.boxes:
                mask[_within(box, volume)] = True
            for axis, numbers in self.slices:
                mask[_across(axis, numbers, volume)] = True
            if self.bad:
                values = volume.values()
                for found in bad_slices(values, look(values).object):
                    mask[_across(found.axis, found.all, volume)] = True
            for path in self.masks:
                mask |= _read(path, subject, modality, volume, read)
            images[modality], hidden[modality] = volume, mask
        return images, hidden


def parse_holes(words: Sequence[str]) -> Holes:
    """Words as in the module's table.

    Raises:
        InputError: `fill`, words that cannot be read; `thick-alone`, thick slices beside other holes.

    Example:
        >>> parse_holes(["slices:2:3,7-9"]).slices
        ((2, (3, 7, 8, 9)),)
    """
    holes = Holes()
    for word in words:
        kind, _, rest = word.partition(":")
        if kind == "box":
            spans = tuple(_span(part, word) for part in rest.split(","))
            if len(spans) != 3:
                raise _unread(word)
            holes = replace(holes, boxes=(*holes.boxes, spans))
        elif kind == "slices":
            axis, _, numbers = rest.partition(":")
            chosen = tuple(n for part in numbers.split(",") for n in range(*_span(part, word)))
            holes = replace(holes, slices=(*holes.slices, (_axis(axis, word), chosen)))
        elif kind == "thick":
            axis, _, factor = rest.partition(":")
            if not factor.isdigit() or not 2 <= int(factor) <= 12:
                raise _unread(word)
            holes = replace(holes, thick=Thick(_axis(axis, word), int(factor)))
        elif word == "bad-slices":
            holes = replace(holes, bad=True)
        elif Path(word).exists():
            holes = replace(holes, masks=(*holes.masks, Path(word)))
        else:
            raise _unread(word)
    if holes.thick is not None and replace(holes, thick=None):
        raise InputError(
            "thick-alone", "thick slices are filled by themselves", "--fill", "fill the rest in a second run"
        )
    return holes


def _unread(word: str) -> InputError:
    return InputError(
        "fill",
        f"{word!r} says nothing that can be filled, and no such file is here",
        "--fill",
        "write box:10-20,5-9,0-7, slices:2:3,7-9, thick:2:3 or bad-slices, or give a mask",
    )


def _span(text: str, word: str) -> tuple[int, int]:
    found = _SPAN.fullmatch(text.strip())
    if not found or (found[2] and int(found[2]) < int(found[1])):
        raise _unread(word)
    return int(found[1]), int(found[2] or found[1]) + 1


def _axis(text: str, word: str) -> int:
    if text.strip() not in ("0", "1", "2"):
        raise _unread(word)
    return int(text)


def _within(box: Sequence[tuple[int, int]], volume: Volume) -> tuple[slice, ...]:
    if any(last > n for (_, last), n in zip(box, volume.shape, strict=True)):
        raise _outside("the box", volume)
    return tuple(slice(*span) for span in box)


def _across(axis: int, numbers: Sequence[int], volume: Volume) -> tuple[slice | list[int], ...]:
    if max(numbers) >= volume.shape[axis]:
        raise _outside(f"slice {max(numbers)} of axis {axis}", volume)
    return tuple(list(numbers) if a == axis else slice(None) for a in range(3))


def _outside(what: str, volume: Volume) -> InputError:
    size = " x ".join(map(str, volume.shape))
    return InputError(
        "hole-outside",
        f"{what} lies outside the image, which has {size} voxels",
        str(volume.path),
        "count from 0",
    )


def _read(path: Path, subject: Subject, modality: str, volume: Volume, read: Read) -> np.ndarray:
    """The mask of one image: the file itself, or the one in the folder with its name or its subject's."""
    if path.is_dir():
        names = {stem_of(volume.path), subject.name, f"{subject.name}_{modality}"}
        names |= {f"{name}_mask" for name in names}
        found = sorted(file for file in path.iterdir() if stem_of(file) in names)
        if not found:
            raise InputError(
                "mask-missing",
                f"there is no mask for {volume.path.name}",
                str(path),
                "name it like the image, with or without _mask",
            )
        path = found[0]
    mask = read(path)
    same = mask.shape == volume.shape and np.allclose(mask.affine, volume.affine, atol=1e-3)
    if not same:
        raise InputError(
            "mask-grid",
            f"the mask does not lie on the grid of {volume.path.name}",
            str(path),
            "resample the mask to the image's grid",
        )
    return np.asarray(mask.stored != 0)

"""What of a picture is to be filled, as the user says it.

=======================  =====================================================================
`box:10-20,5-9`          a box of pixels: rows, columns, first to last
`half:right`             a half: left, right, top or bottom
`border:8`               a border around the picture (outpainting): the result is larger
`enlarge:2`              every pixel becomes 2 x 2 (3 x 3, 4 x 4): the result is larger
`transparent`            what is fully transparent
a file or a folder       a mask: what is not black is filled; a folder holds one for each picture
=======================  =====================================================================

Pixels count from 0, from the upper left corner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...shared.errors import InputError
from .pictures import Picture, read_picture
from .tasks import widened

_SPAN = re.compile(r"(\d+)(?:-(\d+))?")
HALVES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Holes:
    """What is to be filled.

    Args:
        boxes: rows and columns, first and last + 1.
        halves: of `HALVES`.
        border: pixels around the picture.
        enlarge: factor; 1 leaves the size.
        transparent: fill what is fully transparent.
        masks: files or folders.
    """

    boxes: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    halves: tuple[str, ...] = ()
    border: int = 0
    enlarge: int = 1
    transparent: bool = False
    masks: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return self != Holes()

    def of(self, picture: Picture, name: str) -> tuple[Picture, np.ndarray]:
        """The picture (larger, where it grows) and what is hidden of it, (H, W) bool.

        Raises:
            InputError: a box outside the picture; a mask that is missing, or of another size.
        """
        if self.enlarge > 1:
            return enlarged(picture, self.enlarge)
        if self.border:
            return widened(picture, self.border)
        height, width = picture.size
        hidden = np.zeros(picture.size, bool)
        for rows, columns in self.boxes:
            if rows[1] > height or columns[1] > width:
                what = f"the box lies outside the picture, which has {height} x {width} pixels"
                raise InputError("hole-outside", what, picture.where, "count from 0: rows, then columns")
            hidden[slice(*rows), slice(*columns)] = True
        for half in self.halves:
            rows, columns = {
                "left": ((0, height), (0, width // 2)),
                "right": ((0, height), (width - width // 2, width)),
                "top": ((0, height // 2), (0, width)),
                "bottom": ((height - height // 2, height), (0, width)),
            }[half]
            hidden[slice(*rows), slice(*columns)] = True
        if self.transparent and picture.mode in ("LA", "RGBA"):
            hidden |= picture.pixels[..., -1] == 0
        for path in self.masks:
            hidden |= _read(path, picture, name)
        return picture, hidden


def enlarged(picture: Picture, factor: int) -> tuple[Picture, np.ndarray]:
    """A picture whose every pixel stands amid factor x factor of which the others are hidden."""
    height, width = picture.size
    first = (factor - 1) // 2
    pixels = np.repeat(np.repeat(picture.pixels, factor, 0), factor, 1)
    hidden = np.ones((height * factor, width * factor), bool)
    hidden[first::factor, first::factor] = False
    return replace(picture, pixels=pixels), hidden


def parse_holes(words: Sequence[str]) -> Holes:
    """Words as in the module's table.

    Raises:
        InputError: `fill`, words that cannot be read; `fill-alone`, a border or an enlargement beside others.

    Example:
        >>> parse_holes(["half:right"]).halves
        ('right',)
    """
    holes = Holes()
    for word in words:
        kind, _, rest = word.partition(":")
        if kind == "box":
            spans = [_SPAN.fullmatch(part.strip()) for part in rest.split(",")]
            if len(spans) != 2 or not all(spans):
                raise _unread(word)
            rows, columns = ((int(s[1]), int(s[2] or s[1]) + 1) for s in spans if s)
            holes = replace(holes, boxes=(*holes.boxes, (rows, columns)))
        elif kind == "half" and rest in HALVES:
            holes = replace(holes, halves=(*holes.halves, rest))
        elif kind == "border" and rest.isdigit() and int(rest):
            holes = replace(holes, border=int(rest))
        elif kind == "enlarge" and rest in ("2", "3", "4"):
            holes = replace(holes, enlarge=int(rest))
        elif word == "transparent":
            holes = replace(holes, transparent=True)
        elif Path(word).exists():
            holes = replace(holes, masks=(*holes.masks, Path(word)))
        else:
            raise _unread(word)
    grows = replace(holes, border=0, enlarge=1)
    if (holes.border or holes.enlarge > 1) and (grows or (holes.border and holes.enlarge > 1)):
        raise InputError(
            "fill-alone",
            "what makes pictures larger is done by itself",
            "--fill",
            "do the rest in a second run",
        )
    return holes


def _unread(word: str) -> InputError:
    return InputError(
        "fill",
        f"{word!r} says nothing that can be filled, and no such file is here",
        "--fill",
        "write box:10-20,5-9, half:right, border:8, enlarge:2 or transparent, or give a mask",
    )


def _read(path: Path, picture: Picture, name: str) -> np.ndarray:
    """The mask of one picture: the file itself, or the one in the folder with its name."""
    if path.is_dir():
        stem = Path(name).with_suffix("")
        found = [path / f"{stem}{end}.png" for end in ("", "_mask")]
        there = [file for file in found if file.is_file()]
        if not there:
            what = f"there is no mask for {name}"
            raise InputError("mask-missing", what, str(path), f"add {stem}.png or {stem}_mask.png")
        path = there[0]
    mask = read_picture(path)
    if mask.size != picture.size:
        (mh, mw), (h, w) = mask.size, picture.size
        what = f"the mask has {mh} x {mw} pixels and the picture {h} x {w}"
        raise InputError("mask-size", what, str(path), "make a mask of the picture's size")
    light = mask.pixels[..., :-1] if mask.mode in ("LA", "RGBA") else mask.pixels
    return np.asarray(light.any(-1))

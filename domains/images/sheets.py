"""Many pictures on one sheet: what was generated, and what was observed beside what was filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .writing import Provenance, write_png

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

INK, SOFT, PAPER, HIDDEN = (34, 49, 63), (110, 122, 133), (255, 255, 255), (235, 169, 177)
GAP, MARGIN, TEXT = 6, 14, 12
TILE = 96
"""Pixels that a small picture is enlarged to, about."""
SHEET = 2400
"""Pixels of a sheet's width, about, before pictures are made smaller."""


@dataclass(frozen=True, eq=False)
class Completion:
    """One picture that was filled in.

    Args:
        original: (H, W, C) uint8 or uint16; what lies under `hidden` is shown only when `truth` says so.
        hidden: (H, W) bool, True where it was filled.
        draws: (D, H, W, C), the filled pictures.
        title: what it is called.
        truth: whether the original's hidden pixels are really known (a benchmark).
    """

    original: np.ndarray
    hidden: np.ndarray
    draws: np.ndarray
    title: str = ""
    truth: bool = False


def contact_sheet(
    images: Sequence[np.ndarray],
    path: Path,
    titles: Sequence[str] = (),
    columns: int | None = None,
    *,
    heading: str = "",
    about: Provenance | None = None,
    overwrite: bool = False,
) -> None:
    """Write `sheet_of` as a PNG.

    Args:
        path, about, overwrite: as for `write_png`; the rest as for `sheet_of`.

    Raises:
        InputError: `output-exists`, unless `overwrite`.
    """
    write_png(sheet_of(images, titles, columns, heading=heading), path, about, overwrite=overwrite)


def sheet_of(
    images: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int | None = None, *, heading: str = ""
) -> np.ndarray:
    """All pictures in rows, (H, W, 3) uint8. Small ones are enlarged by a whole factor, their pixels kept
    square; opacity is laid on white, and 16 bits are shown as 8.

    Args:
        images: (H, W, C) uint8 or uint16 each, of any sizes.
        titles: one under each picture, or none.
        columns: pictures in a row; by default about as many as rows.
        heading: a line above all.

    Raises:
        ValueError: when there is no picture, or the titles do not match.
    """
    if not images or (titles and len(titles) != len(images)):
        raise ValueError(f"{len(images)} pictures with {len(titles)} titles")
    across = columns or max(1, round(len(images) ** 0.5 * 1.25))
    across = min(across, len(images))
    tiles = [shown(image) for image in images]
    rows = [tiles[k : k + across] for k in range(0, len(tiles), across)]
    under = [list(titles[k : k + across]) for k in range(0, len(titles), across)]
    return _laid_out(rows, under, (), (), heading)


def before_after(
    completions: Sequence[Completion],
    path: Path,
    *,
    draws: int = 4,
    heading: str = "",
    about: Provenance | None = None,
    overwrite: bool = False,
) -> None:
    """Write a PNG with a row for each picture: what was observed, some draws, their mean, and their spread
    (the standard deviation, bright where draws differ), and the truth where it is known.

    Args:
        completions: the pictures.
        draws: how many draws are shown of each at most.
        heading, about, overwrite: as in `contact_sheet`.

    Raises:
        ValueError: when there is none, or none has a draw.
    """
    most = min(draws, max((len(c.draws) for c in completions), default=0))
    if not most:
        raise ValueError("there is no draw to show")
    top = max(_spread(c).max() for c in completions)
    with_truth = any(c.truth for c in completions)
    rows = [_row(c, most, top, with_truth) for c in completions]
    unit = np.iinfo(completions[0].draws.dtype).max
    heads = ["observed", *(f"draw {k + 1}" for k in range(most)), "mean", "spread"]
    heads += ["truth"] if with_truth else []
    scale = f"spread: black 0, bright {100 * top / unit:.0f} % of the range"
    heading = f"{heading} · {scale}" if heading else scale
    sheet = _laid_out(rows, (), heads, [c.title for c in completions], heading)
    write_png(sheet, path, about, overwrite=overwrite)


def _row(completion: Completion, most: int, top: float, with_truth: bool) -> list[np.ndarray | None]:
    observed = shown(completion.original)
    observed[completion.hidden] = HIDDEN
    drawn: list[np.ndarray | None] = [shown(draw) for draw in completion.draws[:most]]
    mean = np.rint(completion.draws.mean(0, dtype=np.float64)).astype(completion.draws.dtype)
    row = [observed, *drawn, *[None] * (most - len(drawn)), shown(mean), _heat(_spread(completion), top)]
    return [*row, shown(completion.original) if completion.truth else None] if with_truth else row


def _spread(completion: Completion) -> np.ndarray:
    """(H, W) standard deviation over draws, averaged over channels."""
    spread: np.ndarray = completion.draws.astype(np.float64).std(0).mean(-1)
    return spread


def _heat(values: np.ndarray, top: float) -> np.ndarray:
    """(H, W) numbers in 0 ... top as colours, dark to bright."""
    from matplotlib import colormaps

    coloured: np.ndarray = colormaps["magma"](values / top if top else values, bytes=True)[..., :3].copy()
    return coloured


def shown(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 for the eye: opacity laid on white, 16 bits as 8."""
    image = image[..., None] if image.ndim == 2 else image
    values = image.astype(np.float64) / np.iinfo(image.dtype).max
    if values.shape[-1] in (2, 4):
        values = values[..., :-1] * values[..., -1:] + 1 - values[..., -1:]
    return np.rint(np.repeat(values, 3 // values.shape[-1], -1) * 255).astype(np.uint8)


# --- laying out ---------------------------------------------------------------------------------


@cache
def _font() -> FreeTypeFont:
    """The typeface that comes with matplotlib: it has Greek, Cyrillic and accents, and is on every
    machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT
    )


def _fitted(text: str, width: float) -> str:
    """The text, shortened to a width in pixels."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _enlarged(tile: np.ndarray, factor: float) -> np.ndarray:
    """By a whole factor with square pixels, or made smaller with averaging."""
    from PIL import Image

    if factor >= 1:
        return tile.repeat(int(factor), 0).repeat(int(factor), 1)
    size = (max(1, round(tile.shape[1] * factor)), max(1, round(tile.shape[0] * factor)))
    return np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BOX))


def _factor(tiles: Sequence[Sequence[np.ndarray | None]]) -> float:
    widest: int = max(tile.shape[1] for row in tiles for tile in row if tile is not None)
    across = max(len(row) for row in tiles)
    if widest < TILE:
        return max(1, min(round(TILE / widest), SHEET // (across * widest) or 1))
    return min(1.0, SHEET / (across * widest))


def _laid_out(
    tiles: Sequence[Sequence[np.ndarray | None]],
    under: Sequence[Sequence[str]],
    heads: Sequence[str],
    sides: Sequence[str],
    heading: str,
) -> np.ndarray:
    """Tiles on white paper, with titles under them, over the columns, beside the rows and over all."""
    from PIL import Image, ImageDraw

    factor = _factor(tiles)
    grown = [[None if tile is None else _enlarged(tile, factor) for tile in row] for row in tiles]
    there = [tile for row in grown for tile in row if tile is not None]
    height, width = max(t.shape[0] for t in there), max(t.shape[1] for t in there)
    line = TEXT + 6
    side = min(180, max((int(_font().getlength(s)) + 10 for s in sides if s), default=0))
    step = height + GAP + (line if under else 0)
    top = MARGIN + (line + 6 if heading else 0) + (line if heads else 0)
    across = max(len(row) for row in grown)
    least = int(_font().getlength(heading)) if heading else 0
    size = (
        max(2 * MARGIN + side + across * (width + GAP) - GAP, min(least, SHEET) + 2 * MARGIN),
        top + len(grown) * step - GAP + MARGIN,
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)

    def write(x: float, y: float, text: str, room: float) -> None:
        pen.text((x, y), _fitted(text, room), INK, _font())

    def centred(x: float, y: float, text: str) -> None:
        fitted = _fitted(text, width)
        pen.text((x + (width - _font().getlength(fitted)) / 2, y), fitted, SOFT, _font())

    if heading:
        write(MARGIN, MARGIN - 2, heading, size[0] - 2 * MARGIN)
    for c, text in enumerate(heads):
        centred(MARGIN + side + c * (width + GAP), top - line, text)
    for r, row in enumerate(grown):
        y = top + r * step
        if r < len(sides) and sides[r]:
            write(MARGIN, y + height / 2 - TEXT / 2 - 1, sides[r], side - 8)
        for c, tile in enumerate(row):
            x = MARGIN + side + c * (width + GAP)
            if tile is not None:
                at = (x + (width - tile.shape[1]) // 2, y + (height - tile.shape[0]) // 2)
                sheet.paste(Image.fromarray(tile), at)
            if under:
                centred(x, y + height + 1, under[r][c])
    return np.asarray(sheet)

"""Pictures of volumes in the three planes, to be looked at as a radiologist would.

Slices are shown with the subject's left on the right side (radiological, R and L are written), front up in
axial slices, head up in the others, and voxels in their true proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from ...shared.files import replace_atomically
from .placing import upright

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = tuple[np.ndarray, np.ndarray]
"""(X, Y, Z) values and (4, 4) affine."""
PLANES = ("axial", "coronal", "sagittal")
_DPI = 110
_COLOURS = ("#ffb14f", "#4f9dff", "#63d297", "#ff6f91", "#c79bff", "#f2e35b", "#5ce1e6", "#d98c5f")


def montage(
    volumes: Sequence[Picture],
    path: Path,
    *,
    titles: Sequence[str] | None = None,
    rows: int | None = None,
    heading: str = "",
    labels: Sequence[np.ndarray | None] = (),
) -> None:
    """Many volumes, each by an axial, a coronal and a sagittal slice through the middle of its object (of its
    labels, where it has any).

    Args:
        volumes: values and affine of each. path: a PNG.
        titles: a line over each volume.
        rows: of the picture; about as high as wide, if left out.
        heading: a line over the picture.
        labels: a label map for each volume, on its grid, whose borders are drawn in.
    """
    rows = rows or max(1, round((len(volumes) * 3 / 4) ** 0.5))
    columns = -(-len(volumes) // rows)
    turned = [upright(values, affine) for values, affine in volumes]
    widths, heights = np.max([[_sizes(v.shape, s, p) for p in PLANES] for v, s in turned], axis=0).T
    room = (widths, [float(heights.max())] * 3)
    inch = 1.6 / heights.max()
    size = (columns * widths.sum() * inch, rows * (1.6 + 0.2 * (titles is not None)) + 0.3 * bool(heading))
    figure = _figure(*size)
    ratios = np.tile(widths, columns).tolist()
    axes = figure.subplots(rows, columns * 3, squeeze=False, width_ratios=ratios)
    for place in axes.flat:
        place.set_axis_off()
    for number, (values, spacing) in enumerate(turned):
        window = _window(values)
        held = labels[number] if number < len(labels) else None
        marks = None if held is None else upright(held, volumes[number][1])[0]
        at = _middle(values) if marks is None or not marks.any() else _middle(values, marks > 0)
        row, column = divmod(number, columns)
        for i, plane in enumerate(PLANES):
            place = axes[row, column * 3 + i]
            limits = (room[0][i], room[1][i])
            extent = _sizes(values.shape, spacing, plane)
            _show(place, _cut(values, plane, at), extent, limits, window)
            if marks is not None:
                _borders(place, _cut(marks, plane, at), extent)
            _sides(place, plane)
        if titles is not None:
            axes[row, column * 3 + 1].set_title(titles[number], color="white", fontsize=7, pad=2)
    if heading:
        figure.suptitle(heading, color="white", fontsize=9)
    _save(figure, path)


def before_after(
    path: Path,
    affine: np.ndarray,
    before: np.ndarray,
    mask: np.ndarray,
    filled: np.ndarray,
    std: np.ndarray | None = None,
    *,
    truth: np.ndarray | None = None,
    draw: np.ndarray | None = None,
    heading: str = "",
    unit: str = "",
) -> None:
    """What was there, what was filled in, and how sure that is: three planes through the middle of the hole.

    Args:
        path: a PNG. affine: (4, 4) of all arrays.
        before: (X, Y, Z) the input; shown with the hole blotted out.
        mask: bool, the hole. filled: the completed volume. std: standard deviation of the draws, 0 outside.
        truth: what is known to be there, in an experiment. draw: one draw.
        heading: a line over the picture. unit: of the values.
    """
    shown = {"before": before, "filled (mean)": filled, "one draw": draw, "truth": truth}
    turned = {name: upright(v, affine)[0] for name, v in shown.items() if v is not None}
    hole, spacing = upright(np.asarray(mask, bool), affine)
    spread = None if std is None else upright(std, affine)[0]
    window = _window(turned["before"][~hole]) if not hole.all() else _window(turned["filled (mean)"])
    at = _middle(turned["filled (mean)"], hole)
    columns = len(turned) + (spread is not None)
    sizes = [_sizes(hole.shape, spacing, plane) for plane in PLANES]
    widest, heights = max(width for width, _ in sizes), [height for _, height in sizes]
    tall = 2.4 * sum(heights) / widest + 0.5
    figure = _figure(2.4 * columns + 0.6, tall)
    axes = figure.subplots(3, columns, squeeze=False, height_ratios=heights)
    drawn: Any = None
    for row, plane in enumerate(PLANES):
        outline, size, limits = _cut(hole, plane, at), sizes[row], (widest, heights[row])
        for column, (name, values) in enumerate(turned.items()):
            place = axes[row, column]
            _show(place, _cut(values, plane, at), size, limits, window)
            if name == "before":
                _blot(place, outline, size)
            else:
                _outline(place, outline, size)
            _label(place, plane, name if row == 0 else "", column == 0)
        if spread is not None:
            place = axes[row, -1]
            top = float(np.percentile(spread[hole], 99)) if hole.any() else 1.0
            drawn = _show(place, _cut(spread, plane, at), size, limits, (0.0, top or 1.0), "inferno")
            _label(place, plane, "standard deviation" if row == 0 else "", False)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes[:, -1].tolist(), shrink=0.5, pad=0.02)
        bar.ax.tick_params(colors="white", labelsize=6)
        bar.set_label(unit, color="white", fontsize=7)
    if heading:
        figure.suptitle(heading, color="white", fontsize=9)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """A black sheet (inches), without a window and without the global state of pyplot."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    close = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(width, height), layout=close, dpi=_DPI)
    figure.patch.set_facecolor("black")
    return figure


def _middle(values: np.ndarray, hole: np.ndarray | None = None) -> tuple[int, ...]:
    """The voxel to cut through: the hole's middle, or the object's."""
    if hole is not None and hole.any():
        return tuple(int(np.median(line)) for line in np.nonzero(hole))
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    weight = np.clip(finite - np.percentile(finite, 50), 0, np.percentile(finite, 98))
    if not weight.any():
        return tuple(n // 2 for n in values.shape)
    return tuple(
        int(np.average(np.arange(n), weights=weight.sum(tuple({0, 1, 2} - {i}))) + 0.5)
        for i, n in enumerate(values.shape)
    )


def _window(values: np.ndarray) -> tuple[float, float]:
    """The darkest and the brightest shown."""
    seen = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(seen, [0.5, 99.7])) if seen.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _cut(values: np.ndarray, plane: str, at: Sequence[int]) -> np.ndarray:
    """A slice as (rows, columns): front or head up; the subject's right, or its nose, on the left side."""
    if plane == "axial":
        return np.asarray(values[::-1, ::-1, at[2]].T)
    if plane == "coronal":
        return np.asarray(values[::-1, at[1], ::-1].T)
    return np.asarray(values[at[0], ::-1, ::-1].T)


def _sizes(shape: Sequence[int], spacing: np.ndarray, plane: str) -> tuple[float, float]:
    """A slice's width and height in mm."""
    x, y, z = (n * float(s) for n, s in zip(shape, spacing, strict=True))
    return {"axial": (x, y), "coronal": (x, z), "sagittal": (y, z)}[plane]


def _extent(size: tuple[float, float]) -> tuple[float, float, float, float]:
    width, height = size
    return (-width / 2, width / 2, -height / 2, height / 2)


def _show(
    place: Axes,
    cut: np.ndarray,
    size: tuple[float, float],
    limits: tuple[float, float],
    window: tuple[float, float],
    colours: str = "gray",
) -> Any:
    """A slice of `size` mm in the middle of a place of `limits` mm, so that all are on one scale."""
    place.set_axis_off()
    drawn = place.imshow(
        cut, cmap=colours, vmin=window[0], vmax=window[1], extent=_extent(size), interpolation="nearest"
    )
    place.set_xlim(-limits[0] / 2, limits[0] / 2)
    place.set_ylim(-limits[1] / 2, limits[1] / 2)
    return drawn


def _blot(place: Axes, outline: np.ndarray, size: tuple[float, float]) -> None:
    """The hole in a colour that no scan has."""
    limits = place.get_xlim(), place.get_ylim()
    colour = np.zeros((*outline.shape, 4))
    colour[outline] = (0.15, 0.35, 0.75, 1)
    place.imshow(colour, extent=_extent(size), interpolation="nearest")
    place.set_xlim(limits[0])
    place.set_ylim(limits[1])


def _outline(place: Axes, outline: np.ndarray, size: tuple[float, float]) -> None:
    inner = ndimage.binary_erosion(outline, border_value=1)
    # Around every one of many thin slices a line would hide what is in them.
    if inner.sum() > 0.3 * outline.sum() and not outline.all():
        _line(place, outline, size, "#4f9dff", 0.6)


def _borders(place: Axes, labels: np.ndarray, size: tuple[float, float]) -> None:
    """The border of each label in a colour of its own."""
    for value in np.unique(labels[labels > 0]):
        inside = labels == value
        if not inside.all():
            _line(place, inside, size, _COLOURS[(int(value) - 1) % len(_COLOURS)], 0.7)


def _line(place: Axes, inside: np.ndarray, size: tuple[float, float], colour: str, width: float) -> None:
    """A line around what is inside. (`origin` makes the extent that of whole voxels, as an image's is.)"""
    place.contour(
        inside[::-1].astype(float),
        [0.5],
        extent=_extent(size),
        origin="lower",
        colors=[colour],
        linewidths=width,
    )


def _sides(place: Axes, plane: str) -> None:
    """Right and left, or anterior and posterior."""
    for side, letter in zip((0.02, 0.98), "AP" if plane == "sagittal" else "RL", strict=True):
        place.text(
            side, 0.5, letter, color="white", fontsize=6, alpha=0.8, transform=place.transAxes,
            ha="left" if side < 0.5 else "right", va="center",
        )  # fmt: skip


def _label(place: Axes, plane: str, title: str, first: bool) -> None:
    if title:
        place.set_title(title, color="white", fontsize=8, pad=3)
    if first:
        _sides(place, plane)


def _save(figure: Figure, path: Path) -> None:
    with replace_atomically(path) as partial, partial.open("wb") as file:
        figure.savefig(file, format="png", facecolor="black")

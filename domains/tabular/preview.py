"""Pictures of a filled table: what was observed beside what was filled, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .columns import Column
from .fitted import FittedTable
from .outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OBSERVED, FILLED, DRAWN, INK, FAINT = "#9db4c8", "#d1495b", "#eba9b1", "#22313f", "#d8dee4"
PANELS = 24
"""Columns shown at most; those with the most filled cells."""
INTERVALS = 40
"""Filled cells whose interval is shown."""


def figure(width: float, height: float) -> Figure:
    """A figure that needs no display and touches no global state of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    return made


def plain(axes: Axes) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=FAINT)
    axes.title.set_color(INK)


@dataclass(frozen=True)
class Seen:
    """What a panel shows of one column.

    Args:
        column: what the column is.
        observed, filled, drawn: (m,), (k,) and (k,) numbers, or codes of a category; `drawn` is one draw.
        lower, upper: (k,) the filled cells' 90 % interval; empty for categories.
        cells: how many cells were filled; `filled` may be a part of them.
    """

    column: Column
    observed: np.ndarray
    filled: np.ndarray
    drawn: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    cells: int


def preview(fitted: FittedTable, parts: Sequence[Path], picture: Path) -> None:
    """Write a picture with a panel for every column that was filled.

    Args:
        parts: folders of finished units; at most 50 are looked at, evenly spread.
        picture: the PNG to write.
    """
    step = max(1, len(parts) // 50)
    outcomes = [Outcome.load(part) for part in parts[::step]]
    seen = sorted(columns_seen(fitted.codec.columns_, outcomes), key=lambda panel: -panel.cells)
    draw([panel for panel in seen if panel.cells][:PANELS], picture)


def columns_seen(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> list[Seen]:
    """Observed and filled values of every modelled column."""
    found, p, q = [], 0, 0
    for column in columns:
        if column.is_number:
            observed = np.concatenate([o.seen_numbers[:, p] for o in outcomes])
            holes = [o.number_holes[:, p] for o in outcomes]
            filled, drawn, lower, upper = (
                np.concatenate([part[hole] for part, hole in zip(parts, holes, strict=True)])
                for parts in (
                    [o.numbers[:, p] for o in outcomes],
                    [o.draw_numbers[0, :, p] for o in outcomes],
                    [o.lower[:, p] for o in outcomes],
                    [o.upper[:, p] for o in outcomes],
                )
            )
            if column.kind == "integer":  # as it stands in the completed table
                filled = np.rint(filled)
            found.append(
                Seen(column, observed[~np.isnan(observed)], filled, drawn, lower, upper, len(filled))
            )
            p += 1
        elif column.is_category:
            observed = np.concatenate([o.seen_codes[:, q] for o in outcomes])
            filled = np.concatenate([o.codes[o.code_holes[:, q], q] for o in outcomes])
            drawn = np.concatenate([o.draw_codes[0, o.code_holes[:, q], q] for o in outcomes])
            none = np.empty(0)
            found.append(Seen(column, observed[observed >= 0], filled, drawn, none, none, len(filled)))
            q += 1
    return found


def draw(panels: Sequence[Seen], picture: Path) -> None:
    """Lay the panels out, three in a row."""
    if not panels:
        made = figure(6, 1.5)
        made.text(0.5, 0.5, "No cell was filled.", ha="center", va="center", color=INK)
        made.savefig(picture, format="png")
        return
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    made = figure(4.2 * across, 2.9 * down + 0.6)
    made.suptitle(
        "Observed cells beside filled ones.  Dots: filled cells, with their 90 % intervals",
        fontsize=10,
        color=INK,
    )
    grid: Any = made.subfigures(down, across, squeeze=False)
    for place, panel in enumerate(panels):
        part = grid[place // across][place % across]
        (number_panel if panel.column.is_number else category_panel)(part, panel)
    made.savefig(picture, format="png")


def number_panel(part: Any, seen: Seen) -> None:
    """Histograms of observed numbers and of one draw, and single cells with their intervals below."""
    top, bottom = part.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    unit = 86400.0 if seen.column.kind == "datetime" else 1.0
    observed, drawn = seen.observed / unit, seen.drawn / unit
    both = np.concatenate([observed, drawn])
    low, high = np.quantile(both, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = bin_edges(np.clip(both, low, high), whole=seen.column.kind == "integer")
    top.hist(np.clip(observed, low, high), bins, density=True, color=OBSERVED, label="observed")
    top.hist(
        np.clip(drawn, low, high),
        bins,
        density=True,
        histtype="step",
        color=FILLED,
        linewidth=1.5,
        label="one draw",
    )
    show_cells(bottom, seen, unit, (low, high))
    top.set_title(f"{seen.column.name}: {seen.cells:,} filled", fontsize=9)
    top.legend(frameon=False, fontsize=7)
    top.set_yticks([])
    for axes in (top, bottom):
        plain(axes)
        axes.spines["left"].set_visible(False)
    if seen.column.kind == "datetime":
        from matplotlib import dates

        kit: Any = dates  # its constructors have no types
        locator = kit.AutoDateLocator(maxticks=5)
        bottom.xaxis.set_major_locator(locator)
        bottom.xaxis.set_major_formatter(kit.ConciseDateFormatter(locator))
    if seen.column.kind == "duration":
        bottom.set_xlabel("seconds", fontsize=8, color=INK)


def bin_edges(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """About 25 bins over the values; whole numbers are never split between bins of unequal reach."""
    low, high = values.min(), values.max()
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / 25)))
        return np.arange(np.floor(low) - 0.5, high + width + 0.5, width)
    return np.linspace(low, high, 26)


def show_cells(axes: Axes, seen: Seen, unit: float, span: tuple[float, float]) -> None:
    """At most 40 filled cells, from the smallest to the largest, with their intervals."""
    order = np.argsort(seen.filled, kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), INTERVALS)).round().astype(int))]
    height = np.arange(len(order))
    lower, upper = (np.clip(end[order] / unit, *span) for end in (seen.lower, seen.upper))
    axes.hlines(height, lower, upper, color=FILLED, alpha=0.35, linewidth=1.2)
    axes.plot(np.clip(seen.filled[order] / unit, *span), height, ".", color=FILLED, markersize=3)
    axes.set_yticks([])
    axes.set_ylim(-1.5, max(len(order), 8) + 0.5)


def category_panel(part: Any, seen: Seen) -> None:
    """Shares of the levels among observed and filled cells, the eight commonest."""
    axes = part.subplots()
    size = seen.column.cardinality
    shown = (seen.observed, seen.drawn, seen.filled)
    shares = [np.bincount(codes, minlength=size) / max(len(codes), 1) for codes in shown]
    chosen = np.argsort(-(shares[0] + shares[1]), kind="stable")[:8][::-1]
    names = [*map(str, seen.column.levels), "(rare levels)"]
    height = np.arange(len(chosen))
    looks = [(0.27, OBSERVED, "observed"), (0.0, DRAWN, "one draw"), (-0.27, FILLED, "filled")]
    for (place, color, label), share in zip(looks, shares, strict=True):
        axes.barh(height + place, share[chosen], 0.26, color=color, label=label)
    axes.set_yticks(height, [shortened(names[code]) for code in chosen])
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_title(f"{seen.column.name}: {seen.cells:,} filled", fontsize=9)
    # Below, as bars may be anywhere.
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    plain(axes)


def shortened(text: str, most: int = 18) -> str:
    """`text`, its middle left out where it would push the picture aside.

    Example:
        >>> shortened("Upper West Side South")
        'Upper Wes…de South'
    """
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[len(text) - most + half + 1 :]}"

"""Pictures of a comparison: columns, how they hang together, where the rows lie, what the attacks found.

`shown=True` pictures show groups of people alone: rounded edges, no bar and no cell of fewer than TEN people.
Pictures that show single people (`shown=False`) are for those who may see the real table.
"""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..preview import FAINT, FILLED, INK, OBSERVED, figure, plain
from .fidelity import associations
from .inference import Attack
from .pair import Pair, Place
from .spaces import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELD = "#22313f"
LINES: dict[str, tuple[float, str, Any]] = {"synthetic": (1.8, FILLED, "-"), "holdout": (1.1, HELD, "--")}
"""Width, colour and dashes of the lines over the real bars."""
TEN = 10
"""A group of fewer real people is not shown."""
PANELS, LEVELS, BARS = 24, 8, 30
MAPPED = 40
"""Columns of an association map at most."""
DOTS = 1500


def png(made: Figure) -> bytes:
    """The figure as the bytes of a PNG, without a date or a version in it."""
    out = io.BytesIO()
    made.savefig(out, format="png", dpi=100, metadata={"Software": None})
    return out.getvalue()


# ------------------------------------------------------------------------------------------------ columns


def distributions(pair: Pair) -> bytes:
    """Every column (PANELS at most): real as bars, synthetic as a red line, held-out people dashed."""
    places = pair.places[:PANELS]
    across = min(4, len(places))
    down = -(-len(places) // across)
    made = figure(3.3 * across, 2.35 * down + 0.5)
    panels: Any = made.subplots(down, across, squeeze=False).ravel()
    for axes, place in zip(panels, places, strict=False):
        (number_panel if place.is_number else level_panel)(axes, pair, place)
        axes.set_title(place.name[:36], fontsize=9)
        plain(axes)
    for axes in panels[len(places) :]:
        axes.set_axis_off()
    made.legend(handles=_legend(pair), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png(made)


def _legend(pair: Pair) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=OBSERVED, label="real"), Line2D([], [], color=FILLED, lw=2, label="synthetic")]
    return handles + ([Line2D([], [], color=HELD, ls="--", label="held-out")] if pair.holdout else [])


def edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Round edges of at most BARS bars over the middle 98 % of the values: no real minimum or maximum.

    Example:
        >>> edges(np.linspace(0, 99.7, 1000), whole=False)[[0, 1, -1]].tolist()
        [0.0, 5.0, 100.0]
    """
    low, high = np.quantile(values, [0.01, 0.99])
    rough = max((high - low) / BARS, 1e-12)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    if whole and step < 1:
        step = 1.0
    first, last = np.floor(low / step), np.floor(high / step) + 1
    found: np.ndarray = np.round(np.arange(first, last + 1) * step, 12)
    return found - 0.5 if whole and step == 1 else found


def number_panel(axes: Axes, pair: Pair, place: Place) -> None:
    """Densities over round bins; what lies beyond is counted in the outermost."""
    real = place.of(pair.real)
    bins = edges(real[~np.isnan(real)], place.column.kind == "integer")
    for role, table in pair.tables().items():
        values = place.of(table)
        values = np.clip(values[~np.isnan(values)], bins[0], np.nextafter(bins[-1], -np.inf))
        counts = np.histogram(values, bins)[0]
        if role != "synthetic":
            counts = np.where(counts < TEN, 0, counts)
        share = counts / max(len(values), 1)
        if role == "real":
            axes.bar(bins[:-1], share, np.diff(bins), align="edge", color=OBSERVED)
        else:
            width, color, dashes = LINES[role]
            axes.stairs(share, bins, color=color, lw=width, ls=dashes)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if place.column.kind == "datetime":
        axes.xaxis.set_major_formatter(
            lambda t, _: f"{dt.datetime(1970, 1, 1) + dt.timedelta(seconds=t):%Y-%m}"
        )
        axes.tick_params(axis="x", labelrotation=30)


def level_panel(axes: Axes, pair: Pair, place: Place) -> None:
    """Shares of the commonest levels; those that fewer than TEN real people have are "others"."""
    n_codes = place.column.cardinality
    counts = {
        role: np.bincount(table.codes[:, place.at][table.codes[:, place.at] >= 0], minlength=n_codes)
        for role, table in pair.tables().items()
    }
    known = counts["real"][: len(place.column.levels)]
    shown = [int(k) for k in np.argsort(-known, kind="stable")[:LEVELS] if known[k] >= TEN]
    names = [str(place.column.levels[k])[:16] for k in shown]
    rest = any(count.sum() > count[shown].sum() for count in counts.values())
    height = np.arange(len(shown) + rest)[::-1]
    for role, count in counts.items():
        share = count[shown] / max(count.sum(), 1)
        share = np.append(share, 1 - share.sum()) if rest else share
        if role == "real":
            axes.barh(height, share, 0.7, color=OBSERVED)
        else:
            width, color, dashes = LINES[role]
            axes.vlines(share, height - 0.38, height + 0.38, color=color, lw=width, linestyles=dashes)
    axes.set_yticks(height, [*names, "others"] if rest else names, fontsize=8)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


# --------------------------------------------------------------------------------------- pairs, and points


def maps(pair: Pair) -> bytes:
    """Association maps of the real and the synthetic table, and their difference."""
    kept = Pair(pair.columns[:MAPPED], pair.real, pair.synthetic)
    real, synthetic = associations(kept, kept.real), associations(kept, kept.synthetic)
    names = [place.name[:18] for place in kept.places]
    made = figure(13, 4.2 + 0.06 * len(names))
    panels: Any = made.subplots(1, 3)
    shown = zip(
        panels,
        ("real", "synthetic", "synthetic minus real"),
        (real, synthetic, synthetic - real),
        strict=True,
    )
    for axes, title, values in shown:
        image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(title, fontsize=10, color=INK)
        size = max(4, min(8, 190 // max(len(names), 1)))
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names), fontsize=size)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    made.colorbar(image, ax=panels, shrink=0.7, pad=0.01).ax.tick_params(labelsize=8)
    return png(made)


def embedding(pair: Pair, seed: int, *, shown: bool) -> bytes:
    """Real, synthetic and held-out rows on the first two principal components of the real ones.

    Args:
        shown: colour squares by how many rows they hold, none of fewer than TEN; else a dot per row.
    """
    from sklearn.decomposition import PCA

    space = Space.of(pair, "rank")
    real = space.points(pair.real)
    project = PCA(min(2, real.shape[1]), random_state=seed, svd_solver="full").fit(real)
    flat = {role: _flat(project.transform(space.points(table))) for role, table in pair.tables().items()}
    limits = np.quantile(flat["real"], [0.005, 0.995], axis=0)
    pad = 0.08 * (limits[1] - limits[0]) + 1e-6
    # Squares wide enough that most of them hold TEN people, however few there are.
    squares = int(np.clip(np.sqrt(min(len(points) for points in flat.values()) / 8), 6, 25)) if shown else 25
    grid = [np.linspace(limits[0, k] - pad[k], limits[1, k] + pad[k], squares + 1) for k in range(2)]
    made = figure(3.7 * len(flat), 3.6)
    panels: Any = made.subplots(1, len(flat), squeeze=False).ravel()
    rng = np.random.default_rng([seed, 41])
    for axes, (role, points) in zip(panels, flat.items(), strict=True):
        if shown:
            share = _squares(points, grid)
            share = np.where(share * len(points) < TEN - 0.5, np.nan, share)
            top = 1.2 * _squares(flat["real"], grid).max()
            axes.pcolormesh(*grid, share, cmap="Reds" if role == "synthetic" else "Blues", vmin=0, vmax=top)
        else:
            few = points[rng.permutation(len(points))[:DOTS]]
            axes.plot(few[:, 0], few[:, 1], ".", ms=2.5, alpha=0.5, color=_color(role))
        axes.set_xlim(grid[0][0], grid[0][-1])
        axes.set_ylim(grid[1][0], grid[1][-1])
        axes.set_title({"holdout": "held-out"}.get(role, role), fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        plain(axes)
    return png(made)


def _squares(points: np.ndarray, grid: Sequence[np.ndarray]) -> np.ndarray:
    """(rows, columns) share of the points in every square of the grid."""
    edges: Any = grid
    found: np.ndarray = np.histogram2d(points[:, 0], points[:, 1], edges)[0].T / len(points)
    return found


def _flat(points: np.ndarray) -> np.ndarray:
    return points if points.shape[1] == 2 else np.column_stack([points, np.zeros(len(points))])


def _color(role: str) -> str:
    return {"synthetic": FILLED, "holdout": HELD}.get(role, "#5d7f9c")


# ------------------------------------------------------------------------------------------------ attacks


def memorisation(curve: Sequence[Mapping[str, float]], kept: int) -> bytes:
    """How well training rows were told from held-out ones at every step of the training, by their loss, and
    how many of the rows that it drew were near copies of them.

    Args:
        curve: see `memorising.Memorising.remembered`; at least one row.
        kept: the step whose weights the model has.
    """
    moments = [row for row in curve if "copies" in row]
    made = figure(12.5 if moments else 9.5, 3.2)
    panels = made.subplots(1, 3 if moments else 2)
    losses, areas = panels[:2]
    steps = [row["step"] for row in curve]
    for name, color, label in (("members", FILLED, "training rows"), ("others", HELD, "held-out rows")):
        losses.plot(steps, [row[name] for row in curve], "o-", ms=3, color=color, label=label)
    losses.set_ylabel("surprise at a row, nats", fontsize=9, color=INK)
    losses.legend(frameon=False, fontsize=9)
    _with_interval(areas, curve, "auc", FILLED, "attack's AUC")
    areas.axhline(0.5, color=INK, lw=0.8, ls="--")
    areas.set_ylim(
        min(0.45, *(row["auc_low"] for row in curve)), max(0.65, *(row["auc_high"] for row in curve))
    )
    areas.set_ylabel("AUC (one half: not told apart)", fontsize=9, color=INK)
    if moments:
        _with_interval(panels[2], moments, "copies", FILLED, "rows drawn then")
        _with_interval(panels[2], moments, "chance", HELD, "held-out rows")
        panels[2].set_ylim(0, max(0.05, 1.1 * max(row["copies_high"] for row in moments)))
        panels[2].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        panels[2].set_ylabel("near copies", fontsize=9, color=INK)
    for axes in panels:
        axes.axvline(kept, color=OBSERVED, lw=1.6, zorder=0, label=f"kept: step {kept}")
        axes.set_xlabel("training step", fontsize=9, color=INK)
        plain(axes)
    for axes in panels[1:]:
        axes.legend(frameon=False, fontsize=9)
    return png(made)


def _with_interval(axes: Any, rows: Sequence[Mapping[str, float]], name: str, color: str, label: str) -> None:
    """A figure over the steps, and its 95 % interval."""
    steps, low, high = ([row[at] for row in rows] for at in ("step", f"{name}_low", f"{name}_high"))
    axes.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
    axes.plot(steps, [row[name] for row in rows], "o-", ms=3, color=color, label=label)


def attack_rates(attacks: Sequence[Attack]) -> bytes:
    """Success of each attack on training people, on held-out people, and of blind guesses, with intervals."""
    made = figure(9.5, 0.42 * len(attacks) + 1.1)
    axes: Any = made.subplots()
    sorts = [("attack", FILLED, "o", -0.2), ("control", HELD, "s", 0.0), ("baseline", OBSERVED, "D", 0.2)]
    for sort, color, marker, shift in sorts:
        rates = [getattr(attack, sort) for attack in attacks]
        height = np.arange(len(attacks)) + shift
        axes.hlines(height, [r.low for r in rates], [r.high for r in rates], color=color, lw=1.6)
        label = {"attack": "on training people", "control": "on held-out people", "baseline": "blind guess"}
        axes.plot([r.share for r in rates], height, marker, ms=4.5, color=color, label=label[sort])
    names = [f"{a.name}{': ' if a.about else ''}{a.about}" for a in attacks]
    axes.set_yticks(range(len(attacks)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    made.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png(made)

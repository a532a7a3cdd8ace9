"""Generated rows on their way out: a table in one file, marked as synthetic, and a picture of its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import Wish
from .codec import Coded
from .parts import DAY, Part, raw
from .preview import FILLED, INK, OBSERVED, bin_edges, figure, plain, shortened
from .synthesis import Synthesis
from .writing import open_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 1_000_000
"""Rows from which a table is Parquet unless it was said otherwise."""
SHOWN, PANELS, BARS = 20_000, 24, 10
PICTURE = "columns.png"


def save(coded: Coded, items: np.ndarray, folder: Path) -> None:
    """Keep rows in a folder."""
    np.savez(folder / "rows.npz", numbers=coded.numbers, codes=coded.codes, items=items)


def kept(parts: Sequence[Path]) -> Iterator[tuple[Coded, np.ndarray]]:
    """The rows that `save` kept, folder by folder."""
    for part in parts:
        with np.load(part / "rows.npz", allow_pickle=False) as held:
            yield Coded(held["numbers"], held["codes"]), held["items"]


def publish(
    synthesis: Synthesis, wish: Wish, parts: Sequence[Path], out: Path, facts: Mapping[str, Any]
) -> list[str]:
    """Write the table and its picture; gives the names of the files."""
    suffix = wish.format or ("parquet" if wish.count >= MANY else "csv")
    name = f"synthetic.{suffix}"
    unique, shown, rows = synthesis.seen(), list[Coded](), 0
    columns = synthesis.codec.columns_
    with open_writer(out / name, columns=columns, metadata={"ebbtide": json.dumps(facts)}) as writer:
        for coded, items in kept(parts):
            coded = unique.apart(coded, items)
            frame = synthesis.frame(coded, items)
            writer.write(frame, np.ones(frame.shape, bool))
            if rows < SHOWN:
                shown.append(coded)
                rows += len(coded)
    whole = Coded(np.concatenate([c.numbers for c in shown]), np.concatenate([c.codes for c in shown]))
    draw(synthesis, whole, out / PICTURE, conditioned=bool(wish.condition or wish.constraints))
    return [name, PICTURE]


# ------------------------------------------------------------------------------------------------ picture


def draw(synthesis: Synthesis, coded: Coded, picture: Path, *, conditioned: bool = False) -> None:
    """Every column of synthetic rows beside the law that the model holds of it: a PNG.

    Args:
        coded: the rows.
        conditioned: they were asked to differ from the training data.
    """
    generator = synthesis.generator
    parts = [part for part in generator.parts.parts if part.role != "clock"][:PANELS]
    if not parts:
        return
    across = min(4, len(parts))
    down = -(-len(parts) // across)
    made = figure(3.3 * across, 2.3 * down + 0.7)
    told = "were asked to differ" if conditioned else "should agree"
    made.suptitle(
        f"SYNTHETIC rows (red) beside the training law that the model holds (blue): they {told}",
        fontsize=10,
        color=INK,
    )
    panels: Any = made.subplots(down, across, squeeze=False).ravel()
    at = generator.shape.offsets
    logs = np.array(generator.shape.log_shares)
    for axes, part in zip(panels, parts, strict=False):
        place = generator.parts.parts.index(part)
        shares = np.exp(logs[at[place] : at[place + 1]])
        if part.bins is None:
            names = [str(level) for level in generator.parts.column_of(part).levels] + ["(rare levels)"]
            _level_panel(axes, part, shares, coded.codes[:, part.at], names)
        else:
            _number_panel(
                axes,
                part,
                shares,
                raw(part, coded.numbers),
                generator.parts.numbers[part.at].kind,
                generator.parts.numbers[part.anchor].name if part.anchor >= 0 else None,
            )
        plain(axes)
    for axes in panels[len(parts) :]:
        axes.set_axis_off()
    made.savefig(picture, format="png")


def _number_panel(
    axes: Axes, part: Part, shares: np.ndarray, values: np.ndarray, kind: str, follows: str | None
) -> None:
    """Bars: draws from the training law; line: the synthetic rows."""
    assert part.bins is not None
    law = shares[: part.seen] / max(shares[: part.seen].sum(), 1e-12)
    places = (np.arange(SHOWN) + 0.5) / SHOWN
    below = law.cumsum()
    level = np.searchsorted(below, places * below[-1]).clip(max=len(law) - 1)
    within = (places * below[-1] - (below[level] - law[level])) / np.maximum(law[level], 1e-12)
    trained = part.bins.decode(level, within.clip(0, 1))
    made = values[~np.isnan(values)]
    missing = 1 - len(made) / max(len(values), 1)
    unit = 1.0
    if part.role == "difference":
        unit = 60.0 if np.quantile(trained, 0.95) > 120 else 1.0
    trained, made = trained / unit, made / unit
    both = np.concatenate([trained, made])
    low, high = np.quantile(both, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = bin_edges(np.clip(both, low, high), whole=kind == "integer" or part.role == "day")
    dated = part.role == "day" or (kind == "datetime" and part.role == "number")
    to_days = DAY if dated and part.role != "day" else 1.0
    trained, made, edges = (
        np.clip(trained, low, high) / to_days,
        np.clip(made, low, high) / to_days,
        edges / to_days,
    )
    axes.hist(trained, list(edges), density=True, color=OBSERVED)
    if len(made):
        axes.hist(made, list(edges), density=True, histtype="step", color=FILLED, linewidth=1.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _title(axes, part.name if follows is None else f"{part.name} after {follows}", part, shares, missing)
    if dated:
        from matplotlib import dates

        kit: Any = dates  # its constructors have no types
        locator = kit.AutoDateLocator(maxticks=4)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(kit.ConciseDateFormatter(locator))
    if part.role == "difference":
        axes.set_xlabel(
            "minutes" if unit == 60 else "seconds" if kind == "datetime" else "", fontsize=8, color=INK
        )


def _level_panel(axes: Axes, part: Part, shares: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    """Shares of the commonest levels."""
    law = shares[: part.seen] / max(shares[: part.seen].sum(), 1e-12)
    seen = codes[codes >= 0]
    made = np.bincount(seen, minlength=part.seen) / max(len(seen), 1)
    chosen = np.argsort(-(law + made[: part.seen]), kind="stable")[:BARS][::-1]
    height = np.arange(len(chosen))
    axes.barh(height + 0.2, law[chosen], 0.38, color=OBSERVED)
    axes.barh(height - 0.2, made[chosen], 0.38, color=FILLED)
    axes.set_yticks(height, [shortened(names[code]) for code in chosen], fontsize=7)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    _title(axes, part.name, part, shares, 1 - len(seen) / max(len(codes), 1))


def _title(axes: Axes, name: str, part: Part, shares: np.ndarray, missing: float) -> None:
    told = f"  missing {100 * missing:.1f} % ({100 * shares[-1]:.1f} %)" if part.gone else ""
    axes.set_title(name[:30] + told, fontsize=8.5, color=INK)

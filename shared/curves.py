"""The picture of a training: losses and learning rate over the steps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any


def draw_history(history: Sequence[dict[str, Any]], best: tuple[int, float] | None = None) -> bytes:
    """A PNG of rows of step, loss, held_out and learning_rate.

    Args:
        history: at least one row.
        best: step and held-out loss of the best weights, marked when given.
    """
    # matplotlib costs a second to import, and pyplot would touch the caller's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [row["step"] for row in history]
    losses.plot(steps, [row["loss"] for row in history], color="0.6", label="training")
    held_out = [(row["step"], row["held_out"]) for row in history if row["held_out"] is not None]
    if held_out:
        losses.plot(*zip(*held_out, strict=True), color="C0", label="held-out (averaged weights)")
    if best is not None:
        losses.plot(*best, "o", color="C1", label=f"best, step {best[0]}")
    if all(row["loss"] > 0 for row in history):
        losses.set_yscale("log")
    losses.set_ylabel("loss")
    losses.legend(frameon=False)
    losses.grid(alpha=0.2)
    rates.plot(steps, [row["learning_rate"] for row in history], color="0.4")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.set_ylim(bottom=0)
    rates.grid(alpha=0.2)
    png = io.BytesIO()
    # Without the software's version in it, the same history gives the same bytes.
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    return png.getvalue()

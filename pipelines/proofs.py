"""What a proof of augmentation says: as plain JSON, in lines, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..domains.tabular.measures.downstream import NOTHING, Gain, Proof, rows_of, verdict
from ..domains.tabular.preview import FAINT, FILLED, INK, OBSERVED, figure, plain
from .report import rounded

GREY = "#5d7f9c"


def gain_facts(found: Gain) -> dict[str, Any]:
    """A gain with its interval."""
    return {"mean": rounded(found.mean), "low": rounded(found.low), "high": rounded(found.high)}


def proof_facts(proof: Proof) -> dict[str, Any]:
    """Every score (mean and standard deviation over splits), the gains, the verdict."""
    level, title, words = verdict(proof)
    scores: dict[str, Any] = {}
    for way, models in proof.scores.items():
        scores[way] = {
            model: {m: [rounded(v.mean()), rounded(proof.spread(way, model, m))] for m, v in found.items()}
            for model, found in models.items()
        }
    compared = [NOTHING, *proof.classical]
    return {
        "verdict": {"level": level, "title": title, "words": words},
        "target": proof.target,
        "measure": proof.measure,
        "folds": proof.folds,
        "repeats": proof.repeats,
        "scores": scores,
        "rows_added": {way: rounded(count) for way, count in proof.counts.items()},
        "gain_over": {
            way: {"all models": gain_facts(proof.over(way))}
            | {model: gain_facts(proof.over(way, model)) for model in proof.models}
            for way in compared
        },
        "best_classical": proof.best_classical,
    }


def _spread(proof: Proof) -> str:
    return "standard deviation over splits" if proof.folds > 1 else "standard error"


def proof_lines(proof: Proof) -> list[str]:
    """The verdict and a small table, for a person."""
    _, title, words = verdict(proof)
    splits, items = proof.folds * proof.repeats, len(proof.of(proof.ours))
    tested = f"on real rows that nobody saw, {splits} splits"
    if proof.folds == 1:
        tested = f"of {items:,} held-out items, the mean of {proof.repeats} trainings"
    width = max(len(way) for way in proof.scores)
    head = f"  {'':<{width}}  " + "  ".join(f"{model:>15}" for model in proof.models)
    told = [
        f"{title}: predicting {proof.target} {tested}.",
        *(f"  {sentence}" for sentence in words),
        f"  {proof.measure}, mean ± {_spread(proof)}:",
        head,
    ]
    cells: dict[str, list[str]] = {}
    for way, _model, mean, spread in rows_of(proof):
        cells.setdefault(way, []).append(f"{mean:.3f} ± {spread:.3f}")
    told += [f"  {way:<{width}}  " + "  ".join(f"{cell:>15}" for cell in row) for way, row in cells.items()]
    return told


def proof_picture(proof: Proof, path: Path) -> None:
    """Left the scores of every way by every model; right the gain over doing nothing and over the best
    classical way, with its interval."""
    made = figure(11.5, 1.6 + 0.62 * len(proof.models) * max(1, len(proof.scores) / 3))
    left, right = made.subplots(1, 2, width_ratios=(3, 2))
    _scores(left, proof)
    _gains(right, proof)
    level, title, _ = verdict(proof)
    color = {"good": "#2a8c82", "look": "#a8741a", "bad": FILLED}[level]
    made.suptitle(f"{title}: predicting {proof.target}", x=0.01, ha="left", color=color, fontsize=13)
    made.savefig(path, dpi=110, metadata={"Software": None})


def _scores(axes: Any, proof: Proof) -> None:
    ways = list(proof.scores)
    colors = {way: OBSERVED if way == NOTHING else GREY for way in ways} | {proof.ours: FILLED}
    shifts = np.linspace(-0.3, 0.3, len(ways))
    markers = dict(zip(ways, ("o", "s", "D", "^"), strict=False)) | {proof.ours: "o"}
    for at, model in enumerate(proof.models):
        for way, shift in zip(ways, shifts, strict=True):
            scores = proof.of(way, model)
            height = at + shift
            if proof.folds > 1:
                axes.plot(scores, np.full(len(scores), height), "|", color=colors[way], ms=5, alpha=0.5)
            low, high = (scores.mean() + side * proof.spread(way, model) for side in (-1, 1))
            axes.hlines(height, low, high, color=colors[way], lw=1.6)
            label = way if at == 0 else None
            axes.plot(scores.mean(), height, markers[way], color=colors[way], ms=6, label=label)
    axes.set_yticks(range(len(proof.models)), proof.models, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(f"{proof.measure} on real data (mean and {_spread(proof)})", color=INK, fontsize=9)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(ways))
    plain(axes)


def _gains(axes: Any, proof: Proof) -> None:
    rows: Sequence[str | None] = [*proof.models, None]
    beside = [(NOTHING, FILLED, -0.13), (proof.best_classical, GREY, 0.13)]
    for way, color, shift in beside:
        for at, model in enumerate(rows):
            found = proof.over(way, model)
            axes.hlines(at + shift, found.low, found.high, color=color, lw=2.2 if model is None else 1.4)
            label = f"over {way}" if at == 0 else None
            axes.plot(found.mean, at + shift, "o" if model else "D", color=color, ms=5.5, label=label)
    axes.axvline(0, color=INK, lw=0.9)
    axes.set_yticks(range(len(rows)), [model or "all models" for model in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(f"gain in {proof.measure}, 95 % interval (right of 0: it helps)", color=INK, fontsize=9)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    plain(axes)

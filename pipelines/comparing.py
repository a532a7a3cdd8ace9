"""The report on synthetic scans or pictures, from what their domain measured: figures beside those of real
data, a verdict in words, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..domains import Comparison, Domain, Figure, Measures, Progress
from ..shared.artifacts import tool_version
from ..shared.errors import InputError
from .evaluating import Report
from .manifest import NAME, read_json
from .report import rendered

PARTS = ("privacy", "fidelity", "utility")
QUESTIONS = {
    "fidelity": "is it like the real data?",
    "utility": "can one learn from it?",
    "privacy": "does it give people away?",
}
DIGITS = 3
"""Significant digits of every figure."""


def grids_report(
    real: Path,
    synthetic: Path,
    holdout: Path | None,
    domain: Domain[Any, Any],
    model: Path | str | None,
    seed: int,
    tell: Progress,
) -> Report:
    """The report on scans or pictures; see `evaluate`.

    Raises:
        InputError: `cannot-evaluate`, or data that the domain cannot compare.
    """
    if not isinstance(domain, Measures):
        raise InputError(
            "cannot-evaluate", f"synthetic {domain.things} are not judged yet", str(synthetic), "judge tables"
        )
    fitted = None if model is None else domain.load(Path(model))
    found = domain.measure(real, synthetic, holdout, seed=seed, fitted=fitted, progress=tell)
    facts = comparison_facts(found, about(real, synthetic, holdout, domain, seed))
    shown = rendered("comparison.html", facts, found.pictures, internal=None, **WORDS)
    internal = rendered(
        "comparison.html", facts, {**found.pictures, **found.internal}, internal=list(found.internal), **WORDS
    )
    return Report(facts, shown, internal, found.faults)


WORDS = {"parts": PARTS, "questions": QUESTIONS}


def about(
    real: Path, synthetic: Path, holdout: Path | None, domain: Domain[Any, Any], seed: int
) -> dict[str, Any]:
    """How the report was made: names and versions; of synthetic data that have a manifest, by which model."""
    made: dict[str, Any] = {
        "made_by": f"ebbtide {tool_version()}",
        "seed": seed,
        "things": domain.things,
        "real": real.name,
        "synthetic": synthetic.name,
        "holdout": None if holdout is None else holdout.name,
        "model_sha256": None,
    }
    manifest = synthetic / NAME
    if manifest.is_file():
        model = read_json(manifest).get("model")
        made["model_sha256"] = str(model.get("sha256")) if isinstance(model, dict) else None
    return made


def comparison_facts(found: Comparison, about: Mapping[str, Any]) -> dict[str, Any]:
    """report.json: everything that may be shared, rounded."""
    levels = found.facts.get("levels", {})
    verdict = {}
    for part in PARTS:
        none = ("Not assessed", ["Nothing was measured."])
        title, words = found.verdict.get(part, none)
        level = levels.get(part, "look" if found.figures.get(part) else "none")
        verdict[part] = {"level": level, "title": title, "words": list(words)}
    return {
        "about": dict(about),
        "reference": found.reference,
        "verdict": verdict,
        "figures": {part: [figure_facts(f) for f in found.figures.get(part, ())] for part in PARTS},
        "measured": plain({key: value for key, value in found.facts.items() if key != "levels"}),
        "warnings": [str(fault) for fault in found.faults],
    }


def figure_facts(figure: Figure) -> dict[str, Any]:
    """One figure, rounded."""
    return {
        "name": figure.name,
        "synthetic": significant(figure.synthetic),
        "reference": significant(figure.reference),
        "best": significant(figure.best),
        "meaning": figure.meaning,
    }


def significant(value: float | None) -> float | None:
    """A figure to DIGITS significant digits; None for what is not a number.

    Example:
        >>> significant(0.00012345), significant(float("nan")), significant(1234.5), significant(-0.0)
        (0.000123, None, 1230.0, 0.0)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.{DIGITS}g}") + 0.0


def plain(value: Any) -> Any:
    """JSON with every broken number rounded."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return significant(value) if isinstance(value, float) else value

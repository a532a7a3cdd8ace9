"""`ebbtide info MODEL`: what a model is, what it was trained on, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .manifest import model_sha256, read_json
from .options import domain_of


@dataclass(frozen=True)
class Info:
    """A model, described.

    Args:
        facts: plain JSON.
        lines: the same for a person.
    """

    facts: dict[str, Any]
    lines: tuple[str, ...]


def info(model: Path | str) -> Info:
    """Check a model folder and describe it.

    Raises:
        InputError: no model, a damaged one, or one of another version.
    """
    folder, domain = domain_of(model)
    fitted = domain.load(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    made_by = read_json(folder / "manifest.json").get("tool", "unknown")
    facts = {
        "model": str(model),
        "sha256": model_sha256(folder),
        "made_by": f"ebbtide {made_by}",
        "bytes": size,
        "domain": domain.name,
        "can": list(fitted.can),
        "about": dict(fitted.about),
        "description": list(fitted.description),
        "warnings": [str(fault) for fault in fitted.warnings],
    }
    return Info(facts, tuple(_lines(facts, domain.things)))


def _lines(facts: dict[str, Any], things: str) -> list[str]:
    about = facts["about"]
    uses = {
        "impute": f"ebbtide impute DATA -o OUT --model {facts['model']}",
        "generate": f"ebbtide generate {facts['model']} -o OUT",
        "vary": f"ebbtide generate {facts['model']} --like PICTURE -o OUT",
        "prompt": f"ebbtide generate {facts['model']} --prompt TEXT -o OUT",
    }
    return [
        f"{facts['model']}: a model of {things}, {facts['bytes'] / 1e6:.1f} MB, made by {facts['made_by']}",
        f"  trained on  {about.get('rows', about.get('items', 0)):,} {things} of "
        f"{about.get('data', 'some data')}, seed {about.get('seed', 0)}",
        *(f"  can         {verb} ({uses[verb]})" for verb in facts["can"]),
        f"  sha256      {facts['sha256']}",
        *(f"  {line}" for line in facts["description"]),
        *(f"  warning: {warning}" for warning in facts["warnings"]),
    ]

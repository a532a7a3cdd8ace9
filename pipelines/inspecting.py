"""`ebbtide info MODEL`: what a model is, what it was trained on, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .manifest import model_sha256, read_json


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
    from ..domains.tabular.fitted import FittedTable

    folder = Path(model)
    fitted = FittedTable.load(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    made_by = read_json(folder / "manifest.json").get("tool", "unknown")
    columns = [
        {"name": column.name, "kind": column.kind, "levels": column.cardinality, "modelled": column.modelled}
        for column in fitted.codec.columns_
    ]
    facts = {
        "model": str(folder),
        "sha256": model_sha256(folder),
        "made_by": f"ebbtide {made_by}",
        "bytes": size,
        "domain": "tabular",
        "can": ["impute"],
        "columns": columns,
        "about": fitted.about,
        "warnings": [str(fault) for fault in fitted.warnings],
    }
    return Info(facts, tuple(_lines(facts)))


def _lines(facts: dict[str, Any]) -> list[str]:
    about, columns = facts["about"], facts["columns"]
    width = max((len(column["name"]) for column in columns), default=0)
    told = [
        f"{facts['model']}: a model of tables, {facts['bytes'] / 1e6:.1f} MB, made by {facts['made_by']}",
        f"  trained on  {about.get('rows', 0):,} rows of {about.get('data', 'a table')}, "
        f"seed {about.get('seed', 0)}",
        f"  can         {', '.join(facts['can'])} (ebbtide impute TABLE -o OUT --model {facts['model']})",
        f"  sha256      {facts['sha256']}",
        f"  columns     {len(columns)}, {sum(column['modelled'] for column in columns)} of them modelled",
    ]
    for column in columns:
        levels = f", {column['levels']} levels" if column["levels"] else ""
        carried = "" if column["modelled"] else ", carried through unmodelled"
        told.append(f"    {column['name']:<{width}}  {column['kind']}{levels}{carried}")
    return [*told, *(f"  warning: {warning}" for warning in facts["warnings"])]

"""What every output says about itself: by which tool and model, from which data, with which seed and
options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..shared.artifacts import tool_version
from ..shared.errors import Fault, InputError
from ..shared.files import replace_atomically

NAME = "manifest.json"


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder: Path) -> str:
    """What names a saved model: the sha256 of its manifest, which holds the sha256 of all its files.

    Raises:
        InputError: there is no model in the folder.
    """
    if not (folder / NAME).is_file():
        raise InputError("model-missing", "there is no model here", str(folder), "check the path")
    return sha256_of(folder / NAME)


def manifest(
    command: str,
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    counts: Mapping[str, Any],
    assumed: Sequence[str] = (),
    warnings: Sequence[Fault] = (),
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The facts of one run, as plain JSON.

    Args:
        command: the verb ("impute").
        data: name, sha256 and size of the input; never a cell's value.
        model: sha256 of the model and what it says about itself.
        options: all that was asked for, defaults too.
        counts: what was missing and what was filled.
        assumed: what was assumed about the input.
        warnings: faults that did not stop the work.
        files: name -> sha256 of each file written.
    """
    return {
        "made_by": f"ebbtide {tool_version()}",
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "note": "Filled cells are estimates, not measurements. Not for diagnosis.",
        "data": dict(data),
        "model": dict(model),
        "options": dict(options),
        "counts": dict(counts),
        "assumed": list(assumed),
        "warnings": [asdict(fault) for fault in warnings],
        "files": dict(files or {}),
    }


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write plain JSON, whole or not at all."""
    with replace_atomically(path) as partial:
        partial.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a run wrote.

    Raises:
        InputError: not JSON, or not an object.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("json", "this file is not JSON", str(path), "run again with --overwrite") from error
    if not isinstance(facts, dict):
        raise InputError("json", "this file does not hold an object", str(path), "run again with --overwrite")
    return facts

"""How to train on a table, written down: kinds, missing codes, the model, and a short probe's estimate."""

from __future__ import annotations

import difflib
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any, get_args

import numpy as np

from ...shared.errors import InputError
from ..documents import scalar, section, settings_of, typed
from .codec import Coded, Kind, TableCodec
from .generator import GeneratorSettings, TableGenerator
from .model import ModelSettings, TableModel

PROBED = 400
"""Rows of the probe."""
READING = ("header", "delimiter", "encoding", "decimal", "sheet")
KEYS = ("missing", "columns", "key", *READING, "only", "constraints", "model", "generator")
"""What a plan of a table holds."""


def probe(
    coded: Coded, cardinalities: tuple[int, ...], settings: ModelSettings, rows: int, seed: int
) -> dict[str, float]:
    """Minutes, memory and disk of training on `coded` and filling `rows` rows, from three tiny runs.

    The trees' time grows with the rows and the network's with its steps; training may stop earlier.
    """
    n = len(coded.numbers)
    few = Coded(coded.numbers[:PROBED], coded.codes[:PROBED])
    size = len(few.numbers)
    seconds = []
    model = None
    for steps in (10, 40):
        begun = monotonic()
        model = TableModel.fit(
            few,
            cardinalities,
            replace(settings, steps=steps, trees=settings.trees_for(n)),
            seed=seed,
            device="cpu",
        )
        seconds.append(monotonic() - begun)
    assert model is not None
    step = max(seconds[1] - seconds[0], 0.0) / 30
    trees = max(seconds[0] - 10 * step, 0.0)
    begun = monotonic()
    model.fill(few, np.arange(size), draws=20)
    filling = (monotonic() - begun) / max(size, 1)
    steps, batch_size, _ = settings.pace(n, coded.numbers.shape[1] + len(cardinalities))
    training = trees * n / size + step * steps * batch_size / settings.batch_size
    width = 4 * coded.numbers.shape[1] + coded.codes.shape[1] + 4 * sum(cardinalities)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state()[1].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "minutes": round((training + filling * rows) / 60, 2),
        "memory_mb": round((peak + 12 * settings.copies * width * n) / 2**20),
        "disk_mb": round(weights * min(n / size, 50) / 2**20, 1),
    }


def written(options: Any, codec: TableCodec, missing: list[int]) -> str:
    """The options of a table as YAML with remarks.

    Args:
        options: `TableOptions`, all decided.
        codec: fitted.
        missing: missing cells of each column.
    """
    width = max(len(scalar(column.name)) for column in codec.columns_)
    lines = [
        "# Cells that stand for missing, besides the empty cell.",
        f"missing: {scalar([str(code) for code in options.missing])}",
        "",
        f"# Kinds: {', '.join(get_args(Kind))}.",
        "# Columns of kind id and text are carried through, never modelled.",
        "columns:",
    ]
    for column, gone in zip(codec.columns_, missing, strict=True):
        levels = f"{column.cardinality:,} levels, " if column.is_category else ""
        remark = f"# {levels}{gone:,} missing"
        lines.append(f"  {scalar(column.name) + ':':<{width + 1}} {column.kind:<10}{remark}")
    told = {"key": options.key, **{word: getattr(options, word) for word in READING}}
    lines += ["", "# A column that names the rows, and how the file is written; null: as seen in it."]
    lines += [f"{word}: {scalar(value)}" for word, value in told.items()]
    lines += ["", "# The model; steps: null chooses by the number of rows."]
    lines += section("model", asdict(options.settings or ModelSettings()))
    lines += ["", "# One verb alone to train for, impute or generate; null: both."]
    lines += [
        f"only: {scalar(options.only)}",
        "# What must hold in every generated row: start<=end, age>=18, ...",
    ]
    lines += [f"constraints: {scalar(list(options.constraints))}", "# What generates."]
    lines += section("generator", asdict(options.generator or GeneratorSettings()))
    return "\n".join(lines) + "\n"


def read(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options that a plan holds, as arguments of `TableOptions`.

    Raises:
        InputError: a kind that there is not, a value of the wrong type.
    """
    kinds = typed(found, "columns", dict, {}, path)
    for name, kind in kinds.items():
        if not isinstance(kind, str) or kind.partition(":")[0] not in get_args(Kind):
            near = difflib.get_close_matches(str(kind), get_args(Kind), n=1)
            advice = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(get_args(Kind))}"
            raise InputError("plan-kind", f"there is no kind {kind!r}", f"{path}, column {name!r}", advice)
    return {
        "missing": tuple(str(code) for code in typed(found, "missing", list, [], path)),
        "kinds": {str(name): kind for name, kind in kinds.items()},
        "key": typed(found, "key", str, None, path),
        "header": typed(found, "header", bool, None, path),
        **{word: typed(found, word, str, None, path) for word in READING if word != "header"},
        "settings": settings_of(ModelSettings, ModelSettings(), typed(found, "model", dict, {}, path), path),
        "generator": settings_of(
            GeneratorSettings, GeneratorSettings(), typed(found, "generator", dict, {}, path), path
        ),
        "only": _verb(typed(found, "only", str, None, path), path),
        "constraints": tuple(str(rule) for rule in typed(found, "constraints", list, [], path)),
    }


def _verb(word: str | None, path: Path) -> str | None:
    if word not in (None, "impute", "generate"):
        raise InputError(
            "plan-type", f"there is no verb {word!r}", f"{path}, only", "impute, generate or null"
        )
    return word


def probe_generator(
    coded: Coded, codec: TableCodec, settings: GeneratorSettings, seed: int
) -> dict[str, float]:
    """Minutes, memory and disk of training what generates, from two of its steps."""
    columns = [column for column in codec.columns_ if column.modelled]
    model = TableGenerator.untrained(coded, columns, settings, seed=seed)
    seconds = model.seconds_of_a_step(coded)
    steps, weights = model.settings.steps or 1, sum(t.nbytes for t in model.state()[1].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        # Validation and the batches' assembly take about a third more.
        "minutes": round(seconds * steps * 1.3 / 60, 2),
        "memory_mb": round((peak + 6 * weights) / 2**20),
        "disk_mb": round(weights / 2**20, 1),
    }

"""`ebbtide plan DATA -o plan.yaml`: what training would do, written down for a person to read and change."""

from __future__ import annotations

import difflib
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any, get_args

import numpy as np
import yaml

from ..domains.tabular import TableOptions, TabularDomain
from ..domains.tabular.codec import Coded, Kind, TableCodec
from ..domains.tabular.model import ModelSettings, TableModel
from ..shared.errors import InputError
from ..shared.files import refuse_existing, replace_atomically

Progress = Callable[[str, float], None]
ROWS = 50_000
PROBED = 400
"""Rows of the probe."""
READING = ("header", "delimiter", "encoding", "decimal", "sheet")


@dataclass(frozen=True)
class Plan:
    """How to train on a table.

    Args:
        options: of the table: missing codes, kinds, key, how the file is written, the model's settings.
        rows: how many rows to learn from at most.
        seed: of the training.
        estimate: minutes, memory and disk, as far as a short probe can tell.
        lines: the plan for a person.
    """

    options: TableOptions
    rows: int
    seed: int
    estimate: Mapping[str, float]
    lines: tuple[str, ...] = ()


def plan(
    data: Path | str,
    out: Path | str,
    *,
    domain: TabularDomain,
    rows: int = ROWS,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Look at a table, decide how to train on it, and write that down as YAML.

    Args:
        data: the table.
        out: the YAML file to make.
        domain: with what the user said about the table.
        rows: how many rows to learn from at most.
        seed: of the training.
        overwrite: replace `out`.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: bad data, or `out` exists.
    """
    data, out = Path(data), Path(out)
    refuse_existing(out, overwrite)
    tell = progress or (lambda stage, fraction: None)
    survey = domain.survey(data, tell)
    sample = domain.sample(data, survey, rows, seed, tell)
    options = domain.options
    decimal = survey.source.decimal if survey.source else None
    codec = TableCodec(options.missing, kinds=domain.kinds(), decimal=decimal).fit(sample)
    settings = options.settings or ModelSettings()
    tell("a short probe", 0.0)
    estimate = probe(codec.encode(sample), codec.cardinalities, settings, survey.items, seed)
    tell("a short probe", 1.0)
    made = Plan(
        replace(options, kinds={column.name: column.kind for column in codec.columns_}, settings=settings),
        min(rows, survey.items),
        seed,
        estimate,
    )
    gone = codec.empty(sample).sum(0)
    text = written(made, data.name, survey.items, codec, [int(count) for count in gone])
    with replace_atomically(out) as partial:
        partial.write_text(text, encoding="utf-8")
    lines = [
        f"{data.name}: {survey.items:,} rows, {len(codec.columns_)} columns, "
        f"{sum(column.modelled for column in codec.columns_)} of them modelled.",
        f"Training takes about {estimate['minutes']:.1f} minutes and {estimate['memory_mb']:,.0f} MB, "
        f"the model about {estimate['disk_mb']:.0f} MB.",
        f"Wrote {out}. Read it, change what is wrong, then:",
        f"  ebbtide train {data.name} -o MODEL --plan {out.name}",
    ]
    return replace(made, lines=tuple(lines))


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
    training = trees * n / size + step * settings.steps_for(n, coded.numbers.shape[1] + len(cardinalities))
    width = 4 * coded.numbers.shape[1] + coded.codes.shape[1] + 4 * sum(cardinalities)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state()[1].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "minutes": round((training + filling * rows) / 60, 2),
        "memory_mb": round((peak + 12 * settings.copies * width * n) / 2**20),
        "disk_mb": round(weights * min(n / size, 50) / 2**20, 1),
    }


def written(plan: Plan, name: str, rows: int, codec: TableCodec, missing: list[int]) -> str:
    """The plan as YAML with remarks."""
    width = max(len(_scalar(column.name)) for column in codec.columns_)
    lines = [
        f"# How Ebbtide would train on {name} ({rows:,} rows). Change what is wrong, then:",
        f"#   ebbtide train {name} -o MODEL --plan THIS_FILE",
        "domain: tabular",
        "",
        "# Cells that stand for missing, besides the empty cell.",
        f"missing: {_scalar([str(code) for code in plan.options.missing])}",
        "",
        f"# Kinds: {', '.join(get_args(Kind))}.",
        "# Columns of kind id and text are carried through, never modelled.",
        "columns:",
    ]
    for column, gone in zip(codec.columns_, missing, strict=True):
        levels = f"{column.cardinality:,} levels, " if column.is_category else ""
        remark = f"# {levels}{gone:,} missing"
        lines.append(f"  {_scalar(column.name) + ':':<{width + 1}} {column.kind:<10}{remark}")
    told = {"key": plan.options.key, **{word: getattr(plan.options, word) for word in READING}}
    lines += ["", "# A column that names the rows, and how the file is written; null: as seen in it."]
    lines += [f"{word}: {_scalar(value)}" for word, value in told.items()]
    lines += ["", "# Rows to learn from, at most.", f"rows: {plan.rows}", f"seed: {plan.seed}"]
    lines += ["", "# The model; steps: null chooses by the number of rows.", "model:"]
    settings = asdict(plan.options.settings or ModelSettings())
    lines += [f"  {word}: {_scalar(value)}" for word, value in settings.items()]
    lines += ["", "# As far as a short probe on this machine can tell; never read again.", "estimate:"]
    lines += [f"  {word}: {value}" for word, value in plan.estimate.items()]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    """One value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


# ----------------------------------------------------------------------------------------------- reading

KNOWN = ("domain", "missing", "columns", "key", *READING, "rows", "seed", "model", "estimate")


def read_plan(path: Path | str) -> Plan:
    """Read a plan: safe YAML against a closed schema.

    Raises:
        InputError: not YAML, a key that is not known ("did you mean"), a value of the wrong type.
    """
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError("plan-yaml", "this is not plain YAML", where, "mend it, or plan again") from error
    if not isinstance(found, dict):
        raise InputError("plan-yaml", "a plan is a list of keys and values", str(path), "plan again")
    closed(found, KNOWN, str(path))
    if found.get("domain", "tabular") != "tabular":
        raise InputError("plan-domain", "this plan is of another domain", f"{path}, domain", "plan again")
    model = typed(found, "model", dict, {}, path)
    closed(model, [field.name for field in fields(ModelSettings)], f"{path}, model")
    kinds = typed(found, "columns", dict, {}, path)
    for name, kind in kinds.items():
        if not isinstance(kind, str) or kind.partition(":")[0] not in get_args(Kind):
            near = difflib.get_close_matches(str(kind), get_args(Kind), n=1)
            advice = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(get_args(Kind))}"
            raise InputError("plan-kind", f"there is no kind {kind!r}", f"{path}, column {name!r}", advice)
    options = TableOptions(
        missing=tuple(str(code) for code in typed(found, "missing", list, [], path)),
        kinds={str(name): kind for name, kind in kinds.items()},
        key=typed(found, "key", str, None, path),
        header=typed(found, "header", bool, None, path),
        **{word: typed(found, word, str, None, path) for word in READING if word != "header"},
        settings=settings_of(model, path),
    )
    rows, seed = typed(found, "rows", int, ROWS, path), typed(found, "seed", int, 0, path)
    return Plan(options, rows, seed, typed(found, "estimate", dict, {}, path))


def followed(path: Path | str, said: TableOptions) -> Plan:
    """The plan in `path`; what the user said beside it on the command line goes before it.

    Raises:
        InputError: see `read_plan`.
    """
    found = read_plan(path)
    default = TableOptions()
    spoken = {
        field.name: getattr(said, field.name)
        for field in fields(TableOptions)
        if getattr(said, field.name) != getattr(default, field.name)
    }
    if "kinds" in spoken:
        spoken["kinds"] = {**found.options.kinds, **said.kinds}
    return replace(found, options=replace(found.options, **spoken))


def closed(found: Mapping[Any, Any], known: Any, where: str) -> None:
    """Refuse keys that are not known, with the nearest that is."""
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError("plan-key", f"there is no key {str(key)!r} in a plan", where, advice)


def typed(found: Mapping[str, Any], key: str, kind: type, default: Any, path: Path) -> Any:
    """The value of a key, or `default` where it is absent or null; refuse another type."""
    value = found.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = f"{key} must be {_NAMES[kind]}, not {_NAMES.get(type(value), 'what it is')}"
        raise InputError("plan-type", what, f"{path}, {key}", "mend it, or plan again")
    return value


_NAMES: dict[type, str] = {
    dict: "keys with values",
    list: "a list",
    str: "text (put it in quotes)",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
}


def settings_of(model: Mapping[str, Any], path: Path) -> ModelSettings:
    """The model's settings, each of the type of its default."""
    defaults = asdict(ModelSettings())
    for word, value in model.items():
        default = defaults[word]
        kinds: tuple[type, ...] = {
            tuple: (list,),
            float: (int, float),
            int: (int,),
            type(None): (list if word == "trees" else int, type(None)),
        }.get(type(default), (type(default),))
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
            example = _scalar(default)
            raise InputError(
                "plan-type", f"{word} is not of the right type", f"{path}, model", f"like {example}"
            )
    return ModelSettings.from_dict(model)

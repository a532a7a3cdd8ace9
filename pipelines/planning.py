"""`ebbtide plan DATA -o plan.yaml`: what training would do, written down for a person to read and change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..domains import Domain
from ..domains.documents import closed, read_yaml, section, typed
from ..shared.errors import InputError
from ..shared.files import refuse_existing, replace_atomically

Progress = Callable[[str, float], None]
ROWS = 50_000


@dataclass(frozen=True)
class Plan:
    """How to train on a data set.

    Args:
        domain: with all its options decided.
        rows: how many rows, volumes or images to learn from at most.
        seed: of the training.
        estimate: minutes, memory and disk, as far as a short probe can tell.
        lines: the plan for a person.
    """

    domain: Domain[Any, Any]
    rows: int
    seed: int
    estimate: Mapping[str, float]
    lines: tuple[str, ...] = ()


def plan(
    data: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    rows: int = ROWS,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Look at a data set, decide how to train on it, and write that down as YAML.

    Args:
        data: the data.
        out: the YAML file to make.
        domain: with what the user said about the data.
        rows: how many items to learn from at most.
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
    planned = domain.plan(data, survey, sample, seed, tell)
    rows = min(rows, survey.items)
    lines = [
        f"# How Ebbtide would train on {data.name} ({survey.items:,} {domain.things}).",
        "# Change what is wrong, then:",
        f"#   ebbtide train {data.name} -o MODEL --plan THIS_FILE",
        f"domain: {domain.name}",
        "",
        planned.text,
        f"# {domain.things.capitalize()} to learn from, at most.",
        f"rows: {rows}",
        f"seed: {seed}",
        "",
        "# As far as a short probe on this machine can tell; never read again.",
        *section("estimate", planned.estimate),
    ]
    with replace_atomically(out) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = (
        *planned.lines,
        f"Training takes about {planned.estimate['minutes']:.1f} minutes and "
        f"{planned.estimate['memory_mb']:,.0f} MB, the model about {planned.estimate['disk_mb']:.0f} MB.",
        f"Wrote {out}. Read it, change what is wrong, then:",
        f"  ebbtide train {data.name} -o MODEL --plan {out.name}",
    )
    return Plan(planned.domain, rows, seed, planned.estimate, told)


def read_plan(path: Path | str, said: Domain[Any, Any]) -> Plan:
    """Read a plan: safe YAML against a closed schema. What the user said beside it goes before it.

    Args:
        path: the plan.
        said: the domain of the data, with what was said on the command line.

    Raises:
        InputError: not YAML, a key that is not known ("did you mean"), a value of the wrong type, a plan of
            another domain.
    """
    path = Path(path)
    found = read_yaml(path)
    if found.get("domain", said.name) != said.name:
        raise InputError("plan-domain", "this plan is of another domain", f"{path}, domain", "plan again")
    closed(found, ("domain", *said.plan_keys, "rows", "seed", "estimate"), str(path))
    domain = said.follow(found, path)
    rows, seed = typed(found, "rows", int, ROWS, path), typed(found, "seed", int, 0, path)
    return Plan(domain, rows, seed, typed(found, "estimate", dict, {}, path))

"""`ebbtide evaluate REAL SYNTHETIC`: is it like the real data, is it useful, what does it give away?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..domains import Domain
from ..domains.tabular import TabularDomain
from ..domains.tabular.fitted import FittedTable
from ..domains.tabular.measures import Pair, assess, encode_pair
from ..domains.tabular.measures.pictures import attack_rates, distributions, embedding, maps, memorisation
from ..shared.artifacts import swap_in, tool_version
from ..shared.errors import Fault, InputError
from ..shared.files import explained, locked, partial_of, refuse_existing, remove
from ..shared.private import statement
from .manifest import NAME as MANIFEST
from .manifest import read_json, sha256_of, write_json
from .options import model_folder
from .report import facts_of, nearest_pairs, page, rounded

Progress = Callable[[str, float], None]
ROWS = 20_000
"""Rows of each table that are looked at, at most."""
SHARE, INTERNAL, FACTS = "report_share.html", "report_internal.html", "report.json"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        folder: where the report is.
        facts: every figure, rounded, as plain JSON (report.json).
        warnings: faults that did not stop it.
        lines: the verdict for a person.
    """

    folder: str
    facts: dict[str, Any]
    warnings: tuple[Fault, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """A table of a comparison.

    Args:
        path: its file.
        frame: the rows that take part.
        rows: how many rows the file has.
        decimal: its decimal sign, where known.
    """

    path: Path
    frame: pd.DataFrame
    rows: int
    decimal: str | None


@dataclass(frozen=True)
class Report:
    """A report before it is written.

    Args:
        facts: report.json; has "verdict".
        share, internal: both pages.
        warnings: faults that did not stop it.
    """

    facts: dict[str, Any]
    share: str
    internal: str
    warnings: tuple[Fault, ...] = ()


def evaluate(
    real: Path | str,
    synthetic: Path | str,
    out: Path | str,
    *,
    domain: Domain[Any, Any],
    holdout: Path | str | None = None,
    target: str | None = None,
    model: Path | str | None = None,
    rows: int = ROWS,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare synthetic data with the real data that they were made from, and write a report.

    Args:
        real, synthetic: tables with the same columns (ids and text need not be there), or folders of scans or
            pictures; or the truth, and the folder that `impute` left behind.
        out: the folder to make: `report_share.html` (rounded aggregates), `report_internal.html` (points at
            real items) and `report.json`.
        domain: with what the user said about the real data.
        holdout: people like those of `real` whom the model never saw; without them privacy is not assessed.
        target: a column to predict; guessed when None.
        model: the model that made `synthetic`: attacks that look into it are tried too.
        rows: how many rows of each table are looked at, at most.
        seed: of every random choice.
        overwrite: replace `out`.
        progress: called with the stage and the fraction of it done.

    Raises:
        InputError: bad data, data that do not fit each other, or `out` exists.
    """
    real, synthetic, out = Path(real), Path(synthetic), Path(out)
    holdout = None if holdout is None else Path(holdout)
    model = None if model is None else model_folder(model)
    refuse_existing(out, overwrite)
    if out.exists() and any(out.iterdir()) and not (out / FACTS).is_file():
        raise InputError(
            "not-a-report",
            "what is here is not a report and is left alone",
            str(out),
            "choose another folder",
        )
    tell = progress or (lambda stage, fraction: None)
    from .judging import imputation_report, is_completed

    if is_completed(synthetic):
        made = imputation_report(real, synthetic, domain, seed)
    elif isinstance(domain, TabularDomain):
        made = tables_report(real, synthetic, holdout, domain, target, model, rows, seed, tell)
    else:
        from .comparing import grids_report

        made = grids_report(real, synthetic, holdout, domain, model, seed, tell)
    with locked(out), explained(out):
        partial = partial_of(out)
        remove(partial)
        partial.mkdir(parents=True)
        (partial / SHARE).write_text(made.share, encoding="utf-8")
        (partial / INTERNAL).write_text(made.internal, encoding="utf-8")
        write_json(partial / FACTS, made.facts)
        swap_in(partial, out)
    return Evaluation(str(out), made.facts, made.warnings, tuple(lines(made.facts, out)))


def tables_report(
    real: Path,
    synthetic: Path,
    holdout: Path | None,
    domain: TabularDomain,
    target: str | None,
    model: Path | str | None,
    rows: int,
    seed: int,
    tell: Progress,
) -> Report:
    """The report on a synthetic table; see `evaluate`."""
    paths = {"real": real, "synthetic": synthetic} | ({} if holdout is None else {"holdout": holdout})
    tell("reading", 0.0)
    tables = {role: read(path, domain, rows, seed, plain=role != "real") for role, path in paths.items()}
    pair = paired(tables, domain)
    if target is not None and target not in {place.name for place in pair.places}:
        raise InputError(
            "target-unknown",
            f"there is no column {target!r} to predict",
            str(real),
            "name one of its columns",
        )
    fitted = None if model is None else generating(Path(model), domain)
    losses = None if fitted is None else losses_of(fitted, tables)
    found = assess(pair, target=target, losses=losses, seed=seed, progress=tell)
    told = {"differential_privacy": declared_privacy(synthetic, fitted)}
    facts = {"about": about(tables, pair, rows, seed) | told, **facts_of(found)}
    facts["memorisation"] = None if fitted is None else memorisation_facts(fitted)
    at = [[int(row) for row in tables[role].frame.index] for role in ("synthetic", "real")]
    pictures = {"distributions": distributions(pair)}
    pictures["maps"] = maps(pair) if len(pair.places) > 1 else b""
    attacks = found.privacy.attacks if found.privacy else ()
    pictures["attacks"] = attack_rates(attacks) if attacks else b""
    if facts["memorisation"]:
        pictures["memorisation"] = memorisation(**facts["memorisation"])
    share = page(facts, {**pictures, "embedding": embedding(pair, seed, shown=True)})
    dots = {**pictures, "embedding": embedding(pair, seed, shown=False)}
    return Report(facts, share, page(facts, dots, nearest_pairs(found, *at)), pair.warnings)


def generating(model: Path, domain: TabularDomain) -> FittedTable:
    """A model that generates. Raises InputError for another."""
    fitted = domain.load(model)
    if fitted.generator is None:
        what = "this model fills in, and made no rows"
        raise InputError("cannot-attack", what, str(model), "name the model that made SYNTHETIC")
    return fitted


def memorisation_facts(fitted: FittedTable) -> dict[str, Any] | None:
    """What the model says of how its training went; None where it says nothing (few rows, an old model)."""
    drawing = fitted.generator
    if drawing is None or not drawing.memory:
        return None
    curve = [{name: rounded(value) for name, value in row.items()} for row in drawing.memory]
    return {"curve": curve, "kept": drawing.kept_step}


def losses_of(fitted: FittedTable, tables: Mapping[str, Read]) -> tuple[np.ndarray, np.ndarray] | None:
    """How surprised a model is by the real and by the held-out rows; None without held-out rows.

    Raises:
        InputError: it was trained on other columns.
    """
    from ..domains.tabular.measures.whitebox import row_losses

    if "holdout" not in tables or fitted.generator is None:
        return None
    names = [column.label for column in fitted.codec.columns_]
    found = []
    for role in ("real", "holdout"):
        frame = tables[role].frame
        lacking = [str(name) for name in names if name not in frame.columns]
        if lacking:
            what = f"it lacks {', '.join(map(repr, lacking[:5]))}, which the model was trained on"
            raise InputError("columns-differ", what, str(tables[role].path), "give the table of the training")
        found.append(row_losses(fitted.generator, fitted.codec.encode(frame[names])))
    return found[0], found[1]


def declared_privacy(synthetic: Path, fitted: FittedTable | None) -> str:
    """What the model, or the manifest beside the synthetic table, says of differential privacy."""
    if fitted is not None:
        return statement(fitted.about)
    beside = synthetic.with_name(MANIFEST)
    held = read_json(beside) if beside.is_file() else {}
    mine = held.get("files", {}).get(synthetic.name) == sha256_of(synthetic)
    return statement(held.get("model", {})) if mine else "unknown (neither a model nor a manifest was given)"


def require_tables(domain: Domain[Any, Any], path: Path | str) -> TabularDomain:
    """The domain of tables. Raises InputError for another."""
    if not isinstance(domain, TabularDomain):
        raise InputError("tables-only", f"this is done for tables alone, not {domain.name}", str(path))
    return domain


def read(path: Path, domain: TabularDomain, rows: int, seed: int, *, plain: bool) -> Read:
    """The rows of a table that take part.

    Args:
        plain: do not expect the key column, which a synthetic table has no reason to have.
    """
    at = TabularDomain(replace(domain.options, key=None)) if plain else domain
    survey = at.survey(path)
    frame = at.sample(path, survey, rows, seed)
    return Read(path, frame, survey.items, survey.source.decimal if survey.source else None)


def paired(tables: dict[str, Read], domain: TabularDomain) -> Pair:
    """All tables by one encoding."""
    holdout = tables.get("holdout")
    try:
        return encode_pair(
            tables["real"].frame,
            tables["synthetic"].frame,
            None if holdout is None else holdout.frame,
            missing=domain.options.missing,
            kinds=domain.kinds(),
            decimal=tables["real"].decimal,
        )
    except InputError as error:
        fault = error.fault
        role = fault.where.split(",")[0].lower()
        where = str(tables[role].path) + fault.where[len(role) :] if role in tables else fault.where
        raise InputError(fault.code, fault.what, where, fault.remedy) from error


def about(tables: dict[str, Read], pair: Pair, rows: int, seed: int) -> dict[str, Any]:
    """How the report was made: names, counts, versions; never a cell."""
    gone = {place.name: float(np.isnan(place.of(pair.real)).mean()) for place in pair.places}
    return {
        "made_by": f"ebbtide {tool_version()}",
        "seed": seed,
        **{
            role: tables[role].path.name if role in tables else None
            for role in ("real", "synthetic", "holdout")
        },
        "sha256": {role: sha256_of(table.path) for role, table in tables.items()},
        "rows_in_file": {role: table.rows for role, table in tables.items()},
        "rows_at_most": rows,
        "columns": [
            {"name": p.name, "kind": p.column.kind, "missing": round(gone[p.name], 3)} for p in pair.places
        ],
        "left_out": list(pair.left_out),
        "warnings": [str(fault) for fault in pair.warnings],
    }


def lines(facts: dict[str, Any], out: Path) -> list[str]:
    """The verdict, and where the rest is."""
    told = []
    for part, found in facts["verdict"].items():
        told += [f"{part.capitalize()}: {found['title']}.", *(f"  {words}" for words in found["words"])]
    told.append(
        f"Wrote {out / SHARE} (rounded aggregates alone) and {out / INTERNAL} (points at real items)."
    )
    return told

"""`ebbtide evaluate TRUTH COMPLETED`: how near what `impute` filled in comes to the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..domains import Comparison, Domain, Figure
from ..domains.tabular import TabularDomain
from ..domains.tabular.augmenting import emptied
from ..domains.tabular.codec import Coded, TableCodec
from ..domains.tabular.measures.imputed import crps, energy_score, inside, rmse
from ..domains.tabular.model import interval
from ..shared.artifacts import tool_version
from ..shared.errors import Fault, InputError
from .comparing import comparison_facts
from .evaluating import Report
from .manifest import NAME, read_json
from .pooling import Pooled, pool
from .report import rendered

PARTS = ("error", "spread", "estimates")
QUESTIONS = {
    "error": "how near is it to the truth?",
    "spread": "is it as sure as it may be?",
    "estimates": "does an analysis come out right?",
}
LEVEL = 0.9
"""Of the intervals."""
ENOUGH = 10
"""Draws from which intervals are taken from them; of fewer, from the table of the spread."""


def is_completed(path: Path) -> bool:
    """Whether this is a folder that `impute` left behind."""
    return (path / NAME).is_file() and read_json(path / NAME).get("command") == "impute"


@dataclass(frozen=True)
class Completed:
    """What was filled in, beside the truth; numbers are z-scored by the cells that were known.

    Args:
        codec: learnt from the known cells alone.
        known: the cells that were known, as numbers and codes.
        truth: all cells.
        filled: all cells, as completed.
        numbers_at, codes_at: bool, the filled cells whose truth is known.
        draws: each kept draw of the whole table.
        low, high: (n, p) bounds by the table of the spread; NaN where there is none.
        probability: (n, q) of the filled levels, as the model says; NaN where there is none.
    """

    codec: TableCodec
    known: Coded
    truth: Coded
    filled: Coded
    numbers_at: np.ndarray
    codes_at: np.ndarray
    draws: tuple[Coded, ...]
    low: np.ndarray
    high: np.ndarray
    probability: np.ndarray


def imputation_report(truth: Path, folder: Path, domain: Domain[Any, Any], seed: int) -> Report:
    """The report on a completed table.

    Raises:
        InputError: not a table; a truth of other rows or columns; nothing filled in whose truth is known.
    """
    if not isinstance(domain, TabularDomain):
        what = f"completed {domain.things} are not compared with a truth yet"
        raise InputError("tables-only", what, str(folder), "give a table and what was made of it")
    held = read(truth, folder, domain)
    found = compared(held)
    about = {
        "made_by": f"ebbtide {tool_version()}",
        "seed": seed,
        "things": "rows",
        "real": truth.name,
        "synthetic": folder.name,
        "holdout": None,
        "model_sha256": str(read_json(folder / NAME).get("model", {}).get("sha256", "")) or None,
    }
    facts = comparison_facts(found, about, PARTS)
    words = {"parts": PARTS, "order": PARTS, "questions": QUESTIONS, "judged": "filled in"}
    shown = rendered("comparison.html", facts, {}, internal=None, **words)
    return Report(facts, shown, rendered("comparison.html", facts, {}, internal=[], **words), found.faults)


def read(truth: Path, folder: Path, domain: TabularDomain) -> Completed:
    """Read the truth and everything in the folder."""
    manifest = read_json(folder / NAME)
    names = list(manifest.get("files", {}))
    by = {sort: next((n for n in names if f".{sort}." in n), None) for sort in ("imputed", "mask", "spread")}
    if by["imputed"] is None or by["mask"] is None:
        what = "the manifest names no completed table with its mask"
        raise InputError("not-completed", what, str(folder), "give a folder that `ebbtide impute` made")
    whole, filled = domain.open(truth).read(), domain.open(folder / by["imputed"]).read()
    require_alike(whole, filled, truth, folder)
    mask = _marks(domain, folder / by["mask"], filled)
    missing = domain.options.missing or tuple(manifest.get("options", {}).get("missing") or ())
    known = emptied(filled, mask)
    codec = TableCodec(missing, kinds=domain.kinds(), decimal=domain.open(truth).decimal).fit(known)
    tables = [known, whole[filled.columns], filled]
    tables += [domain.open(folder / name).read() for name in names if name.startswith("draws/")]
    parts = [codec.encode(table) for table in tables]
    modelled = [column for column in codec.columns_ if column.modelled]
    at: dict[Any, int] = {label: place for place, label in enumerate(filled.columns)}
    gaps = [
        mask[:, np.array([at[column.label] for column in modelled if column.is_number is number], dtype=int)]
        for number in (True, False)
    ]
    spread = pd.DataFrame(index=filled.index)
    if by["spread"]:
        from ..domains.tabular.reading import open_table

        spread = open_table(folder / by["spread"]).read()
    low, high, probability = _spread(codec, spread, filled)
    mean, scale = _scale(parts[0].numbers)
    scaled = [Coded((part.numbers - mean) / scale, part.codes) for part in parts]
    return Completed(
        codec,
        scaled[0],
        scaled[1],
        scaled[2],
        gaps[0] & ~np.isnan(scaled[1].numbers) & ~np.isnan(scaled[2].numbers),
        gaps[1] & (scaled[1].codes >= 0) & (scaled[2].codes >= 0),
        tuple(scaled[3:]),
        (low - mean) / scale,
        (high - mean) / scale,
        probability,
    )


def require_alike(whole: pd.DataFrame, filled: pd.DataFrame, truth: Path, folder: Path) -> None:
    """Raise InputError when the truth has other rows or columns than the completed table."""
    lacking = [str(name) for name in filled.columns if name not in whole.columns]
    if lacking:
        what = f"it lacks {', '.join(map(repr, lacking[:5]))}, which {folder.name} has"
        raise InputError("columns-differ", what, str(truth), "give the table before cells were hidden")
    if len(whole) != len(filled):
        what = f"{len(whole):,} rows, and {len(filled):,} in {folder.name}"
        raise InputError(
            "rows-differ", what, str(truth), "give the table before cells were hidden, rows in order"
        )


def _marks(domain: TabularDomain, path: Path, like: pd.DataFrame) -> np.ndarray:
    """(n, columns) bool, from the table of 0 and 1."""
    frame = domain.open(path).read()
    return np.asarray(frame.astype(str).to_numpy() == "1") & (frame.shape == like.shape)


def _spread(codec: TableCodec, spread: pd.DataFrame, like: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """Bounds of numbers and probabilities of categories by the table of the spread."""

    def bound(end: str) -> np.ndarray:
        frame = like.copy()
        for column in codec.columns_:
            name = f"{column.name}.{end}"
            if column.is_number:
                frame[column.label] = spread.get(name, np.nan)
        return codec.encode(frame).numbers

    chosen = [column.name for column in codec.columns_ if column.modelled and column.is_category]
    said = [
        pd.to_numeric(spread[f"{name}.probability"], errors="coerce").to_numpy(float)
        if f"{name}.probability" in spread
        else np.full(len(like), np.nan)
        for name in chosen
    ]
    probability = np.stack(said, 1) if said else np.empty((len(like), 0))
    return bound("lower"), bound("upper"), probability


def _scale(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the known cells of each number."""
    known = ~np.isnan(numbers)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, numbers, 0).sum(0) / count
    spread = np.sqrt(np.where(known, (numbers - mean) ** 2, 0).sum(0) / count)
    return mean, np.where(spread > 0, spread, 1.0)


# ------------------------------------------------------------------------------------------------ figures


def compared(held: Completed) -> Comparison:
    """Every figure beside that of the mean and the commonest level of the known cells.

    Raises:
        InputError: no cell was filled in whose truth is known.
    """
    numbers, codes = int(held.numbers_at.sum()), int(held.codes_at.sum())
    if not numbers + codes:
        what = "no cell was filled in whose truth is known"
        raise InputError("nothing-to-judge", what, "TRUTH", "give the table before cells were hidden")
    figures = {
        "error": list(error_figures(held)),
        "spread": list(spread_figures(held)),
        "estimates": list(estimate_figures(held)),
    }
    faults: tuple[Fault, ...] = ()
    if len(held.draws) < 2:
        what = f"{len(held.draws)} completed table(s) were kept: no CRPS, no pooled estimates"
        faults = (Fault("few-draws", what, "COMPLETED", "impute with --all-draws 20", "warning"),)
    return Comparison(
        "filling in the mean, or the commonest level",
        figures,
        {part: verdict(part, figures[part]) for part in PARTS},
        facts={
            "cells judged": {"numbers": numbers, "categories": codes},
            "draws kept": len(held.draws),
            "numbers": "z-scored by the mean and standard deviation of the known cells",
            "columns": by_column(held),
        },
        faults=faults,
    )


def error_figures(held: Completed) -> Iterator[Figure]:
    """RMSE and mean absolute error of numbers, accuracy of categories."""
    at = held.numbers_at
    if at.any():
        made, truth = held.filled.numbers[at], held.truth.numbers[at]
        yield Figure(
            "RMSE", rmse(made, truth), rmse(0 * truth, truth), 0.0, "of numbers, in standard deviations"
        )
        reference = float(np.abs(truth).mean())
        yield Figure("mean absolute error", float(np.abs(made - truth).mean()), reference, 0.0, "the same")
    if held.codes_at.any():
        right = held.filled.codes == held.truth.codes
        mode = np.array(
            [np.bincount(c[c >= 0]).argmax() if (c >= 0).any() else -1 for c in held.known.codes.T]
        )
        reference = float((held.truth.codes == mode)[held.codes_at].mean())
        yield Figure(
            "accuracy", float(right[held.codes_at].mean()), reference, 1.0, "of categories: share right"
        )


def spread_figures(held: Completed) -> Iterator[Figure]:
    """Coverage, CRPS, energy score, and whether probabilities are kept."""
    at = held.numbers_at
    low, high = held.low, held.high
    draws = np.stack([draw.numbers for draw in held.draws]) if held.draws else np.empty((0, *at.shape))
    if len(draws) >= ENOUGH:
        low, high = interval(draws)
    there = at & ~np.isnan(low) & ~np.isnan(high)
    if there.any():
        share = float(inside(low, high, held.truth.numbers)[there].mean())
        yield Figure("coverage", share, None, LEVEL, "true numbers that lie in their 90 % interval")
        width = float((high - low)[there].mean())
        yield Figure(
            "width",
            width,
            2 * 1.645,
            None,
            "of the intervals, in standard deviations: the narrower the better",
        )
    if len(draws) >= 2 and at.any():
        truth = held.truth.numbers[at]
        plain = float(np.abs(truth).mean())
        score = float(crps(draws[:, at], truth).mean())
        yield Figure(
            "CRPS", score, plain, 0.0, "error of the whole predicted distribution, in standard deviations"
        )
        alone = energy_score(np.zeros_like(draws), held.truth.numbers, at)
        score = energy_score(draws, held.truth.numbers, at)
        yield Figure("energy score", score, alone, 0.0, "the same of all hidden numbers of a row together")
    said = held.codes_at & ~np.isnan(held.probability)
    if said.any():
        right = float((held.filled.codes == held.truth.codes)[said].mean())
        meaning = "mean probability given to the filled level, less how often it is right"
        yield Figure("overconfidence", float(held.probability[said].mean()) - right, None, 0.0, meaning)


def estimate_figures(held: Completed) -> Iterator[Figure]:
    """Means and shares, pooled over the draws by Rubin's rules, beside those of the truth."""
    if len(held.draws) < 2:
        return
    found = [(pooled, truth, known) for pooled, truth, known, _ in estimates(held)]
    if not found:
        return
    error = [np.sqrt(max(truth[1], 1e-30)) for _, truth, _ in found]
    ours = np.array([abs(p.estimate - t[0]) for p, t, _ in found]) / error
    theirs = np.array([abs(k[0] - t[0]) for _, t, k in found]) / error
    meaning = (
        "mean of |estimate - that of the truth|, in standard errors of the truth's; beside: known cells alone"
    )
    yield Figure("bias of pooled estimates", float(ours.mean()), float(theirs.mean()), 0.0, meaning)
    held_in = np.mean([p.lower <= t[0] <= p.upper for p, t, _ in found])
    meaning = "pooled 95 % intervals that hold the estimate of the truth (which is itself of a sample)"
    yield Figure("pooled intervals", float(held_in), None, None, meaning)


def estimates(held: Completed) -> Iterator[tuple[Pooled, tuple[float, float], tuple[float, float], str]]:
    """(pooled, (estimate, variance) of the truth, of the known cells, name): of each column with filled cells
    the mean, or the share of its commonest level."""

    def mean(values: np.ndarray) -> tuple[float, float]:
        values = values[~np.isnan(values)]
        return float(values.mean()), float(values.var(ddof=1) / len(values))

    for j, name in enumerate(held.codec.number_names):
        if held.numbers_at[:, j].any():
            made = [mean(draw.numbers[:, j]) for draw in held.draws]
            yield _pooled(made), mean(held.truth.numbers[:, j]), mean(held.known.numbers[:, j]), name
    for j, name in enumerate(held.codec.category_names):
        if held.codes_at[:, j].any():
            seen = held.known.codes[:, j]
            level = np.bincount(seen[seen >= 0]).argmax()

            def share(codes: np.ndarray, level: int = int(level)) -> tuple[float, float]:
                return mean(np.where(codes < 0, np.nan, codes == level))

            made = [share(draw.codes[:, j]) for draw in held.draws]
            yield _pooled(made), share(held.truth.codes[:, j]), share(seen), name


def _pooled(made: Sequence[tuple[float, float]]) -> Pooled:
    return pool([estimate for estimate, _ in made], [variance for _, variance in made])


def by_column(held: Completed) -> dict[str, str]:
    """RMSE or accuracy of each column with filled cells, in words."""
    told = {}
    for j, name in enumerate(held.codec.number_names):
        at = held.numbers_at[:, j]
        if at.any():
            error = rmse(held.filled.numbers[at, j], held.truth.numbers[at, j])
            told[name] = f"RMSE {error:.2f} ({at.sum():,} cells)"
    for j, name in enumerate(held.codec.category_names):
        at = held.codes_at[:, j]
        if at.any():
            right = (held.filled.codes[at, j] == held.truth.codes[at, j]).mean()
            told[name] = f"{100 * right:.0f} % right ({at.sum():,} cells)"
    return told


def verdict(part: str, figures: Sequence[Figure]) -> tuple[str, list[str]]:
    """A title and sentences."""
    of: Mapping[str, Figure] = {figure.name: figure for figure in figures}
    if not figures:
        return "Not assessed", ["For this, completed tables of several draws are needed: --all-draws 20."]
    if part == "error":
        return _error_verdict(of)
    if part == "spread":
        return _spread_verdict(of)
    bias = of["bias of pooled estimates"]
    better = (bias.synthetic or 0) < (bias.reference or 0)
    title = "Nearer than leaving incomplete cells out" if better else "No nearer than leaving them out"
    return title, [
        f"Pooled means and shares are off by {bias.synthetic:.2f} standard errors; those of the known cells "
        f"alone by {bias.reference:.2f}."
    ]


def _error_verdict(of: Mapping[str, Figure]) -> tuple[str, list[str]]:
    words, better = [], []
    if "RMSE" in of:
        one = of["RMSE"]
        better.append((one.synthetic or 0) < (one.reference or 0))
        words.append(
            f"Numbers are off by {one.synthetic:.2f} standard deviations; the mean by {one.reference:.2f}."
        )
    if "accuracy" in of:
        one = of["accuracy"]
        better.append((one.synthetic or 0) >= (one.reference or 0))
        words.append(
            f"{100 * (one.synthetic or 0):.0f} % of categories are right; of the commonest level "
            f"{100 * (one.reference or 0):.0f} %."
        )
    return (
        "Nearer to the truth than a blind guess"
        if all(better)
        else "Not everywhere better than a blind guess"
    ), words


def _spread_verdict(of: Mapping[str, Figure]) -> tuple[str, list[str]]:
    if "coverage" not in of:
        return "Probabilities alone can be judged", ["No number was filled in."]
    share = of["coverage"].synthetic or 0
    title = (
        "As sure as it may be"
        if abs(share - LEVEL) <= 0.04
        else "Too sure"
        if share < LEVEL
        else "Too careful"
    )
    return title, [f"{100 * share:.1f} % of true numbers lie in their 90 % interval."]

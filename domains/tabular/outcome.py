"""What was drawn for the missing cells of some rows, as arrays on disk; and the files made from it in
the end.

A unit's outcome holds the filled rows alone, in the codec's numbers and codes. The completed table is
written in a
last pass over the input, so that observed cells go from file to file untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from .. import Progress, Request, Unit
from .cells import MISSING_CODES
from .codec import Coded, Column, TableCodec
from .filling import Filling, places, point
from .fitted import FittedTable, require_columns
from .model import interval
from .reading import TableSource
from .writers import Writer
from .writing import marks_frame, open_writer

SEEN = 2_000
"""Rows of a piece that are kept as they were, for pictures."""


@dataclass(frozen=True)
class Outcome:
    """What was drawn for k rows that have a cell to fill.

    Args:
        rows: (k,) positions of the rows in the file.
        numbers, codes: (k, p) and (k, q), the values by the statistic that was asked for.
        uniform: (1 + d, k, q) which of the pooled rare levels is meant, for the values and for each kept
        draw.
        std, lower, upper: (k, p) of the draws; 90 % interval.
        probability: (k, q) of the most probable level.
        draw_numbers, draw_codes: (d, k, p) and (d, k, q), the draws that are kept.
        number_holes, code_holes: (k, p) and (k, q) bool, the cells of these rows that were filled.
        seen_numbers, seen_codes: (m, p) and (m, q), some rows as they were, for pictures.
        counts: what was missing and filled, by column.
    """

    rows: np.ndarray
    numbers: np.ndarray
    codes: np.ndarray
    uniform: np.ndarray
    std: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    probability: np.ndarray
    draw_numbers: np.ndarray
    draw_codes: np.ndarray
    number_holes: np.ndarray
    code_holes: np.ndarray
    seen_numbers: np.ndarray
    seen_codes: np.ndarray
    counts: dict[str, Any]

    @classmethod
    def of(cls, filling: Filling, request: Request) -> Self:
        """The outcome of filling some rows."""
        filled, kept = filling.filled, max(1, request.all_draws)  # the first draw is for the picture
        step = -(-len(filling.frame) // SEEN) or 1
        chosen = point(filled, request.statistic)
        lower, upper = interval(filled.numbers)
        std = filled.numbers.std(axis=0, ddof=1) if filling.draws > 1 else np.full(filled.mean.shape, np.nan)
        levels = [
            np.zeros(filled.codes.shape[1:]) if u is None else u[filling.rows]
            for u in (filling.uniform(d) for d in range(kept))
        ]
        # Only a draw chooses among the pooled levels; the most probable level of a pool is its commonest: 0.
        first = levels[0] if request.statistic == "sample" else np.zeros_like(levels[0])
        return cls(
            filling.frame.index.to_numpy(np.int64)[filling.rows],
            chosen.numbers,
            chosen.codes,
            np.stack([first, *levels]),
            std,
            lower,
            upper,
            filled.probability,
            filled.numbers[:kept],
            filled.codes[:kept],
            *holes(filling),
            filling.coded.numbers[::step],
            filling.coded.codes[::step],
            count(filling),
        )

    @classmethod
    def join(cls, outcomes: Sequence[Self]) -> Self:
        """Consecutive outcomes as one."""
        if len(outcomes) == 1:
            return outcomes[0]
        axis = {"uniform": 1, "draw_numbers": 1, "draw_codes": 1}
        arrays = {
            name: np.concatenate([getattr(o, name) for o in outcomes], axis.get(name, 0)) for name in _ARRAYS
        }
        return cls(**arrays, counts=summary([o.counts for o in outcomes]))

    def save(self, folder: Path) -> None:
        """Write the arrays (numpy's npz, no pickle) into a folder."""
        np.savez(
            folder / "outcome.npz", allow_pickle=False, **{name: getattr(self, name) for name in _ARRAYS}
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; the counts stay with the pipeline."""
        with np.load(folder / "outcome.npz", allow_pickle=False) as held:
            return cls(**{name: held[name] for name in _ARRAYS}, counts={})


_ARRAYS = tuple(f.name for f in fields(Outcome) if f.name != "counts")


def holes(filling: Filling) -> tuple[np.ndarray, np.ndarray]:
    """(k, p) and (k, q) bool: which numbers and codes of the filled rows were filled."""
    cells = filling.where[filling.rows]
    known = filling.codec.columns_
    numbers = places(filling.frame, [column for column in known if column.is_number])
    codes = places(filling.frame, [column for column in known if column.is_category])
    return cells[:, numbers], cells[:, codes]


# ---------------------------------------------------------------------------------------------- counting


def count(filling: Filling) -> dict[str, Any]:
    """What was missing and filled, by column; no cell's value."""
    empty = filling.codec.empty(filling.frame)
    unseen, suspect = dict(filling.coded.unseen), _suspect(filling)
    columns = {}
    for place, label in enumerate(filling.frame.columns):
        columns[str(label)] = {
            "missing": int(empty[:, place].sum()),
            "filled": int(filling.where[:, place].sum()),
            "unseen": int(unseen.get(str(label), 0)),
            "suspect": suspect.get(str(label), 0),
        }
    kinds = {column.name: column.kind for column in filling.codec.columns_}
    return {"rows": len(filling.frame), "columns": columns, "kinds": kinds}


def _suspect(filling: Filling) -> dict[str, int]:
    """By category column, how many cells hold a word that often stands for missing and was not named so."""
    found = {}
    categories = [column for column in filling.codec.columns_ if column.is_category]
    for column, codes in zip(categories, filling.coded.codes.T, strict=True):
        words = [k for k, level in enumerate(column.levels) if str(level).strip().lower() in MISSING_CODES]
        if words:
            found[column.name] = int(np.isin(codes, words).sum())
    return found


def summary(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of several units in one, with totals."""
    columns: dict[str, dict[str, int]] = {}
    for counted in counts:
        for name, numbers in counted["columns"].items():
            held = columns.setdefault(name, dict.fromkeys(numbers, 0))
            for what, number in numbers.items():
                held[what] += number
    totals = {what: sum(c[what] for c in columns.values()) for what in ("missing", "filled", "unseen")}
    rows = sum(int(counted["rows"]) for counted in counts)
    cells = rows * len(columns)
    return {"rows": rows, "cells": cells, **totals, "columns": columns, "kinds": counts[0]["kinds"]}


def tell(counted: Mapping[str, Any]) -> list[str]:
    """The counts in plain words."""
    share = 100 * counted["missing"] / max(counted["cells"], 1)
    lines = [
        f"{counted['rows']:,} rows, {len(counted['columns'])} columns: {counted['missing']:,} of "
        f"{counted['cells']:,} cells were missing ({share:.1f} %), {counted['filled']:,} of them were filled."
    ]
    width = max(map(len, counted["columns"]), default=0)
    for name, numbers in counted["columns"].items():
        kind = counted["kinds"].get(name, "")
        if numbers["missing"]:
            left = numbers["missing"] - numbers["filled"]
            kept = f", {left:,} left as they are" if left else ""
            lines.append(f"  {name:<{width}}  {numbers['filled']:>8,} filled  ({kind}{kept})")
        if numbers["unseen"]:
            lines.append(
                f"  {name:<{width}}  {numbers['unseen']:>8,} cells hold a category that training never saw; "
                "they were kept, and taken for missing when the others were filled"
            )
        if numbers["suspect"]:
            lines.append(
                f"  {name:<{width}}  {numbers['suspect']:>8,} cells hold a word that often stands for "
                "missing, and were kept; if they are missing, name it: --missing (ebbtide check tells which)"
            )
    return lines


# ---------------------------------------------------------------------------------------------- writing


def assemble(
    source: TableSource,
    fitted: FittedTable,
    units: Iterable[Unit[pd.DataFrame]],
    parts: Mapping[int, Path],
    out: Path,
    request: Request,
    columns: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write the completed table, the mask of what was filled, the spread, and one table for each kept draw.

    Returns:
        Names of the files, relative to `out`.
    """
    stem, suffix = source.path.stem, source.path.suffix
    flat = ".parquet" if source.format == "parquet" else ".csv"
    same = suffix if source.format != "excel" else flat
    names = [f"{stem}.imputed{suffix}", f"{stem}.mask{same}", f"{stem}.spread{flat}"]
    digits = len(str(request.all_draws))
    drawn = [f"draws/{stem}.draw-{d + 1:0{digits}d}{suffix}" for d in range(request.all_draws)]
    if drawn:
        (out / "draws").mkdir()
    known = fitted.codec.columns_
    with ExitStack() as files:
        note = {"ebbtide": "filled cells are estimates: see the mask and the manifest"}

        def begin(name: str, **options: Any) -> Writer:
            return files.enter_context(open_writer(out / name, **options))

        table = begin(names[0], source=source, columns=known, metadata=note)
        mask = begin(names[1], source=source if source.format != "excel" else None, marks=True)
        spread = begin(names[2])
        tables = [begin(name, source=source, columns=known, metadata=note) for name in drawn]
        for done, unit in enumerate(units):
            outcome = Outcome.load(parts[unit.start])
            where = filled_cells(fitted.codec, unit.raw, columns)
            table.write(decode(fitted.codec, unit, where, outcome, 0), where)
            mask.write(marks_frame(where, unit.raw), np.zeros_like(where))
            spread.write(spread_frame(fitted.codec, unit, where, outcome, text=flat == ".csv"))
            for index, writer in enumerate(tables):
                writer.write(decode(fitted.codec, unit, where, outcome, 1 + index), where)
            if progress is not None:
                progress("writing", (done + 1) / len(parts))
    return [*names, *drawn]


def filled_cells(codec: TableCodec, frame: pd.DataFrame, columns: Sequence[str] | None) -> np.ndarray:
    """(n, columns of frame) bool: missing cells that a model can fill, in the columns asked for."""
    where = codec.where(frame)
    if columns is not None:
        wanted = set(require_columns(codec, columns))
        where &= np.array([str(label) in wanted for label in frame.columns], dtype=bool)
    return where


def decode(
    codec: TableCodec, unit: Unit[pd.DataFrame], where: np.ndarray, outcome: Outcome, which: int
) -> pd.DataFrame:
    """The rows of a unit completed by the chosen values (which = 0) or by draw which - 1."""
    numbers = outcome.numbers if which == 0 else outcome.draw_numbers[which - 1]
    codes = outcome.codes if which == 0 else outcome.draw_codes[which - 1]
    filled, uniform = _laid(unit, outcome, numbers, codes, outcome.uniform[which])
    return codec.decode(filled, unit.raw, where, uniform=uniform)


def _laid(
    unit: Unit[pd.DataFrame], outcome: Outcome, numbers: np.ndarray, codes: np.ndarray, uniform: np.ndarray
) -> tuple[Coded, np.ndarray]:
    """Values of the filled rows laid into all rows of the unit; the others hold nothing."""
    at = outcome.rows - unit.start
    n = len(unit.raw)
    all_numbers = np.full((n, numbers.shape[1]), np.nan)
    all_codes = np.full((n, codes.shape[1]), -1, np.int32)
    all_uniform = np.zeros((n, uniform.shape[1]))
    all_numbers[at], all_codes[at], all_uniform[at] = numbers, codes, uniform
    return Coded(all_numbers, all_codes), all_uniform


def spread_frame(
    codec: TableCodec, unit: Unit[pd.DataFrame], where: np.ndarray, outcome: Outcome, *, text: bool
) -> pd.DataFrame:
    """How sure each filled cell is, a row for each row of the table; blank where nothing was filled.

    For a number NAME: NAME.std, NAME.lower and NAME.upper (90 %); for a category: NAME.probability.
    """
    place_of: dict[Any, int] = {label: place for place, label in enumerate(unit.raw.columns)}
    ends = [
        codec.decode(_laid(unit, outcome, end, outcome.codes, outcome.uniform[0])[0], unit.raw, where)
        for end in (outcome.lower, outcome.upper)
    ]
    made: dict[str, Any] = {}
    for column, inner, end in _spread_columns(codec, outcome, ends):
        cells = where[:, place_of[column.label]]
        if inner is None:
            series = end.iloc[:, place_of[column.label]]
            made[f"{column.name}.{'lower' if end is ends[0] else 'upper'}"] = series.where(cells)
            continue
        values = np.full(len(unit.raw), np.nan)
        values[outcome.rows - unit.start] = inner
        values[~cells] = np.nan
        made[f"{column.name}.{'std' if column.is_number else 'probability'}"] = (
            _short(values) if text else values
        )
    return pd.DataFrame(made, index=unit.raw.index)


def _spread_columns(
    codec: TableCodec, outcome: Outcome, ends: Sequence[pd.DataFrame]
) -> Iterator[tuple[Column, Any, Any]]:
    """(column, (k,) array or None, frame of bounds or None), in the order of the table's columns."""
    p = q = 0
    for column in codec.columns_:
        if column.is_number:
            yield column, outcome.std[:, p], None
            yield column, None, ends[0]
            yield column, None, ends[1]
            p += 1
        elif column.is_category:
            yield column, outcome.probability[:, q], None
            q += 1


def _short(values: np.ndarray) -> list[str | None]:
    """Numbers as text of six significant digits."""
    return [None if np.isnan(value) else f"{value:.6g}" for value in values]

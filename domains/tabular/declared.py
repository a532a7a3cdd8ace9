"""What people declare that the columns of a table may hold, so that none of it is learnt from the rows.

A YAML file with a key for every column (every value is taken as it is written):

    age: {low: 17, high: 90}                            # whole numbers
    bmi: {low: 10, high: 70, decimals: 1, missing: yes} # cells may be missing
    gain: {low: 0, high: 99999, values: [0], edges: [1000, 5000, 10000]}
    sex: {levels: [F, M]}
    admitted: {low: 2020-01-01, high: 2024-12-31}       # days; another form: "%d/%m/%Y"
    patient: id                                         # new ids
    remarks: skip                                       # left empty

Cells are read by this alone, a row by itself: a number beyond its range counts as the end of it, and what is
not declared at all (another level, a missing cell where none is declared) is a cell that is not known.
Nothing is refused because of a cell, for that would say something of its row.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from ..documents import read_yaml
from . import cells, columns
from .binning import KNOTS, Bins, Grid
from .columns import Column
from .parts import DAY

CELLS = 256
"""Cells of equal width into which a range is cut before anything is known of the rows."""
KEYS = ("low", "high", "decimals", "form", "levels", "values", "edges", "missing")
DATE = "%Y-%m-%d"
EXAMPLES = "{low: 0, high: 120}, {levels: [F, M]}, id or skip"


@dataclass(frozen=True)
class Declared:
    """One column.

    Args:
        name: its header.
        column: as a codec has it.
        low, high, step: of a number; step 0 has no grid. Dates in seconds, a step is a day.
        values: numbers that many rows may share: cells of their own.
        edges: where cells begin, where they are not of equal width.
        missing: whether cells may be missing.
    """

    name: str
    column: Column
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    values: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    missing: bool = False

    @property
    def grid(self) -> Grid:
        """Of a number."""
        return Grid(self.step, self.low, self.column.decimals) if self.step else Grid()

    def bins(self) -> Bins:
        """A number's finest levels: values of their own, and cells of equal width (or between `edges`)."""
        alone = sorted(set(self.values))
        inner = self.edges or np.linspace(self.low, self.high, CELLS + 1)[1:-1]
        if self.step:
            places = round((self.high - self.low) / self.step)
            if not self.edges and places < CELLS:
                return self._levels(np.arange(places + 1) * self.step + self.low)
            # A cell holds whole steps, from half a step below its first to half a step above its last.
            inner = self.grid.up(np.asarray(inner, float)) - self.step / 2
        half = self.step / 2
        cuts = np.unique([self.low - half, *np.clip(inner, self.low, self.high), self.high + half])
        made = [np.linspace(a, b, KNOTS + 1) for a, b in itertools.pairwise(cuts)]
        return _sorted(np.array([*made, *(np.repeat(value, KNOTS + 1) for value in alone)]))

    def _levels(self, values: np.ndarray) -> Bins:
        decimals = self.column.decimals
        values = values if decimals is None else np.round(values, decimals)
        return _sorted(np.repeat(values[:, None], KNOTS + 1, 1))

    def read(self, series: pd.Series[Any], codes: Collection[Hashable]) -> tuple[np.ndarray, np.ndarray]:
        """The cells of the column: (n,) numbers (NaN where missing) or codes (-1), and (n,) whether they are
        known. A cell's answer depends on this cell alone."""
        gone = columns.missing(series, codes)
        if self.column.is_category:
            place = {_word(level): code for code, level in enumerate(self.column.levels)}
            found = [-1 if out else place.get(_word(v), -1) for v, out in zip(series, gone, strict=True)]
            made = np.array(found, np.int32)
            return made, (made >= 0) | (gone & self.missing)
        values = np.array([np.nan if out else self._number(v) for v, out in zip(series, gone, strict=True)])
        values = np.clip(values, self.low, self.high)
        return self.grid.near(values), ~np.isnan(values) | (gone & self.missing)

    def _number(self, cell: Any) -> float:
        """A cell as a number; NaN where it cannot be read."""
        if self.column.kind == "datetime":
            return _seconds(cell, self.column.form)
        if isinstance(cell, str):
            text = cell.strip()
            return float(text) if cells.NUMBER.fullmatch(text) else math.nan
        try:
            return float(cell)
        except (TypeError, ValueError):
            return math.nan


@dataclass(frozen=True)
class Declaration:
    """All columns, by name, and the file that declares them."""

    columns: Mapping[str, Declared]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Declaration:
        """Read the file.

        Raises:
            InputError: `ranges-...`: not there, not YAML, or a column that cannot be read.
        """
        if not path.is_file():
            raise InputError("ranges-missing", "there is no such file", str(path), "check the path")
        found = read_yaml(path, "ranges", "write `COLUMN: {low: 0, high: 120}`, a line a column", words=True)
        return cls({name: _declared(name, told, path) for name, told in found.items()}, path)

    def of(self, frame: pd.DataFrame) -> list[Declared]:
        """The columns of a table, in its order.

        Raises:
            InputError: `undeclared`, a column that is not declared; `ranges-column`, one that is not there.
        """
        names = [str(label) for label in frame.columns]
        for name in names:
            if name not in self.columns:
                what = "what it may hold is not declared, and looking at its cells would not be private"
                raise InputError(
                    "undeclared", what, f"{self.path}, column {name!r}", f"write `{name}: ` and {EXAMPLES}"
                )
        for name in self.columns:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                advice = f"did you mean {near[0]}?" if near else "take it out"
                raise InputError("ranges-column", f"the table has no column {name!r}", str(self.path), advice)
        return [self.columns[name] for name in names]


def _sorted(knots: np.ndarray) -> Bins:
    """Levels in order; nothing is known of what lies within."""
    return Bins(knots[_order(knots)], np.zeros(len(knots)))


def _order(knots: np.ndarray) -> np.ndarray:
    """As `Bins` has its levels: by their middle."""
    return np.lexsort((knots[:, -1], knots[:, KNOTS // 2]))


def merged(bins: Bins, counts: np.ndarray, least: float, alone: Collection[float]) -> tuple[Bins, np.ndarray]:
    """Join neighbouring levels until each has `least` counts (more, if made of many), or the next has.

    Args:
        counts: (L,) noisy counts of rows.
        least: what one level must have; k levels together, sqrt(k) as much.
        alone: values that stay by themselves.

    Returns:
        The levels, and (L,) the new place of each old one.
    """
    own = bins.alone & np.isin(bins.knots[:, 0], list(alone))
    groups = [[int(place)] for place in np.flatnonzero(own)]
    run = list[int]()
    for place in np.flatnonzero(~own):
        if run and counts[place] >= least:  # what stands out is not to be joined with what does not
            groups.append(run)
            run = []
        run.append(int(place))
        if counts[run].sum() >= least * math.sqrt(len(run)):
            groups.append(run)
            run = []
    groups += [run] if run else []
    spread = min(_gaps(bins), default=0.0) / 2
    made = []
    for group in groups:
        first, last = bins.knots[group[0], 0], bins.knots[group[-1], -1]
        if len(group) > 1:  # of values of their own: from half a gap below to half a gap above
            first -= spread * bins.alone[group[0]]
            last += spread * bins.alone[group[-1]]
        made.append(np.linspace(first, last, KNOTS + 1))
    knots = np.array(made)
    order = _order(knots)
    places = np.zeros(len(bins), int)
    for new, k in enumerate(order):
        places[groups[k]] = new
    return Bins(knots[order], np.zeros(len(knots))), places


def _gaps(bins: Bins) -> np.ndarray:
    """Between neighbouring values of their own, where there is nothing else."""
    return np.diff(bins.knots[:, 0]) if bins.alone.all() and len(bins) > 1 else np.zeros(0)


# --------------------------------------------------------------------------------------------------- reading


def _declared(name: str, told: Any, path: Path) -> Declared:
    where = f"{path}, column {name!r}"
    if told in ("id", "skip"):
        kind: Any = "id" if told == "id" else "text"
        return Declared(name, Column(name, kind, "str", name, storage="text", observed=1))
    if not isinstance(told, Mapping) or ("levels" in told) == ("low" in told):
        raise InputError("ranges-value", "it is not declared in full", where, f"write {EXAMPLES}")
    for key in told:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            raise InputError("ranges-key", f"there is no key {key!r}", where, advice)
    gone = str(told.get("missing", "no")).lower()
    if gone not in ("yes", "no", "true", "false"):
        raise InputError("ranges-value", "missing must be yes or no", where, "write missing: yes")
    missing = gone in ("yes", "true")
    return _category(name, told, missing, where) if "levels" in told else _number(name, told, missing, where)


def _category(name: str, told: Mapping[str, Any], missing: bool, where: str) -> Declared:
    words = told["levels"]
    if not isinstance(words, Sequence) or isinstance(words, str) or not words:
        raise InputError("ranges-value", "levels must be a list", where, "write levels: [F, M]")
    words = [str(word).strip() for word in words]
    if len({_word(word) for word in words}) < len(words):
        raise InputError("ranges-value", "a level is declared twice", where, "take one of them out")
    whole = all(word.lstrip("-").isdecimal() and word == str(int(word)) for word in words)
    levels: tuple[Hashable, ...] = tuple(int(word) for word in words) if whole else tuple(words)
    dtype = ("Int64" if missing else "int64") if whole else "str"
    column = Column(
        name,
        "category",
        dtype,
        name,
        storage="number" if whole else "text",
        observed=1,
        distinct=len(levels),
        levels=levels,
    )
    return Declared(name, column, missing=missing)


def _number(name: str, told: Mapping[str, Any], missing: bool, where: str) -> Declared:
    texts = [str(told.get(end, "")).strip() for end in ("low", "high")]
    dated = not all(cells.NUMBER.fullmatch(text) for text in texts)
    form = str(told.get("form", DATE)) if dated else ""
    try:
        low, high = (_seconds(text, form) if dated else float(text) for text in texts)
        given = {key: [_value(v, form) for v in told.get(key, ())] for key in ("values", "edges")}
        decimals = int(told.get("decimals", 0 if all("." not in text for text in texts) else -1))
    except (TypeError, ValueError) as error:
        what = "a number cannot be read"
        raise InputError("ranges-value", what, where, "write {low: 0, high: 120}") from error
    ends = np.array([low, high, *given["values"], *given["edges"]])
    if np.isnan(ends).any() or not low < high or ((ends < low) | (ends > high)).any():
        what = "low must be below high, and all values and edges between them"
        raise InputError("ranges-value", what, where, "write {low: 0, high: 120} or {low: 2020-01-01, ...}")
    places = decimals if decimals >= 0 and not dated else None
    step = DAY if dated else 0.0 if places is None else 10.0**-places
    kind: Any = "datetime" if dated else "integer" if places == 0 else "number"
    dtype = "str" if dated else ("Int64" if missing else "int64") if kind == "integer" else "float64"
    column = Column(
        name,
        kind,
        dtype,
        name,
        storage="text" if dated else "number",
        observed=1,
        low=low,
        high=high,
        decimals=places,
        step=DAY if dated else 0.0,
        form=form,
    )
    return Declared(name, column, low, high, step, tuple(given["values"]), tuple(given["edges"]), missing)


def _value(text: Any, form: str) -> float:
    return _seconds(text, form) if form else float(text)


def _seconds(cell: Any, form: str) -> float:
    """The day of a cell in seconds since 1970; NaN where it cannot be read."""
    try:
        moment = pd.to_datetime(cell.strip(), format=form) if isinstance(cell, str) else pd.Timestamp(cell)
        return math.floor(moment.tz_localize(None).timestamp() / DAY) * DAY
    except (TypeError, ValueError, AttributeError, OverflowError):
        return math.nan


def _word(cell: Any) -> str:
    """What makes two cells the same level, however a file is read: 7, 7.0, "07" and " 7" are."""
    text = str(cell).strip()
    return repr(float(text) + 0.0) if cells.NUMBER.fullmatch(text) else text

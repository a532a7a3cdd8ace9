"""More rows for a training set: drawn anew or from real rows, without near copies and the implausible.

A way of making rows is a `Maker`. `Drawn` asks a model for rows of a class; `Varied` takes real rows of it,
hides a part of their cells at random and draws these given the rest: the larger the part, the further away.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from ...shared.measures import NEARER
from ...shared.noise import key_of
from .codec import Coded, TableCodec
from .columns import Column, tokens
from .fitted import FittedTable
from .measures.learners import TARGET_WORDS
from .measures.pair import Pair, Place
from .measures.spaces import Space, nearest, nearest_others
from .reading import TableSource

FURTHER = 0.995
"""It is implausible when its fifth real neighbour is further away than that of this share of real rows."""
NEIGHBOUR = 5
ROUNDS = 4
"""How often rows that were dropped are made up for."""
ENOUGH = 6000
"""Rows, real and synthetic, that a small table is made to have unless another factor is asked for."""
CLASSES = 50
"""Levels of a column that can be balanced, at most."""


class Maker(Protocol):
    """A way of making rows."""

    def make(self, level: Hashable | None, count: int, seed: int) -> pd.DataFrame:
        """`count` rows of a level of the target (None: of any), with the columns of the real ones."""


@dataclass(frozen=True)
class Drawn:
    """Rows drawn by a model from nothing but their class.

    Args:
        fitted: a model that generates.
        target: the column of the class; None when rows of any kind are wanted.
    """

    fitted: FittedTable
    target: str | None

    def make(self, level: Hashable | None, count: int, seed: int) -> pd.DataFrame:
        condition = {} if level is None or self.target is None else {self.target: str(level).strip()}
        return self.fitted.generate(count, seed=seed, condition=condition)


@dataclass(frozen=True)
class Varied:
    """Real rows with a part of their cells drawn anew.

    Args:
        fitted: a model that fills in.
        frame: the real rows.
        labels: (n,) the level of each row's target; None when the target is no category.
        strength: share of the cells that are drawn anew, in (0, 1].
        target: a column that stays as it is.
    """

    fitted: FittedTable
    frame: pd.DataFrame
    labels: np.ndarray | None
    strength: float
    target: str | None

    def make(self, level: Hashable | None, count: int, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng([seed, 71, key_of("level", str(level)) % 2**32])
        rows = np.arange(len(self.frame))
        if level is not None and self.labels is not None:
            rows = np.flatnonzero(self.labels == level)
        chosen = np.concatenate([rng.permutation(rows) for _ in range(-(-count // max(len(rows), 1)))])[
            :count
        ]
        base = self.frame.iloc[chosen].reset_index(drop=True)
        codec = self.fitted.codec
        empty = codec.empty(base)
        modelled = np.array([column.modelled for column in _in_order(codec, base)])
        stays = np.array([str(label) == self.target for label in base.columns])
        hide = (rng.random(base.shape) < self.strength) & ~stays & modelled
        held = emptied(base, hide)
        filled = self.fitted.fill(held, np.arange(count) + (seed << 32), seed=seed, draws=1).draw(0)
        # What the row lacked it lacks still; names and free text are somebody's.
        return emptied(filled, empty | ~modelled)


def _in_order(codec: TableCodec, frame: pd.DataFrame) -> list[Column]:
    known = {column.label: column for column in codec.columns_}
    return [known[label] for label in frame.columns]


def emptied(frame: pd.DataFrame, where: np.ndarray) -> pd.DataFrame:
    """The frame with nothing in the cells of `where` (n, columns); dtypes stay where they can."""
    out = frame.copy()
    for j in np.flatnonzero(where.any(0)).tolist():
        series: Any = out.iloc[:, j]
        if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iub":
            series = series.astype("float64" if series.dtype.kind != "b" else "object")
        out.isetitem(j, series.mask(where[:, j]))
    return out


# ------------------------------------------------------------------------------------------------ how many


def wanted(counts: np.ndarray, *, balance: bool, factor: float | None = None) -> np.ndarray:
    """(k,) rows to add of each of k levels.

    Args:
        counts: (k,) rows that there are.
        balance: bring all levels to the largest; else all grow alike.
        factor: times that (twice the table, or balance alone, unless said).

    Example:
        >>> wanted(np.array([60, 40, 0]), balance=True), wanted(np.array([60, 40, 0]), balance=False)
        (array([ 0, 20,  0]), array([60, 40,  0]))
        >>> wanted(np.array([60, 40, 0]), balance=False, factor=1.5)
        array([30, 20,  0])
    """
    factor = factor if factor is not None else 1.0 if balance else 2.0
    goal = np.full(len(counts), counts.max()) if balance else counts
    added = np.rint(goal * factor).astype(np.int64) - counts
    return np.where(counts > 0, np.maximum(added, 0), 0)


def enough(counts: np.ndarray, *, balance: bool) -> float:
    """A factor that makes a small table so large that a model trained on it learns what the teacher knows,
    and only doubles a large one (balance alone: leaves its largest class as it is).

    Args:
        counts: (k,) rows that there are of each class.

    Example:
        >>> enough(np.array([300, 200]), balance=False), enough(np.array([3000, 1000]), balance=True)
        (10.0, 1.0)
    """
    once = counts.max() * (counts > 0).sum() if balance else counts.sum()
    return float(np.clip(ENOUGH / max(once, 1), 1.0 if balance else 2.0, 10.0).round(1))


# ------------------------------------------------------------------------------------------------ the sieve


@dataclass(frozen=True)
class Sieve:
    """What near copies and implausible rows are, learnt from the real rows.

    Args:
        space, real: the real rows as points.
        near: distance to the nearest real row below which a row is a near copy (at 0: when equal).
        far: distance to the fifth above which it is implausible.
        without: names of columns that are not looked at.
    """

    space: Space
    real: np.ndarray
    near: float
    far: float
    without: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: Sequence[Column], real: Coded, without: tuple[str, ...] = ()) -> Sieve:
        """Of real rows (n at least 2)."""
        space = Space.of(Pair(tuple(columns), real, real), "rank")
        points = space.points(real, without)
        apart = nearest_others(points, NEIGHBOUR)
        near, far = np.quantile(apart[:, 0], NEARER), np.quantile(apart[:, -1], FURTHER)
        return cls(space, points, float(near), float(far), without)

    def judge(self, made: Coded) -> tuple[np.ndarray, np.ndarray]:
        """(n,) which are near copies, and which are implausible."""
        if not len(made):
            return np.zeros(0, bool), np.zeros(0, bool)
        apart, _ = nearest(self.space.points(made, self.without), self.real, NEIGHBOUR)
        copies = (apart[:, 0] < self.near) | (apart[:, 0] == 0)
        return copies, (apart[:, -1] > self.far) & ~copies


@dataclass(frozen=True)
class Made:
    """Rows that were made.

    Args:
        frame: the rows that were kept.
        coded: the same as numbers and codes.
        drawn, copies, implausible: how many were made in all, and dropped as either.
        short: how many fewer than wanted, after all rounds.
        different: how many of the rows differ in more than the target.
    """

    frame: pd.DataFrame
    coded: Coded
    drawn: int
    copies: int
    implausible: int
    short: int
    different: int

    def in_classes(self, times: np.ndarray, target: Target, cells: Sequence[Any], codec: TableCodec) -> Made:
        """The same rows, each written once or more with classes of the target.

        Args:
            times: (m, k) how often each is written with each class.
            cells: (k,) how each class is written in the table.
        """
        rows = np.repeat(np.arange(len(times)), times.sum(1))
        classes = np.repeat(np.tile(np.arange(times.shape[1]), len(times)), times.ravel())
        frame, label = self.frame.iloc[rows].reset_index(drop=True), target.place.column.label
        written = pd.Series([cells[code] for code in classes.tolist()], index=frame.index)
        frame[label] = written.astype(self.frame[label].dtype)
        different = int((times.sum(1) > 0).sum())
        return replace(self, frame=frame, coded=codec.encode(frame), different=different)


def make_rows(
    maker: Maker,
    codec: TableCodec,
    sieve: Sieve,
    levels: Sequence[Hashable | None],
    counts: np.ndarray,
    seed: int,
) -> Made:
    """Make rows of each level, drop near copies and the implausible, and make up for those, a few times.

    Args:
        levels, counts: (k,) what to make of each.
    """
    frames: list[pd.DataFrame] = []
    drawn = copies = implausible = short = 0
    for at, (level, count) in enumerate(zip(levels, counts, strict=True)):
        left = int(count)
        for turn in range(ROUNDS):
            if left <= 0:
                break
            made = maker.make(level, left, seed + 1000 * turn + at)
            copied, odd = sieve.judge(codec.encode(made))
            frames.append(made[~(copied | odd)])
            drawn, copies, implausible = drawn + len(made), copies + copied.sum(), implausible + odd.sum()
            left -= len(frames[-1])
        short += left
    kept = pd.concat(frames, ignore_index=True) if frames else None
    if kept is None:
        raise InputError("nothing-to-add", "no row is to be added", "--factor", "ask for more than 1")
    return Made(kept, codec.encode(kept), int(drawn), int(copies), int(implausible), int(short), len(kept))


# --------------------------------------------------------------------------------------------- the target


@dataclass(frozen=True)
class Target:
    """What a downstream model predicts, and the classes that are filled up.

    Args:
        place: where its column stands among the codes or numbers.
        levels: the classes; (None,) when it is a number, of which rows of any kind are made.
        counts: (k,) rows of each.
    """

    place: Place
    levels: tuple[Hashable | None, ...]
    counts: np.ndarray

    @classmethod
    def of(cls, place: Place, coded: Coded) -> Target:
        """Of rows that all have it."""
        if place.is_number:
            return cls(place, (None,), np.array([len(coded)]))
        levels = tuple(place.column.levels)
        return cls(place, levels, np.bincount(coded.codes[:, place.at], minlength=len(levels))[: len(levels)])

    def cells(self, frame: pd.DataFrame, coded: Coded) -> tuple[Any, ...]:
        """(k,) how each class is written in `frame`, which is `coded`; None where no row has it."""
        codes, column = coded.codes[:, self.place.at], frame[self.place.column.label]
        first = [np.flatnonzero(codes == level) for level in range(len(self.levels))]
        return tuple(column.iloc[rows[0]] if len(rows) else None for rows in first)

    def labels(self, coded: Coded) -> np.ndarray | None:
        """(n,) the level of each row; None of a number."""
        if self.place.is_number:
            return None
        known = np.empty(len(self.levels), dtype=object)
        known[:] = self.levels
        return np.asarray(known[coded.codes[:, self.place.at]])


def place_of(codec: TableCodec, name: str | None, *, balance: bool, where: str) -> tuple[Place, str]:
    """The column to predict, and in words how it was chosen.

    Raises:
        InputError: no such column; one that cannot be balanced.
    """
    places = Pair(columns_of(codec), NO_ROWS, NO_ROWS).places
    if name is not None:
        place = next((p for p in places if p.name == name), None)
        if place is None:
            near = difflib.get_close_matches(name, [p.name for p in places], n=1)
            advice = f"did you mean {near[0]!r}?" if near else "name a column that is neither id nor text"
            raise InputError("target-unknown", f"there is no column {name!r} to predict", where, advice)
        unfit = place.is_number or place.column.cardinality > CLASSES
        if balance and unfit:
            what = "is a number" if place.is_number else f"has {place.column.cardinality} levels"
            remedy = f"name a category of at most {CLASSES} levels, or say --kinds {name}=category"
            raise InputError("not-balanceable", f"column {name!r} {what}", where, remedy)
        return place, "as asked for"
    named = [p for p in places if tokens(p.name) & TARGET_WORDS]
    if named:
        return named[-1], "guessed from its name; --target names another"
    classes = [p for p in places if not p.is_number and 2 <= p.column.cardinality <= CLASSES]
    chosen = (classes or list(places))[-1]
    return chosen, f"the last {'category' if classes else 'column'}; --target names another"


def columns_of(codec: TableCodec) -> tuple[Column, ...]:
    """The columns that take part."""
    return tuple(column for column in codec.columns_ if column.modelled)


NO_ROWS = Coded(np.empty((0, 0)), np.empty((0, 0), np.int32))


def marked_source(source: TableSource, mark: str) -> TableSource | None:
    """How a table with one more column, `mark`, is written; None where its frames say it."""
    if source.format == "parquet":
        return None
    if source.dialect is None:
        return source
    dialect = source.dialect
    header = None if dialect.header is None else (*dialect.header, mark)
    wider = replace(dialect, header=header, width=dialect.width + 1, quoted=(*dialect.quoted, False))
    return replace(source, dialect=wider, columns=(*source.columns, mark))

"""Real, synthetic and held-out tables as arrays, by one encoding that was learned from the real one alone."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ....shared.errors import EbbtideError, Fault, InputError
from ..codec import Coded, Column, TableCodec

FEWEST = 20
"""Rows that every table must have."""
OVERLAP = 0.5
"""A holdout of which more than this share are rows of the real table is no holdout."""


@dataclass(frozen=True)
class Place:
    """Where a column stands: `numbers[:, at]` or `codes[:, at]` of a `Coded`."""

    column: Column
    at: int

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def is_number(self) -> bool:
        return self.column.is_number

    def of(self, coded: Coded) -> np.ndarray:
        """(n,) float64: the column's cells, NaN where missing (or never seen in the real table)."""
        if self.is_number:
            return coded.numbers[:, self.at]
        codes = coded.codes[:, self.at].astype(np.float64)
        return np.where(codes < 0, np.nan, codes)


@dataclass(frozen=True)
class Pair:
    """What is compared. Columns that name people or hold free text take no part.

    Args:
        columns: the columns that take part, in the order of the real table.
        real: the table that the synthetic one was learned from.
        synthetic: the one to be judged.
        holdout: other people of the same kind, whom no model has seen.
        left_out: names of columns that take no part.
        unseen: by role, (n,) bool: rows that hold a category which the real table does not have (the cell
            itself counts as missing).
        warnings: what a reader must know.
    """

    columns: tuple[Column, ...]
    real: Coded
    synthetic: Coded
    holdout: Coded | None = None
    left_out: tuple[str, ...] = ()
    unseen: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[Fault, ...] = ()

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every column and where it stands."""
        return tuple(_placed(self.columns))

    @property
    def numbers(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.is_number)

    @property
    def categories(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if not place.is_number)

    def tables(self) -> dict[str, Coded]:
        """Every table by its role."""
        found = {"real": self.real, "synthetic": self.synthetic}
        return found if self.holdout is None else {**found, "holdout": self.holdout}


def _placed(columns: Collection[Column]) -> Iterator[Place]:
    numbers = categories = 0
    for column in columns:
        yield Place(column, numbers if column.is_number else categories)
        numbers, categories = numbers + column.is_number, categories + (not column.is_number)


def take(coded: Coded, rows: np.ndarray) -> Coded:
    """Some rows (indices or bool)."""
    return Coded(coded.numbers[rows], coded.codes[rows])


def stacked(*tables: Coded) -> Coded:
    """Tables one below the other."""
    return Coded(np.concatenate([t.numbers for t in tables]), np.concatenate([t.codes for t in tables]))


def some(coded: Coded, at_most: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of at most `at_most` rows, chosen at random."""
    n = len(coded)
    return np.arange(n) if n <= at_most else np.sort(rng.choice(n, at_most, replace=False))


def row_keys(coded: Coded) -> np.ndarray:
    """(n,) one key per row: equal where every cell is equal, and missing where the other is missing."""
    numbers = np.where(np.isnan(coded.numbers), np.inf, coded.numbers + 0.0)  # + 0.0: minus zero is zero
    whole = np.ascontiguousarray(np.hstack([numbers, coded.codes.astype(np.float64)]))
    return whole.view([("row", np.void, whole.shape[1] * 8)])["row"].ravel()


def encode_pair(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    holdout: pd.DataFrame | None = None,
    *,
    missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = (),
    kinds: Mapping[Hashable, str] | None = None,
    decimal: str | None = None,
) -> Pair:
    """Learn the encoding from `real`, and encode all by it.

    Args:
        real, synthetic, holdout: tables as `reading` gives them, or any frames.
        missing, kinds, decimal: of the real table; see `TableCodec`.

    Raises:
        InputError: too few rows, columns that lack, cells that cannot be read, nothing to compare, or a
            holdout that is a part of the real table.
    """
    given = {"real": real, "synthetic": synthetic} | ({} if holdout is None else {"holdout": holdout})
    for role, frame in given.items():
        if len(frame) < FEWEST:
            what = f"{len(frame)} rows are too few to compare, {FEWEST} are needed"
            raise InputError("too-few-rows", what, role.upper(), "give more rows")
    codec = TableCodec(missing, kinds=kinds, decimal=decimal).fit(real)
    columns = tuple(column for column in codec.columns_ if column.modelled)
    if not columns:
        raise InputError(
            "nothing-to-compare", "no column can be compared: all are ids, text or empty", "REAL"
        )
    coded, unseen = {}, {}
    for role, frame in list(given.items())[1:]:
        coded[role], unseen[role] = encode_as(codec, frame, role.upper())
    left_out = tuple(column.name for column in codec.columns_ if not column.modelled)
    pair = Pair(columns, codec.encode(real), coded["synthetic"], coded.get("holdout"), left_out, unseen)
    return replace(pair, warnings=tuple(warnings_of(pair)))


def encode_as(codec: TableCodec, frame: pd.DataFrame, role: str) -> tuple[Coded, np.ndarray]:
    """A table by the encoding of another, and (n,) bool: rows with a category which that does not have.

    Ids and text may lack, further columns are not looked at.

    Raises:
        InputError: a column that takes part lacks, or a cell cannot be read.
    """
    lacking = [c.name for c in codec.columns_ if c.modelled and c.label not in frame.columns]
    if lacking:
        raise InputError(
            "columns-differ",
            f"lacks {', '.join(map(repr, lacking))}, which REAL has",
            role,
            "give tables with the same columns",
        )
    whole = frame.reindex(columns=[c.label for c in codec.columns_])
    whole.index = frame.index
    try:
        coded = codec.encode(whole)
    except EbbtideError as error:
        fault = error.fault
        where = f"{role}, {fault.where}" if fault.where else role
        raise InputError(fault.code, fault.what, where, fault.remedy) from error
    category = np.array([column.is_category for column in codec.columns_], dtype=bool)
    return coded, ((coded.codes < 0) & ~codec.empty(whole)[:, category]).any(axis=1)


def warnings_of(pair: Pair) -> Iterator[Fault]:
    """Faults of a comparison that do not stop it. Raises InputError when the holdout is none."""
    for place in pair.categories:
        if not (pair.synthetic.codes[:, place.at] >= 0).any():
            yield Fault(
                "no-common-level",
                "no cell of SYNTHETIC holds a category that REAL has",
                f"column {place.name!r}",
                "look whether both are written alike",
                "warning",
            )
    if pair.holdout is None:
        return
    seen = np.isin(row_keys(pair.holdout), row_keys(pair.real)).mean()
    twice = 1 - len(np.unique(row_keys(pair.real))) / len(pair.real)
    if seen > OVERLAP and seen > 2 * twice:
        raise InputError(
            "holdout-in-real",
            f"{100 * seen:.0f} % of its rows are rows of REAL",
            "HOLDOUT",
            "give people who were held out before training",
        )
    if seen > 0.02 + 2 * twice:
        yield Fault(
            "holdout-overlaps",
            f"{100 * seen:.0f} % of its rows are rows of REAL as well: figures on privacy are too kind",
            "HOLDOUT",
            "take these rows out",
            "warning",
        )

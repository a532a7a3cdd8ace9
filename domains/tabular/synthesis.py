"""Generated rows as a table with the columns, forms and dtypes of the training table, new ids and no text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from ...shared.errors import InputError
from ...shared.noise import Keys
from .codec import Coded, TableCodec
from .columns import Column
from .generator import TRIES, TableGenerator
from .rules import Rules
from .walk import Demand

ID = "S{:09d}"
"""What a new id looks like where ids are text: row 0 gets number 1."""


@dataclass(frozen=True)
class Synthesis:
    """A wish, ready to be granted row by row.

    Args:
        codec, generator: of the model.
        demand: what every row must be like.
        unique: groups of columns in which no two rows are alike.
        seed: row i depends on (seed, i) and the wish; where rows must be unique, on the rows before it too.
    """

    codec: TableCodec
    generator: TableGenerator
    demand: Demand
    unique: tuple[tuple[str, ...], ...] = ()
    seed: int = 0

    @classmethod
    def of(
        cls,
        codec: TableCodec,
        generator: TableGenerator,
        *,
        seed: int = 0,
        condition: Mapping[str, str] | None = None,
        constraints: Sequence[str] = (),
        complete: bool = False,
    ) -> Synthesis:
        """Read a wish; see `conditions.demanded`.

        Raises:
            InputError: a wish that cannot be read or granted.
        """
        # An id is unique as it is made, so it may be named although nothing is learned of it.
        ids = {column.name for column in codec.columns_ if column.kind == "id"}
        told = Rules.parse(constraints, codec.columns_)
        demand = generator.demand(
            condition, [text for text in constraints if "unique(" not in text], complete=complete
        )
        unique = tuple(dict.fromkeys((*generator.rules.unique, *told.unique)))
        return cls(codec, generator, demand, tuple(group for group in unique if not ids & set(group)), seed)

    def rows(
        self, items: np.ndarray, attempt: int = 0, progress: Callable[[float], None] | None = None
    ) -> Coded:
        """Rows number `items` (n,); a further attempt gives others."""
        at = torch.from_numpy(np.asarray(items, np.int64))
        keys = Keys(
            self.seed, at, torch.full_like(at, attempt << 26)
        )  # the attempts of `draw` take the bits below
        return self.generator.draw(keys, self.demand, progress)

    def frame(self, coded: Coded, items: np.ndarray) -> pd.DataFrame:
        """Rows as cells; the index says their numbers."""
        n, columns = len(coded), self.codec.columns_
        index = pd.Index(items)
        like = pd.DataFrame({k: _blank(c, n) for k, c in enumerate(columns)}, index=range(n))
        like.columns = pd.Index([c.label for c in columns], tupleize_cols=False)
        where = np.zeros(like.shape, bool)
        where[:, [c.modelled for c in columns]] = True
        keys = Keys(
            self.seed, torch.from_numpy(np.asarray(items, np.int64)), torch.zeros(n, dtype=torch.int64)
        )
        uniform = keys.uniform((max(coded.codes.shape[1], 1),), "pooled").numpy()
        for at, place in self.demand.pooled.items():
            uniform[:, at] = place
        out = self.codec.decode(coded, like, where, uniform=uniform)
        for k, column in enumerate(columns):
            if column.kind == "id":
                made: Any = _ids(column, np.asarray(items), like.index)
                out.isetitem(k, made)
        out.index = index
        return out

    def seen(self) -> Unique:
        """What keeps the rows of one output apart."""
        return Unique(self)

    def table(self, count: int, progress: Callable[[float], None] | None = None) -> pd.DataFrame:
        """Rows 0 ... count - 1."""
        items = np.arange(count)
        coded = self.seen().apart(self.rows(items, progress=progress), items)
        return self.frame(coded, items)


class Unique:
    """Remembers the rows of an output, and draws those anew that repeat an earlier one."""

    def __init__(self, synthesis: Synthesis) -> None:
        self.synthesis = synthesis
        self._held: list[set[bytes]] = [set() for _ in synthesis.unique]

    def apart(self, coded: Coded, items: np.ndarray) -> Coded:
        """The rows, none like an earlier one in any of the groups.

        Raises:
            InputError: `rules-unmet`, there are not so many different rows.
        """
        if not self._held:
            return coded
        names = [column.name for column in self.synthesis.generator.parts.columns]
        groups = [[names.index(name) for name in group] for group in self.synthesis.unique]
        numbers, codes = coded.numbers.copy(), coded.codes.copy()
        left = np.arange(len(items))
        for attempt in range(1, TRIES + 1):
            whole = np.concatenate([numbers[left], codes[left].astype(np.float64)], 1)
            left = left[[not self._accept(row, groups) for row in whole]]
            if not len(left):
                return Coded(numbers, codes)
            again = self.synthesis.rows(items[left], attempt)
            numbers[left], codes[left] = again.numbers, again.codes
        raise InputError(
            "rules-unmet",
            f"{len(left)} rows are like earlier ones, {TRIES} times in a row",
            f"--constraint unique({','.join(self.synthesis.unique[0])})",
            "ask for fewer rows, or for more columns to differ in",
        )

    def _accept(self, row: np.ndarray, groups: Sequence[Sequence[int]]) -> bool:
        """Whether a row is new in all groups; then it is remembered."""
        marks = [row[at].tobytes() for at in groups]
        if any(mark in held for mark, held in zip(marks, self._held, strict=True)):
            return False
        for mark, held in zip(marks, self._held, strict=True):
            held.add(mark)
        return True


def _blank(column: Column, n: int) -> pd.Series[Any]:
    """A column of the training table's dtype in which nothing is known yet."""
    made: Any
    if column.storage == "category" and column.dtype == "category":
        levels = [*column.levels, *column.pooled]
        made = pd.Series(pd.Categorical([None] * n, categories=levels, ordered=column.kind == "ordered"))
        return made  # type: ignore[no-any-return]
    try:
        dtype = pd.api.types.pandas_dtype(column.dtype)
    except TypeError:
        return pd.Series([None] * n, dtype=object)
    if isinstance(dtype, np.dtype) and dtype.kind in "iub":
        # No cell of such a column was missing, so every one will be written.
        return pd.Series(np.zeros(n, dtype))
    return pd.Series([None] * n, dtype=dtype)


def _ids(column: Column, items: np.ndarray, index: pd.Index) -> pd.Series[Any]:
    """New ids: numbers from 1 where ids are numbers."""
    if column.storage == "number":
        return pd.Series(items + 1, index=index)
    return pd.Series([ID.format(item + 1) for item in items], index=index)


def left_empty(columns: Collection[Column]) -> list[str]:
    """Names of the columns of which nothing is generated: free text, and what was never observed."""
    return [c.name for c in columns if not c.modelled and c.kind != "id"]

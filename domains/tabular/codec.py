"""Tables to numbers and codes, and back: the border between what cells mean and what a model computes.

Only decode changes cells, and only those it is told to; every other cell of the table comes back as the
very object it was, because the column's own array is copied and written to at those places alone.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import columns, labels
from .columns import Column, Kind
from .decoding import assign, label_writer, number_writer
from .encoding import blank, encode_labels, encode_numbers
from .recognition import recognise

__all__ = ["Coded", "Column", "Kind", "TableCodec"]


@dataclass(frozen=True)
class Coded:
    """A table as arrays, a row per row.

    Args:
        numbers: (n, p) float64, NaN where missing: numbers, whole numbers, dates (seconds since 1970, UTC)
            and durations (seconds), in `TableCodec.number_names` order.
        codes: (n, q) int32, -1 where missing: booleans, categories and ordered categories, in
            `TableCodec.category_names` order.
        unseen: (column, how many cells) for categories the codec never saw; their code is -1.
    """

    numbers: np.ndarray
    codes: np.ndarray
    unseen: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)


class TableCodec:
    """Learns the columns of a table from its observed cells; encodes tables, decodes what was filled in.

    Args:
        missing: cells that stand for "missing" besides empty ones, for all columns (`("?", -999)`) or by
            column (`{"insulin": (0,)}`).
        kinds: the kind of a column where recognition is wrong; "datetime:%d/%m/%Y" gives the form of dates.
        max_levels: categories modelled in a column; rarer ones share one code.
        decimal: the decimal sign of numbers held as text, when known; else it is recognised column by column.

    Attributes:
        columns_: a `Column` for every column, in order.

    Example:
        >>> table = pd.DataFrame({"age": [31, 44, None], "sex": ["f", None, "m"]})
        >>> codec = TableCodec().fit(table)
        >>> codec.number_names, codec.category_names, codec.cardinalities
        (('age',), ('sex',), (2,))
    """

    columns_: tuple[Column, ...]

    def __init__(
        self,
        missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = (),
        *,
        kinds: Mapping[Hashable, str] | None = None,
        max_levels: int = 256,
        decimal: str | None = None,
    ) -> None:
        self.missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = missing
        self.kinds = dict(kinds or {})
        self.max_levels = max_levels
        self.decimal = decimal

    # ------------------------------------------------------------------------------------------------ fit

    def fit(self, frame: pd.DataFrame) -> Self:
        """Recognise the columns of `frame` from its observed cells.

        Raises:
            InputError: duplicate headers, infinities, text among numbers, kinds for unknown columns.
        """
        refuse_duplicates(frame)
        for label in self.kinds:
            if label not in frame.columns:
                raise InputError(
                    "unknown-column", f"kinds names a column {str(label)!r} that the table does not have"
                )
        found: list[Column] = []
        faults: list[InputError] = []
        for at, label in enumerate(frame.columns):
            try:
                found.append(
                    recognise(
                        frame.iloc[:, at],
                        label,
                        codes=self.codes_of(label),
                        kind=self.kinds.get(label),
                        max_levels=self.max_levels,
                        decimal=self.decimal,
                    )
                )
            except InputError as error:
                faults.append(error)
        if faults:
            first = faults[0].fault
            more = (
                f"; {len(faults) - 1} more columns have faults, check lists them all"
                if len(faults) > 1
                else ""
            )
            raise InputError(first.code, first.what, first.where, first.remedy + more)
        self.columns_ = tuple(found)
        return self

    def codes_of(self, label: Hashable) -> Collection[Hashable]:
        """The missing codes of one column."""
        if isinstance(self.missing, Mapping):
            return self.missing.get(label, ())
        return self.missing

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the columns of `Coded.numbers`."""
        return tuple(c.name for c in self.columns_ if c.is_number)

    @property
    def category_names(self) -> tuple[str, ...]:
        """Names of the columns of `Coded.codes`."""
        return tuple(c.name for c in self.columns_ if c.is_category)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each of the category columns has."""
        return tuple(c.cardinality for c in self.columns_ if c.is_category)

    # --------------------------------------------------------------------------------------------- encode

    def encode(self, frame: pd.DataFrame, *, first_row: int = 0) -> Coded:
        """The table as numbers and codes. Columns may stand in any order.

        Args:
            first_row: position of the first row in its file, for the row numbers of errors.

        Raises:
            InputError: columns that lack or are too many, cells that do not fit their column.
        """
        at = self._places(frame)
        numbers = [np.empty((len(frame), 0))]
        codes = [np.empty((len(frame), 0), dtype=np.int32)]
        unseen: list[tuple[str, int]] = []
        for column in self.columns_:
            if not column.modelled:
                continue
            series = frame.iloc[:, at[column.label]]
            gone = columns.missing(series, self.codes_of(column.label))
            if column.is_number:
                numbers.append(encode_numbers(series, gone, column, first_row)[:, None])
                continue
            code = encode_labels(series, gone, column)
            new = int(((code < 0) & ~gone).sum())
            unseen += [(column.name, new)] if new else []
            codes.append(code[:, None])
        return Coded(np.concatenate(numbers, axis=1), np.concatenate(codes, axis=1), tuple(unseen))

    def empty(self, frame: pd.DataFrame) -> np.ndarray:
        """(n, n_columns) bool, in the order of `frame`: cells that are missing, in columns of any kind."""
        self._places(frame)
        known = {c.label: c for c in self.columns_}
        out = np.zeros(frame.shape, dtype=bool)
        for j, label in enumerate(frame.columns):
            series = frame.iloc[:, j]
            out[:, j] = columns.missing(series, self.codes_of(label))
            if known[label].is_number and columns.storage_of(series)[0] == "text":
                out[:, j] |= blank(series)
        return out

    def where(self, frame: pd.DataFrame) -> np.ndarray:
        """(n, n_columns) bool, in the order of `frame`: missing cells that a model can fill."""
        modelled = {c.label for c in self.columns_ if c.modelled}
        fillable = self.empty(frame)
        fillable &= np.array([label in modelled for label in frame.columns], dtype=bool)
        return fillable

    def _places(self, frame: pd.DataFrame) -> dict[Hashable, int]:
        refuse_duplicates(frame)
        lacking = [c.name for c in self.columns_ if c.label not in frame.columns]
        known = {c.label for c in self.columns_}
        extra = [str(label) for label in frame.columns if label not in known]
        if lacking or extra:
            parts = [f"lacks {', '.join(map(repr, lacking))}"] if lacking else []
            parts += [f"has {', '.join(map(repr, extra))}, unknown to the model"] if extra else []
            raise InputError(
                "columns-differ", "the table " + " and ".join(parts), remedy="give the columns seen at fit"
            )
        return {label: at for at, label in enumerate(frame.columns)}

    # --------------------------------------------------------------------------------------------- decode

    def decode(
        self, filled: Coded, like: pd.DataFrame, where: np.ndarray, *, uniform: np.ndarray | None = None
    ) -> pd.DataFrame:
        """`like` with the cells of `where` replaced by what `filled` holds, in the column's own form.

        Numbers are rounded to the column's decimals and kept within its observed range. Cells of ids and
        text, and cells for which `filled` has nothing (NaN, -1), stay as they are.

        Args:
            filled: arrays for the rows of `like`.
            where: (n, n_columns) bool, columns in the order of `like`.
            uniform: (n, q) in [0, 1), which draws a level from the pool of rare ones by its frequency;
                without it the commonest of them is taken.
        """
        at = self._places(like)
        if where.shape != like.shape or where.dtype != bool:
            raise ValueError(
                f"where must be bool and shaped like the table {like.shape}, got {where.dtype} {where.shape}"
            )
        if len(filled) != len(like):
            raise ValueError(f"filled has {len(filled)} rows and the table {len(like)}")
        out = like.copy()
        p = q = 0
        for column in self.columns_:
            if not column.modelled:
                continue
            j = at[column.label]
            if column.is_number:
                values = filled.numbers[:, p]
                mask = where[:, j] & ~np.isnan(values)
                write = number_writer(column, values[mask])
                p += 1
            else:
                codes = filled.codes[:, q]
                mask = where[:, j] & (codes >= 0)
                write = label_writer(column, codes[mask], None if uniform is None else uniform[mask, q])
                q += 1
            if mask.any():
                written: Any = assign(like.iloc[:, j], mask, column, write)
                out.isetitem(j, written)
        return out

    # ----------------------------------------------------------------------------------------------- JSON

    def to_dict(self) -> dict[str, Any]:
        """Everything learned, as plain JSON."""
        by_column = isinstance(self.missing, Mapping)
        return {
            "missing": [[labels.pack(k), [labels.pack(c) for c in v]] for k, v in self.missing.items()]
            if isinstance(self.missing, Mapping)
            else [labels.pack(c) for c in self.missing],
            "missing_by_column": by_column,
            "kinds": [[labels.pack(k), v] for k, v in self.kinds.items()],
            "max_levels": self.max_levels,
            "decimal": self.decimal,
            "columns": [c.to_dict() for c in self.columns_],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The codec that `to_dict` wrote."""
        gone: Any = (
            tuple(labels.unpack(c) for c in data["missing"])
            if not data["missing_by_column"]
            else {labels.unpack(k): tuple(labels.unpack(c) for c in v) for k, v in data["missing"]}
        )
        kinds = {labels.unpack(k): v for k, v in data["kinds"]}
        codec = cls(gone, kinds=kinds, max_levels=data["max_levels"], decimal=data["decimal"])
        codec.columns_ = tuple(Column.from_dict(c) for c in data["columns"])
        return codec


def refuse_duplicates(frame: pd.DataFrame) -> None:
    """InputError when two columns have the same header."""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        names = ", ".join(repr(str(label)) for label in dict.fromkeys(twice))
        raise InputError(
            "duplicate-column", f"two columns are called {names}", "header", "rename one of them"
        )

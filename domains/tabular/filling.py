"""What filling some rows gives: completed rows by the statistic asked for, single draws, and how sure
each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from ...shared.errors import InputError
from ...shared.noise import Keys
from .. import Statistic
from .codec import Coded, Column, TableCodec
from .model import Filled, interval

LEVEL = 0.90
"""Coverage of the intervals that are reported."""


def require_statistic(statistic: str) -> None:
    """Raise InputError unless `statistic` is one of the four."""
    if statistic not in get_args(Statistic):
        names = ", ".join(get_args(Statistic))
        raise InputError("statistic", f"no statistic {statistic!r}", "statistic", f"choose one of {names}")


def half_sample_mode(draws: np.ndarray) -> np.ndarray:
    """The mode of continuous draws (Bickel & Frühwirth 2006): again and again the half that lies densest.

    Args:
        draws: (draws, ...) real numbers.

    Returns:
        (...), the mode along the first axis; where many draws are equal (the zeros of a zero-inflated
        column), exactly that number.
    """
    rest = np.sort(draws, axis=0)
    while len(rest) > 2:
        half = (len(rest) + 1) // 2
        widths = rest[half - 1 :] - rest[: len(rest) - half + 1]
        start = widths.argmin(0)
        rest = np.take_along_axis(rest, start[None] + np.arange(half).reshape(-1, *[1] * start.ndim), axis=0)
    mode: np.ndarray = rest[0] + (rest[-1] - rest[0]) / 2
    return mode


def point(filled: Filled, statistic: Statistic) -> Coded:
    """One value for each cell. Categories take the most probable level, except that a sample is a draw."""
    match statistic:
        case "mean":
            return Coded(filled.mean, filled.mode)
        case "median":
            return Coded(filled.median, filled.mode)
        case "mode":
            return Coded(half_sample_mode(filled.numbers), filled.mode)
        case "sample":
            return Coded(filled.numbers[0], filled.codes[0])


def places(frame: pd.DataFrame, columns: Sequence[Column]) -> list[int]:
    """Where the columns stand in a frame."""
    found: dict[Any, int] = {label: place for place, label in enumerate(frame.columns)}
    return [found[column.label] for column in columns]


@dataclass(frozen=True)
class Filling:
    """Rows of a table and what was drawn for their missing cells.

    Args:
        frame: (n, columns) the rows as they came.
        where: (n, columns) bool, the cells that are filled; no others change.
        codec: the encoding.
        coded: the whole rows encoded.
        rows: (k,) positions within `frame` of the rows with a cell to fill; `filled` is about these alone.
        keys: who the draws are for, one key for each of `rows`.
        filled: the model's answer for them.
    """

    frame: pd.DataFrame
    where: np.ndarray
    codec: TableCodec
    coded: Coded
    rows: np.ndarray
    keys: Keys
    filled: Filled

    @property
    def draws(self) -> int:
        return len(self.filled.numbers)

    def table(self, statistic: Statistic = "mean") -> pd.DataFrame:
        """The completed rows; observed cells are those of `frame`, bit for bit."""
        return self.draw(0) if statistic == "sample" else self._decode(point(self.filled, statistic))

    def draw(self, index: int) -> pd.DataFrame:
        """The completed rows by one draw, for multiple imputation."""
        return self._decode(Coded(self.filled.numbers[index], self.filled.codes[index]), self.uniform(index))

    def std(self) -> pd.DataFrame:
        """(n, numeric columns) standard deviation of the draws, 0 where observed, in the column's unit
        (datetimes and durations: seconds); NaN where nothing could be filled, or of a single draw."""
        shape = self.filled.mean.shape
        spread = self.filled.numbers.std(axis=0, ddof=1) if self.draws > 1 else np.full(shape, np.nan)
        return self._spread(self._columns("numbers"), spread, 0.0)

    def bounds(self, level: float = LEVEL) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(lower, upper), each (n, numeric columns) in the column's own type; observed cells are their own
        bounds."""
        at = places(self.frame, self._columns("numbers"))
        lower, upper = interval(self.filled.numbers, level)
        made = [self._decode(Coded(end, self.filled.mode)).iloc[:, at] for end in (lower, upper)]
        return made[0], made[1]

    def probability(self) -> pd.DataFrame:
        """(n, categorical columns) the model's probability of the most probable level, 1 where observed."""
        return self._spread(self._columns("codes"), self.filled.probability, 1.0)

    def _columns(self, part: str) -> list[Column]:
        wanted = "is_number" if part == "numbers" else "is_category"
        return [column for column in self.codec.columns_ if getattr(column, wanted)]

    def _spread(self, columns: Sequence[Column], inner: np.ndarray, observed: float) -> pd.DataFrame:
        """`inner` (k, columns) laid into all rows; `observed` where a cell was there, NaN where none
        could be."""
        labels = [column.label for column in columns]
        at = places(self.frame, columns)
        values = np.full((len(self.frame), len(at)), np.nan)
        values[self.rows] = inner
        blank = np.where(self.codec.empty(self.frame)[:, at], np.nan, observed)
        values = np.where(self.where[:, at], values, blank)
        return pd.DataFrame(values, index=self.frame.index, columns=pd.Index(labels, dtype=object))

    def uniform(self, draw: int) -> np.ndarray | None:
        """(n, q) which of the pooled rare levels draw `draw` takes; None when there are none."""
        columns = self._columns("codes")
        if not any(column.pooled for column in columns):
            return None
        keys = Keys(self.keys.seed, self.keys.items, torch.full_like(self.keys.items, draw))
        uniform = np.zeros((len(self.frame), len(columns)))
        uniform[self.rows] = keys.uniform((len(columns),), "pooled levels").numpy()
        return uniform

    def _decode(self, chosen: Coded, uniform: np.ndarray | None = None) -> pd.DataFrame:
        numbers, codes = self.coded.numbers.copy(), self.coded.codes.copy()
        numbers[self.rows], codes[self.rows] = chosen.numbers, chosen.codes
        return self.codec.decode(Coded(numbers, codes), self.frame, self.where, uniform=uniform)

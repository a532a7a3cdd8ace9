"""A coded table as records of levels, and back: each column becomes one part or two.

A category is its code; a number is a bin (`binning`). A moment with a time of day is two parts, the day
and the time; a number that follows another closely (a drop-off after its pick-up) is the difference to it.
What is missing is a level of its own, the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...shared.levels import LevelsShape
from .binning import Bins, Grid
from .codec import Coded
from .columns import Column

DAY = 86_400.0
PILE = 0.002
"""Share of the rows from which a number is learned by itself."""
Role = Literal["category", "number", "day", "clock", "difference"]


def grid_of(column: Column) -> float:
    """What the numbers of a column are multiples of by their form; 0 where nothing is known."""
    if column.kind in ("datetime", "duration"):
        return 0.0 if column.tz and column.step >= 60 else column.step
    return 0.0 if column.decimals is None else 10.0**-column.decimals


@dataclass(frozen=True)
class Part:
    """One level variable of a record.

    Args:
        name: of the column.
        role: what of the column it is.
        at: place of the column in `Coded.codes` (a category) or `Coded.numbers`.
        levels: how many, the missing one among them.
        gone: whether the last level means missing.
        bins: of a number.
        anchor: place in `Coded.numbers` of the number that a difference is to.
    """

    name: str
    role: Role
    at: int
    levels: int
    gone: bool
    bins: Bins | None = None
    anchor: int = -1

    @property
    def seen(self) -> int:
        """Levels that are not missing."""
        return self.levels - self.gone

    def levels_of(self, values: np.ndarray) -> np.ndarray:
        """(n,) codes or numbers of this part to (n,) int64 levels."""
        codes = values.astype(np.int64) if self.bins is None else self.bins.encode(values).astype(np.int64)
        return np.where(codes < 0, self.levels - 1, codes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, but for the bins."""
        names = ("name", "role", "at", "levels", "gone", "anchor")
        return {name: getattr(self, name) for name in names} | {"bins": self.bins is not None}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any], bins: Bins | None) -> Part:
        """What `to_dict` wrote, with its bins."""
        return cls(**{**held, "bins": bins if held["bins"] else None})


@dataclass(frozen=True)
class Parts:
    """All parts of a table, in the order in which they are generated.

    Args:
        columns: the modelled columns, numbers before categories: as in `Coded`.
        parts: of these.
        grids: of the numbers.
    """

    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    grids: tuple[Grid, ...]

    @property
    def numbers(self) -> tuple[Column, ...]:
        """The columns of `Coded.numbers`."""
        return tuple(column for column in self.columns if column.is_number)

    def column_of(self, part: Part) -> Column:
        """The column that a part is of."""
        return next(column for column in self.columns if column.name == part.name)

    @classmethod
    def fit(
        cls,
        coded: Coded,
        columns: Sequence[Column],
        anchors: Mapping[int, int],
        *,
        bins: int = 128,
        rare: int = 5,
    ) -> Parts:
        """Learn the levels.

        Args:
            columns: the modelled columns, in the order of the table.
            anchors: number -> the number that it is the difference to; both are missing in the same rows.
            bins, rare: see `Bins.fit`.
        """
        numbers = [c for c in columns if c.is_number]
        categories = [c for c in columns if c.is_category]
        made: dict[str, list[Part]] = {}
        for at, column in enumerate(categories):
            gone = bool((coded.codes[:, at] < 0).any())
            made[column.name] = [Part(column.name, "category", at, column.cardinality + gone, gone)]
        for at, column in enumerate(numbers):
            found = []
            for role in _roles(column, coded.numbers[:, at], at in anchors):
                part = Part(column.name, role, at, 0, False, anchor=anchors.get(at, -1))
                values = raw(part, coded.numbers)
                gone = bool(np.isnan(values).any())
                base = 1.0 if role == "day" else grid_of(column)
                fitted = Bins.fit(values[~np.isnan(values)], bins, rare=rare, base=base)
                found.append(replace(part, bins=fitted, levels=len(fitted) + gone, gone=gone))
            made[column.name] = found
        order = _anchors_first(
            [c.name for c in columns], {numbers[b].name: numbers[a].name for b, a in anchors.items()}
        )
        grids = []
        for at, column in enumerate(numbers):
            seen = coded.numbers[~np.isnan(coded.numbers[:, at]), at]
            grids.append(Grid.fit(seen, grid_of(column), column.decimals))
        parts = tuple(part for name in order for part in made[name])
        return cls((*numbers, *categories), parts, tuple(grids))

    def encode(self, coded: Coded) -> np.ndarray:
        """(n, P) int64 levels."""
        columns = [
            part.levels_of(coded.codes[:, part.at] if part.role == "category" else raw(part, coded.numbers))
            for part in self.parts
        ]
        return np.stack(columns, 1) if columns else np.empty((len(coded), 0), np.int64)

    def shape(self, levels: np.ndarray) -> LevelsShape:
        """What the network is told of the parts, with the shares in (n, P) training levels."""
        columns = zip(levels.T, self.parts, strict=True)
        counts = [np.bincount(column, minlength=part.levels) for column, part in columns]
        return self.shape_of(counts, len(levels), 0.1)

    def shape_of(self, counts: Sequence[np.ndarray], rows: int, beside: float) -> LevelsShape:
        """The same from the (L,) counts of each part in so many rows, and what is added to each of them.

        Categories are learned by themselves, and so are numbers that many rows share, and what is missing.
        """
        logs, own = list[float](), list[bool]()
        for part, held in zip(self.parts, counts, strict=True):
            logs += np.log((held + beside) / (held + beside).sum()).tolist()
            alone = np.ones(part.levels, bool)
            if part.bins is not None:
                alone[: part.seen] = part.bins.alone & (held[: part.seen] >= max(PILE * rows, 25))
            own += alone.tolist()
        return LevelsShape(
            tuple(part.levels for part in self.parts),
            tuple(part.bins is not None for part in self.parts),
            tuple(logs),
            tuple(own),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain JSON and tensors."""
        tensors = {
            f"bins.{place}": torch.from_numpy(np.column_stack([part.bins.knots, part.bins.steps]))
            for place, part in enumerate(self.parts)
            if part.bins is not None
        }
        told = {"parts": [part.to_dict() for part in self.parts], "grids": [asdict(g) for g in self.grids]}
        return told, tensors

    @classmethod
    def from_state(
        cls, columns: Sequence[Column], held: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Parts:
        """What `state` wrote; `columns` are the modelled ones."""
        parts = []
        for place, one in enumerate(held["parts"]):
            held_bins = tensors.get(f"bins.{place}")
            bins = None if held_bins is None else Bins(held_bins.numpy()[:, :-1], held_bins.numpy()[:, -1])
            parts.append(Part.from_dict(one, bins))
        ordered = sorted(columns, key=lambda column: not column.is_number)
        return cls(tuple(ordered), tuple(parts), tuple(Grid(**grid) for grid in held["grids"]))


def _roles(column: Column, values: np.ndarray, anchored: bool) -> tuple[Role, ...]:
    if anchored:
        return ("difference",)
    clocked = (
        column.kind == "datetime"
        and 0 <= column.step < DAY
        and np.nanmax(values) - np.nanmin(values) > 2 * DAY
    )
    return ("day", "clock") if clocked and len(np.unique(values % DAY)) > 1 else ("number",)


def raw(part: Part, numbers: np.ndarray) -> np.ndarray:
    """(n,) what a part of a number column holds; NaN where missing."""
    values = numbers[:, part.at]
    if part.role == "day":
        return np.asarray(np.floor(values / DAY))
    if part.role == "clock":
        return np.asarray(values % DAY)
    return np.asarray(values - numbers[:, part.anchor] if part.role == "difference" else values)


def _anchors_first(names: Sequence[str], anchors: Mapping[str, str]) -> list[str]:
    """The names in order, but none before its anchor."""
    order: list[str] = []

    def place(name: str) -> None:
        if name in order:
            return
        if name in anchors:
            place(anchors[name])
        order.append(name)

    for name in names:
        place(name)
    return order

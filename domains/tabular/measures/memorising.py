"""When does a model begin to learn rows by heart? The memorisation curve: what is asked of it as it learns.

By its loss: are training rows told from held-out ones (the white-box attack, `whitebox`)? By what it draws:
how many rows are near copies of training rows? The detector is that of the report (`copies`): a row is
suspicious when its nearest person is much nearer than people are in that neighbourhood, the limit being what
half a percent of held-out people fall below. These are here the rows that the training itself keeps aside.

Nothing that is asked changes what is learnt: the weights are looked at, and noise is keyed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from ....shared.noise import Keys
from ....shared.settings import TrainingSettings
from ..codec import Coded
from ..columns import Column
from .copies import LOCAL, Crowd
from .intervals import Rate, area
from .pair import Pair, row_keys, some, take
from .spaces import Space

if TYPE_CHECKING:
    from ..generator import TableGenerator

WATCHED = 500
"""Training rows, and held-out ones, whose losses are compared at most."""
MEMBERS, OTHERS = 50_000, 1_000
"""Training rows, and held-out ones, that are searched for copies at most."""
_COORDINATES = 2**24  # of all of them together: 128 MB
_LOSSES = ("members", "others", "rows", "auc", "auc_low", "auc_high")
_COPIES = (
    *("drawn", "others_searched", "members_searched", "copies", "copies_low", "copies_high"),
    *("chance", "chance_low", "chance_high"),
)


@dataclass(frozen=True)
class Neighbourhood:
    """What drawn rows are held against.

    Args:
        space: how far apart two rows are.
        crowd: training rows and held-out ones.
        limit: a row below it is suspicious.
        members: training rows that are searched.
    """

    space: Space
    crowd: Crowd
    limit: float
    members: int

    @classmethod
    def of(cls, columns: Sequence[Column], coded: Coded, held: np.ndarray, seed: int) -> Self | None:
        """Of a table's rows, some of which, `held` (n,) bool, are kept aside; None where too few differ."""
        if len(np.unique(row_keys(take(coded, held)))) <= LOCAL:
            return None
        rng = np.random.default_rng([seed, 31])
        others = take(coded, np.flatnonzero(held))
        others = take(others, some(others, OTHERS, rng))
        space = Space.of(Pair(tuple(columns), coded, others), "rank")
        width = space.points(take(others, np.arange(1))).shape[1]
        members = take(coded, np.flatnonzero(~held))
        members = take(members, some(members, min(MEMBERS, _COORDINATES // max(width, 1)), rng))
        crowd = Crowd.of(space, members, others)
        return cls(space, crowd, crowd.threshold(), len(members))

    def figures(self, drawn: Coded) -> dict[str, float]:
        """Shares of drawn rows that are suspiciously near a training row (`copies`), and of held-out rows
        that are suspiciously near anybody (`chance`), with their 95 % intervals, and of how many rows."""
        ratio, owner = self.crowd.look(self.space.points(drawn))
        near = (ratio <= self.limit) & (self.crowd.kind[owner] == 1)
        copies = Rate(int(near.sum()), len(drawn))
        held = self.crowd.held_ratio
        chance = Rate(int((held <= self.limit).sum()), len(held))
        found: dict[str, float] = {
            "drawn": len(drawn),
            "others_searched": len(held),
            "members_searched": self.members,
        }
        for name, rate in (("copies", copies), ("chance", chance)):
            found |= {name: rate.share, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return found


def is_moment(step: int, every: int, steps: int) -> bool:
    """Whether copies are looked for at a validation: at the first, second, fourth, eighth, ..., and last.

    Args:
        every: steps between validations.
        steps: of the training.

    Example:
        >>> [step for step in range(20, 301, 20) if is_moment(step, 20, 300)]
        [20, 40, 80, 160, 300]
    """
    number, rest = divmod(step, every)
    return step == steps or (rest == 0 and number > 0 and number & (number - 1) == 0)


class Memorising:
    """What a training of a table's generator is watched by: figures by step, as `shared.training.train` asks
    for them.

    Args:
        generator: that is trained.
        coded, levels: all rows, and those as levels (n, P).
        held: (n,) bool, rows that are kept aside; some.
        seed: of the choice of rows.
        training: how it is trained.
    """

    def __init__(
        self,
        generator: TableGenerator,
        coded: Coded,
        levels: np.ndarray,
        held: np.ndarray,
        seed: int,
        training: TrainingSettings,
    ) -> None:
        self.generator, self.seed, self.training = generator, seed, training
        members, others = (torch.from_numpy(chosen(levels[at], WATCHED, seed)) for at in (~held, held))
        self.members, self.others = members[: len(others)], others
        self.near = Neighbourhood.of(generator.parts.columns, coded, held, seed)

    def __call__(self, step: int) -> dict[str, float]:
        """The losses; at some steps the copies too."""
        due = is_moment(step, self.training.validate_every, self.training.steps)
        return self._losses() | (self._copies() if due else {})

    def _losses(self) -> dict[str, float]:
        denoiser = self.generator.denoiser
        known, unknown = (denoiser.whole(rows).numpy() for rows in (self.members, self.others))
        found = area(-known, -unknown)
        auc = {"auc": found.value, "auc_low": found.low, "auc_high": found.high}
        means = {"members": float(known.mean()), "others": float(unknown.mean())}
        return {**means, "rows": len(self.others), **auc}

    def _copies(self) -> dict[str, float]:
        drawn = None if self.near is None else self.generator.glimpse(self.seed)
        return {} if self.near is None or drawn is None or not len(drawn) else self.near.figures(drawn)

    def remembered(self, history: Sequence[Mapping[str, Any]], kept: int) -> list[dict[str, float]]:
        """The curve in the history of a training, and the copies of the weights that were kept at their
        step."""
        names = ("step", *_LOSSES, *_COPIES)
        curve = [{name: row[name] for name in names if name in row} for row in history if "auc" in row]
        for row in curve:
            if row["step"] == kept:
                row.update(self._copies())
        return curve


def chosen(levels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the rows, chosen by the seed."""
    order = Keys.range(seed, len(levels)).uniform((), "calibrated").argsort().numpy()
    return np.asarray(levels[np.sort(order[:most])])

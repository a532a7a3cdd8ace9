"""Examples on a grid of which a random part is hidden: what a model that fills is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import NOTHING, Condition, Encoded, like
from .embeddings import drop_randomly
from .masking import Pattern
from .noise import Keys, key_of
from .settings import Batch
from .windows import corners, inside
from .words import TokenTable

Augmentation = Callable[[Keys, Tensor], tuple[Tensor, Tensor]]
"""(keys, x (B, 2 C + K, *S): values, what of them is observed, and channels of the condition) to the changed
x and (B, A) what was done to it, 0 for nothing: the network is told, so that samples, drawn with zeros, are
not augmented (Karras et al. 2020, 2022)."""


@dataclass(frozen=True)
class GridData:
    """What a model of a grid learns from.

    Args:
        values: (n, C, *S) in model space, 0 where unknown; may be held in half precision.
        observed: bool, same shape; None where everything is.
        condition: labels, covariates, tokens and channels of the n examples.
        groups: (n,) int64, whose example it is: all of a subject's stay on one side of every split.
        table: of which the condition's tokens are rows; None where they are themselves.
    """

    values: Tensor
    observed: Tensor | None = None
    condition: Condition = NOTHING
    groups: Tensor | None = None
    table: TokenTable | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def owners(self) -> Tensor:
        return torch.arange(len(self.values)) if self.groups is None else self.groups

    def __getitem__(self, rows: Tensor) -> GridData:
        seen = None if self.observed is None else self.observed[rows]
        return GridData(self.values[rows], seen, self.condition[rows], self.owners[rows], self.table)


@dataclass(frozen=True)
class Hiding:
    """Examples of which a random part is hidden; `Examples` for a training.

    Args:
        data: the examples. fold: (n,) of the centre that never saw each; None asks the one of all.
        pattern: what is hidden, and `blank`: the share of examples of which everything is.
        drop: share of examples whose conditions are dropped.
        augmentation: changes examples by key. done: how many numbers it tells of that.
        drop_channels: share of examples whose condition's channels are blank.
        patch: edge of the random window that each example is seen through, and counts in; None is the whole
            grid. multiple: of which its corners are multiples.
    """

    data: GridData
    fold: Tensor | None
    pattern: Pattern
    blank: float
    drop: float
    augmentation: Augmentation | None
    done: int = 0
    drop_channels: float = 0.0
    patch: int | None = None
    multiple: int = 1

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        part = self.data[indices]
        x, seen, beside, done = _changed(part, self.augmentation, keys, self.done)
        stays = self.pattern(keys, tuple(x.shape[1:])) & seen
        stays &= (keys.uniform((), "blank") >= self.blank).reshape(-1, *(1,) * (x.ndim - 1))
        chance = keys.uniform((), "drop")
        if part.condition.tokens is not None:  # text may also be given alone, or left away beside a class
            chance = torch.minimum(chance[:, None], keys.uniform((3,), "drop each"))
        condition = drop_randomly(part.condition, self.drop, chance)
        if part.table is not None:
            condition = part.table.looked_up(condition)
        condition = with_done(condition, done)
        if condition.channels is not None:
            told = keys.uniform((), "drop channels") >= self.drop_channels
            condition = replace(condition, channels=torch.where(like(told, beside), beside, 0))
        fold = None if self.fold is None else self.fold[indices]
        known = Encoded(x * stays, stays)
        where, corner = seen & ~stays, None
        if self.patch is not None:
            corner = corners(keys, where, self.patch, self.multiple)
            where = where & inside(corner, x.shape[2:], self.patch, self.multiple)
        return Batch(x, replace(condition, known=known, fold=fold, window=corner), where)


def _changed(
    part: GridData, augmentation: Augmentation | None, keys: Keys, marks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, what of them is observed, what lies beside them, and (B, marks) what was done to them."""
    x = part.values.float()
    seen = torch.ones_like(x, dtype=torch.bool) if part.observed is None else part.observed
    beside = _beside(part).float()
    if augmentation is None:
        return x, seen, beside, torch.zeros(len(x), marks)
    # What is observed and what lies beside the data are moved along with it.
    together, done = augmentation(keys, torch.cat([x, seen.to(x), beside], 1))
    given = beside.flatten(1).any(1)
    x, share, beside = together.split([x.shape[1], x.shape[1], beside.shape[1]], 1)
    seen = share > 0.999
    return x * seen, seen, torch.where(like(given, beside), beside, 0), done


def with_copies(data: GridData, augmentation: Augmentation | None, seed: int) -> GridData:
    """Few examples, with copies of them that an augmentation changed: for the directions in which a set
    varies, of which few examples show too few. Up to three of each, 256 examples in all and 2^26 numbers."""
    times = min(256 // len(data), 2**26 // data.values.numel() - 1, 3)
    if augmentation is None or times < 1:
        return data
    parts = []
    for copy, change in enumerate([None, *[augmentation] * times], -1):  # first of all, they themselves
        keys = Keys(key_of(seed, "copies"), torch.arange(len(data)), torch.full((len(data),), copy))
        parts.append(_changed(data, change, keys, 0)[:2])
    values, seen = (torch.cat(one) for one in zip(*parts, strict=True))
    return GridData(values, None if bool(seen.all()) else seen, groups=data.owners.repeat(len(parts)))


def with_done(condition: Condition, done: Tensor) -> Condition:
    """The condition with what an augmentation did as further covariates."""
    if not done.shape[1]:
        return condition
    given = [] if condition.covariates is None else [condition.covariates]
    return replace(condition, covariates=torch.cat([*given, done], 1))


def marks(augmentation: Augmentation, data: GridData) -> int:
    """How many numbers an augmentation tells of what it did."""
    one = data.values[:1].float()
    together = torch.cat([one, torch.ones_like(one), _beside(data[torch.arange(1)]).float()], 1)
    return augmentation(Keys.range(0, 1), together)[1].shape[1]


def _beside(data: GridData) -> Tensor:
    """(n, K, *S) the condition's channels; none of them where there are none."""
    held = data.condition.channels
    return data.values.new_empty(len(data), 0, *data.values.shape[2:]) if held is None else held


def held_out(owners: Tensor, share: float, seed: int) -> Tensor:
    """bool (n,), all examples of a group alike; at least one group where there are ten or more."""
    names = owners.unique()
    count = round(share * len(names)) if len(names) < 10 else max(1, round(share * len(names)))
    order = torch.tensor([key_of(seed, "held out", int(name)) for name in names]).argsort()
    return torch.isin(owners, names[order[:count]])

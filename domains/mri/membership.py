"""Whom a model knows too well: an attack by somebody who has the model (the loss attack, Yeom et al. 2018).

Half of a scan is hidden, in blocks like a chequerboard, and filled by the model's conditional mean; then the
other half. A person is called a member of the training set when the model fills them in better than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...shared.data import Encoded
from ...shared.noise import Keys
from .. import Figure
from .collection import Read, Subject, read_subject
from .model import FittedScans

BLOCK, MOST = 6, 40
"""Voxels of a block along each axis; scans of a kind that are tried, at most."""


class Membership(NamedTuple):
    """How well members are told from others: area under the curve, 0.5 by chance, and its standard error when
    nothing can be told (of the Mann-Whitney statistic)."""

    area: float
    error: float

    @property
    def told(self) -> bool:
        return self.area > 0.5 + 2 * self.error

    def figure(self) -> Figure:
        meaning = (
            "Chance that the model fills in someone it was trained on better than someone held out; chance "
            f"alone gives 0.5 ± {2 * self.error:.2f}."
        )
        return Figure("membership by the model's own error", self.area, 0.5, 0.5, meaning)


def attacked(
    fitted: FittedScans, members: Sequence[Subject], others: Sequence[Subject], seed: int, read: Read
) -> Membership:
    """Try to tell the model's training subjects from others.

    Raises:
        InputError: a damaged image; a subject without a modality that the model knows.
    """
    inside, outside = (
        torch.stack([missed(fitted, subject, seed, read) for subject in subjects[:MOST]])
        for subjects in (members, others)
    )
    wins = (inside[:, None] < outside).double() + 0.5 * (inside[:, None] == outside).double()
    n, m = len(inside), len(outside)
    return Membership(float(wins.mean()), ((n + m + 1) / (12 * n * m)) ** 0.5)


def missed(fitted: FittedScans, subject: Subject, seed: int, read: Read) -> Tensor:
    """() mean squared error of what is filled of a scan, each half given the other."""
    scan = fitted.encode(subject, volumes=read_subject(subject, read), read=read)
    known = scan.known
    blocks = (torch.arange(n) // BLOCK for n in known.values.shape[2:])
    dark = (torch.stack(torch.meshgrid(*blocks, indexing="ij")).sum(0) % 2).bool()
    keys = Keys(seed, *fitted.keys(subject, 1))
    condition, wrong, count = fitted.condition([subject.covariates]), 0.0, 0
    for shown in (dark, ~dark):
        seen = known.observed & shown
        filled = fitted.model.expected(Encoded(known.values * seen, seen), keys, condition)
        asked = known.observed & ~shown
        wrong += float(((filled - known.values) ** 2)[asked].sum())
        count += int(asked.sum())
    return torch.tensor(wrong / max(count, 1), dtype=torch.float64)

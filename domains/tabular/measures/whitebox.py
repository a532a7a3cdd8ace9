"""Membership inference by somebody who has the model: whom it knows too well.

The loss attack (Yeom et al. 2018; Carlini et al. 2022, "Membership Inference Attacks From First
Principles", for the rates at few false alarms): a person is called a member when the model finds them
likelier than it finds others. And the same calibrated by how hard a row is (Watson et al. 2022, "On the
Importance of Difficulty Calibration in Membership Inference Attacks"): when it finds their cells likelier
together than they are one by one. Where a member has a value that nobody else has, the first is misled: it
is a level of its own, and rare, where a stranger's falls into a wider one. The report tells of the one that
finds more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..codec import Coded
from .membership import EVERYBODY, MEMBERS, Membership, judged

if TYPE_CHECKING:
    from ..generator import TableGenerator

CODE, NAME = "membership-loss", "the model's own loss (white box)"


def row_losses(generator: TableGenerator, coded: Coded) -> np.ndarray:
    """(n, 2) -log p of each whole row in nats (`LevelsDenoiser.whole`), and that less its cells' own."""
    levels = torch.from_numpy(generator.parts.encode(coded)).long()
    shape = generator.shape
    own = torch.tensor(shape.log_shares, dtype=torch.float64)[levels + torch.tensor(shape.offsets[:-1])]
    whole = generator.denoiser.whole(levels)
    return np.asarray(torch.stack([whole, whole + own.sum(1)], 1).numpy())


def attack_by_loss(members: np.ndarray, others: np.ndarray, seed: int, tests: int = 1) -> Membership:
    """The attack on the people of the training table and on as many held-out ones.

    Args:
        members, others: (n, K) their losses, by K attacks.
        tests: how many tests the report makes.

    Returns:
        The attack that finds most, its chance corrected for having been chosen among K.
    """
    rng = np.random.default_rng([seed, 27])
    most = min(MEMBERS, max(len(others), 1))
    chosen = members if len(members) <= most else rng.choice(members, most, replace=False)
    scores = -np.concatenate([chosen, others[:MEMBERS]])
    is_member = np.arange(len(scores)) < len(chosen)
    count = scores.shape[1]
    found = [judged(CODE, NAME, EVERYBODY, one, is_member, tests - 1 + count) for one in scores.T]
    best = max(found, key=lambda attack: attack.area.value)
    return replace(best, p=min(1.0, count * best.p))

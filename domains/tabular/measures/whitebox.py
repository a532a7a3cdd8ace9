"""Membership inference by somebody who has the model: whom it knows too well.

The loss attack (Yeom et al. 2018; Carlini et al. 2022, "Membership Inference Attacks From First
Principles", for the rates at few false alarms): a person is called a member when the model finds them
likelier than it finds others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..codec import Coded
from .membership import EVERYBODY, MEMBERS, Membership, judged

if TYPE_CHECKING:
    from ..generator import TableGenerator

CODE, NAME = "membership-loss", "the model's own loss (white box)"
ROWS = 1024
"""Rows at a time."""


@torch.no_grad()
def row_losses(generator: TableGenerator, coded: Coded) -> np.ndarray:
    """(n,) -log p of each whole row in nats, exactly: the sum over the columns, in the order in which they
    are generated, of the surprise at each given those before it."""
    network, order = generator.denoiser.network, generator.denoiser.order
    levels = torch.from_numpy(generator.parts.encode(coded)).long()
    losses = torch.zeros(len(levels), dtype=torch.float64)
    for start in range(0, len(levels), ROWS):
        part = levels[start : start + ROWS]
        hidden = torch.ones_like(part, dtype=torch.bool)
        for place in order:
            logits = network.logits(network.encode(part, hidden), place, place + 1).double()
            losses[start : start + ROWS] -= logits.log_softmax(1).gather(1, part[:, [place]])[:, 0]
            hidden[:, place] = False
    return losses.numpy()


def attack_by_loss(members: np.ndarray, others: np.ndarray, seed: int, tests: int = 1) -> Membership:
    """The attack on the people of the training table and on as many held-out ones.

    Args:
        members, others: their losses.
        tests: how many tests the report makes.
    """
    rng = np.random.default_rng([seed, 27])
    most = min(MEMBERS, max(len(others), 1))
    chosen = members if len(members) <= most else rng.choice(members, most, replace=False)
    scores = -np.concatenate([chosen, others[:MEMBERS]])
    is_member = np.arange(len(scores)) < len(chosen)
    return judged(CODE, NAME, EVERYBODY, scores, is_member, tests)

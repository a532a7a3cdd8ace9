"""What both ways of finding a `Trust` share: what is asked on held-out examples, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..data import Condition, Encoded
from ..hiding import Hiding
from ..noise import Keys, key_of
from ..settings import Batch
from .settings import GridShape

DRAWS = 8
DRAWN = 2**22  # entries drawn to calibrate by: half a minute of one core
_STUDENT = 1.86  # 90 % of |t| with 8 degrees of freedom: draws whose spread was measured on eight


def asked(examples: Hiding, form: GridShape, seed: int, most: int) -> tuple[Batch, Encoded, Keys, Condition]:
    """At most `most` held-out examples with a part hidden: what is known of them, their keys, and what else
    a model is told."""
    keys = Keys.range(key_of(seed, "calibration"), min(most, 4 * len(examples)))
    batch = examples.batch(keys.items % len(examples), keys)
    assert batch.condition.known is not None
    condition = replace(batch.condition, known=None, fold=None)
    if form.done:  # the model adds the marks of an example that was not augmented itself
        given = batch.condition.covariates[:, : form.covariates]  # type: ignore[index]
        condition = replace(condition, covariates=given if form.covariates else None)
    return batch, batch.condition.known, keys, condition


def drawn_for(keys: Keys, draws: int) -> tuple[Tensor, Keys]:
    """`draws` draws of each: (B draws,) which element each is of, and their keys."""
    rows = torch.arange(len(keys)).repeat_interleave(draws)
    return rows, Keys(keys.seed, keys.items[rows], torch.arange(draws).repeat(len(keys)))


def least_error(toward: Tensor, missed: Tensor) -> float:
    """The weight w, 0 to 1, for which w toward errs least from what was missed."""
    return float(((toward * missed).sum() / (toward**2).sum().clamp(min=1e-9)).clamp(0, 1))


def covering(missed: Tensor, scatter: Tensor, where: Tensor) -> float:
    """The factor on the scatter of draws with which 90 % intervals cover 90 % of the entries `where`."""
    far = (missed.abs() / scatter.clamp(min=1e-6))[where]
    far = far[:: len(far) // 2**22 + 1]  # quantiles are taken of 16 million numbers at most
    return float(far.quantile(0.9)) / _STUDENT

"""The checkpoints of a training: whole, verified, and one of them loadable at every instant."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .artifacts import (
    CONFIG,
    WEIGHTS,
    json_bytes,
    put_folder,
    read_folder,
    recovered,
    tensor_bytes,
)
from .errors import InputError
from .files import explained, partial_of, remove


@dataclass(frozen=True)
class Checkpoint:
    """One saved instant of a training.

    Args:
        step: how many steps were done.
        state: plain JSON (counters, history, settings).
        tensors: weights, averages, the optimiser's moments.
        damaged: steps of newer checkpoints that were passed over because they cannot be read.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder, `step-00001000` and so on, the last `keep` of them.

    Each is written as `*.partial`, read back, renamed, and only then are older ones removed: at any
    instant the last good one can be loaded.
    """

    folder: Path
    keep: int = 2

    def steps(self) -> list[int]:
        """The steps saved, rising; whether each can still be read is found on loading it."""
        if not self.folder.is_dir():
            return []
        # `.old`: a step was being saved again when the power went.
        found = (re.fullmatch(r"step-(\d{8,})(\.old)?", entry.name) for entry in self.folder.iterdir())
        return sorted({int(match[1]) for match in found if match})

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Save, verify, rename, forget the oldest. Returns the folder.

        Raises:
            EbbtideError: `disk-full`, `save-failed`, `weights-nan`; InputError: `read-only`. The
                checkpoints that were there before remain.
        """
        target = self.path(step)
        members = {
            CONFIG: json_bytes(state, str(target)),
            WEIGHTS: tensor_bytes(tensors, str(target)),
        }
        with explained(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            put_folder(target, "checkpoint", members)
            self._forget()
        return target

    def _forget(self) -> None:
        for step in self.steps()[: -self.keep]:
            doomed = partial_of(self.path(step))
            remove(doomed)
            # So that a half-removed folder never looks like a checkpoint.
            os.rename(recovered(self.path(step)), doomed)
        for left in [*self.folder.glob("step-*.partial"), *self.folder.glob("step-*.old")]:
            remove(left)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. Damaged newer ones are named in it.

        Raises:
            InputError: `model-refused`, when there are checkpoints and none can be read.
        """
        damaged: list[int] = []
        failure: InputError | OSError | None = None
        for step in reversed(self.steps()):
            try:
                state, tensors = read_folder(recovered(self.path(step)), "checkpoint", sys.maxsize)
            except (InputError, OSError) as error:
                damaged.append(step)
                failure = failure or error
            else:
                return Checkpoint(step, state, tensors, tuple(damaged))
        if failure is not None:
            raise failure
        return None

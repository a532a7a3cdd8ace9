"""What a picture may be asked to be, besides its pixels: its class and real numbers, as the core takes
them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Self

import numpy as np
import torch

from ...shared.data import Condition
from ...shared.errors import Fault, InputError
from .collection import Collection

CLASS_WORDS = ("class", "label")
UNKNOWN = frozenset(["", "unknown", "any"])
"""Values by which a condition is left open."""


@dataclass(frozen=True)
class Conditions:
    """Classes by name, covariates by name and scale.

    Args:
        class_names: the classes; empty when the model knows none.
        covariate_names: K names.
        means, stds, lows, highs: K numbers each, of the known values in training.
    """

    class_names: tuple[str, ...] = ()
    covariate_names: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()

    @classmethod
    def fit(cls, collection: Collection) -> Self:
        """Learn names and scales from training data."""
        c = collection.covariates
        if not c.shape[1]:
            return cls(collection.class_names)
        stds = np.nanstd(c, 0)
        stds = np.where(stds > 0, stds, 1.0)
        columns = (np.nanmean(c, 0), stds, np.nanmin(c, 0), np.nanmax(c, 0))
        return cls(collection.class_names, collection.covariate_names, *(tuple(v.tolist()) for v in columns))

    def encode(self, labels: np.ndarray, covariates: np.ndarray) -> Condition:
        """The condition of B pictures.

        Args:
            labels: (B,) positions in `class_names`, -1 where unknown.
            covariates: (B, K) in their own units, NaN where unknown.
        """
        reals = (
            (np.asarray(covariates, np.float64) - self.means) / self.stds if self.covariate_names else None
        )
        return Condition(
            label=torch.from_numpy(np.asarray(labels, np.int64).copy()) if self.class_names else None,
            covariates=None if reals is None else torch.from_numpy(reals).float(),
        )

    def parse(self, given: Mapping[str, str], count: int = 1) -> Condition:
        """The condition that was typed, `count` times: {"class": "dress", "age": "30"}. What is not given is
        unknown.

        Raises:
            InputError: `condition-unknown`, `condition-class`, `condition-number`.
        """
        label, reals = -1, [math.nan] * len(self.covariate_names)
        for name, value in given.items():
            if name.lower() in CLASS_WORDS and self.class_names and name not in self.covariate_names:
                label = self.label_of(value)
            elif name in self.covariate_names:
                reals[self.covariate_names.index(name)] = _number(name, value)
            else:
                raise self._unknown(name)
        return self.encode(np.full(count, label), np.tile(np.array(reals), (count, 1)))

    def label_of(self, text: str) -> int:
        """The position of a class: by its name, by its name in other letters, or by its number; -1 for
        "unknown".

        Raises:
            InputError: `condition-class`, with the nearest name or all of them.
        """
        text = text.strip()
        if text in self.class_names:
            return self.class_names.index(text)
        folded = [name.casefold() for name in self.class_names]
        if folded.count(text.casefold()) == 1:
            return folded.index(text.casefold())
        if text.isdecimal() and int(text) < len(self.class_names):
            return int(text)
        if text.casefold() in UNKNOWN:
            return -1
        close = get_close_matches(text.casefold(), folded, 1)
        near = f"did you mean {self.class_names[folded.index(close[0])]!r}? " if close else ""
        shown = ", ".join(self.class_names[:20]) + (" ..." if len(self.class_names) > 20 else "")
        raise InputError("condition-class", f"there is no class {text!r}", "", f"{near}there are: {shown}")

    def beyond(self, given: Mapping[str, str]) -> list[Fault]:
        """Warnings for numbers outside of what was seen in training."""
        faults = []
        for k, name in enumerate(self.covariate_names):
            value = _number(name, given[name]) if name in given else math.nan
            if not (math.isnan(value) or self.lows[k] <= value <= self.highs[k]):
                seen = f"{self.lows[k]:g} ... {self.highs[k]:g}"
                what = f"{name} was {seen} in training: what lies outside is a guess"
                faults.append(Fault("condition-beyond", what, "", f"choose {name} within it", "warning"))
        return faults

    def _unknown(self, name: str) -> InputError:
        there = [*(["class"] if self.class_names else []), *self.covariate_names]
        close = get_close_matches(name, there, 1)
        near = f"did you mean {close[0]!r}? " if close else ""
        remedy = f"{near}there are: {', '.join(there)}" if there else "this model takes no condition"
        return InputError("condition-unknown", f"the model knows no condition {name!r}", "", remedy)

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(**{name: tuple(state[name]) for name in cls.__dataclass_fields__})


def _number(name: str, text: str) -> float:
    if text.strip().casefold() in UNKNOWN:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise InputError("condition-number", f"{name}={text!r} is not a number", "", f"write {name}=30, say")
    return value

"""What a picture may be asked to be, besides its pixels: its class, real numbers and a caption, as the core
takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Self

import numpy as np
import torch

from ...shared.data import Condition
from ...shared.errors import Fault, InputError
from .captions import Vocabulary, split
from .collection import Collection

CLASS_WORDS = ("class", "label")
UNKNOWN = frozenset(["", "unknown", "any"])
"""Values by which a condition is left open."""


@dataclass(frozen=True)
class Conditions:
    """Classes by name, covariates by name and scale, the words of captions.

    Args:
        class_names: the classes; empty when the model knows none.
        covariate_names: K names.
        means, stds, lows, highs: K numbers each, of the known values in training.
        vocabulary: of captions; None when there were none.
    """

    class_names: tuple[str, ...] = ()
    covariate_names: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    vocabulary: Vocabulary | None = None

    @classmethod
    def fit(cls, collection: Collection) -> Self:
        """Learn names and scales from training data."""
        c = collection.covariates
        words = Vocabulary.fit(collection.captions) if collection.captions else None
        if not c.shape[1]:
            return cls(collection.class_names, vocabulary=words)
        stds = np.nanstd(c, 0)
        stds = np.where(stds > 0, stds, 1.0)
        columns = (np.nanmean(c, 0), stds, np.nanmin(c, 0), np.nanmax(c, 0))
        scales = (tuple(v.tolist()) for v in columns)
        return cls(collection.class_names, collection.covariate_names, *scales, vocabulary=words)

    @property
    def words(self) -> int:
        """How many ids of words there are; 0 without captions."""
        return len(self.vocabulary) if self.vocabulary is not None else 0

    def of(self, collection: Collection) -> Condition:
        """The condition of the pictures of a collection."""
        captions = collection.captions or (None,) * len(collection)
        return self.encode(collection.labels, collection.covariates, captions)

    def known(self, collection: Collection) -> Condition:
        """The same of other pictures, whose classes and numbers may be other ones; what the model does not
        know is left away."""
        labels = collection.labels_among(self.class_names)
        there = {name: k for k, name in enumerate(collection.covariate_names)}
        reals = np.full((len(collection), len(self.covariate_names)), np.nan)
        for k, name in enumerate(self.covariate_names):
            if name in there:
                reals[:, k] = collection.covariates[:, there[name]]
        return self.encode(labels, reals, collection.captions)

    def names_of(self, condition: Condition, count: int) -> list[str]:
        """The class of each of `count` pictures in words; "" where it is open."""
        if condition.label is None:
            return [""] * count
        return [self.class_names[k] if k >= 0 else "" for k in condition.label.tolist()]

    def encode(
        self, labels: np.ndarray, covariates: np.ndarray, captions: Sequence[str | None] = ()
    ) -> Condition:
        """The condition of B pictures.

        Args:
            labels: (B,) positions in `class_names`, -1 where unknown.
            covariates: (B, K) in their own units, NaN where unknown.
            captions: B texts, None where unknown; none for all unknown.
        """
        reals = (
            (np.asarray(covariates, np.float64) - self.means) / self.stds if self.covariate_names else None
        )
        return Condition(
            label=torch.from_numpy(np.asarray(labels, np.int64).copy()) if self.class_names else None,
            covariates=None if reals is None else torch.from_numpy(reals).float(),
            tokens=self.vocabulary.encode(captions or (None,) * len(labels)) if self.vocabulary else None,
        )

    def parse(self, given: Mapping[str, str], count: int = 1, prompt: str | None = None) -> Condition:
        """The condition that was typed, `count` times: {"class": "dress", "age": "30"}, and a prompt. What is
        not given is unknown.

        Raises:
            InputError: `condition-unknown`, `condition-class`, `condition-number`; as `prompted`.
        """
        self.prompted(prompt)
        label, reals = -1, [math.nan] * len(self.covariate_names)
        for name, value in given.items():
            if name.lower() in CLASS_WORDS and self.class_names and name not in self.covariate_names:
                label = self.label_of(value)
            elif name in self.covariate_names:
                reals[self.covariate_names.index(name)] = _number(name, value)
            else:
                raise self._unknown(name)
        return self.encode(np.full(count, label), np.tile(np.array(reals), (count, 1)), (prompt,) * count)

    def prompted(self, prompt: str | None) -> list[Fault]:
        """Warnings for words that training has not seen.

        Raises:
            InputError: `prompt-unknown`: the model was trained without captions, or knows no word of it.
        """
        if not prompt:
            return []
        if self.vocabulary is None:
            remedy = "train with a metadata.csv that has a column caption"
            raise InputError("prompt-unknown", "the model was trained without captions", "--prompt", remedy)
        unknown = self.vocabulary.unknown(prompt)
        words = ", ".join(self.vocabulary.words[:20])
        if len(unknown) == len(split(prompt)):
            raise InputError(
                "prompt-unknown", "the model knows no word of it", "--prompt", f"it knows {words}"
            )
        if not unknown:
            return []
        what = f"the model was not taught {', '.join(map(repr, unknown))}: what they do is a guess"
        return [Fault("prompt-words", what, "--prompt", f"it knows {words}", "warning")]

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
        names = [name for name in self.__dataclass_fields__ if name != "vocabulary"]
        words = None if self.vocabulary is None else self.vocabulary.state()
        return {name: list(getattr(self, name)) for name in names} | {"vocabulary": words}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        words = state.get("vocabulary")
        held = {name: tuple(value) for name, value in state.items() if name != "vocabulary"}
        return cls(**held, vocabulary=None if words is None else Vocabulary.from_state(words))


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

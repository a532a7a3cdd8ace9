"""What a picture may be asked to be, besides its pixels: its class, real numbers and a caption, as the core
takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...shared.covariates import Covariates, Fact
from ...shared.data import Condition
from ...shared.errors import Fault, InputError
from ...shared.noise import Keys
from ...shared.words import TokenTable
from .captions import Vocabulary
from .collection import Collection
from .frozen import FrozenCaptions
from .text_encoder import OPTION, Progress, TextEncoder

CLASS_WORDS = ("class", "label")
UNKNOWN = frozenset(["", "unknown", "any"])
"""Values by which a condition is left open."""
NO_FACTS = Covariates()


@dataclass(frozen=True)
class Conditions:
    """Classes by name, numbers by name and scale, the words of captions.

    Args:
        class_names: the classes; empty when the model knows none.
        facts: the numbers.
        captions: what reads them: the words of an encoder that learns with the model, or a frozen encoder;
            None when there were none.
    """

    class_names: tuple[str, ...] = ()
    facts: Covariates = NO_FACTS
    captions: Vocabulary | FrozenCaptions | None = None

    @classmethod
    def fit(cls, collection: Collection) -> Self:
        """Learn names, scales and words from training data."""
        known = np.isfinite(collection.covariates).any(0)
        names = [name for name, there in zip(collection.covariate_names, known, strict=True) if there]
        words = Vocabulary.fit(collection.captions) if collection.captions else None
        return cls(collection.class_names, Covariates.fit(_rows(collection), names), words)

    def reading_by(self, folder: Path) -> Self:
        """With the frozen text encoder looked for in a folder.

        Raises:
            InputError: `other-encoder`: the model reads no text by a frozen encoder.
        """
        if not isinstance(self.captions, FrozenCaptions):
            what = "the model was not trained with a text encoder of its own folder"
            raise InputError("other-encoder", what, OPTION, f"leave {OPTION} away")
        return replace(self, captions=self.captions.at(folder))

    @property
    def words(self) -> int:
        """How many ids of words there are; 0 where no encoder learns with the model."""
        return len(self.captions) if isinstance(self.captions, Vocabulary) else 0

    def of(self, collection: Collection) -> Condition:
        """What is known of the pictures of a collection, whose classes and numbers may be other ones: what
        the model does not know is left away."""
        captions = collection.captions or (None,) * len(collection)
        return self._encoded(collection.labels_among(self.class_names), _rows(collection), captions)

    def tabled(self, collection: Collection) -> tuple[Condition, TokenTable | None]:
        """`of` many pictures, each different caption kept once: with a table its tokens are rows of that."""
        if not isinstance(self.captions, FrozenCaptions):
            return self.of(collection), None
        rows, table = self.captions.tabled(collection.captions or (None,) * len(collection))
        return replace(replace(self, captions=None).of(collection), tokens=rows), table

    def frozen(
        self,
        collection: Collection,
        encoder: TextEncoder,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> tuple[Self, Condition, TokenTable]:
        """These conditions with captions by a frozen encoder, and `tabled` of the training's pictures.

        Raises:
            InputError: as `FrozenCaptions.fit`.
        """
        captions, rows, table = FrozenCaptions.fit(
            collection.captions, encoder, device=device, where=collection.path, progress=progress
        )
        told = replace(replace(self, captions=None).of(collection), tokens=rows)
        return replace(self, captions=captions), told, table

    def _encoded(
        self,
        labels: np.ndarray,
        rows: Sequence[Mapping[str, Fact]],
        captions: Sequence[str | None],
    ) -> Condition:
        """Of B pictures: (B,) positions in `class_names`, -1 where unknown; their numbers; their captions."""
        return Condition(
            label=torch.from_numpy(labels.astype(np.int64)) if self.class_names else None,
            covariates=self.facts.encode(rows),
            tokens=None if self.captions is None else self.captions.encode(captions),
        )

    def names_of(self, condition: Condition, count: int) -> list[str]:
        """The class of each of `count` pictures in words; "" where it is open."""
        if condition.label is None:
            return [""] * count
        return [self.class_names[k] if k >= 0 else "" for k in condition.label.tolist()]

    def parse(self, given: Mapping[str, str], keys: Keys, prompt: str | None = None) -> Condition:
        """What was typed: {"class": "dress", "age": "30..40"} and a prompt. What is not given is unknown.

        Args:
            keys: B of them: which place of a range a picture takes.

        Raises:
            InputError: `condition-class`; as `Covariates.asked`; as `prompted`.
        """
        self.prompted(prompt)
        label, asked = -1, dict[str, str]()
        for name, words in given.items():
            if self.class_names and name.lower() in CLASS_WORDS and name not in self.facts.names:
                label = -1 if words.strip() == "*" else self.label_of(words)
            elif not _open(words):
                asked[name] = words
        self._require_known(asked)
        rows = self.facts.asked(asked, keys)
        return self._encoded(np.full(len(keys), label), rows, (prompt,) * len(keys))

    def _require_known(self, asked: Mapping[str, str]) -> None:
        there = [*(["class"] if self.class_names else []), *self.facts.names]
        for name in asked.keys() - set(self.facts.names):
            close = get_close_matches(name, there, 1)
            near = f"did you mean {close[0]!r}? " if close else ""
            remedy = f"{near}there are: {', '.join(there)}" if there else "this model takes no condition"
            what = f"the model knows no condition {name!r}"
            raise InputError("condition-unknown", what, "--condition", remedy)

    def prompted(self, prompt: str | None) -> list[Fault]:
        """Warnings for what of a prompt the model cannot know.

        Raises:
            InputError: `prompt-unknown`: the model was trained without captions; as `doubts` of what reads
                them.
        """
        if not prompt:
            return []
        if self.captions is None:
            remedy = "train with a metadata.csv that has a column caption"
            raise InputError("prompt-unknown", "the model was trained without captions", "--prompt", remedy)
        return self.captions.doubts(prompt)

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
        return self.facts.unlike({name: words for name, words in given.items() if not _open(words)})

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(plain JSON, tensors)."""
        facts: dict[str, Any] = {"class_names": list(self.class_names), "facts": self.facts.state()}
        if isinstance(self.captions, FrozenCaptions):
            frozen, tensors = self.captions.state()
            return facts | {"vocabulary": None, "frozen": frozen}, tensors
        return facts | {"vocabulary": None if self.captions is None else self.captions.state()}, {}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """What `state` wrote."""
        captions: Vocabulary | FrozenCaptions | None = None
        if state.get("vocabulary") is not None:
            captions = Vocabulary.from_state(state["vocabulary"])
        elif state.get("frozen") is not None:
            captions = FrozenCaptions.from_state(state["frozen"], tensors)
        return cls(tuple(state["class_names"]), Covariates.from_state(state.get("facts", ())), captions)


def _open(words: str) -> bool:
    """Whether a wish leaves a fact unknown."""
    return words.strip().casefold() in UNKNOWN


def _rows(collection: Collection) -> list[dict[str, Fact]]:
    """The numbers of each picture by name; None where unknown."""
    return [
        {
            name: None if math.isnan(value) else value
            for name, value in zip(collection.covariate_names, row, strict=True)
        }
        for row in collection.covariates.tolist()
    ]

"""Captions as a condition: the words of a set of captions, as ids that a small encoder learns with the model
(`shared.words`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ...shared.errors import Fault, InputError
from ...shared.noise import key_of

LONGEST = 32
"""Words of a caption that are read at most."""
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a set of captions.

    Args:
        words: those with a number of their own, the most frequent first.
        buckets: numbers that all other words share by their hash.
        length: words of a caption that are read; the rest is left out.
    """

    words: tuple[str, ...]
    buckets: int = 64
    length: int = LONGEST

    @classmethod
    def fit(
        cls, captions: Sequence[str | None], *, size: int = 8192, least: int = 2, buckets: int = 64
    ) -> Self:
        """Learn the words.

        Args:
            captions: of the training pictures; None where there is none.
            size: words at most.
            least: a word that occurs in fewer captions is only hashed: a name that stands once is not kept.
            buckets: for all other words.
        """
        told = [split(caption) for caption in captions if caption]
        counts = Counter(word for words in told for word in set(words))
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        kept = tuple(word for word, count in ordered if count >= least)[:size]
        longest = max((len(words) for words in told), default=1)
        return cls(kept, buckets, max(1, min(longest, LONGEST)))

    def __len__(self) -> int:
        """How many different numbers there are."""
        return len(self.words) + self.buckets

    def encode(self, captions: Sequence[str | None]) -> Tensor:
        """Captions as `Condition.tokens` of a `WordNetwork`: (B, T, 1) float32 ids; NaN after the end,
        and throughout where there is no caption."""
        place = {word: k for k, word in enumerate(self.words)}
        ids = torch.full((len(captions), self.length, 1), torch.nan)
        for row, caption in enumerate(captions):
            for column, word in enumerate(split(caption or "")[: self.length]):
                hashed = len(self.words) + key_of("word", word) % self.buckets
                ids[row, column, 0] = place.get(word, hashed)
        return ids

    def unknown(self, caption: str) -> list[str]:
        """The words that training has not seen often enough to know."""
        known = set(self.words)
        return [word for word in split(caption) if word not in known]

    def doubts(self, prompt: str) -> list[Fault]:
        """Warnings for words that training has not seen.

        Raises:
            InputError: `prompt-unknown`: it has no word that training has seen.
        """
        unknown, remedy = self.unknown(prompt), f"it knows {', '.join(self.words[:20])}"
        if len(unknown) == len(split(prompt)):
            raise InputError("prompt-unknown", "the model knows no word of it", "--prompt", remedy)
        if not unknown:
            return []
        what = f"the model was not taught {', '.join(map(repr, unknown))}: what they do is a guess"
        return [Fault("prompt-words", what, "--prompt", remedy, "warning")]

    @property
    def described(self) -> str:
        """What `--prompt` takes, for `info`."""
        return f"of {', '.join(self.words[:20])}"

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"words": list(self.words), "buckets": self.buckets, "length": self.length}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(tuple(state["words"]), state["buckets"], state["length"])


def split(caption: str) -> list[str]:
    """Words and punctuation of a text, in small letters.

    Example:
        >>> split("A red T-shirt.")
        ['a', 'red', 't', '-', 'shirt', '.']
    """
    return _WORD.findall(caption.casefold())

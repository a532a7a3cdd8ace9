"""Captions as a condition by a frozen text encoder (`text_encoder`), which is not a part of the model: the
model knows it by the sha256 of its weights, and asks for its folder when there is a text to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...shared.errors import Fault, InputError
from ...shared.words import TokenTable
from .text_encoder import OPTION, Identity, Progress, TextEncoder, open_text_encoder

MOST = 4 * 2**30
"""Bytes of the vectors of all captions together, at most."""
_LEAST = 0.1  # of the typical spread: numbers that hardly vary in training are not blown up in use
_KEPT = 256  # texts whose vectors are remembered


@dataclass(frozen=True, eq=False)
class FrozenCaptions:
    """Texts as tokens of zero mean and unit variance over the captions of the training.

    Args:
        identity: of the encoder.
        length: tokens of a text that are read.
        mean, scale: (D,) of the tokens of the training's captions, each different caption once.
        folder: where the encoder lies now; None looks where it lay.
    """

    identity: Identity
    length: int
    mean: Tensor
    scale: Tensor
    folder: Path | None = None
    _seen: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        captions: Sequence[str | None],
        encoder: TextEncoder,
        *,
        device: torch.device | str = "cpu",
        where: str = "",
        progress: Progress | None = None,
    ) -> tuple[Self, Tensor, TokenTable]:
        """Encode each different caption once.

        Args:
            captions: of n pictures; None where there is none.
            where: the pictures, for errors.

        Returns:
            What reads captions from now on; (n, T, 1) the captions as rows of a table, NaN after the end and
            where there is none; that table.

        Raises:
            InputError: `text-memory`: there are too many different captions; as `TextEncoder.encode`.
        """
        texts = list(_told(captions))
        counts = [len(ids) for ids in encoder.tokens(texts, encoder.longest)]
        width = encoder.identity.width
        if (size := 2 * width * sum(counts)) > MOST:
            what = f"{len(texts):,} different captions make {size / 2**30:.1f} GiB of vectors, over 4"
            remedy = "use a narrower encoder, shorter captions, or fewer pictures (--rows)"
            raise InputError("text-memory", what, where, remedy)
        length = max(counts, default=1)
        made = encoder.encode(texts, length, device=device, progress=progress)
        encoder.release()
        mean, scale = _moments(made, width)
        read = cls(encoder.identity, length, mean, scale, encoder.folder)
        return read, *read._tabled(captions, dict(zip(texts, made, strict=True)))

    def tabled(self, captions: Sequence[str | None]) -> tuple[Tensor, TokenTable]:
        """Many captions as rows of a table, as `fit` gives them; each different one is encoded once."""
        texts = list(_told(captions))
        made = self.encoder.encode(texts, self.length) if texts else []
        return self._tabled(captions, dict(zip(texts, made, strict=True)))

    def _tabled(
        self, captions: Sequence[str | None], made: Mapping[str, Tensor]
    ) -> tuple[Tensor, TokenTable]:
        """(n, T, 1) rows of a table, and it, given (t, D) the vectors of every text."""
        first, end = dict[str, int](), 0
        table = torch.empty(sum(map(len, made.values())), self.identity.width, dtype=torch.float16)
        for text, vectors in made.items():
            table[end : end + len(vectors)] = self._standardised(vectors)
            first[text], end = end, end + len(vectors)
        rows = torch.full((len(captions), self.length, 1), torch.nan, dtype=torch.float64)
        for row, caption in enumerate(captions):
            if caption is not None and caption in made:
                count = len(made[caption])
                rows[row, :count, 0] = first[caption] + torch.arange(count).double()
        return rows, TokenTable(table)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder that the model was trained with.

        Raises:
            InputError: `text-encoder-missing`, `text-encoder-differs`; as `open_text_encoder`, of a folder
                that was given.
        """
        folder = self.folder or Path(self.identity.named)
        if self.folder is None and not folder.is_dir():
            what = f"the model reads text by an encoder that is not here any more ({self.identity})"
            remedy = f"give its folder: {OPTION} FOLDER"
            raise InputError("text-encoder-missing", what, str(folder), remedy)
        found = open_text_encoder(folder)
        if not found.identity.same(self.identity):
            what = f"the model was trained with another text encoder ({self.identity})"
            remedy = f"give that one: {OPTION} FOLDER; this is {found.identity}"
            raise InputError("text-encoder-differs", what, str(folder), remedy)
        return found

    def encode(self, captions: Sequence[str | None]) -> Tensor:
        """Captions as `Condition.tokens`: (B, T, D) float32; NaN after the end, and throughout where there is
        no caption. The encoder is asked where there is one.

        Raises:
            InputError: as `encoder`, and as `TextEncoder.encode`.
        """
        tokens = torch.full((len(captions), self.length, self.identity.width), torch.nan)
        new = [text for text in _told(captions) if text not in self._seen]
        if len(self._seen) + len(new) > _KEPT:
            self._seen.clear()
            new = list(_told(captions))
        if new:
            made = self.encoder.encode(new, self.length)
            self._seen.update(zip(new, map(self._standardised, made), strict=True))
        for row, caption in enumerate(captions):
            if caption is not None and caption in self._seen:
                known = self._seen[caption]
                tokens[row, : len(known)] = known.float()
        return tokens

    def _standardised(self, vectors: Tensor) -> Tensor:
        """(t, D) float16 -> (t, D) float16."""
        return ((vectors.float() - self.mean) / self.scale).half()

    def doubts(self, prompt: str) -> list[Fault]:
        """A warning where the end of a text is not read.

        Raises:
            InputError: as `encoder`.
        """
        count = len(self.encoder.tokens([prompt])[0])
        if count <= self.length:
            return []
        what = f"it has {count} tokens, and the model reads {self.length}, as in its training"
        return [Fault("prompt-long", what, "--prompt", "say it in fewer words", "warning")]

    @property
    def described(self) -> str:
        """What `--prompt` takes, for `info`."""
        return f"any words, read by {self.identity} ({self.identity.named})"

    def at(self, folder: Path) -> Self:
        """With the encoder looked for in a folder."""
        return replace(self, folder=folder, _seen={})

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(plain JSON, tensors)."""
        facts = {"encoder": asdict(self.identity), "length": self.length}
        return facts, {"space.text_mean": self.mean, "space.text_scale": self.scale}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """What `state` wrote."""
        mean, scale = tensors["space.text_mean"], tensors["space.text_scale"]
        return cls(Identity(**state["encoder"]), state["length"], mean, scale)


def _told(captions: Iterable[str | None]) -> dict[str, None]:
    """The different captions that say something, in order."""
    return dict.fromkeys(caption for caption in captions if caption and caption.strip())


def _moments(made: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """(D,) mean of the tokens of all texts, and their spread: of at least a share of what is typical, and 1
    where nothing varies."""
    zero, count = torch.zeros(width, dtype=torch.float64), max(sum(map(len, made)), 1)
    mean = sum((one.double().sum(0) for one in made), zero) / count
    spread = (sum(((one.double() - mean).square().sum(0) for one in made), zero) / count).sqrt()
    typical = float(spread.square().mean().sqrt())
    scale = spread.clamp(min=_LEAST * typical) if typical > 0 else torch.ones_like(spread)
    return mean.float(), scale.float()

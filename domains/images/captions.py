"""Text as a condition: a small encoder that learns with the model, or a frozen CLIP or T5 from a local
folder.

The small one: captions become ids of words (`Vocabulary`), which travel as `Condition.tokens` (B, T, 1); the
network is wrapped in `CaptionedNetwork`, which puts vectors in their place before the U-Net sees them, so
that the encoder's weights are trained, averaged and saved with all others. The frozen one gives vectors at
once (B, T, D), which the U-Net takes as they are. Either way a row of NaN is an unknown word, and a caption
of NaN alone is an unknown caption, so that dropping and guidance need no case of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...shared.data import NOTHING, Condition
from ...shared.errors import InputError
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
        """Captions as `Condition.tokens` of a `CaptionedNetwork`: (B, T, 1) float32 ids; NaN after the end,
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


class CaptionEncoder(nn.Module):
    """Ids of words to vectors that know of each other: embeddings, positions, transformer layers.

    Args:
        vocabulary: how many ids there are, and how long a caption is.
        width: length D of a token.
        layers: transformer layers; one or two are enough for captions.
        heads: of attention.
    """

    def __init__(self, vocabulary: Vocabulary, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.words = nn.Embedding(len(vocabulary), width)
        self.positions = nn.Parameter(0.02 * torch.randn(vocabulary.length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T, 1), NaN where there is no word -> (B, T, D), NaN there too."""
        missing = ids[..., 0].isnan()
        numbers = ids[..., 0].masked_fill(missing, 0).long()
        h = self.words(numbers) + self.positions[: ids.shape[1]]
        # A caption without a word would attend to nothing, which is NaN; its result is not used.
        ignored = missing & ~missing.all(1, keepdim=True)
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=ignored)
        return self.norm(h).masked_fill(missing[..., None], torch.nan)  # type: ignore[no-any-return]


class CaptionedNetwork(nn.Module):
    """A network that attends to tokens (a U-Net made with `token_width=encoder.width`), given ids of words.

    Args:
        network: called as `NetworkDenoiser` calls its network.
        encoder: makes its tokens.
    """

    def __init__(self, network: nn.Module, encoder: CaptionEncoder) -> None:
        super().__init__()
        self.network, self.encoder = network, encoder

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition = NOTHING) -> Tensor:
        """x (B, C, *S), noise_level (B,), `condition.tokens` (B, T, 1) ids or None -> (B, C, *S)."""
        if condition.tokens is not None:
            condition = replace(condition, tokens=self.encoder(condition.tokens))
        return self.network(x, noise_level, condition)  # type: ignore[no-any-return]


# --- frozen encoders ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrozenTextEncoder:
    """A CLIP or T5 text encoder from a local folder; never trained, never downloaded.

    Args:
        encode_batch: texts -> (B, T, D) with NaN beyond each text's end.
        width: length D of a token.
        length: T.
        digest: sha256 of its weights, so that a model can insist on the encoder it was trained with.
    """

    encode_batch: Callable[[list[str]], Tensor]
    width: int
    length: int
    digest: str

    @classmethod
    def load(cls, folder: Path | str, *, length: int = 77) -> Self:
        """Read an encoder as transformers saves it: config.json, tokenizer files, *.safetensors.

        Args:
            length: tokens of a text that are read at most.

        Raises:
            InputError: `text-extra` without transformers, `text-encoder` where the folder does not hold one.
        """
        folder = Path(folder)
        weights = sorted(folder.glob("*.safetensors"))
        if not (folder / "config.json").is_file() or not weights:
            what = "this folder holds no text encoder (config.json and *.safetensors)"
            raise InputError("text-encoder", what, str(folder), "save a CLIP or T5 there with transformers")
        model, tokenizer = _from_folder(folder)
        length = min(length, int(getattr(model.config, "max_position_embeddings", length)))

        @torch.no_grad()
        def encode_batch(texts: list[str]) -> Tensor:
            given = tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            mask = given["attention_mask"].bool()
            hidden = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])[0].float()
            # Encoders differ in scale by a factor of ten; the U-Net expects about 1.
            hidden = nn.functional.layer_norm(hidden, hidden.shape[-1:])
            tokens: Tensor = hidden.masked_fill(~mask[..., None], torch.nan)
            return tokens

        seen = hashlib.sha256()
        for file in weights:
            seen.update(file.read_bytes())
        width = int(encode_batch([""]).shape[-1])
        return cls(encode_batch, width, length, seen.hexdigest())

    def encode(self, captions: Sequence[str | None], *, batch: int = 64) -> Tensor:
        """Captions as `Condition.tokens`: (B, T, D) float32, NaN throughout where there is no caption. Equal
        captions are encoded once."""
        out = torch.full((len(captions), self.length, self.width), torch.nan)
        rows: dict[str, list[int]] = {}
        for row, caption in enumerate(captions):
            if caption:
                rows.setdefault(caption, []).append(row)
        texts = list(rows)
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            for text, tokens in zip(part, self.encode_batch(part), strict=True):
                out[rows[text]] = tokens
        return out


def _from_folder(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) by transformers, from that folder alone."""
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        remedy = "pip install 'ebbtide[text]', or train without --text-encoder"
        raise InputError("text-extra", "a text encoder needs transformers", str(folder), remedy) from error
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, **local).model_type
        classes = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
        classes |= {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
        if kind not in classes:
            raise InputError("text-encoder", f"{kind!r} is not CLIP or T5", str(folder), "choose one of them")
        # Safetensors only: other weight files are pickles.
        model = getattr(transformers, classes[kind]).from_pretrained(folder, use_safetensors=True, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise InputError("text-encoder", f"it cannot be read: {why}", str(folder), "save it again") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer

"""Sequences of words as a condition: an encoder that learns with the network, or a frozen one's vectors.

Words travel as ids in `Condition.tokens` (B, T, 1); the network is wrapped in `WordNetwork`, which puts
vectors in their place, so that the encoder's weights are trained, averaged and saved with all others. A row
of NaN is an unknown word, and a sequence of NaN alone an unknown one, so that dropping and guidance need no
case of their own.

What a frozen encoder made of many texts is kept once, in a `TokenTable`; until a batch is made the tokens are
its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .data import NOTHING, Condition

WIDTH = 128
"""Length of the vector that a word becomes."""


class WordEncoder(nn.Module):
    """Ids of words to vectors that know of each other: embeddings, positions, transformer layers.

    Args:
        words: how many ids there are.
        length: words of a sequence at most.
        width: length D of a token.
        layers: transformer layers; one or two are enough for captions.
        heads: of attention.
    """

    def __init__(self, words: int, length: int, width: int = WIDTH, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
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


class WordNetwork(nn.Module):
    """A network that attends to tokens (a U-Net made with `token_width=encoder.width`), given ids of words.

    Args:
        network: called as `NetworkDenoiser` calls its network.
        encoder: makes its tokens.
    """

    def __init__(self, network: nn.Module, encoder: WordEncoder) -> None:
        super().__init__()
        self.network, self.encoder = network, encoder

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition = NOTHING) -> Tensor:
        """x (B, C, *S), noise_level (B,), `condition.tokens` (B, T, 1) ids or None -> (B, C, *S)."""
        if condition.tokens is not None:
            condition = replace(condition, tokens=self.encoder(condition.tokens))
        return self.network(x, noise_level, condition)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Vectors of tokens that do not change.

    Args:
        vectors: (R, D) in half precision, of which there may be gigabytes.
    """

    vectors: Tensor

    def looked_up(self, condition: Condition) -> Condition:
        """The condition with its tokens, (B, T, 1) rows of this table and NaN where there is no token, as
        vectors (B, T, D) float32, NaN there too."""
        if condition.tokens is None:
            return condition
        rows = condition.tokens[..., 0]
        missing = rows.isnan()
        if not len(self.vectors):
            found = self.vectors.new_zeros(*rows.shape, self.vectors.shape[1])
        else:
            found = self.vectors[rows.masked_fill(missing, 0).long()]
        return replace(condition, tokens=found.float().masked_fill(missing[..., None], torch.nan))

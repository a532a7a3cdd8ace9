"""Classes, real numbers, sequences and noise levels as vectors, each with a learned null for "unknown"."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Condition, like


class NoiseEmbedding(nn.Module):
    r"""The noise level as a vector: sines and cosines at geometrically spaced frequencies, then two layers.

    Levels are log(sigma / alpha) / 4, which lie in about (-5, 5). Frequencies run from 1/4 to 64 radians a
    unit: the slowest tells the ends apart, the fastest resolves a change of 5 % in sigma. They are computed
    in float32 at least, because bfloat16 cannot tell neighbouring levels apart.

    Args:
        width: length of the vector.
        features: how many sines and cosines together.
    """

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.count = features // 2
        self.first, self.second = nn.Linear(2 * self.count, width), nn.Linear(width, width)

    def forward(self, level: Tensor) -> Tensor:
        """level (B,) -> (B, width)."""
        dtype = self.first.weight.dtype
        exact = torch.promote_types(dtype, torch.float32)
        # Made here and not kept as a buffer, which `network.bfloat16()` would round.
        exponents = torch.linspace(0, 1, self.count, dtype=exact, device=level.device)
        angles = level.to(exact)[:, None] * (0.25 * 256**exponents)
        waves = torch.cat([angles.sin(), angles.cos()], 1).to(dtype)
        embedded: Tensor = self.second(F.silu(self.first(waves)))
        return embedded


def _real_features(values: Tensor, missing: Tensor) -> Tensor:
    """(B, K) covariates -> (B, 6 K): v, sin v, cos v, sin 2v, cos 2v, all 0 where missing, and a flag."""
    v = values.masked_fill(missing, 0)
    known = torch.stack([v, v.sin(), v.cos(), (2 * v).sin(), (2 * v).cos()], -1)
    known = known.masked_fill(missing[..., None], 0)
    return torch.cat([known, missing[..., None].to(known)], -1).flatten(1)


class ConditionEmbedding(nn.Module):
    """Class, covariates and tokens of a `Condition` as one vector and one sequence.

    What is unknown has a learned null of its own: label -1, a NaN covariate (each column its own null), a
    token with a NaN in it. A field that the network was made for and that is absent counts as unknown.

    Args:
        width: length of the vector.
        classes: how many labels there are, 0 for none.
        covariates: how many real covariates (best of about unit scale), 0 for none.
        token_width: length D of a token, 0 for none.
    """

    def __init__(self, width: int, classes: int = 0, covariates: int = 0, token_width: int = 0) -> None:
        super().__init__()
        self.width, self.classes, self.covariates, self.token_width = width, classes, covariates, token_width
        if classes:
            self.labels = nn.Embedding(classes + 1, width)  # row 0 is the null
        if covariates:
            self.reals = nn.Sequential(nn.Linear(6 * covariates, width), nn.SiLU(), nn.Linear(width, width))
        if token_width:
            self.null_token = nn.Parameter(torch.randn(token_width) / math.sqrt(token_width))
            self.pooled = nn.Linear(token_width, width)

    def forward(self, condition: Condition, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed the condition of a batch.

        Args:
            condition: of B elements.
            like: (B, ...), whose batch size, dtype and device the result has.

        Returns:
            The vector (B, width), and the tokens (B, T, D) with nulls in place, None without tokens.

        Raises:
            ValueError: when the condition holds what the network was not made for, or another number of
                covariates; to ignore it in silence would answer a question that was not asked.
        """
        self._check(condition)
        batch, vector = len(like), like.new_zeros(len(like), self.width)
        if self.classes:
            label = condition.label
            unknown = torch.full((batch,), -1, dtype=torch.int64, device=like.device)
            vector = vector + self.labels((unknown if label is None else label) + 1)
        if self.covariates:
            values = condition.covariates
            values = like.new_full((batch, self.covariates), torch.nan) if values is None else values.to(like)
            vector = vector + self.reals(_real_features(values, values.isnan()))
        if not self.token_width:
            return vector, None
        tokens = condition.tokens
        tokens = like.new_full((batch, 1, self.token_width), torch.nan) if tokens is None else tokens.to(like)
        unknown = tokens.isnan().any(-1, keepdim=True)
        # Twice masked: torch.where alone would let NaN through to the gradient of the null.
        tokens = torch.where(unknown, self.null_token.to(like), tokens.masked_fill(unknown, 0))
        return vector + self.pooled(tokens.mean(1)), tokens

    def _check(self, condition: Condition) -> None:
        held = {
            "classes": condition.label,
            "covariates": condition.covariates,
            "token_width": condition.tokens,
        }
        for name, value in held.items():
            if value is not None and not getattr(self, name):
                raise ValueError(f"the condition holds what the network was not made for: {name}=0")
        if condition.covariates is not None and condition.covariates.shape[1] != self.covariates:
            raise ValueError(f"{condition.covariates.shape[1]} covariates for a network of {self.covariates}")


def drop_randomly(condition: Condition, probability: float, uniform: Tensor) -> Condition:
    """Make conditions unknown at random, so that one network learns to work with and without them.

    Args:
        condition: of B elements.
        probability: of dropping.
        uniform: (B,) random numbers in (0, 1): where below `probability`, label, covariates and tokens are
            dropped together; or (B, 3): each of the three by its own number (for guidance by several
            conditions with a scale each).

    Returns:
        The condition with the chosen elements as `Condition.drop` leaves them.
    """
    dropped, chosen = condition.drop(), (uniform < probability).reshape(len(uniform), -1).expand(-1, 3)

    def mixed(index: int, kept: Tensor | None, null: Tensor | None) -> Tensor | None:
        if kept is None or null is None:
            return None
        return torch.where(like(chosen[:, index].to(kept.device), kept), null, kept)

    return replace(
        condition,
        label=mixed(0, condition.label, dropped.label),
        covariates=mixed(1, condition.covariates, dropped.covariates),
        tokens=mixed(2, condition.tokens, dropped.tokens),
    )

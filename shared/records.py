r"""The network over records (rows of a table): a wide encoder run once a record, a light head run every step.

A record is (B, C): no spatial axes. What is known of it (values, mask, the centre's guesses and their
spread) comes as `condition.channels` (B, K). The encoder turns that into one vector; the head, which is all
that a sampling step pays for, denoises given the vector. So 20 draws of 10 steps cost 200 small heads and
one encoder, not 200 networks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .data import Condition, Encoded, like
from .denoisers import NetworkDenoiser, Preconditioned
from .embeddings import NoiseEmbedding
from .schedules import Schedule


class Dropout(nn.Module):
    """`nn.Dropout`, with the chance rounded to 1/256: a random byte decides an entry, and the generator makes
    eight of them at once, where it is asked for every entry there. In a network this small that is seen.

    Args:
        chance: that an entry is dropped.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.dropped = round(256 * chance)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropped):
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].reshape(x.shape) >= self.dropped
        return x * (kept.to(x.dtype) * (256 / (256 - self.dropped)))


class ResidualLayer(nn.Module):
    """x + W_2 silu(W_1 norm(x)); the last weights start at zero, so that a new layer is the identity."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), Dropout(dropout), last
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class RecordsNetwork(nn.Module):
    """Encoder, mean and head.

    Args:
        features: K, length of `condition.channels`.
        columns: C, length of a record in model space.
        means: how many expectations `mean` gives.
        width, depth: of the encoder.
        head_width, head_depth: of the denoising head.
        dropout: in the encoder's layers.
    """

    def __init__(
        self,
        features: int,
        columns: int,
        means: int,
        *,
        width: int = 128,
        depth: int = 2,
        head_width: int = 96,
        head_depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width = width
        self.encoder = nn.Sequential(
            nn.Linear(features, width),
            *(ResidualLayer(width, dropout) for _ in range(depth)),
            nn.LayerNorm(width),
        )
        self.mean = nn.Linear(width, means)
        self.context = nn.Linear(width, head_width)
        self.noisy = nn.Linear(columns, head_width)
        self.level = NoiseEmbedding(head_width, 32)
        self.head = nn.Sequential(
            *(ResidualLayer(head_width) for _ in range(head_depth)), nn.LayerNorm(head_width)
        )
        self.out = nn.Linear(head_width, columns)
        for last in (self.mean, self.out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def encode(self, condition: Condition) -> Condition:
        """Run the encoder: `channels` (B, K) -> `tokens` (B, 1, width + head_width), which later calls use
        instead: the record as a vector, and as the head takes it."""
        assert condition.channels is not None
        record = self.encoder(condition.channels)
        return replace(condition, channels=None, tokens=torch.cat([record, self.context(record)], 1)[:, None])

    def expectation(self, condition: Condition) -> Tensor:
        """(B, means): what the encoder alone expects; zero before training. `condition` is encoded."""
        assert condition.tokens is not None
        out: Tensor = self.mean(condition.tokens[:, 0, : self.width])
        return out

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """x (B, C), level (B,) -> (B, C)."""
        if condition.tokens is None:
            condition = self.encode(condition)
        assert condition.tokens is not None
        # A sampler has the whole batch at one level, whose embedding is then computed once.
        together = not self.training and bool((level == level[0]).all())
        return self.denoise(x, level[:1] if together else level, condition.tokens[:, 0, self.width :])

    def denoise(self, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """The head: x (B, C), level (B,) or (1,), context (B, head_width) -> (B, C)."""
        out: Tensor = self.out(self.head(self.noisy(x) + self.level(level) + context))
        return out


class RecordsDenoiser(NetworkDenoiser):
    """Denoises a record's residual around a centre, and refines the centre.

    A training record is x_0 = (residual, more): C residuals around the centre that the denoiser diffuses,
    followed by further quantities whose expectation alone is wanted. The encoder learns the expectation of
    all of them, E[x_0 | known] (least squares), and the head the law of what is left of the residuals around
    it: residual = expectation + e, with e diffused. What is known has a residual of 0.

    Args:
        columns: C.
        typical: how many entries of a record count in the loss on average, so that losses are of order 1
            and every hidden entry weighs the same, whichever record it is in.
    """

    network: RecordsNetwork

    def __init__(self, network: RecordsNetwork, schedule: Schedule, columns: int, typical: float) -> None:
        super().__init__(network, schedule)
        self.columns, self.typical = columns, max(typical, 1.0)

    def precondition(self, x_t: Tensor, t: Tensor, condition: Condition) -> Preconditioned:
        parts = super().precondition(x_t, t, replace(condition, known=None))
        return replace(parts, x=_hidden(parts.x, condition.known), condition=condition)

    def finish(self, parts: Preconditioned, known: Encoded | None) -> Tensor:
        return _hidden(super().finish(parts, None), known)

    def loss(
        self,
        x_0: Tensor,
        noise: Tensor,
        t: Tensor,
        condition: Condition,
        where: Tensor,
        weighting: object = None,
    ) -> Tensor:
        """(B,): the squared error of the expectation plus the denoising error around it.

        Args:
            x_0, noise, where: (B, C + more); the noise of the further quantities is not used.
        """
        assert condition.channels is not None
        record = self.network.encoder(condition.channels)
        expected, counts = self.network.mean(record), where.to(x_0.dtype)
        mean_loss = ((expected - x_0).square() * counts).sum(1)
        # The expectation is learned by its own loss alone; the head follows it as it improves.
        rest = (x_0 - expected.detach())[:, : self.columns]
        alpha, sigma = (like(c, rest).to(rest.dtype) for c in self.schedule(t.double()))
        parts = self.precondition(alpha * rest + sigma * noise[:, : self.columns], t, condition)
        output = self.network.denoise(parts.x, parts.level, self.network.context(record))
        error = (parts.base + parts.out * output - rest) / parts.unit
        level_loss = (error.square() * counts[:, : self.columns]).sum(1)
        total: Tensor = (mean_loss + level_loss) / self.typical
        return total.float()


def _hidden(x: Tensor, known: Encoded | None) -> Tensor:
    """x, and 0 where known. A product takes a third of the time that choosing by the mask does."""
    return x if known is None else x * ~known.observed

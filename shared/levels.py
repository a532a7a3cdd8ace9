r"""Absorbing-state diffusion over records of levels: tables whose every column is one of a few levels.

A record is (B, C) codes; noise hides cells one by one (Austin et al. 2021, D3PM, absorbing; Sahoo et al.
2024, MDLM). The network predicts the law of every hidden cell from the cells that are still seen. Its loss
is the diffusion's bound on the likelihood, which for absorbing noise is that of an autoregression in
random order (Hoogeboom et al. 2022, "Autoregressive diffusion models"); so the reverse process may unmask
the columns one at a time, in any order, and any columns may be given instead of drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data import Condition
from .denoisers import NetworkDenoiser
from .records import ResidualLayer
from .schedules import Cosine

WAVES, STEEP = 16, 0.5
"""Smooth functions of the rank that levels of an ordered column share; how much fast ones are held down."""


@dataclass(frozen=True)
class LevelsShape:
    """What the columns of a record are.

    Args:
        levels: how many levels each of the C columns has.
        ordered: whether neighbouring levels are alike.
        log_shares: of the levels, a column after another, (sum L): where the network starts from.
        own: (sum L) whether a level is learned by itself. Other levels of ordered columns are known by their
            rank alone, so that a law is the training shares times a smooth function: what few rows can teach.
    """

    levels: tuple[int, ...]
    ordered: tuple[bool, ...]
    log_shares: tuple[float, ...]
    own: tuple[bool, ...]

    @property
    def offsets(self) -> list[int]:
        """(C + 1) where the levels of each column begin among all of them."""
        at = [0]
        for count in self.levels:
            at.append(at[-1] + count)
        return at

    def waves(self) -> Tensor:
        """(sum L, K) cosines of the rank, a block for each ordered column."""
        blocks = [
            min(count, WAVES) if is_ordered else 0
            for count, is_ordered in zip(self.levels, self.ordered, strict=True)
        ]
        made, row, place = torch.zeros(sum(self.levels), max(sum(blocks), 1)), 0, 0
        for count, waves in zip(self.levels, blocks, strict=True):
            rank = (torch.arange(count) + 0.5) / count
            for wave in range(waves):
                made[row : row + count, place + wave] = (math.pi * (wave + 1) * rank).cos() / (
                    wave + 1
                ) ** STEEP
            row, place = row + count, place + waves
        return made


class LevelsNetwork(nn.Module):
    """Codes of which some are hidden, to the logits of every level of every column.

    A level is a vector of its own (where `shape.own`) plus, in ordered columns, smooth functions of its rank;
    so seldom levels learn from their neighbours. The same holds for what a level is predicted by.

    Args:
        shape: of the records.
        width, depth, dropout: of the residual layers between.
    """

    offsets: Tensor
    waves: Tensor
    own_at: Tensor

    def __init__(self, shape: LevelsShape, *, width: int = 512, depth: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape = shape
        columns = len(shape.levels)
        self.register_buffer("offsets", torch.tensor(shape.offsets[:-1]), persistent=False)
        self.register_buffer("waves", shape.waves(), persistent=False)
        waves, scale = self.waves.shape[1], 1 / math.sqrt(max(columns, 1))
        self.register_buffer(
            "own_at", torch.tensor(shape.own, dtype=torch.bool).nonzero()[:, 0], persistent=False
        )
        self.own = nn.Parameter(torch.randn(len(self.own_at), width) * scale)
        self.smooth = nn.Parameter(torch.randn(waves, width) * scale / 2)
        self.hidden = nn.Parameter(torch.randn(columns, width) * scale)
        self.trunk = nn.Sequential(
            *(ResidualLayer(width, dropout) for _ in range(depth)),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.out = nn.Parameter(torch.zeros(len(self.own_at), width))
        self.out_smooth = nn.Parameter(torch.zeros(waves, width))
        self.bias = nn.Parameter(torch.tensor(shape.log_shares))

    def encode(self, codes: Tensor, hidden: Tensor) -> Tensor:
        """codes (B, C) int64, hidden (B, C) bool -> (B, width); codes of hidden cells are not looked at."""
        table = torch.cat([self._vectors(self.own, self.smooth), self.hidden])
        masks = torch.arange(len(self.offsets), device=codes.device) + sum(self.shape.levels)
        places = torch.where(hidden, masks, codes + self.offsets)
        record = nn.functional.embedding_bag(places, table, mode="sum")
        out: Tensor = self.trunk(record)
        return out

    def logits(self, record: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """(B, width) -> the logits of columns first ... last - 1, (B, sum of their L)."""
        at = self.shape.offsets
        part = slice(at[first], at[len(self.shape.levels) if last is None else last])
        return nn.functional.linear(record, self._vectors(self.out, self.out_smooth)[part], self.bias[part])

    def _vectors(self, own: Tensor, smooth: Tensor) -> Tensor:
        """(sum L, width) of every level."""
        return (self.waves @ smooth).float().index_add(0, self.own_at, own)

    def forward(self, codes: Tensor, hidden: Tensor) -> Tensor:
        return self.logits(self.encode(codes, hidden))


class LevelsDenoiser(NetworkDenoiser):
    """Learns the law of hidden cells from the others.

    Half of the records hide a random subset, the other half all columns from a place of `order` on: the ways
    that records are generated in, with and without a condition.

    Args:
        network: over levels.
        order: the columns as they are unmasked.
        straight: share of the records that follow `order`.
    """

    network: LevelsNetwork
    rank: Tensor

    def __init__(self, network: LevelsNetwork, order: Sequence[int], straight: float = 0.5) -> None:
        super().__init__(network, Cosine())
        self.order, self.straight = tuple(order), straight
        self.register_buffer("rank", torch.tensor(self.order).argsort(), persistent=False)

    def hide(self, noise: Tensor, t: Tensor) -> Tensor:
        """(B, C) bool: the cells that are hidden at time t: at least one, all of them at 1.

        Args:
            noise: (B, C) standard normal: its ranks say which cells go first, its mean (which does not
                depend on them) whether this record follows the order instead.
        """
        columns = noise.shape[1]
        random = noise.argsort(1).argsort(1)
        straight = torch.special.ndtr(noise.mean(1).double() * math.sqrt(columns)) < self.straight
        rank = torch.where(straight[:, None], self.rank, random)
        return rank >= (columns * (1 - t)).floor().clamp(0, columns - 1)[:, None]

    def loss(
        self,
        x_0: Tensor,
        noise: Tensor,
        t: Tensor,
        condition: Condition,
        where: Tensor,
        weighting: object = None,
    ) -> Tensor:
        """(B,): the negative log-likelihood of the hidden cells, in nats per cell.

        Args:
            x_0: (B, C) codes as floats.
            noise, t: see `hide`.
        """
        codes, hidden = x_0.long(), self.hide(noise, t)
        surprise = self.surprise(self.network(codes, hidden), codes)
        return (surprise * hidden).sum(1) / hidden.sum(1)

    @torch.no_grad()
    def whole(self, codes: Tensor, size: int = 1024) -> Tensor:
        """(n,) float64 -log p of whole records in nats, exactly: the sum over the columns in `order` of the
        surprise at each, given those before it.

        Args:
            codes: (n, C) int64.
            size: records at a time.
        """
        losses = torch.zeros(len(codes), dtype=torch.float64)
        for start, part in zip(
            range(0, len(codes), size), codes.to(self.rank.device).split(size), strict=True
        ):
            hidden = torch.ones_like(part, dtype=torch.bool)
            for place in self.order:
                logits = self.network.logits(self.network.encode(part, hidden), place, place + 1).double()
                told = logits.log_softmax(1).gather(1, part[:, [place]])[:, 0]
                losses[start : start + size] -= told.cpu()
                hidden[:, place] = False
        return losses

    @torch.no_grad()
    def calibrate(self, codes: Tensor, rounds: int = 2) -> None:
        """Shift the logits so that, on average over records whose columns are seen in `order` up to each
        one, its levels are as frequent as predicted. (Dropout and averaged weights leave them a little off.)

        Args:
            codes: (n, C) training records.
        """
        self.eval()
        hidden = torch.ones(codes.shape, dtype=torch.bool)
        at = self.network.shape.offsets
        for column in self.order:
            first, last = at[column], at[column + 1]
            record = torch.cat([self.network.encode(*part) for part in _cut(codes, hidden)])
            real = torch.bincount(codes[:, column], minlength=last - first).double()
            for _ in range(rounds):
                logits = self.network.logits(record, column, column + 1)
                predicted = logits.double().softmax(1).sum(0)
                # A level with few records moves little: half a record on either side.
                shift = ((real + 0.5) / (predicted + 0.5)).log()
                self.network.bias[first:last] += shift.to(self.network.bias.dtype)
            hidden[:, column] = False

    def surprise(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, C) -log p of each cell's code."""
        at = self.network.shape.offsets
        parts = [
            nn.functional.cross_entropy(logits[:, first:last].float(), codes[:, column], reduction="none")
            for column, (first, last) in enumerate(itertools.pairwise(at))
        ]
        return torch.stack(parts, 1)


def _cut(codes: Tensor, hidden: Tensor, size: int = 1024) -> list[tuple[Tensor, Tensor]]:
    """Both in pieces that fit the cache."""
    return list(zip(codes.split(size), hidden.split(size), strict=True))

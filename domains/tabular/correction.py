"""The network beside the trees: what it is shown of a guess, how it corrects it, what it draws around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...shared.data import Condition, Encoded
from ...shared.noise import Keys
from ...shared.records import RecordsDenoiser, RecordsNetwork
from ...shared.samplers import DPMSolver2M
from ...shared.schedules import Cosine
from ...shared.training import Batch
from .chain import Guess, Table
from .space import TableSpace

_DRAWS = 4  # draws are made so many at once, always: the same arithmetic for the same draw
_CLIP = 8.0  # residuals further out than this are not learned from at full length


class HiddenCells:
    """Training records: rows with cells hidden and guessed. Implements `shared.training.Examples`."""

    def __init__(self, features: Tensor, residual: Tensor, counts: Tensor, hidden: Tensor) -> None:
        self.features, self.residual, self.counts, self.hidden = features, residual, counts, hidden

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        features, residual, counts, hidden = (part.index_select(0, indices) for part in self._parts)
        known = Encoded(torch.zeros(hidden.shape), ~hidden)
        return Batch(residual, Condition(channels=features, known=known), counts)

    def __getitem__(self, rows: Tensor | slice) -> HiddenCells:
        return HiddenCells(*(whole[rows] for whole in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.features, self.residual, self.counts, self.hidden

    @classmethod
    def stacked(cls, pieces: Iterable[HiddenCells], count: int) -> HiddenCells:
        """`count` pieces of one length one below the other. Each is copied as it comes, as they are large:
        there is never more in memory than all of them once, and one of them again."""
        whole: tuple[Tensor, ...] = ()
        for at, piece in enumerate(pieces):
            n = len(piece)
            whole = whole or tuple(part.new_empty(count * n, part.shape[1]) for part in piece._parts)
            for room, part in zip(whole, piece._parts, strict=True):
                room[at * n : (at + 1) * n] = part
        return cls(*whole)


@dataclass(frozen=True)
class Told:
    """A guess, and what the network makes of it.

    Args:
        guess: by one chain.
        added: (n, C + p) what the network would add to it: Gaussian scale, shares, standard scale.
        scale: (n, C) of the residuals around it; 0 where known.
        condition: the guess as the denoising head takes it.
    """

    guess: Guess
    added: np.ndarray
    scale: np.ndarray
    condition: Condition

    def __getitem__(self, rows: np.ndarray) -> Told:
        condition, at = self.condition, torch.from_numpy(rows)
        assert condition.tokens is not None and condition.known is not None
        observed = condition.known.observed[at]
        part = Condition(tokens=condition.tokens[at], known=Encoded(torch.zeros(observed.shape), observed))
        return Told(self.guess[rows], self.added[rows], self.scale[rows], part)


class Correction:
    """A denoiser of residuals around guesses, in a table's model space.

    Args:
        space: the scales.
        denoiser: of records of C = p + sum K residuals, and p further expectations on the standard scale.
        steps: denoising steps of a draw.
    """

    def __init__(self, space: TableSpace, denoiser: RecordsDenoiser, steps: int) -> None:
        self.space, self.denoiser, self.steps = space, denoiser, steps

    @classmethod
    def new(cls, space: TableSpace, typical: float, steps: int, **network: Any) -> Correction:
        """With a network that has learned nothing: it corrects nothing, and draws Gaussian residuals.

        Args:
            typical: how many cells of a record count in the loss on average.
            network: widths, depths and dropout of `RecordsNetwork`.
        """
        p, q, levels = len(space.means_), len(space.cardinalities), space.offsets[-1]
        # A table of which nothing is known has no columns to model, and its network is never asked.
        sizes = (max(size, 1) for size in (3 * p + p + q + levels, p + levels, p + levels + p))
        made = RecordsNetwork(*sizes, **network)
        return cls(space, RecordsDenoiser(made, Cosine(), p + levels, typical).eval(), steps)

    def lesson(self, table: Table, hidden: Table, guess: Guess) -> HiddenCells:
        """What there is to learn from `table` when `hidden` is all that is shown of it, and guessed so."""
        p = table.standard.shape[1]
        residual, real = self._residual(table, guess)
        where = self.space.entries(hidden.missing)
        counts = np.concatenate([where, hidden.missing[:, :p]], 1) & real
        return HiddenCells(
            torch.from_numpy(self._features(hidden, guess)),
            torch.from_numpy(residual),
            torch.from_numpy(counts),
            torch.from_numpy(where),
        )

    def _features(self, table: Table, guess: Guess) -> np.ndarray:
        """(n, K) what the encoder sees: guesses or values on both scales, spread, what is missing, shares."""
        return np.concatenate(
            [guess.standard.clip(-6, 6), guess.gauss, guess.spread, table.missing - 0.5, guess.shares], 1
        ).astype(np.float32)

    def _residual(self, truth: Table, guess: Guess) -> tuple[np.ndarray, np.ndarray]:
        """(n, C + p) float32: gauss residual in units of its spread, share residual likewise, standard
        residual; and where the truth is known."""
        p = truth.standard.shape[1]
        known = ~truth.missing
        real = np.concatenate([self.space.entries(known), known[:, :p]], 1)
        residual = np.empty(real.shape, np.float32)
        gauss, shares, standard = np.split(residual, [p, self.space.columns], 1)
        gauss[:] = (truth.gauss - guess.gauss) / np.maximum(guess.spread, 1e-3)
        shares[:] = (self.space.indicators(truth.codes) - guess.shares) / share_spread(guess.shares)
        standard[:] = truth.standard - guess.standard
        residual[~real] = 0
        return np.clip(residual, -_CLIP, _CLIP, out=residual), real

    def tell(self, hidden: Table, guess: Guess) -> Told:
        """Show the network a guess."""
        gone = self.space.entries(hidden.missing)
        scale = np.concatenate([guess.spread, share_spread(guess.shares)], 1)
        with torch.no_grad():
            condition = self.denoiser.network.encode(self._condition(hidden, guess))
            expected = self.denoiser.network.expectation(condition).numpy()
        columns = self.space.columns
        added = np.concatenate([gone * scale * expected[:, :columns], expected[:, columns:]], 1)
        return Told(guess, added, gone * scale, condition)

    def _condition(self, table: Table, guess: Guess) -> Condition:
        hidden = torch.from_numpy(self.space.entries(table.missing))
        known = Encoded(torch.zeros(hidden.shape), ~hidden)
        return Condition(channels=torch.from_numpy(self._features(table, guess)), known=known)

    def noise(self, told: list[Told], keys: Keys, draws: int) -> np.ndarray:
        """(draws, n, C) diffused residuals in model space, 0 where known; draw d is told by guess d mod K."""
        n, columns = told[0].scale.shape
        sampler = DPMSolver2M(steps=self.steps)
        out = np.zeros((draws, n, columns), np.float32)
        with torch.no_grad():
            for first in range(0, draws, _DRAWS):
                # Always _DRAWS at once, also when fewer are wanted: the same arithmetic for the same draw.
                number = torch.arange(first, first + _DRAWS)
                condition = _stacked([told[int(d) % len(told)].condition for d in number])
                batch = Keys(keys.seed, keys.items.repeat(_DRAWS), number.repeat_interleave(n))
                noise = sampler(self.denoiser, (columns,), batch, condition).reshape(_DRAWS, n, -1).numpy()
                for d in range(first, min(first + _DRAWS, draws)):
                    out[d] = told[d % len(told)].scale * noise[d - first]
        return out


def _stacked(conditions: list[Condition]) -> Condition:
    """Encoded conditions one below the other."""
    tokens, observed = [], []
    for condition in conditions:
        assert condition.tokens is not None and condition.known is not None
        tokens.append(condition.tokens)
        observed.append(condition.known.observed)
    known = torch.cat(observed)
    return Condition(tokens=torch.cat(tokens), known=Encoded(torch.zeros(known.shape), known))


@contextmanager
def one_thread() -> Iterator[None]:
    """A network this small is computed fastest by one thread: threads of torch wait for each other, threads
    of Python for the interpreter, which they hand over after every short step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_spread(shares: np.ndarray) -> np.ndarray:
    """Standard deviation of an indicator that is 1 with this probability, not below 0.05."""
    return np.asarray(np.sqrt(np.clip(shares * (1 - shares), 0.0025, None)))

"""The centre of a table: chains of tree ensembles that say what a missing cell is, before diffusion.

Chained equations (van Buuren & Groothuis-Oudshoorn 2011) with extremely randomised trees: each column is
predicted from all others, missing cells are replaced by their predictions, and so on for a few rounds.

There are several chains, each grown without two neighbouring folds of the rows, so that every row is unknown
to two of them. A guess for a cell that was known, and is hidden on purpose to learn from, comes from a chain
that never saw its row; two such guesses tell how far chains differ. A cell that is truly missing is guessed
by all chains, and their answers are averaged at the very end, after the network has corrected each: it meets
in use just what it met in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from .forest import Forest, grow

Progress = Callable[[str, float], None]
_SQUARE = (
    0.1  # weight of the square among a number's targets: enough to be learned, too little to steer splits
)
_FLOOR = 0.1  # least spread of a guess on the Gaussian scale


@dataclass(frozen=True)
class Guess:
    """What the chain says of a table's missing cells; known cells are given back as they are.

    Args:
        standard: (n, p) mean on the standard scale.
        gauss, spread: (n, p) mean and standard deviation on the Gaussian scale; spread 0 where known.
        shares: (n, sum K) probability of each level; indicators where known.
    """

    standard: np.ndarray
    gauss: np.ndarray
    spread: np.ndarray
    shares: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Guess:
        return Guess(self.standard[rows], self.gauss[rows], self.spread[rows], self.shares[rows])


@dataclass(frozen=True)
class Table:
    """The chains' view of rows: both scales of the numbers (NaN where missing) and codes (-1 there)."""

    standard: np.ndarray
    gauss: np.ndarray
    codes: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """(n, p + q) bool."""
        return np.concatenate([np.isnan(self.standard), self.codes < 0], 1)

    def hide(self, numbers: np.ndarray, codes: np.ndarray) -> Table:
        """The table with more cells missing, (n, p) and (n, q) True where hidden."""
        return Table(
            np.where(numbers, np.nan, self.standard),
            np.where(numbers, np.nan, self.gauss),
            np.where(codes, -1, self.codes),
        )

    def __getitem__(self, rows: np.ndarray | slice) -> Table:
        return Table(self.standard[rows], self.gauss[rows], self.codes[rows])


class TreeChains:
    """Cross-fitted chained trees.

    Args:
        trees: trees of a chain in each round.
        leaf: fewest rows in a leaf.

    Attributes:
        forests_: by round, then column (numbers first), then chain; none for a column never observed.
        order_: the order in which columns are visited: fewest missing first.
        start_: (p + q,) what a missing cell holds before the first visit: the mean (0), the commonest level.
    """

    def __init__(self, cardinalities: Sequence[int], trees: Sequence[int] = (3, 8), leaf: int = 2) -> None:
        self.cardinalities, self.trees, self.leaf = tuple(cardinalities), tuple(trees), leaf

    @property
    def offsets(self) -> list[int]:
        """Where each category's shares begin."""
        return [0, *np.cumsum(self.cardinalities, dtype=int).tolist()]

    def fit(
        self, table: Table, fold: np.ndarray, *, seed: int, jobs: int = 2, progress: Progress | None = None
    ) -> TreeChains:
        """Fit on `table`; `fold` (n,) says which fold each row belongs to. There is a chain for every fold k,
        grown without folds k and k + 1."""
        p = table.standard.shape[1]
        missing = table.missing
        self.columns = missing.shape[1]
        seen = (~missing).sum(0)
        self.order_ = [int(j) for j in np.argsort(-seen, kind="stable") if seen[j] > 0]
        levels = [np.bincount(c[c >= 0], minlength=1).argmax() for c in table.codes.T]
        self.start_ = np.array([0.0] * p + levels, dtype=np.float32)
        count = int(fold.max(initial=0)) + 1
        self.chains_ = count
        unseen = [(fold == k) | (fold == (k + 1) % count) for k in range(count)]
        states = [self._begin(table) for _ in range(count)]
        self.forests_: list[dict[int, list[Forest]]] = []
        for number, trees in enumerate(self.trees):
            self.forests_.append({})
            for at, j in enumerate(self.order_):
                target, known = self._target(table, j), ~missing[:, j]
                # With very few rows a chain may be left without a known cell, and then takes all of them.
                chosen = [known & ~out if (known & ~out).any() else known for out in unseen]
                self.forests_[number][j] = Parallel(jobs, prefer="threads")(
                    delayed(self._grow)(
                        np.delete(states[k], j, 1)[c],
                        target[c],
                        j,
                        p,
                        trees,
                        seed + 9973 * number + 97 * j + k,
                    )
                    for k, c in enumerate(chosen)
                )
                for forest, state in zip(self.forests_[number][j], states, strict=True):
                    self._visit(state, ~known, j, p, [forest], np.zeros(len(state), int))
                if progress is not None:
                    done = number * len(self.order_) + at + 1
                    progress("growing trees", done / (len(self.trees) * len(self.order_)))
        return self

    def guess(self, table: Table, chain: np.ndarray) -> Guess:
        """Guesses for the missing cells of `table`, those of row i by chain number `chain[i]`.

        The chains that never saw a row of fold f are f and f - 1.
        """
        p = table.standard.shape[1]
        missing, state = table.missing, self._begin(table)
        gauss, standard = np.nan_to_num(table.gauss), np.nan_to_num(table.standard)
        spread = np.where(missing[:, :p], 1.0, 0.0)
        shares = np.zeros((len(state), self.offsets[-1]), np.float32)
        for j, (first, last) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            known = np.flatnonzero(~missing[:, p + j])
            shares[known, first + table.codes[known, j]] = 1
            shares[missing[:, p + j], first:last] = 1 / max(last - first, 1)
        for number in range(len(self.trees)):
            for j in self.order_:
                hidden = missing[:, j]
                said = self._visit(state, hidden, j, p, self.forests_[number][j], chain)
                if said is None or number + 1 < len(self.trees):
                    continue
                if j < p:
                    standard[hidden, j], gauss[hidden, j] = said[:, 0], said[:, 1]
                    variance = said[:, 2] / _SQUARE - said[:, 1] ** 2
                    spread[hidden, j] = np.sqrt(np.clip(variance, 0, None) + _FLOOR**2)
                else:
                    shares[hidden, self.offsets[j - p] : self.offsets[j - p + 1]] = said
        return Guess(standard, gauss, spread, shares)

    def _begin(self, table: Table) -> np.ndarray:
        """(n, p + q) float32 rows for the trees, missing cells at their start."""
        rows = np.concatenate([table.standard, table.codes], 1).astype(np.float32)
        return np.where(table.missing, self.start_, rows)

    def _target(self, table: Table, j: int) -> np.ndarray:
        p = table.standard.shape[1]
        if j >= p:
            return table.codes[:, j - p]
        gauss = table.gauss[:, j]
        return np.stack([table.standard[:, j], gauss, _SQUARE * gauss**2], 1)

    def _grow(self, rows: np.ndarray, target: np.ndarray, j: int, p: int, trees: int, seed: int) -> Forest:
        # Class shares need more rows than a mean does; with many rows larger leaves keep the model small.
        leaf = max(self.leaf, len(rows) // 3000) if j < p else max(self.leaf, 5, len(rows) // 2000)
        width = 3 if j < p else self.cardinalities[j - p]
        return grow(rows, target, trees=trees, leaf=leaf, width=width, seed=seed)

    def _visit(
        self, state: np.ndarray, hidden: np.ndarray, j: int, p: int, forests: list[Forest], chain: np.ndarray
    ) -> np.ndarray | None:
        """Predict the hidden cells of column j, each row's by its chain, and write them into `state`."""
        places = np.flatnonzero(hidden)
        if len(places) == 0:
            return None
        rows, own = torch.from_numpy(np.delete(state[places], j, 1)), chain[places]
        said = np.empty((len(places), forests[0].values.shape[1]), np.float32)
        for k in np.unique(own):
            said[own == k] = forests[k].predict(rows[torch.from_numpy(own == k)]).numpy()
        state[places, j] = said[:, 0] if j < p else said.argmax(1)
        return said

    def state(self) -> dict[str, Tensor]:
        """Named tensors for safetensors."""
        tensors = {"chain.start": torch.from_numpy(self.start_), "chain.order": torch.tensor(self.order_)}
        for number, columns in enumerate(self.forests_):
            for j, folds in columns.items():
                for k, forest in enumerate(folds):
                    tensors |= forest.state(f"chain.{number}.{j}.{k}")
        return tensors

    @classmethod
    def from_state(
        cls, cardinalities: Sequence[int], trees: Sequence[int], folds: int, tensors: Mapping[str, Tensor]
    ) -> TreeChains:
        """What `state` wrote; the trees are checked."""
        chain = cls(cardinalities, trees)
        chain.start_, chain.order_ = tensors["chain.start"].numpy(), tensors["chain.order"].tolist()
        chain.columns, chain.chains_ = len(chain.start_), folds
        chain.forests_ = [
            {
                j: [Forest.from_state(tensors, f"chain.{r}.{j}.{k}", chain.columns - 1) for k in range(folds)]
                for j in chain.order_
            }
            for r in range(len(chain.trees))
        ]
        return chain

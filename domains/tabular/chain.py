"""The centre of a table: chains of tree ensembles that say what a missing cell is, before diffusion.

Chained equations (van Buuren & Groothuis-Oudshoorn 2011) with extremely randomised trees: each column is
predicted from all others, missing cells are replaced by their predictions, and so on for a few rounds.

There are several chains, one for each fold of the rows and grown without it. In all rounds but the last they
fill the table together: what a missing cell holds is the average of what they say of it. The last round is
read chain by chain from the table so settled; each reading is corrected by the network, and the corrected
readings are averaged at the very end. So chains look at the best guesses there are of the other cells, and
the network meets in use what it met in training, a single chain's reading.

A cell that was known, and is hidden on purpose to learn from, must be guessed by chains that never saw its
row: the one of its fold, and for rows held out for calibration another one, as two such guesses tell how far
chains differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
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

    The trees look at *places*: one for a number, and for a category one that holds its code, or, with
    `shares`, one for each level, holding the probability that the chains give it.

    Args:
        trees: trees of a chain in each round.
        leaf: fewest rows in a leaf.
        shares: whether the trees are shown the probability of each level, or the likeliest level's code
            alone, which takes less time and memory.

    Attributes:
        columns: p + q, once fitted.
        forests_: by round, then column (numbers first), then chain; none for a column never observed.
        order_: the order in which columns are visited: fewest missing first.
        start_: (places,) what a missing cell holds before the first visit: the mean (0), the commonest level
            or the share of each.
        chains_: how many chains there are.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        trees: Sequence[int] = (2, 2, 6),
        leaf: int = 2,
        *,
        shares: bool = False,
    ) -> None:
        self.cardinalities, self.trees, self.leaf = tuple(cardinalities), tuple(trees), leaf
        self.shares = shares
        self.columns = 0

    @property
    def numbers(self) -> int:
        """p."""
        return self.columns - len(self.cardinalities)

    def _at(self, j: int) -> slice:
        """The places of column j."""
        first = j - self.numbers
        if first < 0 or not self.shares:
            return slice(j, j + 1)
        return slice(self.numbers + self.offsets[first], self.numbers + self.offsets[first + 1])

    def _others(self, state: np.ndarray, j: int) -> np.ndarray:
        """(n, F) the places that the trees of column j look at."""
        return np.delete(state, self._at(j), 1)

    @property
    def offsets(self) -> list[int]:
        """Where each category's shares begin."""
        return [0, *np.cumsum(self.cardinalities, dtype=int).tolist()]

    def fit(
        self,
        table: Table,
        fold: np.ndarray | None,
        held: np.ndarray,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> TreeChains:
        """Fit on `table`; `fold` (n,) says which fold each row belongs to. There is a chain for every fold k,
        grown without fold k and without those rows of fold k + 1 that are `held` (n,). Without folds there is
        one chain, grown with all rows."""
        p, missing = table.standard.shape[1], table.missing
        self.columns = missing.shape[1]
        seen = (~missing).sum(0)
        self.order_ = [int(j) for j in np.argsort(-seen, kind="stable") if seen[j] > 0]
        self.start_ = np.concatenate([np.zeros(p), *self._commonest(table)]).astype(np.float32)
        blind = [np.zeros(len(missing), bool)]
        if fold is not None:
            count = int(fold.max(initial=0)) + 1
            blind = [(fold == k) | ((fold == (k + 1) % count) & held) for k in range(count)]
        self.chains_ = count = len(blind)
        state, total = self._begin(table), max(len(self.trees) * len(self.order_), 1)
        self.forests_: list[dict[int, list[Forest]]] = []
        # Trees are grown by several threads, and walked by one: a walk is made of short steps, and threads
        # would hand the interpreter to each other after every one of them.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for number in range(len(self.trees)):
                self.forests_.append({})
                for at, j in enumerate(self.order_):
                    seeds = range(seed, seed + count)
                    grown = list(pool.map(partial(self._grow, table, state, j, number), blind, seeds))
                    self.forests_[number][j] = grown
                    if number < len(self.trees) - 1:
                        self._agree(state, j, [(np.flatnonzero(missing[:, j]), grown)])
                    if progress is not None:
                        progress("growing trees", (number * len(self.order_) + at + 1) / total)
        return self

    def settle(
        self, table: Table, own: np.ndarray | None = None, hidden: np.ndarray | None = None
    ) -> np.ndarray:
        """(n, places) float32 rows as the trees of the last round look at them.

        Args:
            own: (n, m) the chains that may guess cells `hidden` (n, p + q) of each row; None: all chains may.
                Where `own` alone is given, it is meant for every missing cell.
        """
        missing, state = table.missing, self._begin(table)
        groups: list[np.ndarray] = [] if own is None else list(np.unique(own, axis=0))
        for forests in self.forests_[:-1]:
            for j in self.order_:
                places = np.flatnonzero(missing[:, j])
                if own is None:
                    self._agree(state, j, [(places, forests[j])])
                    continue
                purpose = np.ones(len(places), bool) if hidden is None else hidden[places, j]
                parts = [(places[~purpose], forests[j])]
                for chains in groups:
                    mine = purpose & (own[places] == chains).all(1)
                    parts.append((places[mine], [forests[j][k] for k in chains]))
                self._agree(state, j, parts)
        return state

    def guess(self, table: Table, state: np.ndarray, chain: np.ndarray) -> Guess:
        """Readings of the missing cells of `table`, those of row i by chain number `chain[i]`.

        Args:
            state: by `settle`.
        """
        p, missing = table.standard.shape[1], table.missing
        gauss, standard = np.nan_to_num(table.gauss), np.nan_to_num(table.standard)
        spread = np.where(missing[:, :p], 1.0, 0.0)
        shares = np.empty((len(state), self.offsets[-1]), np.float32)
        for j, (first, last) in enumerate(pairwise(self.offsets)):
            shares[:, first:last] = _indicators(table.codes[:, j], last - first)
            shares[missing[:, p + j], first:last] = 1 / max(last - first, 1)
        for j in self.order_:
            gone = missing[:, j]
            said = self._read(state, np.flatnonzero(gone), j, chain)
            if j < p:
                standard[gone, j], gauss[gone, j] = said[:, 0], said[:, 1]
                variance = said[:, 2] / _SQUARE - said[:, 1] ** 2
                spread[gone, j] = np.sqrt(np.clip(variance, 0, None) + _FLOOR**2)
            else:
                shares[gone, self.offsets[j - p] : self.offsets[j - p + 1]] = said
        return Guess(standard, gauss, spread, shares)

    def _begin(self, table: Table) -> np.ndarray:
        """(n, places) float32 rows for the trees, missing cells at their start."""
        missing, categories = table.missing, [table.codes]
        if self.shares:
            categories = [_indicators(c, k) for c, k in zip(table.codes.T, self.cardinalities, strict=True)]
            widths = [1] * self.numbers + list(self.cardinalities)
            missing = np.repeat(missing, widths, axis=1)
        rows = np.concatenate([table.standard, *categories], 1).astype(np.float32)
        return np.where(missing, self.start_, rows)

    def _commonest(self, table: Table) -> list[np.ndarray]:
        """What the places of each category hold before the first visit."""
        known = [codes[codes >= 0] for codes in table.codes.T]
        if not self.shares:
            return [np.atleast_1d(np.bincount(codes, minlength=1).argmax()) for codes in known]
        counts = [np.bincount(c, minlength=k) for c, k in zip(known, self.cardinalities, strict=True)]
        return [count / max(count.sum(), 1) for count in counts]

    def _grow(
        self, table: Table, state: np.ndarray, j: int, number: int, blind: np.ndarray, seed: int
    ) -> Forest:
        """The trees of one chain for column j in a round: rows `blind` (n,) stay unseen."""
        p, last = table.standard.shape[1], number + 1 == len(self.trees)
        known = ~table.missing[:, j]
        # With very few rows a chain may be left without a known cell, and then takes all of them.
        chosen = known & ~blind if (known & ~blind).any() else known
        if j >= p:
            target, width = table.codes[chosen, j - p], self.cardinalities[j - p]
        elif last:
            gauss = table.gauss[chosen, j]
            target, width = np.stack([table.standard[chosen, j], gauss, _SQUARE * gauss**2], 1), 3
        else:  # the rounds that settle the table ask for the mean alone
            target, width = table.standard[chosen, j], 1
        # Class shares need more rows than a mean does; with many rows larger leaves keep the model small.
        rows = len(target)
        leaf = max(self.leaf, rows // 3000) if j < p else max(self.leaf, 5, rows // 2000)
        return grow(
            self._others(state[chosen], j),
            target,
            trees=self.trees[number],
            leaf=leaf,
            width=width,
            seed=seed + 9973 * number + 97 * j,
        )

    def _agree(self, state: np.ndarray, j: int, parts: list[tuple[np.ndarray, list[Forest]]]) -> None:
        """Write into `state` what forests say of column j on average, each part of rows by its own."""
        rows, at = self._others(state, j), self._at(j)
        for places, forests in parts:
            if len(places):
                asked = torch.from_numpy(rows[places])
                said = np.sum([forest.predict(asked).numpy() for forest in forests], axis=0) / len(forests)
                if j < self.numbers:
                    said = said[:, :1]
                state[places, at] = said if j < self.numbers or self.shares else said.argmax(1)[:, None]

    def _read(self, state: np.ndarray, places: np.ndarray, j: int, chain: np.ndarray) -> np.ndarray:
        """(k, O) what each row's own chain says of its column j in the last round."""
        forests = self.forests_[-1][j]
        rows, own = self._others(state[places], j), chain[places]
        said = np.empty((len(places), forests[0].values.shape[1]), np.float32)
        for k in np.unique(own):
            said[own == k] = forests[k].predict(torch.from_numpy(rows[own == k])).numpy()
        return said

    def state(self, prefix: str = "chain") -> dict[str, Tensor]:
        """Named tensors for safetensors."""
        start, order = torch.from_numpy(self.start_), torch.tensor(self.order_)
        tensors = {f"{prefix}.start": start, f"{prefix}.order": order}
        for number, columns in enumerate(self.forests_):
            for j, folds in columns.items():
                for k, forest in enumerate(folds):
                    tensors |= forest.state(f"{prefix}.{number}.{j}.{k}")
        return tensors

    @classmethod
    def from_state(
        cls,
        columns: int,
        cardinalities: Sequence[int],
        trees: Sequence[int],
        folds: int,
        tensors: Mapping[str, Tensor],
        prefix: str = "chain",
    ) -> TreeChains:
        """What `state` wrote; the trees are checked.

        Args:
            columns: p + q.
            folds: how many chains.
        """
        start = tensors[f"{prefix}.start"].numpy()
        chain = cls(cardinalities, trees, shares=len(start) > columns)
        chain.start_, chain.order_ = start, tensors[f"{prefix}.order"].tolist()
        chain.columns, chain.chains_ = columns, folds
        features = {j: len(chain._others(start[None], j)[0]) for j in chain.order_}
        chain.forests_ = [
            {
                j: [Forest.from_state(tensors, f"{prefix}.{r}.{j}.{k}", features[j]) for k in range(folds)]
                for j in chain.order_
            }
            for r in range(len(chain.trees))
        ]
        return chain


def _indicators(codes: np.ndarray, levels: int) -> np.ndarray:
    """(n,) codes to (n, levels) float32 indicators; a missing code (-1) is all 0."""
    return np.asarray(codes[:, None] == np.arange(levels), dtype=np.float32)

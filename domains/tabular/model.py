"""The model of a table: chains of trees for the mean, diffusion around them for what no mean can know.

Fitting: chains are grown with cross-fitting (`chain`); copies of the table with further known cells hidden
are guessed by chains that never saw those rows; a denoiser (`shared.records`) learns from them to correct the
guesses and to draw what is left around them (`correction`); on rows kept from it, the weight between trees
and network and the spread of the draws are chosen (`calibration`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...shared.masking import Cells
from ...shared.noise import Keys
from ...shared.training import TrainingSettings, load_meanwhile, train
from .calibration import Calibration, calibrate, centre, interval, mean
from .chain import Guess, Table, TreeChains
from .codec import Coded
from .correction import Correction, HiddenCells, one_thread
from .space import TableSpace

__all__ = ["Filled", "ModelSettings", "TableModel", "interval"]

Progress = Callable[[str, float], None]
_ROWS = 256  # the micro-batch of inference: fixed, so that a row's answer does not depend on its company
_FEW_ROWS, _FEW_LEVELS = 1500, 100  # tables below them are small enough for trees to see levels' shares
# Below so many rows what a chain learns from counts more than that it is blind to some: one more chain, with
# all rows, has this part in what is filled.
_SMALL, _WHOLE_PART = 1000, 0.25
_MANY_CELLS = 120_000  # from which training takes larger steps
_STOPPING = 3  # copies of the held-out rows on which training is stopped
# These bound the memory: rows filled at once, and rows with cells hidden, one copy of the table at least.
_CHUNK, _GUESSED = 8192, 2**16


@dataclass(frozen=True)
class ModelSettings:
    """How a table's model is made. The defaults suit tables of 100 to 100,000 rows on an ordinary machine.

    Args:
        trees: trees of a chain in each round; None chooses by the number of rows.
        folds: folds of the cross-fitting, and chains.
        leaf: fewest rows in a leaf.
        copies: how many times the table is seen with further cells hidden.
        hide: range of the share of known cells hidden in a copy.
        width, depth, head_width, head_depth, dropout: of the network.
        steps, batch_size, learning_rate: of the training; without `steps` tables of many cells take larger
            steps (`pace`).
        held_out: share of the rows kept for stopping and calibration.
        sampler_steps: denoising steps of a draw.
    """

    trees: tuple[int, ...] | None = None
    folds: int = 8
    leaf: int = 2
    copies: int = 8
    hide: tuple[float, float] = (0.03, 0.45)
    width: int = 128
    depth: int = 2
    head_width: int = 64
    head_depth: int = 2
    dropout: float = 0.1
    steps: int | None = None
    batch_size: int = 512
    learning_rate: float = 2e-3
    held_out: float = 0.1
    sampler_steps: int = 8

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ModelSettings:
        """From plain JSON; lists become tuples."""
        known = {f.name for f in fields(cls)}
        held: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known
        }
        return cls(**held)

    def network(self) -> dict[str, Any]:
        """Sizes of the network."""
        names = ("width", "depth", "head_width", "head_depth", "dropout")
        return {name: getattr(self, name) for name in names}

    def trees_for(self, rows: int) -> tuple[int, ...]:
        """Trees of a chain: many where they cost little, as few rows make noisy trees."""
        return self.trees or ((4, 4, 16) if rows < 3000 else (2, 2, 2, 6))

    def pace(self, rows: int, columns: int) -> tuple[int, int, float]:
        """Training steps, examples in each and learning rate. Few cells are overfitted soon, and 30 rows are
        too few; many are learnt from in batches twice as large, at twice the rate, in three quarters of the
        time (held-out losses of Adult, Letter and California: +0.2, -0.4 and +0.5 %)."""
        steps, cells = self.steps, rows * columns
        if steps is None and cells < _MANY_CELLS:
            steps = 0 if rows < 30 else int(np.clip(cells / 170, 100, 700))
        if steps is not None:
            return steps, self.batch_size, self.learning_rate
        return int(np.clip(cells / 380, 380, 1000)), 2 * self.batch_size, 2 * self.learning_rate


@dataclass(frozen=True)
class Filled:
    """A table's missing cells, filled. Known cells are copied; a column never observed stays missing.

    Args:
        numbers: (draws, n, p) float64, raw units: draws from the conditional law.
        codes: (draws, n, q) int32.
        mean: (n, p) the conditional mean, which has the least squared error.
        median: (n, p) the middle of the conditional law, which has the least absolute error.
        probability: (n, q) of `mode`.
        mode: (n, q) int32, the most probable code.
    """

    numbers: np.ndarray
    codes: np.ndarray
    mean: np.ndarray
    median: np.ndarray
    probability: np.ndarray
    mode: np.ndarray


class TableModel:
    """Made by `fit` or `from_state`; `fill` is what it is for.

    Attributes:
        settings, space, chains, correction, calibration: its parts.
        whole: a chain grown with all rows, by which nothing is learned or calibrated; None for many rows.
    """

    def __init__(
        self,
        settings: ModelSettings,
        space: TableSpace,
        chains: TreeChains,
        correction: Correction,
        calibration: Calibration,
        whole: TreeChains | None = None,
    ) -> None:
        self.settings, self.space, self.chains = settings, space, chains
        self.correction, self.calibration, self.whole = correction, calibration, whole

    # ------------------------------------------------------------------------------------------------ fit

    @classmethod
    def fit(
        cls,
        coded: Coded,
        cardinalities: Sequence[int],
        settings: ModelSettings | None = None,
        *,
        seed: int = 0,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> TableModel:
        """Fit to a table.

        Args:
            coded: numbers (n, p) with NaN and codes (n, q) with -1 where missing.
            cardinalities: how many codes each category column has.
            folder: where the network's training keeps its checkpoints; None keeps none.
            resume: go on from those checkpoints.
            progress: told what is done, and the fraction of the whole.

        Raises:
            Diverged, Interrupted, InputError: as `shared.training.train`.
        """
        settings = settings or ModelSettings()
        settings = replace(settings, trees=settings.trees_for(len(coded.numbers)))
        tell = progress or (lambda label, fraction: None)
        rows, (p, q) = len(coded.numbers), (coded.numbers.shape[1], len(cardinalities))
        space = TableSpace(cardinalities).fit(coded.numbers)
        table, fold = scaled(space, coded), _folds(rows, settings.folds, seed)
        if rows and settings.pace(rows, p + q)[0]:
            load_meanwhile()
        told = np.asarray((~table.missing).any(1))  # a row of missing cells alone neither teaches nor tests
        held = _held_out(told, settings, seed)
        tested = held if held.any() else told
        # Where rows are few a level is often uncertain, and columns guessed from the likeliest one alone go
        # astray with it. A level is a place to search for splits: with many of either it would cost time.
        shares = rows < _FEW_ROWS and space.offsets[-1] <= _FEW_LEVELS
        chains = TreeChains(space.cardinalities, settings.trees_for(rows), settings.leaf, shares=shares).fit(
            table,
            fold,
            tested,
            seed=seed,
            progress=lambda label, fraction: tell(label, 0.3 * fraction),
        )
        whole = None
        if rows < _SMALL:
            trees = _of_whole(settings.trees_for(rows))
            whole = TreeChains(space.cardinalities, trees, settings.leaf, shares=shares)
            whole.fit(table, None, tested, seed=seed + settings.folds)
        known = float((~table.missing).sum(1).mean()) if rows else 1.0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            correction = Correction.new(
                space, known * sum(settings.hide) / 2, settings.sampler_steps, **settings.network()
            )
        model = cls(settings, space, chains, correction, Calibration.none(p, q), whole)
        if p + q == 0 or table.missing.all():
            return model
        pace = settings.pace(int(told.sum()), p + q)
        if pace[0]:
            kept, apart = torch.from_numpy(~held), []

            def lessons() -> Iterator[HiddenCells]:
                together = int(np.clip(_GUESSED // rows, 1, settings.copies))
                for first in range(0, settings.copies, together):
                    tell("hiding cells and guessing them", 0.3 + 0.2 * first / settings.copies)
                    copies = range(first, min(first + together, settings.copies))
                    some = model._lesson(table, fold, seed, copies)
                    for at, copy in enumerate(copies):
                        lesson = some[at * rows : (at + 1) * rows]
                        if copy < _STOPPING and held.any():
                            apart.append(lesson[~kept])
                        yield lesson[kept]

            learned = HiddenCells.stacked(lessons(), settings.copies)
            test = HiddenCells.stacked(apart, len(apart)) if apart else None
            model._learn(learned, test, pace, seed, folder, resume, device, tell)
        tell("calibrating on held-out cells", 0.92)
        model.calibration = calibrate(chains, correction, table, coded.numbers, fold, tested, seed)
        tell("fitted", 1.0)
        return model

    def _lesson(self, table: Table, chain: np.ndarray, seed: int, copies: range) -> HiddenCells:
        """Copies of the table, one below the other, with further cells hidden, guessed by chains that did not
        see the rows. Trees are walked by many rows at once in little more time than by few."""
        rows, p = table.standard.shape
        item, copy = torch.arange(rows).repeat(len(copies)), torch.tensor(copies).repeat_interleave(rows)
        stays = Cells(*self.settings.hide)(Keys(seed, item, copy), (table.missing.shape[1],)).numpy()
        table, chain = table[item.numpy()], np.tile(chain, len(copies))
        hidden = table.hide(~stays[:, :p], ~stays[:, p:])
        state = self.chains.settle(hidden, chain[:, None])
        return self.correction.lesson(table, hidden, self.chains.guess(hidden, state, chain))

    def _learn(
        self,
        learned: HiddenCells,
        held_out: HiddenCells | None,
        pace: tuple[int, int, float],
        seed: int,
        folder: Path | None,
        resume: bool,
        device: str,
        tell: Progress,
    ) -> None:
        steps, batch_size, learning_rate = pace
        settings = TrainingSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.01,
            warmup=min(100, steps // 4 + 1),
            validate_every=max(steps // 20, 10),
            patience=6,
            checkpoint_every=250,
        )
        with one_thread():
            train(
                self.correction.denoiser,
                learned,
                settings,
                held_out=held_out,
                seed=seed,
                folder=folder,
                resume=resume,
                device=device,
                progress=lambda label, fraction: tell(label, 0.5 + 0.4 * fraction),
            )
        self.correction.denoiser.to("cpu").eval()

    # ----------------------------------------------------------------------------------------------- fill

    def fill(self, coded: Coded, items: np.ndarray, *, seed: int = 0, draws: int = 20) -> Filled:
        """Fill the missing cells of a table.

        Args:
            coded: (n, p) and (n, q), coded as the table fitted on.
            items: (n,) int64, a key for each row; a draw depends on (seed, key, draw) and the row alone.
            draws: how many draws.
        """
        if not len(items) or not self.space.columns:
            return _as_known(coded, draws)
        parts: list[Filled] = []
        for start in range(0, len(items), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            some, own = Coded(coded.numbers[chunk], coded.codes[chunk]), torch.from_numpy(items[chunk]).long()
            table = scaled(self.space, some)
            guesses = []
            for chains in (self.chains, self.whole):
                if chains is not None:
                    state, count = chains.settle(table), chains.chains_
                    guesses += [chains.guess(table, state, np.full(len(some), k)) for k in range(count)]
            keys = Keys(seed, own, torch.zeros_like(own))
            with one_thread():
                parts += [
                    self._fill_rows(some, table, guesses, rows, keys, draws)
                    for rows in np.split(np.arange(len(some)), range(_ROWS, len(some), _ROWS))
                ]
        axes = {"numbers": 1, "codes": 1}
        joined = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts], axes.get(f.name, 0))
            for f in fields(Filled)
        }
        return Filled(**joined)

    def _fill_rows(
        self, coded: Coded, table: Table, guesses: list[Guess], rows: np.ndarray, keys: Keys, draws: int
    ) -> Filled:
        """Fill at most `_ROWS` rows, padded to that number with the last of them."""
        count, p = len(rows), coded.numbers.shape[1]
        padded = np.concatenate([rows, np.full(_ROWS - count, rows[-1])])
        hidden, guesses = table[padded], [guess[padded] for guess in guesses]
        told = [self.correction.tell(hidden, guess) for guess in guesses]
        middle = self._averaged([centre(self.space, self.calibration, one) for one in told])
        standard = self._averaged([mean(self.space, self.calibration, one) for one in told])
        spread = np.concatenate([self.calibration.spread, np.ones(self.space.columns - p)])
        blind = told[: self.chains.chains_]
        noise = self.correction.noise(blind, keys[torch.from_numpy(padded)], draws)
        drawn = (middle + spread * noise)[:, :count]
        observed = ~np.isnan(coded.numbers[rows])
        numbers, average, median = (
            np.where(observed, coded.numbers[rows], filled)
            for filled in (
                self.space.from_gauss(drawn[..., :p]),
                self.space.raw(standard)[:count],
                self.space.from_gauss(middle[:count, :p]),
            )
        )
        mode, probability = self._levels(middle[:count, p:], coded.codes[rows])
        codes = np.zeros((draws, *mode.shape), np.int32)
        for d in range(draws):
            codes[d] = self._levels(drawn[d, :, p:], coded.codes[rows])[0]
        return Filled(numbers, codes, average, median, probability, mode)

    def _averaged(self, said: list[np.ndarray]) -> np.ndarray:
        """What the chains say together: the average of the blind ones, and with its part that of all rows."""
        count = self.chains.chains_
        blind = np.mean(said[:count], 0)
        return np.asarray(blind + _WHOLE_PART * (said[count] - blind) if said[count:] else blind)

    def _levels(self, shares: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, sum K) scores to (n, q) codes and their probability; known codes are kept."""
        chosen, probability = codes.astype(np.int32).copy(), np.ones(codes.shape)
        for j, (first, last) in enumerate(zip(self.space.offsets, self.space.offsets[1:], strict=False)):
            gone = codes[:, j] < 0
            if last == first or not gone.any():
                continue
            part = np.clip(shares[gone, first:last], 1e-6, None)
            chosen[gone, j] = part.argmax(1)
            probability[gone, j] = part.max(1) / part.sum(1)
        return chosen, probability

    # ---------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain JSON and tensors, for `shared.artifacts.write_model`."""
        config = {
            "settings": asdict(self.settings),
            "cardinalities": list(self.space.cardinalities),
            "chains": self.chains.chains_,
            "typical": self.correction.denoiser.typical,
        }
        network = self.correction.denoiser.network.state_dict()
        tensors = self.space.state() | self.chains.state() | self.calibration.state()
        tensors |= {} if self.whole is None else self.whole.state("whole")
        tensors |= {f"network.{name}": value for name, value in network.items()}
        return config, {name: value.contiguous() for name, value in tensors.items()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TableModel:
        """What `state` wrote.

        Raises:
            EbbtideError: `model-forest`, trees that point outside themselves.
        """
        settings = ModelSettings.from_dict(config["settings"])
        space = TableSpace.from_state(config["cardinalities"], tensors)
        columns = len(space.means_) + len(space.cardinalities)
        cardinalities, trees = space.cardinalities, settings.trees_for(0)
        chains = TreeChains.from_state(columns, cardinalities, trees, config["chains"], tensors)
        whole = None
        if "whole.start" in tensors:
            whole = TreeChains.from_state(columns, cardinalities, _of_whole(trees), 1, tensors, "whole")
        correction = Correction.new(space, config["typical"], settings.sampler_steps, **settings.network())
        network = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        correction.denoiser.network.load_state_dict(network)
        return cls(settings, space, chains, correction, Calibration.from_state(tensors), whole)


def scaled(space: TableSpace, coded: Coded) -> Table:
    """A coded table on both scales; levels beyond the fitted ones count as missing."""
    codes = np.where(coded.codes < np.array(space.cardinalities, dtype=int), coded.codes, -1)
    return Table(space.standard(coded.numbers), space.gauss(coded.numbers), codes.astype(np.int32))


def _of_whole(trees: tuple[int, ...]) -> tuple[int, ...]:
    """Trees of the chain of all rows: twice as many as of one of the others, as there is but one."""
    return tuple(2 * count for count in trees)


def _folds(rows: int, folds: int, seed: int) -> np.ndarray:
    """(rows,) balanced folds in random order, a function of the seed alone."""
    order = Keys.range(seed, rows).uniform((), "fold").argsort().argsort().numpy()
    return np.asarray(order % max(min(folds, rows), 1))


def _held_out(told: np.ndarray, settings: ModelSettings, seed: int) -> np.ndarray:
    """(n,) True for rows kept from the network: at least 20 % of small tables, at most 2,000 rows.

    Args:
        told: (n,) True for rows with a known cell, of which they are taken.
    """
    rows = int(told.sum())
    share = min(max(settings.held_out, 0.2 if rows < 3000 else 0.0), 2000 / max(rows, 1))
    luck = Keys.range(seed, len(told)).uniform((), "held out").numpy()
    order = np.where(told, luck, 2.0).argsort(kind="stable").argsort(kind="stable")
    return np.asarray(order < (round(share * rows) if rows >= 30 else 0))


def _as_known(coded: Coded, draws: int) -> Filled:
    """The answer where there is nothing to fill: no row, or no column of which a value is known."""
    numbers, codes = coded.numbers, coded.codes.astype(np.int32)
    return Filled(
        np.repeat(numbers[None], draws, 0),
        np.repeat(codes[None], draws, 0),
        numbers,
        numbers,
        np.ones(codes.shape),
        codes,
    )

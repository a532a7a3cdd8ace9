"""The model of a table: a chain of trees for the mean, diffusion around it for what the mean cannot know.

Fitting: the chain (`chain`) is grown with cross-fitting; copies of the table with further known cells hidden
are guessed by trees that never saw those rows; a denoiser (`shared.records`) learns from them to correct the
guesses and to draw what is left around them; on rows kept out of its training, the weight between trees and
network is chosen by least squares and the spread of the draws by the interval score, column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...shared.data import Condition, Encoded
from ...shared.masking import Cells
from ...shared.noise import Keys
from ...shared.records import RecordsDenoiser, RecordsNetwork
from ...shared.samplers import DPMSolver2M
from ...shared.schedules import Cosine
from ...shared.training import Batch, TrainingSettings, train
from .chain import Guess, Table, TreeChains
from .codec import Coded
from .space import TableSpace

Progress = Callable[[str, float], None]
_ROWS, _DRAWS = (
    256,
    4,
)  # the micro-batch of inference: fixed, so that a row's answer does not depend on its company
_CHUNK = 4096  # rows guessed at once: bounds the memory
_CLIP = 8.0  # residuals further out than this are not learned from at full length


@dataclass(frozen=True)
class ModelSettings:
    """How a table's model is made. The defaults suit tables of 100 to 100,000 rows on an ordinary machine.

    Args:
        trees: trees per fold in each round of the chain.
        folds: folds of the cross-fitting.
        leaf: fewest rows in a leaf.
        copies: how many times the table is seen with further cells hidden.
        hide: range of the share of known cells hidden in a copy.
        width, depth, head_width, head_depth, dropout: of the network.
        steps: training steps; None chooses by the number of rows.
        batch_size, learning_rate: of the training.
        held_out: share of the rows kept for stopping and calibration.
        sampler_steps: denoising steps of a draw.
    """

    trees: tuple[int, ...] = (3, 8)
    folds: int = 8
    leaf: int = 2
    copies: int = 3
    hide: tuple[float, float] = (0.03, 0.45)
    width: int = 128
    depth: int = 2
    head_width: int = 96
    head_depth: int = 2
    dropout: float = 0.1
    steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 1e-3
    held_out: float = 0.1
    sampler_steps: int = 8

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ModelSettings:
        """From plain JSON; lists become tuples."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known})

    def steps_for(self, rows: int) -> int:
        """Training steps for a table of so many rows: few rows are overfitted soon, and 30 are too few."""
        if self.steps is not None:
            return self.steps
        return 0 if rows < 30 else int(np.clip(rows / 12, 150, 2500))


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


@dataclass(frozen=True)
class Calibration:
    """What was chosen on held-out cells.

    Args:
        standard: (p,) weight of the network's correction to the trees' mean, 0 to 1.
        median: (p,) weight of the median in the mean, 0 to 1: two estimates err less than one.
        gauss: (p,) weight of the network's correction on the Gaussian scale.
        shares: (q,) likewise for categories.
        spread: (p,) factor on the draws' distance from the mean.
    """

    standard: Tensor
    median: Tensor
    gauss: Tensor
    shares: Tensor
    spread: Tensor


class _HiddenCopies:
    """Training records: every copy of every row, with its guess. Implements `shared.training.Examples`."""

    def __init__(self, features: Tensor, residual: Tensor, counts: Tensor, hidden: Tensor) -> None:
        self.features, self.residual, self.counts, self.hidden = features, residual, counts, hidden

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        known = Encoded(torch.zeros(len(indices), self.hidden.shape[1]), ~self.hidden[indices])
        condition = Condition(channels=self.features[indices], known=known)
        return Batch(self.residual[indices], condition, self.counts[indices])


class TableModel:
    """Made by `fit` or `from_state`; `fill` is what it is for."""

    def __init__(
        self,
        settings: ModelSettings,
        space: TableSpace,
        chains: TreeChains,
        denoiser: RecordsDenoiser,
        calibration: Calibration,
        missing_rate: float,
    ) -> None:
        self.settings, self.space, self.chains = settings, space, chains
        self.denoiser, self.calibration, self.missing_rate = denoiser, calibration, missing_rate

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
        """
        settings = settings or ModelSettings()
        tell = progress or (lambda label, fraction: None)
        space = TableSpace(cardinalities).fit(coded.numbers)
        table, rows = _table(space, coded), len(coded.numbers)
        fold = _folds(rows, settings.folds, seed)
        chains = TreeChains(space.cardinalities, settings.trees, settings.leaf).fit(
            table,
            fold,
            seed=seed,
            jobs=torch.get_num_threads(),
            progress=lambda label, fraction: tell(label, 0.3 * fraction),
        )
        missing = table.missing
        p, columns = table.standard.shape[1], table.standard.shape[1] + space.offsets[-1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = RecordsNetwork(
                3 * p + missing.shape[1] + space.offsets[-1],
                columns,
                columns + p,
                width=settings.width,
                depth=settings.depth,
                head_width=settings.head_width,
                head_depth=settings.head_depth,
                dropout=settings.dropout,
            )
        typical = float((~missing).sum(1).mean()) * sum(settings.hide) / 2 if rows else 1.0
        denoiser = RecordsDenoiser(network, Cosine(), columns, typical).eval()
        ones = Calibration(
            torch.ones(p), torch.zeros(p), torch.ones(p), torch.ones(len(space.cardinalities)), torch.ones(p)
        )
        model = cls(settings, space, chains, denoiser, ones, float(missing.mean()) if missing.size else 0.0)
        if missing.shape[1] == 0 or missing.all():
            return model
        copies = []
        for copy in range(settings.copies):
            tell("hiding cells and guessing them", 0.3 + 0.2 * copy / settings.copies)
            chain = (fold - copy % 2) % chains.chains_
            copies.append(model._copy(table, chain, Keys.range(seed, rows, draw=copy), Cells(*settings.hide)))
        held = _held_out(rows, settings, seed)
        steps = settings.steps_for(rows)
        if steps:
            kept = torch.from_numpy(~held) if (~held).any() else torch.ones(rows, dtype=torch.bool)
            train(
                denoiser,
                _select(copies, kept),
                TrainingSettings(
                    steps=steps,
                    batch_size=settings.batch_size,
                    learning_rate=settings.learning_rate,
                    weight_decay=0.01,
                    warmup=min(100, steps // 4),
                    validate_every=max(steps // 20, 10),
                    patience=6,
                    checkpoint_every=250,
                ),
                held_out=_select(copies, ~kept) if bool((~kept).any()) else None,
                seed=seed,
                folder=folder,
                resume=resume,
                device=device,
                progress=lambda label, fraction: tell(label, 0.5 + 0.4 * fraction),
            )
            denoiser.to("cpu").eval()
        tell("calibrating on held-out cells", 0.92)
        model.calibration = model._calibrate(table, coded, fold, held if held.any() else ~held, seed)
        tell("fitted", 1.0)
        return model

    def _copy(self, table: Table, chain: np.ndarray, keys: Keys, pattern: Cells) -> _HiddenCopies:
        """The table with cells hidden by `pattern`, guessed by chains that did not see the rows."""
        p = table.standard.shape[1]
        stays = pattern(keys, (table.missing.shape[1],)).numpy()
        hidden = table.hide(~stays[:, :p], ~stays[:, p:])
        guess = self.chains.guess(hidden, chain)
        residual, real = self._residual(table, guess)
        gone = hidden.missing
        where = np.concatenate([gone[:, :p], self.space.spread(gone[:, p:])], 1)
        counts = np.concatenate([where, gone[:, :p]], 1) & real
        return _HiddenCopies(
            torch.from_numpy(self._features(hidden, guess)),
            torch.from_numpy(residual),
            torch.from_numpy(counts),
            torch.from_numpy(where),
        )

    def _features(self, table: Table, guess: Guess) -> np.ndarray:
        """(n, K) what the encoder sees: guesses or values on both scales, spread, what is missing, shares."""
        p = table.standard.shape[1]
        return np.concatenate(
            [guess.standard.clip(-6, 6), guess.gauss, guess.spread, table.missing - 0.5, guess.shares], 1
        ).astype(np.float32)

    def _residual(self, truth: Table, guess: Guess) -> tuple[np.ndarray, np.ndarray]:
        """(n, C + p): gauss residual in units of its spread, share residual likewise, standard residual;
        and where the truth is known."""
        p = truth.standard.shape[1]
        known = ~truth.missing
        gauss = (truth.gauss - guess.gauss) / np.maximum(guess.spread, 1e-3)
        shares = (self.space.indicators(truth.codes) - guess.shares) / _share_spread(guess.shares)
        standard = truth.standard - guess.standard
        real = np.concatenate([known[:, :p], self.space.spread(known[:, p:]), known[:, :p]], 1)
        residual = np.concatenate([gauss, shares, standard], 1)
        return np.where(real, residual, 0).clip(-_CLIP, _CLIP).astype(np.float32), real

    # ---------------------------------------------------------------------------------------- calibration

    def _calibrate(
        self, table: Table, coded: Coded, fold: np.ndarray, held: np.ndarray, seed: int
    ) -> Calibration:
        """Weights by least squares, spreads by the interval score, on hidden cells of held-out rows."""
        p = table.standard.shape[1]
        # Few cells more than are missing anyway, so that guessing them is as hard as it will be in use; and
        # so each row several times. A table that misses nothing is taken to be for filling tables that do.
        rate, times = (0.1, 4) if self.missing_rate > 0.05 else (0.25, 2)
        held = np.tile(np.flatnonzero(held), times)
        keys = Keys(
            seed, torch.from_numpy(held), torch.arange(times).repeat_interleave(len(held) // times) + 1000
        )
        rows, own = table[held], fold[held]
        stays = Cells(rate, rate)(keys, (table.missing.shape[1],)).numpy()
        hidden = rows.hide(~stays[:, :p], ~stays[:, p:])
        guess = self.chains.guess(hidden, own)
        other = self.chains.guess(hidden, (own - 1) % self.chains.chains_)
        counts = hidden.missing & ~rows.missing
        columns, offsets, k = p + self.space.offsets[-1], self.space.offsets, self.chains.chains_
        pair = [(g, self._corrections(hidden, g)) for g in (guess, other)]
        truth = np.concatenate([rows.gauss, self.space.indicators(rows.codes), rows.standard], 1)
        said = np.stack([correction for _, correction in pair])
        error = np.stack([truth - np.concatenate([g.gauss, g.shares, g.standard], 1) for g, _ in pair])
        gauss = _weights(said[:, :, :p], error[:, :, :p], counts[:, :p], k)
        standard = _weights(said[:, :, columns:], error[:, :, columns:], counts[:, :p], k)
        shares = np.ones(len(self.space.cardinalities))
        for j in range(len(shares)):
            part, at = slice(p + offsets[j], p + offsets[j + 1]), counts[:, p + j]
            if at.any():
                flat = (array[:, at, part].reshape(2, -1, 1) for array in (said, error))
                shares[j] = _weights(*flat, np.ones((int(at.sum()) * (part.stop - part.start), 1), bool), k)[
                    0
                ]
        found = (torch.from_numpy(w).float() for w in (standard, np.zeros(p), gauss, shares, np.ones(p)))
        self.calibration = Calibration(*found)
        means = [
            (mean, self.space.standard(median)) for mean, median in (self._means(hidden, g) for g, _ in pair)
        ]
        said = np.stack([median - mean for mean, median in means])
        weight = _weights(said, np.stack([rows.standard - mean for mean, _ in means]), counts[:, :p], k)
        spread = self._spreads(hidden, [g for g, _ in pair], coded.numbers[held], counts[:, :p], keys)
        return replace(
            self.calibration, median=torch.from_numpy(weight).float(), spread=torch.from_numpy(spread).float()
        )

    def _corrections(self, hidden: Table, guess: Guess) -> np.ndarray:
        """(n, C + p) what the network would add to a guess: Gaussian scale, shares, standard scale."""
        p, columns = guess.standard.shape[1], guess.standard.shape[1] + self.space.offsets[-1]
        expected = self._expected(hidden, guess)
        scale = np.concatenate([guess.spread, _share_spread(guess.shares)], 1)
        gone = np.concatenate([hidden.missing[:, :p], self.space.spread(hidden.missing[:, p:])], 1)
        return np.concatenate([gone * scale * expected[:, :columns], expected[:, columns:]], 1)

    def _centre(self, hidden: Table, guess: Guess) -> np.ndarray:
        """(n, C) the calibrated mean in model space, by one chain and the network."""
        p = guess.standard.shape[1]
        weight = np.concatenate(
            [
                self.calibration.gauss.numpy(),
                np.repeat(self.calibration.shares.numpy(), self.space.cardinalities),
            ]
        )
        correction = self._corrections(hidden, guess)[:, : len(weight)]
        return np.concatenate([guess.gauss, guess.shares], 1) + weight * correction

    def _means(self, hidden: Table, guess: Guess) -> tuple[np.ndarray, np.ndarray]:
        """(n, p) the mean on the standard scale, and the median in raw units."""
        p, columns = guess.standard.shape[1], guess.standard.shape[1] + self.space.offsets[-1]
        expected = self._expected(hidden, guess)
        median = self.space.from_gauss(self._centre(hidden, guess)[:, :p])
        mean = guess.standard + self.calibration.standard.numpy() * expected[:, columns:]
        return mean + self.calibration.median.numpy() * (self.space.standard(median) - mean), median

    def _spreads(
        self,
        hidden: Table,
        pair: list[Guess],
        truth: np.ndarray,
        counts: np.ndarray,
        keys: Keys,
        draws: int = 20,
    ) -> np.ndarray:
        """(p,) the factor on the draws with which 90 % intervals will cover 90 % of cells.

        It is found on held-out cells around one chain's centre (s_1) and around the average of two (s_2);
        the squared width goes as a + b / K in the number of chains, which gives it for all of them.
        """
        p, chains = counts.shape[1], self.chains.chains_
        centres = [self._centre(hidden, guess)[:, :p] for guess in pair]
        noise = self._noise([hidden], [pair[0]], keys, draws)[..., :p]
        one = self._factor(centres[0], noise, truth, counts) ** 2
        two = self._factor((centres[0] + centres[1]) / 2, noise, truth, counts) ** 2
        slope = 2 * np.clip(one - two, 0, None)
        return np.sqrt(np.clip(one - slope * (1 - 1 / chains), 0.15 * one, None))

    def _factor(
        self, centre: np.ndarray, noise: np.ndarray, truth: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """(p,) the factor on the noise with which 90 % intervals around this centre cover 90 %."""
        factors = np.geomspace(0.3, 3.5, 33)
        score, inside = np.zeros((2, len(factors), counts.shape[1]))
        for i, factor in enumerate(factors):
            low, high = interval(self.space.from_gauss(centre + factor * noise))
            miss = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
            score[i] = np.where(counts, (high - low + 20 * miss) / self.space.stds_, 0).sum(0)
            inside[i] = ((miss <= 0) & counts).sum(0)
        cells = counts.sum(0)
        # A column with few held-out cells leans on all columns together, as if it had 150 cells more.
        total = max(cells.sum(), 1)
        coverage = (inside + 150 * inside.sum(1, keepdims=True) / total) / (cells + 150)
        score = (score + 150 * score.sum(1, keepdims=True) / total) / (cells + 150)
        covering = np.maximum.accumulate(coverage, 0)
        reached = np.array([np.interp(0.9, column, factors) for column in covering.T])
        # Where values pile up (nine zeros in ten), every width covers: the interval score decides.
        return np.where(coverage[0] > 0.9, factors[score.argmin(0)], reached)

    # ----------------------------------------------------------------------------------------------- fill

    def fill(self, coded: Coded, items: np.ndarray, *, seed: int = 0, draws: int = 20) -> Filled:
        """Fill the missing cells of a table.

        Args:
            coded: (n, p) and (n, q), coded as the table fitted on.
            items: (n,) int64, a key for each row; a draw depends on (seed, key, draw) and the row alone.
            draws: how many draws.
        """
        parts = []
        for start in range(0, len(items), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            some = Coded(coded.numbers[chunk], coded.codes[chunk])
            table = _table(self.space, some)
            guesses = [self.chains.guess(table, np.full(len(some), k)) for k in range(self.chains.chains_)]
            for first in range(0, len(some), _ROWS):
                rows = np.arange(first, min(first + _ROWS, len(some)))
                parts.append(self._fill_rows(some, table, guesses, rows, items[chunk], seed, draws))
        if not parts:
            n, p, q = 0, coded.numbers.shape[1], coded.codes.shape[1]
            empty = np.zeros((draws, n, p)), np.zeros((draws, n, q), np.int32)
            return Filled(
                *empty, np.zeros((n, p)), np.zeros((n, p)), np.ones((n, q)), np.zeros((n, q), np.int32)
            )
        axes = {"numbers": 1, "codes": 1}
        return Filled(
            *(
                np.concatenate([getattr(part, f.name) for part in parts], axes.get(f.name, 0))
                for f in fields(Filled)
            )
        )

    def _fill_rows(
        self,
        coded: Coded,
        table: Table,
        guesses: list[Guess],
        rows: np.ndarray,
        items: np.ndarray,
        seed: int,
        draws: int,
    ) -> Filled:
        count, p = len(rows), coded.numbers.shape[1]
        padded = np.concatenate([rows, np.full(_ROWS - count, rows[-1])])
        hidden, guesses = table[padded], [guess[padded] for guess in guesses]
        keys = Keys(
            seed, torch.from_numpy(items[padded].astype(np.int64)), torch.zeros(_ROWS, dtype=torch.int64)
        )
        centre = np.mean([self._centre(hidden, guess) for guess in guesses], 0)
        means = [self._means(hidden, guess)[0] for guess in guesses]
        spread = np.concatenate([self.calibration.spread.numpy(), np.ones(centre.shape[1] - p, np.float32)])
        noise = self._noise([hidden] * len(guesses), guesses, keys, draws)
        drawn = (centre + spread * noise)[:, :count]
        observed = ~np.isnan(coded.numbers[rows])
        numbers, mean, median = (
            np.where(observed, coded.numbers[rows], filled)
            for filled in (
                self.space.from_gauss(drawn[..., :p]),
                self.space.raw(np.mean(means, 0))[:count],
                self.space.from_gauss(centre[:count, :p]),
            )
        )
        mode, probability = self._levels(centre[:count, p:], coded.codes[rows])
        codes = np.zeros((draws, *mode.shape), np.int32)
        for d in range(draws):
            codes[d] = self._levels(drawn[d, :, p:], coded.codes[rows])[0]
        return Filled(numbers, codes, mean, median, probability, mode)

    def _expected(self, table: Table, guess: Guess) -> np.ndarray:
        """(n, C + p) the network's expectation of the residuals."""
        with torch.no_grad():
            condition = self.denoiser.network.encode(self._condition(table, guess))
            return self.denoiser.network.expectation(condition).numpy()

    def _condition(self, table: Table, guess: Guess) -> Condition:
        p = table.standard.shape[1]
        gone = table.missing
        hidden = torch.from_numpy(np.concatenate([gone[:, :p], self.space.spread(gone[:, p:])], 1))
        known = Encoded(torch.zeros(hidden.shape), ~hidden)
        return Condition(channels=torch.from_numpy(self._features(table, guess)), known=known)

    def _noise(self, tables: list[Table], guesses: list[Guess], keys: Keys, draws: int) -> np.ndarray:
        """(draws, n, C) diffused residuals in model space, 0 where known; draw d is told by guess d mod K."""
        n, p = tables[0].standard.shape
        gone = np.concatenate([tables[0].missing[:, :p], self.space.spread(tables[0].missing[:, p:])], 1)
        scales = [gone * np.concatenate([guess.spread, _share_spread(guess.shares)], 1) for guess in guesses]
        sampler = DPMSolver2M(steps=self.settings.sampler_steps)
        out = np.zeros((draws, *gone.shape), np.float32)
        with torch.no_grad():
            told = [
                self.denoiser.network.encode(self._condition(*pair))
                for pair in zip(tables, guesses, strict=True)
            ]
            for first in range(0, draws, _DRAWS):
                # Always _DRAWS at once, also when fewer are wanted: the same arithmetic for the same draw.
                number = torch.arange(first, first + _DRAWS)
                condition = _stacked([told[int(d) % len(told)] for d in number])
                batch = Keys(keys.seed, keys.items.repeat(_DRAWS), number.repeat_interleave(n))
                noise = (
                    sampler(self.denoiser, (gone.shape[1],), batch, condition).reshape(_DRAWS, n, -1).numpy()
                )
                for d in range(first, min(first + _DRAWS, draws)):
                    out[d] = scales[d % len(scales)] * noise[d - first]
        return out

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
            "numbers": len(self.space.means_),
            "chains": self.chains.chains_,
            "typical": self.denoiser.typical,
            "missing_rate": self.missing_rate,
        }
        tensors = self.space.state() | self.chains.state()
        tensors |= {f"network.{name}": value for name, value in self.denoiser.network.state_dict().items()}
        tensors |= {f"calibration.{f.name}": getattr(self.calibration, f.name) for f in fields(Calibration)}
        return config, {name: value.contiguous() for name, value in tensors.items()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TableModel:
        """What `state` wrote."""
        settings = ModelSettings.from_dict(config["settings"])
        cardinalities, p = config["cardinalities"], config["numbers"]
        space = TableSpace.from_state(cardinalities, tensors)
        chains = TreeChains.from_state(cardinalities, settings.trees, config["chains"], tensors)
        columns = p + space.offsets[-1]
        network = RecordsNetwork(
            3 * p + p + len(cardinalities) + space.offsets[-1],
            columns,
            columns + p,
            width=settings.width,
            depth=settings.depth,
            head_width=settings.head_width,
            head_depth=settings.head_depth,
            dropout=settings.dropout,
        )
        network.load_state_dict(
            {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        )
        denoiser = RecordsDenoiser(network, Cosine(), columns, config["typical"]).eval()
        found = Calibration(*(tensors[f"calibration.{f.name}"] for f in fields(Calibration)))
        return cls(settings, space, chains, denoiser, found, config["missing_rate"])


def interval(draws: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval from draws along axis 0.

    Quantile q is the (m + 1) q-th of m draws in order (Weibull's plotting position): a new value of the same
    law then falls below it with probability q exactly, also when draws are few; numpy's default would make
    90 % intervals of 20 draws cover 81 %.
    """
    tails = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return tails[0], tails[1]


def _stacked(conditions: list[Condition]) -> Condition:
    """Encoded conditions one below the other."""
    tokens, observed = [], []
    for condition in conditions:
        assert condition.tokens is not None and condition.known is not None
        tokens.append(condition.tokens)
        observed.append(condition.known.observed)
    known = torch.cat(observed)
    return Condition(tokens=torch.cat(tokens), known=Encoded(torch.zeros(known.shape), known))


def _table(space: TableSpace, coded: Coded) -> Table:
    """Both scales; levels beyond the fitted ones count as missing."""
    codes = np.where(coded.codes < np.array(space.cardinalities, dtype=int), coded.codes, -1)
    return Table(space.standard(coded.numbers), space.gauss(coded.numbers), codes.astype(np.int32))


def _share_spread(shares: np.ndarray) -> np.ndarray:
    """Standard deviation of an indicator that is 1 with this probability, not below 0.05."""
    return np.asarray(np.sqrt(np.clip(shares * (1 - shares), 0.0025, None)))


def _folds(rows: int, folds: int, seed: int) -> np.ndarray:
    """(rows,) balanced folds in random order, a function of the seed alone."""
    order = Keys.range(seed, rows).uniform((), "fold").argsort().argsort().numpy()
    return np.asarray(order % max(min(folds, rows), 1))


def _held_out(rows: int, settings: ModelSettings, seed: int) -> np.ndarray:
    """(rows,) True for rows kept from the network: at least 15 % of small tables, at most 2,000 rows."""
    share = min(max(settings.held_out, 0.15 if rows < 3000 else 0.0), 2000 / max(rows, 1))
    order = Keys.range(seed, rows).uniform((), "held out").argsort().argsort().numpy()
    return np.asarray(order < (round(share * rows) if rows >= 30 else 0))


def _select(copies: list[_HiddenCopies], rows: Tensor) -> _HiddenCopies:
    """These rows of every copy."""
    parts = [
        [getattr(copy, name)[rows] for copy in copies]
        for name in ("features", "residual", "counts", "hidden")
    ]
    return _HiddenCopies(*(torch.cat(part) for part in parts))


def _weights(said: np.ndarray, error: np.ndarray, counts: np.ndarray, chains: int) -> np.ndarray:
    """(p,) the weight w, 0 to 1, for which m + w d errs least in the mean square, when guesses m and
    corrections d will be averaged over K chains.

    Errors and corrections of two chains that did not see the row estimate both the average of products
    within a chain (of which the averages over K chains have 1 / K) and across chains (the rest): a
    correction that only takes a chain's own noise back is not needed where averaging does.

    Args:
        said, error: (2, n, p), d and x - m of the two chains.
        counts: (n, p) cells that count.
    """
    said, error = np.where(counts, said, 0).astype(float), np.where(counts, error, 0).astype(float)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        within = (a[0] * b[0] + a[1] * b[1]).sum(0) / 2
        across = (a[0] * b[1] + a[1] * b[0]).sum(0) / 2
        return np.asarray(within / chains + across * (1 - 1 / chains))

    gain, square = product(said, error), product(said, said).clip(min=0)
    # A column with few cells leans on all columns together, as if it had 50 cells more.
    common = np.clip(gain.sum() / max(square.sum(), 1e-12), 0, 1)
    typical = 50 * square.sum() / max(counts.sum(), 1) + 1e-12
    return np.clip((gain + typical * common) / (square + typical), 0, 1)

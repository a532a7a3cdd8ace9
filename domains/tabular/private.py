"""A generator of a table that keeps each row's influence small: differential privacy, and what it costs.

What looks at the rows: one noisy count of every level of every column (the Gaussian mechanism), and the steps
of the training (`shared.private`). The rest is declared (`declared`), told (rules), or made of these.
The counts join seldom neighbouring levels of numbers and set the shares that the network starts from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ...shared.errors import InputError
from ...shared.levels import LevelsDenoiser, LevelsShape
from ...shared.noise import key_of
from ...shared.private import PrivateTraining, epsilon_of, noise_for, require_opacus, secret, train_privately
from .codec import TableCodec
from .correction import one_thread
from .declared import Declaration, Declared, merged
from .generator import CALIBRATED, GeneratorSettings, TableGenerator, new_denoiser
from .parts import Part, Parts
from .rules import Rules

COUNTING = 0.15
"""Share of epsilon that the counts may have, were they alone."""
NOTICED = 0.01
"""Share of the cells of a column that lie outside of what is declared, from which the person is told."""
MERGED = 3.0
"""Standard deviations of noise that a level of a number must stand out of."""


@dataclass(frozen=True)
class PrivacySettings:
    """What privacy is asked for, and how it is spent.

    Args:
        epsilon, delta: the bound; delta None is 1e-5, or a tenth of one over the rows where that is less.
        declared: what the columns may hold.
        clip, hidings, learning_rate: see `shared.private.PrivateTraining`.
        batch: rows of a step on average, at most an eighth of the table.
        passes: how often each row takes part, on average.
        width, depth: of the network: the noise is in every weight, so that few are better.
    """

    epsilon: float
    declared: Declaration
    delta: float | None = None
    clip: float = 0.5
    hidings: int = 2
    learning_rate: float = 2e-3
    batch: int = 4096
    passes: int = 20
    width: int = 64
    depth: int = 1

    def delta_for(self, rows: int) -> float:
        """Raises InputError where delta is no protection, or epsilon none at all."""
        delta = min(1e-5, 0.1 / max(rows, 1)) if self.delta is None else self.delta
        if not (0 < self.epsilon < math.inf and 0 < delta < 1 / max(rows, 1)):
            what = f"epsilon must be above 0, and delta above 0 and below one over the {rows} rows"
            raise InputError("epsilon", what, "--epsilon, --delta", "write --epsilon 3 --delta 1e-6")
        return delta


def fit_privately(
    frame: pd.DataFrame,
    private: PrivacySettings,
    *,
    missing: Collection[Hashable] | Mapping[Hashable, Collection[Hashable]] = (),
    rules: Sequence[str] = (),
    seed: int = 0,
    rng: torch.Generator | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[TableCodec, TableGenerator, dict[str, Any]]:
    """Codec, generator, and the facts of the mechanism.

    Args:
        missing: as for `FittedTable.fit`.
        rules: what must hold in every row: told, never found.
        seed: of the first weights alone.
        rng: for tests; by itself the operating system's, which nobody can know.

    Raises:
        InputError: no Opacus; a column that is not declared; an epsilon that cannot be had.
    """
    require_opacus()
    rng = rng or secret()
    declared, rows = private.declared.of(frame), len(frame)
    delta = private.delta_for(rows)
    codec = TableCodec(missing)
    codec.columns_ = tuple(
        replace(one.column, label=label) for one, label in zip(declared, frame, strict=True)
    )
    told = Rules.parse(rules, [column for column in codec.columns_ if column.modelled])
    if told.together:
        what = "which combinations there are would be learnt from the rows without noise"
        raise InputError(
            "rule-private", what, "--constraint together(...)", "leave it out, or train without --epsilon"
        )
    finest = finest_parts(declared)
    levels = encoded(frame, declared, finest, codec)
    facts = plan(private, rows, len(finest.parts), delta)
    counts = noisy_counts(levels, finest, facts["counts_noise"] * math.sqrt(max(len(finest.parts), 1)), rng)
    spread = facts["counts_noise"] * math.sqrt(max(len(finest.parts), 1))
    parts, levels, counts = _merged(finest, declared, levels, counts, spread)
    shape = _shape(parts, counts, rows)
    settings = GeneratorSettings(width=private.width, depth=private.depth, dropout=0.0, steps=facts["steps"])
    generator = TableGenerator(settings, parts, told, [], new_denoiser(shape, settings, seed))
    how = PrivateTraining(
        facts["noise_multiplier"],
        private.clip,
        facts["sampling_rate"],
        facts["steps"],
        private.hidings,
        private.learning_rate,
    )
    with one_thread():
        train_privately(generator.denoiser, torch.from_numpy(levels), how, rng=rng, progress=progress)
        calibrate(generator.denoiser, shape, seed)
    return codec, generator, facts


def plan(private: PrivacySettings, rows: int, parts: int, delta: float) -> dict[str, Any]:
    """How the budget is spent, from numbers that are public; this goes into the model."""
    rate = min(private.batch / max(rows, 1), 0.125)
    steps = math.ceil(private.passes / rate)
    counting = noise_for(COUNTING * private.epsilon, delta)
    noise = noise_for(private.epsilon, delta, rate, steps, [(counting, 1.0, 1)])
    spent = epsilon_of([(counting, 1.0, 1), (noise, rate, steps)], delta)
    return {
        "epsilon": private.epsilon,
        "delta": delta,
        "spent": round(spent, 4),
        "unit": "one row, present or replaced by an empty one; the number of rows is public",
        "accountant": "Renyi differential privacy (Opacus)",
        "mechanisms": "one noisy count of all levels (Gaussian); DP-SGD (Poisson sampling, clipped rows)",
        "counts_noise": counting,
        "counts_sensitivity": math.sqrt(parts),
        "clipping_norm": private.clip,
        "noise_multiplier": noise,
        "sampling_rate": rate,
        "steps": steps,
        "hidings": private.hidings,
        "statement": f"({private.epsilon:g}, {delta:.2g})-differential privacy of one row",
    }


def finest_parts(declared: Sequence[Declared]) -> Parts:
    """The parts of a table before anything is known of its rows."""
    numbers = [one for one in declared if one.column.is_number]
    categories = [one for one in declared if one.column.is_category]
    places = {one.name: at for group in (numbers, categories) for at, one in enumerate(group)}
    parts = []
    for one in declared:
        if one.column.is_category:
            count = len(one.column.levels) + one.missing
            parts.append(Part(one.name, "category", places[one.name], count, one.missing))
        elif one.column.is_number:
            bins = one.bins()
            count = len(bins) + one.missing
            parts.append(Part(one.name, "number", places[one.name], count, one.missing, bins))
    columns = tuple(one.column for one in (*numbers, *categories))
    return Parts(columns, tuple(parts), tuple(one.grid for one in numbers))


def encoded(frame: pd.DataFrame, declared: Sequence[Declared], parts: Parts, codec: TableCodec) -> np.ndarray:
    """(n, P) int64 levels; -1 where a cell is not known. A row's answer depends on the row alone."""
    by_name = {part.name: part for part in parts.parts}
    found = []
    for at, one in enumerate(declared):
        if (part := by_name.get(one.name)) is None:
            continue
        values, known = one.read(frame.iloc[:, at], codec.codes_of(frame.columns[at]))
        levels = np.where(known, part.levels_of(values), -1)
        if len(known) and (share := float((~known).mean())) > NOTICED:
            told = (
                f"column {one.name!r}: {share:.0%} of the cells are not as declared, and are not learnt from"
            )
            warnings.warn(told, RuntimeWarning, stacklevel=3)  # for the person here; it goes nowhere else
        found.append(levels)
    return np.stack(found, 1).astype(np.int64) if found else np.empty((len(frame), 0), np.int64)


def noisy_counts(levels: np.ndarray, parts: Parts, spread: float, rng: torch.Generator) -> list[np.ndarray]:
    """How many rows have each level of each part, with noise; a row is in one level of a part at most."""
    counts = []
    for place, part in enumerate(parts.parts):
        known = levels[levels[:, place] >= 0, place]
        noise = torch.randn(part.levels, generator=rng, dtype=torch.float64)
        counts.append(np.bincount(known, minlength=part.levels) + spread * noise.numpy())
    return counts


def _merged(
    finest: Parts, declared: Sequence[Declared], levels: np.ndarray, counts: list[np.ndarray], spread: float
) -> tuple[Parts, np.ndarray, list[np.ndarray]]:
    """Parts of which no level of a number drowns in noise, with the levels and counts in these."""
    values = {one.name: one.values for one in declared}
    levels, parts, joined = levels.copy(), [], []
    for at, (part, held) in enumerate(zip(finest.parts, counts, strict=True)):
        if part.bins is None:
            parts.append(part)
            joined.append(held)
            continue
        bins, places = merged(part.bins, held[: part.seen], MERGED * spread, values[part.name])
        new = replace(part, bins=bins, levels=len(bins) + part.gone)
        places = np.append(places, new.levels - 1) if part.gone else places
        levels[:, at] = np.where(levels[:, at] < 0, -1, places[levels[:, at].clip(min=0)])
        parts.append(new)
        joined.append(np.bincount(places, weights=held, minlength=new.levels))
    return replace(finest, parts=tuple(parts)), levels, joined


def _shape(parts: Parts, counts: Sequence[np.ndarray], rows: int) -> LevelsShape:
    """What the network is told, from noisy counts alone."""
    return parts.shape_of([nearest_counts(held, float(rows)) for held in counts], rows, 0.5)


@torch.no_grad()
def calibrate(denoiser: LevelsDenoiser, shape: LevelsShape, seed: int, rounds: int = 3) -> None:
    """Shift the logits so that drawn rows have the levels as often as the noisy counts say. Real rows are not
    looked at: rows are drawn column after column, and each column is set right before it is drawn.

    Args:
        shape: has the shares.
    """
    network, at = denoiser.network, shape.offsets
    generator = torch.Generator().manual_seed(key_of(seed, "calibrated privately"))
    codes = torch.zeros(CALIBRATED, len(shape.levels), dtype=torch.int64)
    hidden = torch.ones(codes.shape, dtype=torch.bool)
    shares = torch.tensor(shape.log_shares, dtype=torch.float64).exp()
    for column in denoiser.order:
        part = slice(at[column], at[column + 1])
        record = network.encode(codes, hidden)
        for _ in range(rounds):
            predicted = network.logits(record, column, column + 1).double().softmax(1).mean(0)
            network.bias[part] += ((shares[part] + 1e-5) / (predicted + 1e-5)).log().to(network.bias.dtype)
        law = network.logits(record, column, column + 1).softmax(1)
        codes[:, column] = torch.multinomial(law, 1, generator=generator)[:, 0]
        hidden[:, column] = False


def nearest_counts(noisy: np.ndarray, total: float) -> np.ndarray:
    """The counts (L,), none below 0, `total` together, nearest to noisy ones (Duchi et al. 2008)."""
    falling = np.sort(noisy)[::-1]
    excess = (falling.cumsum() - total) / np.arange(1, len(noisy) + 1)
    last = np.flatnonzero(falling > excess)[-1]
    return np.asarray(np.maximum(noisy - excess[last], 0.0))


def settings_told(private: PrivacySettings) -> dict[str, Any]:
    """What was asked for, as plain JSON."""
    told = asdict(replace(private, declared=Declaration({}, private.declared.path)))
    return {**told, "declared": str(private.declared.path)}

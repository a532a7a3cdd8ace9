"""The generator of a table: what it knows of the columns, and the network that draws rows.

Absorbing-state diffusion over the columns (`shared.levels`), each made into levels (`parts`); a row is
drawn by unmasking part after part (`walk`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from ...shared.data import NOTHING
from ...shared.ema import PowerFunction
from ...shared.errors import EbbtideError, InputError
from ...shared.levels import LevelsDenoiser, LevelsNetwork, LevelsShape
from ...shared.noise import Keys, key_of
from ...shared.schedules import UniformDensity
from ...shared.settings import computes_bfloat16
from ...shared.training import Batch, TrainingSettings, train
from .codec import Coded
from .columns import Column
from .conditions import demanded
from .correction import one_thread
from .parts import Parts
from .rules import Order, Rules, found_anchors, found_orders, found_pairs
from .walk import Demand, Walk
from .zeros import Zeros

Progress = Callable[[str, float], None]
ROWS = 512
"""The micro-batch of inference: fixed, so that a row does not depend on its company."""
CANDIDATES = 16
"""Draws of the columns that ranges were asked of, of which one is taken by its weight."""
CALIBRATED = 8192
"""Training rows by which the shares of levels are set right after the training."""
TRIES = 40
"""How often a row is drawn until it is as demanded."""


@dataclass(frozen=True)
class GeneratorSettings:
    """How a generator is made. The defaults suit tables of 100 to 100,000 rows on an ordinary machine.

    Args:
        bins: of a number with many values, at most.
        rare: a value of fewer rows is no level of its own: it could be somebody's.
        width, depth, dropout: of the network; width None chooses by the number of rows.
        steps: training steps, at most; None chooses by the number of rows.
        batch_size, learning_rate, weight_decay: of the training.
        patience: validations without a better one, after which it stops.
        held_out: share of the rows kept for stopping.
        straight: share of training in the order of generation; the rest hides columns at random.
    """

    bins: int = 128
    rare: int = 5
    width: int | None = None
    depth: int = 3
    dropout: float = 0.3
    steps: int | None = None
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    patience: int = 5
    held_out: float = 0.1
    straight: float = 0.5

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> GeneratorSettings:
        """From plain JSON."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    def width_for(self, rows: int) -> int:
        """Of the network: few rows cannot teach a wide one."""
        return self.width or (512 if rows > 5000 else 256 if rows > 1000 else 128)

    def steps_for(self, rows: int) -> int:
        """Training steps: stopping early ends most trainings before."""
        return self.steps if self.steps is not None else int(np.clip(rows / 35, 300, 3000))


class _Rows:
    """Training rows. Implements `shared.training.Examples`."""

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = torch.from_numpy(levels.astype(np.float32))

    def __len__(self) -> int:
        return len(self.levels)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        x = self.levels[indices]
        return Batch(x, NOTHING, torch.ones(x.shape, dtype=torch.bool))


class TableGenerator:
    """Made by `fit` or `from_state`; `draw` is what it is for.

    Attributes:
        settings, parts, rules, groups, zeros, shape, denoiser: its parts. `rules` are those that all training
            rows obeyed and those it was told; `groups` are the combinations of levels that there are, `zeros`
            pairs of levels that there are not.
        memory: how well training rows were told from held-out ones as the training went on: rows of step,
            members, others (mean -log p of both), rows (of each), auc, auc_low, auc_high; at some steps also
            how many rows that were drawn then are near copies (`measures.memorising`).
        kept_step: whose weights these are.
    """

    def __init__(
        self,
        settings: GeneratorSettings,
        parts: Parts,
        rules: Rules,
        groups: Sequence[tuple[tuple[int, ...], np.ndarray]],
        denoiser: LevelsDenoiser,
        zeros: Zeros | None = None,
    ) -> None:
        self.settings, self.parts, self.rules = settings, parts, rules
        self.groups, self.denoiser, self.shape = tuple(groups), denoiser, denoiser.network.shape
        self.zeros = zeros or Zeros.none(self.shape.levels)
        self.memory: list[dict[str, float]] = []
        self.kept_step = 0

    @classmethod
    def fit(
        cls,
        coded: Coded,
        columns: Sequence[Column],
        settings: GeneratorSettings | None = None,
        *,
        rules: Sequence[str] = (),
        seed: int = 0,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> TableGenerator:
        """Fit to a table.

        Args:
            coded: the table.
            columns: its modelled columns, in the order of the table.
            rules: what must hold in every row, see `rules`; what held in all training rows is found by
                itself.
            folder: where the training keeps its checkpoints; None keeps none.
            resume: go on from those checkpoints.
            progress: told what is done, and the fraction of the whole.

        Raises:
            Diverged, Interrupted, InputError: as `shared.training.train`; rules that cannot be read.
        """
        model = cls.untrained(coded, columns, settings, rules=rules, seed=seed)
        if len(model.parts.parts) and len(coded) >= 2:
            tell = progress or (lambda label, fraction: None)
            model._learn(coded, seed, folder, resume, device, tell)
        return model

    @classmethod
    def untrained(
        cls,
        coded: Coded,
        columns: Sequence[Column],
        settings: GeneratorSettings | None = None,
        *,
        rules: Sequence[str] = (),
        seed: int = 0,
    ) -> TableGenerator:
        """What is known before training: the parts, the rules, a network that says the columns' shares."""
        settings, rows = settings or GeneratorSettings(), len(coded)
        settings = replace(settings, width=settings.width_for(rows), steps=settings.steps_for(rows))
        told = Rules.parse(rules, columns)
        numbers = [column for column in columns if column.is_number]
        orders = found_orders(coded, numbers)
        anchors = found_anchors(coded, numbers, orders)
        parts = Parts.fit(coded, columns, anchors, bins=settings.bins, rare=settings.rare)
        levels = parts.encode(coded)
        shape = parts.shape(levels)
        groups = [*found_pairs(levels, shape.levels), *_places(parts, told.together)]
        seen = [(group, np.unique(levels[:, list(group)], axis=0)) for group in groups]
        found, zeros = Rules(orders=orders) | told, Zeros.found(levels, shape.levels)
        return cls(settings, parts, found, seen, new_denoiser(shape, settings, seed), zeros)

    def seconds_of_a_step(self, coded: Coded) -> float:
        """How long a step of training takes here: the second of two, which change nothing."""
        if not self.parts.parts:
            return 0.0
        levels = torch.from_numpy(self.parts.encode(coded)).float()
        x = levels[torch.arange(self._batch(len(levels))) % len(levels)]
        seconds = 0.0
        for _ in range(2):
            begun = monotonic()
            with one_thread(), torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
                loss = self.denoiser.loss(x, torch.randn_like(x), torch.rand(len(x)), NOTHING, x >= 0)
            loss.mean().backward()
            seconds = monotonic() - begun
        self.denoiser.zero_grad()
        return seconds

    def _batch(self, rows: int) -> int:
        """Rows of a batch: of a small table a quarter."""
        return min(self.settings.batch_size, max(64, rows // 4))

    def _learn(
        self, coded: Coded, seed: int, folder: Path | None, resume: bool, device: str, tell: Progress
    ) -> None:
        levels = self.parts.encode(coded)
        held = _held_out(len(levels), self.settings.held_out, seed)
        steps = self.settings.steps or 1
        training = TrainingSettings(
            steps=steps,
            batch_size=self._batch(len(levels)),
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            ema=PowerFunction(0.08),
            warmup=min(100, steps // 4 + 1),
            density=UniformDensity(),
            validate_every=max(steps // 15, 20),
            validation_draws=2 if held.sum() > 1000 else 8,
            patience=self.settings.patience,
            checkpoint_every=250,
            precision="bf16" if computes_bfloat16() else "fp32",
        )
        from .measures.memorising import Memorising, chosen

        watched = Memorising(self, coded, levels, held, seed, training) if held.any() else None
        with one_thread():
            done = train(
                self.denoiser,
                _Rows(levels[~held]),
                training,
                held_out=_Rows(levels[held]) if held.any() else None,
                seed=seed,
                folder=folder,
                resume=resume,
                device=device,
                watch=watched,
                progress=tell,
            )
            self.kept_step = done.best_step
            self.denoiser.to("cpu").calibrate(torch.from_numpy(chosen(levels, CALIBRATED, seed)))
            if watched is not None:
                self.memory = watched.remembered(done.history, self.kept_step)

    # ----------------------------------------------------------------------------------------------- draw

    def glimpse(self, seed: int) -> Coded:
        """Rows of the weights as they are, `ROWS` but for those that break a rule: one look, however little
        was learnt. Nothing is changed, and no random state used."""
        drawing = self
        if next(self.denoiser.parameters()).device.type != "cpu":  # `law` computes on the processor
            drawing = copy(self)
            drawing.denoiser = deepcopy(self.denoiser).to("cpu")
        keys = Keys.range(key_of(seed, "glimpse"), ROWS)
        made, broken = drawing._rows(keys, np.arange(ROWS), drawing.demand(), 0)
        return Coded(made.numbers[~broken], made.codes[~broken])

    def demand(
        self,
        condition: Mapping[str, str] | None = None,
        rules: Sequence[str] = (),
        *,
        complete: bool = False,
    ) -> Demand:
        """What is asked of the rows: see `conditions.demanded`."""
        return demanded(self, condition or {}, rules, complete)

    def draw(self, keys: Keys, demand: Demand, progress: Callable[[float], None] | None = None) -> Coded:
        """Rows that are as demanded; each depends on its key and the demand alone.

        Raises:
            InputError: `rules-unmet`, what is demanded happens too seldom.
        """
        rows = len(keys)
        width = sum(column.is_category for column in self.parts.columns)
        out = Coded(np.full((rows, len(self.parts.numbers)), np.nan), np.full((rows, width), -1, np.int32))
        left = np.arange(rows)
        for attempt in range(TRIES):
            starts = range(0, len(left), ROWS)
            with one_thread():
                jobs = Parallel(
                    torch.get_num_threads() if len(starts) > 1 else 1, prefer="threads", return_as="generator"
                )
                bad = []
                walks = jobs(
                    delayed(self._rows)(keys, left[at : at + ROWS], demand, attempt) for at in starts
                )
                for at, (made, broken) in zip(starts, walks, strict=True):
                    here = left[at : at + ROWS]
                    out.numbers[here], out.codes[here] = made.numbers, made.codes
                    bad.append(here[broken])
                    if progress is not None and attempt == 0:
                        progress(min(at + ROWS, rows) / rows)
            left = np.concatenate(bad) if bad else left
            if not len(left):
                return out
        raise InputError(
            "rules-unmet",
            f"{len(left)} of {rows} rows break what was asked of them, {TRIES} times in a row",
            "--condition or --constraint",
            "ask for less: what is asked together hardly ever happened in training",
        )

    def _rows(self, keys: Keys, rows: np.ndarray, demand: Demand, attempt: int) -> tuple[Coded, np.ndarray]:
        """At most `ROWS` rows, padded to that number with the last of them; and which are not as demanded."""
        padded = torch.from_numpy(np.concatenate([rows, np.full(ROWS - len(rows), rows[-1])]))
        mine = Keys(keys.seed, keys.items[padded], keys.draws[padded] + (attempt << 20))
        places, first = list(range(len(self.parts.parts))), list(demand.first)
        rest = [place for place in places if place not in demand.first]
        shape = (len(places), 2)
        walk = Walk(self.parts, demand, self.law, ROWS)
        if demand.uncertain:
            walks = []
            for candidate in range(CANDIDATES):
                one = Walk(self.parts, demand, self.law, ROWS)
                one.go(first, mine.uniform(shape, f"candidate {candidate}").numpy())
                walks.append(one)
            weights = np.stack([one.weight for one in walks], 1)
            shares = np.exp(weights - weights.max(1, keepdims=True)).cumsum(1)
            chosen = (mine.uniform((1,), "chosen").numpy() * shares[:, -1:] >= shares).sum(1)
            for candidate, one in enumerate(walks):
                walk.take(one, chosen == candidate)
        else:
            rest = [*first, *rest]
        walk.go(rest, mine.uniform(shape, "cells").numpy())
        coded = walk.coded()
        broken = walk.broken(coded)
        part = slice(0, len(rows))
        return Coded(coded.numbers[part], coded.codes[part]), broken[part]

    @torch.no_grad()
    def law(self, levels: np.ndarray, hidden: np.ndarray, place: int) -> np.ndarray:
        """(R, L) probabilities of the levels of a part, given those that are not hidden."""
        network = self.denoiser.network
        record = network.encode(torch.from_numpy(levels), torch.from_numpy(hidden))
        return network.logits(record, place, place + 1).double().softmax(1).numpy()

    # ---------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain JSON and tensors, for `shared.artifacts.write_model`."""
        parts, tensors = self.parts.state()
        rules = asdict(self.rules)
        # JSON knows no infinity: an open end is null.
        rules["ranges"] = {
            name: [end if math.isfinite(end) else None for end in ends]
            for name, ends in self.rules.ranges.items()
        }
        config = {
            "settings": asdict(self.settings),
            **parts,
            "rules": rules,
            "groups": [list(g) for g, _ in self.groups],
            "memory": self.memory,
            "kept_step": self.kept_step,
        }
        tensors["own"] = torch.tensor(self.shape.own, dtype=torch.uint8)
        tensors["log_shares"] = torch.tensor(self.shape.log_shares, dtype=torch.float64)
        tensors["zeros"] = torch.from_numpy(self.zeros.pairs)
        tensors |= {
            f"group.{k}": torch.from_numpy(levels.copy()) for k, (_, levels) in enumerate(self.groups)
        }
        tensors |= {f"network.{name}": value for name, value in self.denoiser.network.state_dict().items()}
        return config, {name: value.contiguous() for name, value in tensors.items()}

    @classmethod
    def from_state(
        cls, columns: Sequence[Column], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> TableGenerator:
        """What `state` wrote; `columns` are the modelled ones.

        Raises:
            EbbtideError: `model-generator`, parts that do not fit each other.
        """
        try:
            return cls._read(columns, config, tensors)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            what = "the parts of the generator do not fit each other"
            raise EbbtideError(
                "model-generator", what, "model", "copy the model again, or train anew"
            ) from error

    @classmethod
    def _read(
        cls, columns: Sequence[Column], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> TableGenerator:
        settings = GeneratorSettings.from_dict(config["settings"])
        parts = Parts.from_state(columns, config, tensors)
        groups = [(tuple(g), tensors[f"group.{k}"].numpy()) for k, g in enumerate(config["groups"])]
        for group, held in groups:
            most = [parts.parts[place].levels for place in group]
            if held.shape[1:] != (len(group),) or (held < 0).any() or (held >= most).any():
                raise ValueError("a combination of levels that there are not")
        shape = LevelsShape(
            tuple(part.levels for part in parts.parts),
            tuple(part.bins is not None for part in parts.parts),
            tuple(tensors["log_shares"].tolist()),
            tuple(tensors["own"].bool().tolist()),
        )
        denoiser = new_denoiser(shape, settings, 0)
        network = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        denoiser.network.load_state_dict(network)
        # Models from before there were zeros have none.
        zeros = Zeros(tensors["zeros"].numpy(), shape.levels) if "zeros" in tensors else None
        made = cls(settings, parts, _rules(config["rules"]), groups, denoiser, zeros)
        made.memory, made.kept_step = list(config.get("memory", [])), int(config.get("kept_step", 0))
        return made


def new_denoiser(shape: LevelsShape, settings: GeneratorSettings, seed: int) -> LevelsDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(key_of(seed, "generator"))
        width = settings.width or 128
        network = LevelsNetwork(shape, width=width, depth=settings.depth, dropout=settings.dropout)
    return LevelsDenoiser(network, range(len(shape.levels)), settings.straight).eval()


def _places(parts: Parts, groups: Sequence[tuple[str, ...]]) -> list[tuple[int, ...]]:
    """The parts of each group of columns."""
    return [tuple(k for k, part in enumerate(parts.parts) if part.name in names) for names in groups]


def _rules(held: Mapping[str, Any]) -> Rules:
    ranges = {
        name: (-math.inf if low is None else float(low), math.inf if high is None else float(high))
        for name, (low, high) in held["ranges"].items()
    }
    sums = {
        name: tuple((int(sign), str(term)) for sign, term in terms) for name, terms in held["sums"].items()
    }
    return Rules(
        ranges,
        tuple(Order(**order) for order in held["orders"]),
        sums,
        tuple(tuple(names) for names in held["together"]),
        tuple(tuple(names) for names in held["unique"]),
    )


def _held_out(rows: int, share: float, seed: int) -> np.ndarray:
    """(rows,) True for rows that training is stopped by: 20 to 5,000; none of fewer than 60 rows."""
    count = 0 if rows < 60 else int(min(max(share * rows, 20), 5000))
    order = Keys.range(seed, rows).uniform((), "held out for the generator").argsort().argsort().numpy()
    return np.asarray(order < math.floor(count))

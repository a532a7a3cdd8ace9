"""One training without its surroundings: a step, a validation, and the whole of its state.

Everything random is a pure function of (seed, epoch, step): which examples come, what is hidden in them,
which times and which noise they get, and the dropout. So a training resumed from its state does what the
uninterrupted one would have done, and the global random state of the process is neither used nor changed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .data import Condition
from .denoisers import NetworkDenoiser
from .ema import Average, PowerFunction, Profile
from .errors import EbbtideError, InputError
from .noise import Keys, key_of
from .samplers import NoiseSource
from .schedules import LogNormalDensity, Schedule

_GOLDEN = (5**0.5 - 1) / 2


class Density(Protocol):
    """Which times are trained on: uniform numbers (B,) in (0, 1) to times (B,)."""

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Args:
        x_0: (B, C, *S) clean data in model space; any finite number where unknown.
        condition: what the network is told, the known part among it.
        where: bool, shaped like x_0: entries that count in the loss (hidden, yet really observed).
    """

    x_0: Tensor
    condition: Condition
    where: Tensor

    def to(self, device: torch.device) -> Batch:
        if self.x_0.device == device:
            return self
        return Batch(self.x_0.to(device), self.condition.to(device), self.where.to(device))


class Examples(Protocol):
    """A data set that hides and augments by key."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        """The examples at `indices` (B,) int64. Element k may depend on indices[k], keys[k] and nothing
        else: keys.items are the indices, keys.draws the epoch."""
        ...


@dataclass(frozen=True)
class TrainingSettings:
    """How a denoiser is trained.

    Args:
        steps: optimiser steps, at most.
        batch_size: examples a step; they may come from two epochs.
        micro_batch: examples computed at once (memory); None is the whole batch. The result is the same
            up to rounding.
        learning_rate, warmup, decay: AdamW's rate, reached linearly in `warmup` steps, then constant or
            falling to zero at `steps` along half a cosine.
        weight_decay: AdamW's.
        gradient_clip: largest norm of the gradient; None does not clip.
        ema: the profile of the averaged weights, which are validated and returned.
        density: which times are trained on.
        noise: a keyed noise source; None is white noise from a generator seeded by the step,
            which is 30 times faster.
        validate_every: steps between rows of the history (and validations, where there is a held-out set).
        validation_draws: noise draws per held-out example.
        patience: stop after so many validations without a better one; None never does.
        checkpoint_every: steps between checkpoints, when there is a folder.
        precision: "bf16" runs matrix products and convolutions in bfloat16; times, norms and loss stay
            float32.
        time_limit: seconds; None keeps the run reproducible.
    """

    steps: int = 2000
    batch_size: int = 256
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    gradient_clip: float | None = 1.0
    ema: Profile = field(default_factory=PowerFunction)
    density: Density = field(default_factory=LogNormalDensity)
    noise: NoiseSource | None = None
    validate_every: int = 100
    validation_draws: int = 1
    patience: int | None = None
    checkpoint_every: int = 1000
    precision: Literal["fp32", "bf16"] = "fp32"
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_draws", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError("bad-setting", f"{name} must be at least 1", "training settings", "raise it")
        if not self.learning_rate > 0:
            raise InputError("bad-setting", "learning_rate must be above 0", "training settings", "raise it")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise InputError("bad-setting", "micro_batch must be at least 1", "training settings", "raise it")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.decay == "constant":
            return rate
        passed = max(step - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return rate * (1 + math.cos(math.pi * min(passed, 1.0))) / 2

    def described(self) -> dict[str, Any]:
        """Plain JSON: numbers and texts as they are, objects by their repr."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = (int, float, str, type(None))
        return {name: v if isinstance(v, plain) else repr(v) for name, v in values.items()}


class Diverged(EbbtideError):
    """The loss or the gradient is not finite. The last good weights are kept."""


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in text
        or "out of memory" in text
    )


class Learner:
    """A denoiser, its optimiser, its averaged weights, and where the training stands.

    Args:
        denoiser: trained in place, on `device`.
        examples, held_out: what is learnt from, and what it is judged on.
        seed: of everything random.
        backward: how a loss is differentiated (Lightning has its own way).
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        examples: Examples,
        settings: TrainingSettings,
        *,
        held_out: Examples | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.denoiser = denoiser.to(self.device)
        self.examples, self.held_out, self.settings, self.seed = examples, held_out, settings, seed
        self.parameters = {n: p for n, p in denoiser.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.average = Average(denoiser, settings.ema)
        self.backward: Callable[[Tensor], None] = torch.Tensor.backward
        self.micro_batch = min(settings.micro_batch or settings.batch_size, settings.batch_size)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.best: tuple[int, float] | None = None  # step and held-out loss of the best average so far
        self.best_weights: dict[str, Tensor] = {}
        self.stale = 0  # validations since the best one
        self._losses: list[float] = []  # since the last row of the history
        self._order: dict[int, Tensor] = {}

    # --- what comes when ------------------------------------------------------------------------

    def order(self, epochs: range) -> Tensor:
        """(len(epochs), n): the order in which each epoch visits the examples."""
        wanted = [epoch for epoch in epochs if epoch not in self._order]
        if wanted:
            keys = Keys(self.seed, torch.tensor(wanted), torch.zeros(len(wanted), dtype=torch.int64))
            fresh = keys.uniform((len(self.examples),), "order").argsort(dim=1, stable=True)
            kept = {epoch: rows for epoch, rows in self._order.items() if epoch in epochs}
            self._order = kept | dict(zip(wanted, fresh, strict=True))
        return torch.stack([self._order[epoch] for epoch in epochs])

    def members(self, step: int) -> Keys:
        """Items (indices) and draws (epochs) of the examples of a step: the epochs laid end to end, cut
        into batches."""
        n, size = len(self.examples), self.settings.batch_size
        place = torch.arange(step * size, (step + 1) * size)
        epoch = place // n
        order = self.order(range(int(epoch[0]), int(epoch[-1]) + 1))
        return Keys(key_of(self.seed, "train"), order[epoch - epoch[0], place % n], epoch)

    def _generator(self, *name: object) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(key_of(self.seed, *name))

    # --- losses ---------------------------------------------------------------------------------

    def _per_example(
        self, examples: Examples, keys: Keys, uniform: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(loss, counted) of each example, both (b,), a micro-batch at a time. Noise is drawn for the whole
        batch first, so that it does not depend on how the batch is cut."""
        noise: Tensor | None = None
        for start in range(0, len(keys), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            batch = examples.batch(keys.items[rows], keys[rows]).to(self.device)
            x_0 = batch.x_0
            if self.settings.noise is not None:
                part = self.settings.noise(keys[rows], x_0, "noise")
            else:
                if noise is None:
                    shape = (len(keys), *x_0.shape[1:])
                    noise = torch.randn(shape, generator=generator, device=self.device, dtype=x_0.dtype)
                part = noise[rows]
            t = self.settings.density.sample(self.denoiser.schedule, uniform[rows]).to(self.device)
            half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")
            with half:
                loss = self.denoiser.loss(x_0, part, t, batch.condition, batch.where)
            yield loss.float(), batch.where.flatten(1).any(1)

    def _gradient(self) -> float:
        """Mean loss of the next batch; its gradient is left on the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        size = self.settings.batch_size
        generator = self._generator("step", self.step)
        # Stratified: one time from each of `size` equal slices, which lowers the variance of the loss.
        jitter = torch.rand(size, generator=generator, device=self.device, dtype=torch.float64)
        uniform = (torch.arange(size, device=self.device) + jitter) / size
        seed_dropout(key_of(self.seed, "dropout", self.step), self.device)
        total = 0.0
        for loss, _ in self._per_example(self.examples, self.members(self.step), uniform, generator):
            mean = loss.sum() / size
            self.backward(mean)
            total += float(mean.detach())
        return total

    def _halving(self, work: Callable[[], float]) -> float:
        """Run `work`, with ever smaller micro-batches while memory runs out."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.micro_batch == 1:
                    raise EbbtideError(
                        "out-of-memory",
                        f"one example does not fit into the memory of {self.device.type}",
                        f"step {self.step}",
                        "use a smaller network, a coarser resolution or precision bf16",
                    ) from error
            # Outside of the handler, so that the failed step's tensors are let go of first.
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            told = f"out of memory: micro-batch {self.micro_batch} -> {self.micro_batch // 2}"
            self.micro_batch //= 2
            self.events.append({"step": self.step, "event": told})
            warnings.warn(f"{told}; the batch stays {self.settings.batch_size}", RuntimeWarning, stacklevel=2)

    # --- steps ----------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step of the optimiser.

        Raises:
            Diverged: the loss or the gradient is not finite; nothing was changed.
        """
        self.denoiser.train()
        loss = self._halving(self._gradient)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                "training-diverged",
                f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite; "
                f"the weights of step {self.step} are kept",
                f"step {self.step + 1}",
                "lower the learning rate, lengthen the warm-up, or use precision fp32",
            )
        clip = self.settings.gradient_clip
        if clip is not None and norm > clip:
            torch._foreach_mul_(gradients, clip / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        self._losses.append(loss)
        if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
            self._note()

    def _note(self) -> None:
        """A row of the history; the best average so far is remembered."""
        held_out = None if self.held_out is None else self.validate()
        row = {
            "step": self.step,
            "loss": math.fsum(self._losses) / len(self._losses),
            "held_out": held_out,
            "learning_rate": self.settings.rate(self.step - 1),
        }
        self.history.append(row)
        self._losses = []
        if held_out is None:
            return
        if self.best is None or held_out < self.best[1]:
            self.best, self.stale = (self.step, held_out), 0
            self.best_weights = {n: t.clone() for n, t in self.average.tensors.items()}
        else:
            self.stale += 1

    def validate(self) -> float:
        """Mean held-out loss of the averaged weights, under the same hiding, times and noise every time."""
        self.denoiser.eval()
        with torch.no_grad(), self.average.applied():
            return self._halving(self._held_out_loss)

    def _held_out_loss(self) -> float:
        assert self.held_out is not None
        n, size = len(self.held_out), self.settings.batch_size
        total = counted = 0.0
        for start in range(0, n * self.settings.validation_draws, size):
            place = torch.arange(start, min(start + size, n * self.settings.validation_draws))
            keys = Keys(key_of(self.seed, "held-out"), place % n, place // n)
            # Times from the golden-ratio sequence: every stretch of it is spread evenly.
            uniform = ((place.double() + 0.5) * _GOLDEN % 1).to(self.device)
            generator = self._generator("held-out", start)
            for loss, counts in self._per_example(self.held_out, keys, uniform, generator):
                total += float((loss.double() * counts).sum())
                counted += float(counts.sum())
        return total / max(counted, 1.0)

    @property
    def ending(self) -> str | None:
        """Why the training is over ("steps", "patience"), or None while it is not."""
        if self.step >= self.settings.steps:
            return "steps"
        patience = self.settings.patience
        return "patience" if patience is not None and self.stale >= patience else None

    # --- state ----------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a resumed training must agree with to be the same run."""
        settings = self.settings.described()
        for name in ("micro_batch", "checkpoint_every", "time_limit", "patience"):
            settings.pop(name)
        held_out = 0 if self.held_out is None else len(self.held_out)
        return settings | {"seed": self.seed, "examples": len(self.examples), "held_out": held_out}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain JSON and tensors from which `restore` goes on bit for bit (on the same device kind)."""
        tensors = {f"model.{n}": t for n, t in self.denoiser.state_dict().items()}
        tensors |= {f"ema.{n}": t for n, t in self.average.tensors.items()}
        tensors |= {f"best.{n}": t for n, t in self.best_weights.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{key}.{name}": t for key, t in moments.items()}
        facts = {
            "run": self.identity(),
            "step": self.step,
            "history": self.history,
            "events": self.events,
            "best": self.best,
            "stale": self.stale,
            "losses": self._losses,
            "micro_batch": self.micro_batch,
        }
        return facts, tensors

    def restore(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take up a saved state.

        Raises:
            InputError: `resume-mismatch`, when it belongs to another run; what differs is named.
        """
        mine = self.identity()
        differs = sorted(name for name in mine if facts["run"].get(name) != mine[name])
        shapes = {f"model.{n}": t.shape for n, t in self.denoiser.state_dict().items()}
        if shapes != {n: t.shape for n, t in tensors.items() if n.startswith("model.")}:
            differs.append("the network")
        if differs:
            raise InputError(
                "resume-mismatch",
                f"the checkpoint is of another run: {', '.join(differs)} differ(s)",
                f"step {facts['step']}",
                "resume with the settings it was begun with, or begin in another folder",
            )
        held: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            held[kind][rest] = tensor.to(self.device)
        self.denoiser.load_state_dict(held["model"])
        self.average.load(held["ema"])
        self.best_weights = held["best"]
        for name, parameter in self.parameters.items():
            moments = {k: held["optimizer"].get(f"{k}.{name}") for k in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                self.optimizer.state[parameter] = moments
        self.step, self.stale, self.micro_batch = facts["step"], facts["stale"], facts["micro_batch"]
        self.history, self.events, self._losses = facts["history"], facts["events"], facts["losses"]
        self.best = None if facts["best"] is None else (facts["best"][0], facts["best"][1])

    def finish(self) -> int:
        """Put the averaged weights into the denoiser: the best by held-out loss where there is one, else
        the last. Returns their step."""
        chosen = self.best_weights or self.average.tensors
        with torch.no_grad():
            for name, parameter in self.denoiser.named_parameters():
                parameter.copy_(chosen[name])
        self.denoiser.eval()
        self.optimizer.zero_grad(set_to_none=True)
        return self.best[0] if self.best_weights and self.best else self.step


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators that dropout layers draw from; the caller has set them aside."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)

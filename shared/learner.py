"""One training without its surroundings: a step, a validation, and the whole of its state.

Everything random is a pure function of (seed, epoch, step): which examples come, what is hidden in them,
which times and which noise they get, and the dropout. So a training resumed from its state does what the
uninterrupted one would have done, and the global random state of the process is neither used nor changed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .denoisers import NetworkDenoiser
from .ema import Average
from .errors import EbbtideError, InputError
from .noise import Keys, key_of
from .settings import Examples, TrainingSettings

_GOLDEN = (5**0.5 - 1) / 2
_ORDERED_AT_ONCE = 2**16  # examples


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
        device: where it is trained.
        watch: asked at every validation, with its step, while the averaged weights are in place; its figures
            go into the history.

    Attributes:
        backward: how a loss is differentiated (Lightning puts its own way here).
        whole: False while a step is under way, when the state must not be saved.
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
        watch: Callable[[int], Mapping[str, float]] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.denoiser = denoiser.to(self.device)
        self.examples, self.held_out, self.settings, self.seed = examples, held_out, settings, seed
        self.watch = watch
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
        self.step, self.whole = 0, True
        self.history: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.best: tuple[int, float] | None = None  # step and held-out loss of the best average so far
        self.best_weights: dict[str, Tensor] = {}
        self.stale = 0  # validations since the best one
        self._losses: list[float] = []  # since the last row of the history
        self._hooks = _norms_in_float32(denoiser) if settings.precision == "bf16" else []
        self._order: tuple[int, Tensor] | None = None  # first epoch and orders of the block in hand
        self._train_seed = key_of(seed, "train")

    # --- what comes when ------------------------------------------------------------------------

    def order(self, epoch: int) -> Tensor:
        """(n,): the order in which an epoch visits the examples."""
        n = len(self.examples)
        # Epochs ordered in one call: small data sets have many.
        block = max(1, min(64, _ORDERED_AT_ONCE // n))
        first = epoch // block * block
        if self._order is None or self._order[0] != first:
            epochs = torch.arange(first, first + block)
            places = Keys(self.seed, epochs, torch.zeros_like(epochs)).uniform((n,), "order")
            self._order = (first, places.argsort(dim=1, stable=True))
        return self._order[1][epoch - first]

    def members(self, step: int) -> Keys:
        """Items (indices) and draws (epochs) of the examples of a step: the epochs laid end to end, cut
        into batches."""
        n, size = len(self.examples), self.settings.batch_size
        start, stop = step * size, (step + 1) * size
        items, epochs = [], []
        for epoch in range(start // n, (stop - 1) // n + 1):
            part = self.order(epoch)[max(start - epoch * n, 0) : stop - epoch * n]
            items.append(part)
            epochs.append(torch.full_like(part, epoch))
        return Keys(self._train_seed, torch.cat(items), torch.cat(epochs))

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
            if batch.noise is not None:
                part = batch.noise
            elif self.settings.noise is not None:
                part = self.settings.noise(keys[rows], x_0, "noise")
            else:
                if noise is None:
                    shape = (len(keys), *x_0.shape[1:])
                    noise = torch.randn(shape, generator=generator, device=self.device, dtype=x_0.dtype)
                part = noise[rows]
            t = batch.t
            if t is None:
                t = self.settings.density.sample(self.denoiser.schedule, uniform[rows]).to(self.device)
            half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")
            with half:
                loss = self.denoiser.loss(x_0, part, t, batch.condition, batch.where, self.settings.weighting)
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
        if not self.denoiser.training:
            self.denoiser.train()
        loss = self._halving(self._gradient)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged("gradient" if math.isfinite(loss) else "loss")
        clip = self.settings.gradient_clip
        if clip is not None and norm > clip:
            torch._foreach_mul_(gradients, clip / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        self.whole = False
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        self._losses.append(loss)
        if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
            self.note()
        self.whole = True

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            "training-diverged",
            f"the {what} is not finite; the last good weights are kept",
            f"step {self.step + self.whole}",  # the one under way, counted from 1
            "lower the learning rate, lengthen the warm-up, or use precision fp32",
        )

    def note(self) -> None:
        """A row of the history since the last one; the best average so far is remembered."""
        if not self._losses:
            return
        held_out = None if self.held_out is None else self.validate()
        if held_out is not None and not math.isfinite(held_out):
            raise self._diverged("held-out loss")
        row = {
            "step": self.step,
            "loss": math.fsum(self._losses) / len(self._losses),
            "held_out": held_out,
            "learning_rate": self.settings.rate(self.step - 1),
            **self._watched(),
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

    def _watched(self) -> Mapping[str, float]:
        if self.watch is None:
            return {}
        self.denoiser.eval()
        with torch.no_grad(), self.average.applied():
            return self.watch(self.step)

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
        free = ["micro_batch", "checkpoint_every", "time_limit", "patience"]
        for name in [*free, "steps"] if self.settings.decay == "constant" else free:
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
        self.step, self.stale = facts["step"], facts["stale"]
        self.micro_batch = min(self.micro_batch, facts["micro_batch"])  # it may have run out of memory before
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
        while self._hooks:
            self._hooks.pop().remove()
        return self.best[0] if self.best_weights and self.best else self.step


def _norms_in_float32(module: nn.Module) -> list[RemovableHandle]:
    """Under autocast on the CPU a norm computes in bfloat16 when its input is: give it float32 instead."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    found = [part for part in module.modules() if isinstance(part, norms)]
    return [part.register_forward_pre_hook(lambda _, given: (given[0].float(),)) for part in found]


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators that dropout layers draw from; the caller has set them aside."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)

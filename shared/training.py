"""Training a denoiser: the loop is Lightning's, what happens in it is `learner`'s, what is kept is ours.

Lightning 2.6.6 swallows some errors while saving, does not restore random state on resume, trains on
through NaN, and leaves Ctrl-C ignored after one; so saving, resuming, stopping and the signals are done
here (each is tested), and Lightning runs the loop with everything else switched off.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from .checkpoints import Checkpoints
from .denoisers import NetworkDenoiser
from .errors import EbbtideError, InputError
from .files import locked, replace_atomically, require_space
from .learner import Diverged, Learner
from .settings import Batch, Examples, TrainingSettings

if TYPE_CHECKING:
    from lightning.pytorch import Callback

__all__ = ["Batch", "Diverged", "Examples", "Interrupted", "Trained", "TrainingSettings", "train"]

Progress = Callable[[str, float], None]


class Interrupted(EbbtideError):
    """SIGTERM or Ctrl-C came; the state was saved first. The exit code is 128 + the signal: 143 or 130."""

    def __init__(self, number: int, step: int, folder: Path | None) -> None:
        self.exit_code = 128 + number
        kept = "nothing was saved, as no folder was given" if folder is None else "it was saved"
        super().__init__(
            "training-interrupted",
            f"stopped by {signal.Signals(number).name} after step {step}; {kept}",
            "" if folder is None else str(folder),
            "run again with --resume" if folder is not None else "run again",
        )


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Args:
        denoiser: the one that was handed in, now holding the averaged weights (the best ones by held-out
            loss where there was a held-out set) and in evaluation mode.
        steps: how many were done.
        best_step: the step whose averaged weights these are.
        history: rows of step, loss, held_out, learning_rate, and what was watched.
        ending: "steps", "patience" or "time".
    """

    denoiser: NetworkDenoiser
    steps: int
    best_step: int
    history: list[dict[str, Any]]
    ending: str = "steps"


def device_of(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here.

    Raises:
        InputError: `no-cuda`.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("no-cuda", "no CUDA device is available", "--device", "use --device cpu")
    return torch.device(name)


_loading: list[threading.Thread] = []


def load_meanwhile() -> None:
    """Import Lightning, which takes two seconds, in a thread: for those with work to do before `train`."""
    _loading.append(threading.Thread(target=import_module, args=("lightning.pytorch",), name="lightning"))
    _loading[-1].start()


def train(
    denoiser: NetworkDenoiser,
    examples: Examples,
    settings: TrainingSettings | None = None,
    *,
    held_out: Examples | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    watch: Callable[[int], Mapping[str, float]] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train `denoiser` in place.

    On the CPU the same arguments give the same weights bit for bit, interrupted and resumed or not.

    Args:
        denoiser: its network is trained; it ends with the averaged weights.
        examples: what to learn from.
        settings: how.
        held_out: examples to validate on, for early stopping and for choosing the best weights.
        seed: of the order, the hiding, the times and the noise. The initial weights are the caller's.
        folder: where checkpoints, `history.json` and `progress.png` go; None writes nothing.
        resume: go on from the last checkpoint in `folder`, from the beginning when there is none.
        device: "auto", "cpu" or "cuda".
        watch: step -> figures for the history, asked at every validation while the averaged weights are in
            place.
        progress: called now and then with a line for people and the fraction done.

    Raises:
        InputError: `no-examples`, `output-exists`, `resume-mismatch`, `folder-locked`, `read-only`,
            `no-cuda`.
        Diverged: a loss that is not finite; the denoiser holds the last good averaged weights.
        Interrupted: SIGTERM or Ctrl-C; likewise, and the state was saved.
        EbbtideError: `disk-full`, `out-of-memory`, `save-failed`.
    """
    settings = settings or TrainingSettings()
    if len(examples) == 0 or (held_out is not None and len(held_out) == 0):
        which = "examples to train on" if len(examples) == 0 else "held-out examples"
        raise InputError("no-examples", f"there are no {which}", "", "give more data")
    learner = Learner(
        denoiser, examples, settings, held_out=held_out, seed=seed, device=device_of(device), watch=watch
    )
    with ExitStack() as stack:
        run = _Run(learner, None if folder is None else Path(folder), progress)
        stack.enter_context(run.listening())
        if run.folder is not None:
            stack.enter_context(locked(run.folder))
            run.open(resume)
        devices = [learner.device] if learner.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        try:
            if run.ending is None:
                _fit(run)
        except BaseException as error:
            # The last good state is kept and the denoiser is usable, whatever happened; a second fault
            # must not hide the first.
            try:
                run.close()
            except EbbtideError as second:
                error.add_note(str(second))
            raise
        best_step = run.close()
    if run.signal is not None:
        raise Interrupted(run.signal, learner.step, run.folder)
    return Trained(denoiser, learner.step, best_step, learner.history, run.ending or "steps")


class _Run:
    """A learner's surroundings: the folder, the clock, the signals, and who is told."""

    def __init__(self, learner: Learner, folder: Path | None, progress: Progress | None) -> None:
        self.learner, self.folder, self.progress = learner, folder, progress
        self.checkpoints = None if folder is None else Checkpoints(folder / "checkpoints")
        self.signal: int | None = None
        self.out_of_time = False
        self._saved = -1  # the step of the last checkpoint
        self._begun = self._told = self._drawn = time.monotonic()

    @property
    def ending(self) -> str | None:
        return self.learner.ending or ("time" if self.out_of_time else None)

    def open(self, resume: bool) -> None:
        """Look before the work begins: is there room, is a training here already, does it go on?"""
        assert self.folder is not None and self.checkpoints is not None
        size = sum(t.nbytes for t in self.learner.denoiser.state_dict().values())
        # Each checkpoint: weights, average, best average, two moments. Two are kept while a third is written.
        require_space(self.folder, 3 * 5 * size + 2**20)
        if not resume:
            if self.checkpoints.steps():
                raise InputError(
                    "output-exists",
                    "a training is here already",
                    str(self.folder),
                    "pass --resume or --overwrite",
                )
            return
        last = self.checkpoints.latest()
        if last is None:
            return
        if last.damaged:
            steps = ", ".join(map(str, last.damaged))
            told = f"checkpoint(s) of step {steps} cannot be read; going on from {last.step}"
            self.learner.events.append({"step": last.step, "event": told})
            warnings.warn(told, RuntimeWarning, stacklevel=3)
        self.learner.restore(last.state, last.tensors)
        self._saved = last.step

    def after_step(self) -> None:
        """Save when it is time to, look at the clock, tell how far it is."""
        learner, settings = self.learner, self.learner.settings
        now = time.monotonic()
        if settings.time_limit is not None and now - self._begun > settings.time_limit:
            self.out_of_time = True
            learner.note()  # so that the last steps have a row and are judged
            learner.events.append(
                {"step": learner.step, "event": f"stopped at {settings.time_limit} seconds"}
            )
        if learner.step % settings.checkpoint_every == 0:
            self.save()
        if self.progress is not None and (now - self._told > 0.2 or self.ending is not None):
            self._told = now
            passed = 0.0 if settings.time_limit is None else (now - self._begun) / settings.time_limit
            self.progress(self._line(), 1.0 if self.ending else max(learner.step / settings.steps, passed))

    def _line(self) -> str:
        line = f"step {self.learner.step} of {self.learner.settings.steps}"
        if not self.learner.history:
            return line
        row = self.learner.history[-1]
        held_out = "" if row["held_out"] is None else f", held-out {row['held_out']:.4f}"
        return f"{line}, loss {row['loss']:.4f}{held_out}"

    def save(self) -> None:
        """A checkpoint, unless this step has one; now and then the history and the picture."""
        learner = self.learner
        if self.checkpoints is None or self._saved == learner.step or not learner.whole:
            return
        self.checkpoints.save(learner.step, *learner.state())
        self._saved = learner.step
        if (
            time.monotonic() - self._drawn > 5
        ):  # a picture takes 0.3 s, as long as 100 steps of a small network
            self._report()

    def _report(self) -> None:
        """Write `history.json` and `progress.png`."""
        from .curves import draw_history

        learner = self.learner
        if self.folder is None:
            return
        told = {"rows": learner.history, "events": learner.events, "ending": self.ending}
        with replace_atomically(self.folder / "history.json") as path:
            path.write_text(json.dumps(told, indent=1))
        if learner.history:
            with replace_atomically(self.folder / "progress.png") as path:
                path.write_bytes(draw_history(learner.history, learner.best))
        self._drawn = time.monotonic()

    def close(self) -> int:
        """Save what is not saved, and put the averaged weights into the denoiser."""
        try:
            self.save()
            self._report()
        finally:
            best_step = self.learner.finish()
        return best_step

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the training after the step in hand. Handlers belong to the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        watched = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in watched}
        for number in watched:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def _fit(run: _Run) -> None:
    """Let Lightning call the learner once for every step that is left."""
    while _loading:  # two threads that import it at once may each find it half imported
        _loading.pop().join()
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = run.learner.denoiser
            self.automatic_optimization = False
            run.learner.backward = self.manual_backward

        def configure_optimizers(self) -> None:
            """None: the learner has its own, because it decides whether a step is taken at all."""

        def training_step(self, batch: int, batch_idx: int) -> None:
            if run.signal is None and run.ending is None:
                run.learner.advance()

    cuda = run.learner.device.type == "cuda"
    with _quiet():
        trainer = Trainer(
            accelerator="gpu" if cuda else "cpu",
            devices=[run.learner.device.index or 0] if cuda else 1,
            max_epochs=1,
            max_steps=-1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            callbacks=[_keeper(run)],
            plugins=[LightningEnvironment()],  # one process, also inside a cluster's job
        )
        left = range(run.learner.step, run.learner.settings.steps)
        try:
            trainer.fit(Module(), train_dataloaders=left)
        except SIGTERMException:  # it came before our handler was in place; `run.signal` knows
            if run.signal is None:
                raise
    run.learner.denoiser.to(run.learner.device)  # Lightning leaves it on the CPU


def _keeper(run: _Run) -> Callback:
    """The callback that saves and stops."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Keeper(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            # Lightning has put its own handlers in place by now, which would end the run before it is saved.
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, run._on_signal)

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            run.after_step()
            if run.signal is not None or run.ending is not None:
                trainer.should_stop = True

    return Keeper()


@contextmanager
def _quiet() -> Iterator[None]:
    """No word from Lightning about devices, loaders and tips."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\b.*")
            warnings.filterwarnings(
                "ignore", category=UserWarning, message=".*(optimizer|dataloader|workers).*"
            )
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

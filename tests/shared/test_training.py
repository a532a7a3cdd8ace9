"""A training is a pure function of its arguments; stopping it, killing it or starving it loses nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebbtide.shared.checkpoints import Checkpoints
from ebbtide.shared.data import Condition, Encoded
from ebbtide.shared.denoisers import NetworkDenoiser
from ebbtide.shared.ema import Average, Exponential, PowerFunction
from ebbtide.shared.errors import EbbtideError, InputError
from ebbtide.shared.files import locked
from ebbtide.shared.learner import Learner
from ebbtide.shared.noise import Keys, White
from ebbtide.shared.schedules import EDM, LogNormalDensity, UniformDensity
from ebbtide.shared.training import Batch, Diverged, Interrupted, Trained, TrainingSettings, train

torch.set_num_threads(1)
SMALL = TrainingSettings(
    steps=40, batch_size=16, learning_rate=3e-3, warmup=5, validate_every=8, checkpoint_every=10
)


class Net(nn.Module):
    """One hidden layer over x, its mask and the noise level; dropout, whose randomness must resume too."""

    def __init__(self, width: int = 3, hidden: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * width + 1, hidden),
            nn.LayerNorm(hidden) if dropout else nn.Identity(),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        assert condition.known is not None
        out: Tensor = self.layers(torch.cat([x, condition.known.observed, level[:, None]], 1))
        return out


def fresh(seed: int = 0, **options: Any) -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkDenoiser(Net(**options), EDM())


@dataclass
class Rows:
    """Correlated rows; each entry is hidden with probability one half, by key."""

    x: Tensor
    before: Callable[[Tensor], None] = lambda indices: None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        self.before(indices)
        x_0 = self.x[indices]
        hidden = keys.uniform(tuple(x_0.shape[1:]), "hide") < 0.5
        known = Encoded(torch.where(hidden, 0.0, x_0), ~hidden)
        return Batch(x_0, Condition(known=known), hidden)


def rows(n: int = 50, seed: int = 1) -> Rows:
    keys = Keys.range(seed, n)
    return Rows(
        keys.normal((3,), dtype=torch.float32) @ torch.tensor([[1.0, 0.8, 0], [0, 0.6, 1], [0, 0, 0.2]])
    )


def weights_of(trained: Trained | NetworkDenoiser) -> dict[str, Tensor]:
    module = trained.denoiser if isinstance(trained, Trained) else trained
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(settings: TrainingSettings = SMALL, **options: Any) -> Trained:
    held_out = options.pop("held_out", rows(20, seed=2))
    examples = options.pop("examples", rows())
    return train(options.pop("denoiser", None) or fresh(), examples, settings, held_out=held_out, **options)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings; one test is about it."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("ebbtide.shared.curves.draw_history", lambda *_: b"")


# --- the averages -------------------------------------------------------------------------------


def test_power_function_average_in_closed_form() -> None:
    """The weights are beta_n ... beta_{k+1} (1 - beta_k), here written with gamma functions: for integer
    gamma, a product of ratios (j - 1) / j telescopes to (k / n)^(gamma + 1)."""
    profile = PowerFunction(std=0.2)
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average = Average(module, profile)
    values = [math.sin(k) for k in range(1, 31)]
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(step)
    n, power = len(values), profile.gamma + 1
    expected = sum(v * ((k / n) ** power - ((k - 1) / n) ** power) for k, v in enumerate(values, 1))
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "std, gamma", [(0.05, 16.97), (0.10, 6.94)]
)  # table in Karras et al. 2024, appendix C
def test_gamma_of_the_paper(std: float, gamma: float) -> None:
    assert PowerFunction(std).gamma == pytest.approx(gamma, abs=0.005)


def test_exponential_average_in_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(module.weight)
    average = Average(module, Exponential(0.5))
    nn.init.ones_(module.weight)
    kept = 1.0
    for step in range(1, 21):
        average.update(step)
        kept *= min(0.5, (1 + step) / (10 + step))
        assert average.tensors["weight"].item() == pytest.approx(1 - kept, rel=1e-12)


def test_applied_swaps_and_gives_back() -> None:
    module = nn.Linear(2, 2)
    average = Average(module, Exponential(0.9))
    start = module.weight.detach().clone()
    nn.init.zeros_(module.weight)
    with average.applied():
        assert torch.equal(module.weight, start)
    assert not module.weight.any()
    assert torch.equal(average.tensors["weight"], start)


# --- the settings -------------------------------------------------------------------------------


def test_learning_rate_over_the_steps() -> None:
    settings = TrainingSettings(steps=110, warmup=10, learning_rate=2.0)
    assert [settings.rate(s) for s in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert settings.rate(60) == pytest.approx(1.0)  # half-way down the cosine
    assert settings.rate(110) == pytest.approx(0.0)
    assert replace(settings, decay="constant").rate(109) == 2.0


BAD = {
    "steps": 0,
    "batch_size": 0,
    "validate_every": 0,
    "checkpoint_every": -1,
    "micro_batch": 0,
    "patience": 0,
    "learning_rate": math.nan,
    "gradient_clip": 0.0,
    "time_limit": 0.0,
    "weight_decay": -1.0,
    "decay": "linear",
    "precision": "fp16",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(InputError, match=f"bad-setting.*{name}"):
        TrainingSettings(**{name: BAD[name]})


def test_settings_are_described_alike_in_every_process() -> None:
    class Plain(White):
        __repr__ = object.__repr__

    described = TrainingSettings(noise=Plain()).described()
    assert described == TrainingSettings(noise=Plain()).described()
    assert json.loads(json.dumps(described)) == described
    assert described["density"] == "LogNormalDensity(mean=-1.2, std=1.2)"
    assert described["ema"] == "PowerFunction(std=0.05)"


# --- what comes when ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 50, 64, 1000])
def test_every_example_comes_once_an_epoch(n: int) -> None:
    learner = Learner(fresh(), rows(n), replace(SMALL, batch_size=16))
    batches = [learner.members(step) for step in range(130)]
    items, epochs = torch.cat([k.items for k in batches]), torch.cat([k.draws for k in batches])
    assert all(len(keys) == 16 for keys in batches)
    for epoch in range(len(items) // n):
        assert torch.equal(items[epochs == epoch].sort().values, torch.arange(n))
    if n > 7:
        assert not torch.equal(items[:n], items[n : 2 * n])  # another order each time
    # A pure function of the step: asked out of order, on its own, by a new learner.
    alone = Learner(fresh(), rows(n), replace(SMALL, batch_size=16)).members(77)
    assert torch.equal(alone.items, batches[77].items)
    assert torch.equal(alone.draws, batches[77].draws)


def test_times_are_stratified_and_every_step_has_its_own_noise() -> None:
    def two_steps(micro_batch: int) -> list[tuple[Tensor, Tensor]]:
        seen: list[tuple[Tensor, Tensor]] = []
        settings = replace(SMALL, density=UniformDensity(), micro_batch=micro_batch)
        learner = Learner(fresh(), rows(), settings)
        loss = learner.denoiser.loss

        def spy(x_0: Tensor, noise: Tensor, t: Tensor, *rest: Any) -> Tensor:
            seen.append((noise, t))
            return loss(x_0, noise, t, *rest)

        learner.denoiser.loss = spy  # type: ignore[method-assign]
        learner.advance()
        learner.advance()
        half = len(seen) // 2
        return [
            (torch.cat([n for n, _ in part]), torch.cat([t for _, t in part]))
            for part in (seen[:half], seen[half:])
        ]

    (noise, t), (later_noise, later_t) = two_steps(micro_batch=4)
    assert torch.equal((t * 16).floor(), torch.arange(16.0, dtype=torch.float64))
    assert torch.equal((later_t * 16).floor(), (t * 16).floor())
    assert not (later_t == t).any()
    assert not (later_noise == noise).any()
    assert noise.unique().numel() == noise.numel()
    assert all(torch.equal(a, b) for a, b in zip(two_steps(16)[1], (later_noise, later_t), strict=True))


# --- learning -----------------------------------------------------------------------------------


def test_it_learns_the_conditional_mean() -> None:
    """At a noise level that hides all, column 0 given the others has a linear mean in closed form."""
    settings = TrainingSettings(
        steps=250,
        batch_size=64,
        learning_rate=0.02,
        warmup=20,
        validate_every=125,
        density=LogNormalDensity(mean=3.0, std=0.5),
    )
    x = rows(1000).x
    covariance = x.T @ x / len(x)
    exact = x[:, 1:] @ torch.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
    observed = torch.tensor([[False, True, True]]).expand(len(x), 3)
    known = Encoded(torch.where(observed, x, 0.0), observed)
    t = EDM().time(torch.full((len(x),), 20.0))

    def unexplained(denoiser: NetworkDenoiser) -> float:
        with torch.no_grad():
            error = denoiser(known.values, t, Condition(known=known))[:, 0] - exact
        return float(error.square().mean() / exact.square().mean())

    denoiser = fresh(dropout=0.0, hidden=64)
    assert unexplained(denoiser) > 0.5
    trained = train(denoiser, Rows(x), settings, device="cpu")
    assert unexplained(trained.denoiser) < 0.05
    assert [row["held_out"] for row in trained.history] == [None, None]
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_same_arguments_same_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = run(), run()
    assert same(weights_of(a), weights_of(b))
    assert a.history == b.history
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(weights_of(a), weights_of(run(seed=1)))
    assert not a.denoiser.training


def test_micro_batches_change_nothing_but_rounding() -> None:
    whole = run(denoiser=fresh(dropout=0.0))
    for settings in (replace(SMALL, micro_batch=3), replace(SMALL, micro_batch=16)):
        cut = run(settings, denoiser=fresh(dropout=0.0))
        for name, tensor in weights_of(whole).items():
            torch.testing.assert_close(weights_of(cut)[name], tensor, atol=2e-5, rtol=1e-4)


def test_keyed_noise_and_bfloat16() -> None:
    keyed = run(replace(SMALL, noise=White()))
    plain = run()
    half = run(replace(SMALL, precision="bf16"))
    losses = [trained.history[-1]["held_out"] for trained in (keyed, plain, half)]
    assert len(set(losses)) == 3
    assert losses[2] == pytest.approx(losses[1], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.denoiser.parameters())
    assert not any(part._forward_pre_hooks for part in half.denoiser.modules())  # the norms are as they were


def test_under_bfloat16_norms_and_losses_stay_float32() -> None:
    learner = Learner(fresh(), rows(), replace(SMALL, precision="bf16"))
    seen: dict[str, torch.dtype] = {}
    for part in learner.denoiser.modules():
        part.register_forward_hook(lambda m, _, out: seen.update({type(m).__name__: out.dtype}))
    learner.backward = lambda loss: seen.update(loss=loss.dtype)
    learner.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    learner.advance()
    assert seen["Linear"] == torch.bfloat16
    assert (seen["LayerNorm"], seen["loss"]) == (torch.float32, torch.float32)


@pytest.mark.parametrize("clip, expected", [(1e-3, 1e-3), (1e3, None), (None, None)])
def test_gradients_longer_than_the_clip_are_shortened(clip: float | None, expected: float | None) -> None:
    learner = Learner(fresh(), rows(), replace(SMALL, gradient_clip=clip))
    norms: list[float] = []

    def record() -> None:
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in learner.parameters.values()])))

    learner.optimizer.step = record  # type: ignore[method-assign, assignment]
    learner.advance()
    learner.step = 0
    learner._gradient()  # the gradient as it was
    whole = float(torch.nn.utils.get_total_norm([p.grad for p in learner.parameters.values()]))
    assert whole > 1e-2
    assert norms == [pytest.approx(expected or whole, rel=1e-4)]


def test_a_validation_is_the_same_every_time() -> None:
    learner = Learner(fresh(dropout=0.5), rows(), SMALL, held_out=rows(20, seed=2))
    first = learner.validate()
    learner.micro_batch = 3
    assert learner.validate() == pytest.approx(first, rel=1e-6)  # no dropout, and the noise is the same


def test_early_stopping_restores_the_best_average() -> None:
    """Few examples and a high rate overfit; the held-out loss turns, and the best is what comes back."""
    settings = replace(
        SMALL,
        steps=2000,
        learning_rate=0.02,
        decay="constant",
        validate_every=10,
        patience=6,
        validation_draws=4,
        ema=Exponential(0.5),
    )
    wide = fresh(dropout=0.0)
    trained = run(settings, denoiser=wide, examples=rows(6))
    held_out = {row["step"]: row["held_out"] for row in trained.history}
    assert trained.ending == "patience"
    assert trained.best_step == min(held_out, key=held_out.__getitem__)
    assert trained.steps == trained.best_step + 6 * 10
    # The same training stopped at the best step has the weights that were restored.
    again = run(replace(settings, steps=trained.best_step), denoiser=fresh(dropout=0.0), examples=rows(6))
    assert same(weights_of(again), weights_of(trained))
    judge = Learner(trained.denoiser, rows(6), settings, held_out=rows(20, seed=2))
    assert judge.validate() == pytest.approx(held_out[trained.best_step], rel=1e-6)


def test_few_examples_and_no_examples() -> None:
    assert run(examples=rows(1)).steps == 40
    with pytest.raises(InputError, match="no-examples"):
        run(examples=rows(0))
    with pytest.raises(InputError, match="no-examples: there are no held-out"):
        run(held_out=rows(0))


# --- what is written ----------------------------------------------------------------------------


def test_without_a_folder_nothing_is_written_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in said] == []


def test_the_folder_holds_checkpoints_history_and_picture(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    trained = run(folder=tmp_path / "m", progress=lambda line, done: told.append((line, done)))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "checkpoints",
        "history.json",
        "progress.png",
    ]
    assert Checkpoints(tmp_path / "m" / "checkpoints").steps() == [30, 40]
    history = json.loads((tmp_path / "m" / "history.json").read_text())
    assert history["rows"] == trained.history
    assert history["ending"] == "steps"
    assert [row["step"] for row in trained.history] == [8, 16, 24, 32, 40]
    assert (tmp_path / "m" / "progress.png").read_bytes()[:4] == b"\x89PNG"
    assert told[-1][1] == 1.0
    assert told[-1][0].startswith("step 40 of 40, loss ")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_training_there_already_is_not_overwritten(tmp_path: Path) -> None:
    run(folder=tmp_path)
    with pytest.raises(InputError, match="output-exists"):
        run(folder=tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    from threading import Thread

    told: list[str] = []

    def second() -> None:
        try:
            run(folder=tmp_path / "m")
        except InputError as error:
            told.append(error.fault.code)

    with locked(tmp_path / "m"):
        other = Thread(target=second)
        other.start()
        other.join()
    assert told == ["folder-locked"]


def test_short_space_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from ebbtide.shared import files

    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    started: list[Tensor] = []
    with pytest.raises(EbbtideError, match="disk-full"):
        run(folder=tmp_path / "m", examples=Rows(rows().x, started.append))
    assert started == []


def test_a_save_that_fails_stops_the_training_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own saving swallows a PermissionError; ours must not."""
    save = Checkpoints.save

    def refuse(self: Checkpoints, step: int, *rest: Any) -> Path:
        if step == 20:
            monkeypatch.setattr(os, "open", denied)
        return save(self, step, *rest)

    def denied(path: Any, *rest: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Checkpoints, "save", refuse)
    with pytest.raises(InputError, match="read-only"):
        run(folder=tmp_path)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").steps() == [10]
    assert same(weights_of(run(folder=tmp_path, resume=True)), weights_of(run()))


# --- stopping and resuming ----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_three_times_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in another process, at a step that no one chose; once more while a checkpoint is written."""
    expected = run()

    def at(step: int) -> None:
        count = 0

        def kill(indices: Tensor) -> None:
            nonlocal count
            count += len(indices) == 16  # not the last, shorter held-out batch
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        run(folder=tmp_path, resume=True, examples=Rows(rows().x, kill))

    def while_saving() -> None:
        fsync, calls = os.fsync, 0

        def kill(handle: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 9:  # in the second checkpoint of this process
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        os.fsync = kill
        run(folder=tmp_path, resume=True)

    reached = [0]
    for life in (lambda: at(4), lambda: at(17), while_saving):
        child = os.fork()
        if child == 0:
            try:
                life()
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        last = Checkpoints(tmp_path / "checkpoints").latest()
        reached.append(last.step if last else 0)
    assert reached == [0, 0, 10, 20]
    resumed = run(folder=tmp_path, resume=True)
    assert same(weights_of(resumed), weights_of(expected))
    assert resumed.history == expected.history
    assert resumed.best_step == expected.best_step


@contextmanager
def signalled(number: signal.Signals, at: int) -> Iterator[Rows]:
    count = 0

    def kill(indices: Tensor) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)

    yield Rows(rows().x, kill)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_rest_gives_the_same_weights(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with signalled(number, at=13) as examples, pytest.raises(Interrupted) as stopped:
        run(folder=tmp_path, examples=examples)
    assert stopped.value.exit_code == code
    assert "after step 13" in str(stopped.value)
    assert "--resume" in str(stopped.value)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert Checkpoints(tmp_path / "checkpoints").steps() == [10, 13]
    assert same(weights_of(run(folder=tmp_path, resume=True)), weights_of(run()))


def test_a_signal_without_a_folder() -> None:
    with signalled(signal.SIGTERM, at=3) as examples, pytest.raises(Interrupted, match="nothing was saved"):
        run(examples=examples)


def test_resuming_what_is_finished_changes_nothing(tmp_path: Path) -> None:
    first = run(folder=tmp_path)
    started: list[Tensor] = []
    second = run(folder=tmp_path, resume=True, examples=Rows(rows().x, started.append))
    assert started == []
    assert same(weights_of(first), weights_of(second))
    assert (first.steps, first.best_step, first.history) == (second.steps, second.best_step, second.history)


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    run(folder=tmp_path)
    for changed, named in (
        ({"settings": replace(SMALL, learning_rate=1.0, ema=Exponential())}, "ema, learning_rate differ"),
        ({"seed": 9}, "seed differ"),
        ({"examples": rows(51)}, "examples differ"),
        ({"denoiser": NetworkDenoiser(nn.Linear(4, 3), EDM())}, "the network differ"),
    ):
        options: dict[str, Any] = {"settings": SMALL} | changed
        with pytest.raises(InputError, match=f"resume-mismatch.*{named}"):
            run(folder=tmp_path, resume=True, **options)
    longer = replace(SMALL, checkpoint_every=7, micro_batch=16, patience=50)  # what may change
    assert run(longer, folder=tmp_path, resume=True).steps == 40


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path: Path) -> None:
    expected = run(folder=tmp_path)
    path = Checkpoints(tmp_path / "checkpoints").path(40) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(RuntimeWarning, match="step 40 cannot be read; going on from 30"):
        resumed = run(folder=tmp_path, resume=True)
    assert same(weights_of(resumed), weights_of(expected))
    assert Checkpoints(tmp_path / "checkpoints").latest().damaged == ()


def test_a_time_limit_stops_and_is_recorded(tmp_path: Path) -> None:
    slow = Rows(rows().x, lambda indices: time.sleep(0.02))
    limited = replace(SMALL, steps=10_000, time_limit=0.3)
    trained = run(limited, folder=tmp_path, examples=slow, held_out=None)
    assert trained.ending == "time"
    assert 1 <= trained.steps <= 20
    assert trained.history[-1]["step"] == trained.steps
    events = json.loads((tmp_path / "history.json").read_text())["events"]
    assert events == [{"step": trained.steps, "event": "stopped at 0.3 seconds"}]


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("what, value", [("loss", math.nan), ("loss", math.inf), ("gradient", None)])
def test_nan_at_a_step_keeps_the_last_good_weights(tmp_path: Path, what: str, value: float | None) -> None:
    expected = run(replace(SMALL, decay="constant", steps=14), held_out=None)
    denoiser = fresh()
    loss, calls = denoiser.loss, 0

    def spoilt(*inputs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != 15:
            return loss(*inputs)
        if value is not None:
            return loss(*inputs) * value
        # A finite loss with an infinite gradient: the square root at zero.
        return loss(*inputs) + (0 * next(denoiser.parameters()).sum()).abs().sqrt()

    denoiser.loss = spoilt  # type: ignore[method-assign]
    with pytest.raises(
        Diverged, match=f"step 15: the {what} is not finite.*lower the learning rate"
    ) as stopped:
        run(replace(SMALL, decay="constant"), denoiser=denoiser, held_out=None, folder=tmp_path)
    assert stopped.value.exit_code == 1
    assert same(weights_of(denoiser), weights_of(expected))
    last = Checkpoints(tmp_path / "checkpoints").latest()
    assert last is not None
    assert last.step == 14
    assert all(torch.isfinite(tensor).all() for tensor in last.tensors.values())
    assert not denoiser.training


def test_a_held_out_loss_that_is_not_finite_stops_too() -> None:
    spoilt = rows(20, seed=2)
    spoilt.x *= 1e30
    with pytest.raises(Diverged, match="held-out loss"):
        run(held_out=spoilt)


class Starved(Rows):
    """Memory for `room` examples at once."""

    room = 5
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        if len(indices) > self.room:
            raise self.error
        return super().batch(indices, keys)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_says_so(tmp_path: Path, error: RuntimeError) -> None:
    starved = Starved(rows().x)
    starved.error = error
    with pytest.warns(RuntimeWarning, match=r"out of memory: micro-batch .*; the batch stays 16"):
        trained = run(denoiser=fresh(dropout=0.0), examples=starved, folder=tmp_path)
    enough = run(replace(SMALL, micro_batch=4), denoiser=fresh(dropout=0.0))
    assert same(weights_of(trained), weights_of(enough))
    events = json.loads((tmp_path / "history.json").read_text())["events"]
    assert [event["event"] for event in events] == [
        "out of memory: micro-batch 16 -> 8",
        "out of memory: micro-batch 8 -> 4",
    ]


def test_no_memory_for_one_example() -> None:
    starved = Starved(rows().x)
    starved.room = 0
    with pytest.warns(RuntimeWarning), pytest.raises(EbbtideError, match=r"out-of-memory.*one example"):
        run(examples=starved)


def test_an_error_of_the_data_comes_through_and_the_state_is_kept(tmp_path: Path) -> None:
    calls = 0

    def fail(indices: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 23:
            raise KeyError("row")

    with pytest.raises(KeyError):
        run(folder=tmp_path, examples=Rows(rows().x, fail))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [20, 22]
    assert same(weights_of(run(folder=tmp_path, resume=True)), weights_of(run()))


def test_cuda_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no-cuda"):
        run(device="cuda")
    assert run(device="auto").steps == 40

r"""Few steps: teach a network to jump along the paths that a many-step sampler walks.

Progressive distillation (Salimans & Ho 2022) halves the number of steps again and again, and each halving
teaches from the last student. Here all `steps` jumps are taught at once, from the teacher itself: from pure
noise the teacher walks its whole path, and of each jump from x_t to x_s the student learns the one estimate
D* that takes it there, x_s = alpha_s D* + sigma_s (x_t - alpha_t D*) / sigma_t. No error of one student is
taught to the next, and what comes out is a denoiser for plain DDIM on the few times it knows.

A path is walked once and learnt from many times, which is what makes it cheap: walking costs the teacher
`calls` evaluations, a lesson the student three (forward and backward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .artifacts import MANIFEST, read_model, write_model
from .centre import GaussianCentre
from .data import NOTHING, Condition, Encoded
from .denoisers import Denoiser, NetworkDenoiser
from .noise import Keys, White, key_of
from .samplers import DPMSolver2M, Heun, Step, steps_of
from .schedules import Schedule, knee_grid, log_snr_grid
from .settings import Batch, TrainingSettings
from .training import Trained, train

Told = Callable[[Keys], Condition]
"""What each of some samples is to be."""
Progress = Callable[[str, float], None]
_CHUNK = 512  # paths in a folder: what an interruption loses at most


@dataclass(frozen=True)
class FewStepGrid:
    """The times that a distilled denoiser knows: the first is pure noise, and the last is not the lowest
    noise, as on grids for many steps: the jump to clean data takes its full share of the way.

    Args:
        knee: they are uniform in r / (knee + r), r = sigma / alpha (`knee_grid`); at 1 two steps begin at
            pure noise and at as much noise as signal.
    """

    knee: float = 1.0

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return knee_grid(schedule, steps + 1, self.knee)[:steps]


def jumps_of(schedule: Schedule, steps: int) -> list[Step]:
    """What a student of so many steps does."""
    return steps_of(schedule, FewStepGrid()(schedule, steps))


def wanted(x_t: Tensor, x_s: Tensor, jump: Step) -> Tensor:
    """The estimate D* whose DDIM step goes from x_t to x_s."""
    kept = jump.sigma_s / jump.sigma_t
    return (x_s - kept * x_t) / (jump.alpha_s - kept * jump.alpha_t)


# --- paths --------------------------------------------------------------------------------------


@torch.no_grad()
def walk(
    teacher: Denoiser, x: Tensor, jumps: Sequence[Step], condition: Condition = NOTHING, calls: int = 20
) -> Tensor:
    """Where each jump of a path ends, by DPM-Solver++(2M) on its own grid, but for the times where jumps
    meet, which take the place of the nearest.

    Args:
        x: (B, C, *S) at t = 1.
        jumps: of `jumps_of`.
        calls: evaluations of the teacher; at least three for each jump.

    Returns:
        (len(jumps), B, C, *S).
    """
    schedule, solver = teacher.schedule, DPMSolver2M()
    times = log_snr_grid(schedule, max(calls, 3 * len(jumps)), floor=-8.0, ceiling=9.0)
    levels, ends = schedule.log_snr(times), {len(times) - 1}
    for jump in jumps[1:]:
        place = 1 + int((levels[1:] - schedule.log_snr(jump.t)).abs().argmin())
        times[place] = jump.t
        ends.add(place - 1)
    solver.begin()
    keys, found = Keys.range(0, len(x)), []  # the solver draws no noise
    for step in steps_of(schedule, times):
        x = solver.step(teacher, x, step, condition, keys)
        if step.index in ends:
            found.append(x)
    return torch.stack(found)


@dataclass(frozen=True)
class Paths:
    """Jumps of walked paths; `Examples` for a training. Example k is jump k % steps of path k // steps.

    Args:
        jumps: of a path, in order.
        begins: (n, C, *S) where paths begin.
        ends: (n, steps, C, *S) where their jumps end; may be held in half precision, as may `begins`.
        condition: of the n paths.
    """

    jumps: Sequence[Step]
    begins: Tensor
    ends: Tensor
    condition: Condition

    def __len__(self) -> int:
        return self.ends.shape[0] * self.ends.shape[1]

    def __getitem__(self, rows: Tensor) -> Paths:
        return Paths(self.jumps, self.begins[rows], self.ends[rows], self.condition[rows])

    def batch(self, indices: Tensor, keys: Keys) -> Batch:
        """The jump from x_t = alpha D* + sigma eps: with D* in the place of clean data and this eps in the
        place of noise, the plain loss of a denoiser is that of the jump."""
        path, place = indices // len(self.jumps), indices % len(self.jumps)
        aim = torch.empty(len(indices), *self.ends.shape[2:])
        noise = torch.empty_like(aim)
        t = torch.empty(len(indices), dtype=torch.float64)
        for k, jump in enumerate(self.jumps):
            rows = (place == k).nonzero()[:, 0]
            x_t = (self.ends[path[rows], k - 1] if k else self.begins[path[rows]]).float()
            estimate = wanted(x_t, self.ends[path[rows], k].float(), jump)
            aim[rows], noise[rows] = estimate, (x_t - jump.alpha_t * estimate) / jump.sigma_t
            t[rows] = jump.t
        where = torch.ones_like(aim, dtype=torch.bool)
        return Batch(aim, self.condition[path], where, noise, t)


def walked(
    teacher: Denoiser,
    shape: tuple[int, ...],
    told: Told,
    count: int,
    *,
    steps: int = 2,
    calls: int = 20,
    start: Tensor | None = None,
    batch: int = 32,
    seed: int = 0,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    half: bool = False,
    progress: Progress | None = None,
) -> Paths:
    """Walk paths, from pure noise to clean data.

    Args:
        teacher: any denoiser: a trained one, a guided one (guidance is distilled with it), a closed form.
        shape: (C, *S) of a sample.
        told: conditions by key.
        count: how many.
        steps: jumps of each, that a student is to make.
        calls: of the teacher for a path.
        start: (1, C, *S) what noise begins around; nothing is 0.
        batch: paths walked at once.
        seed: of noise and conditions.
        folder: where finished paths are kept, so that a stopped run goes on.
        device: the teacher's.
        half: let it compute in bfloat16.
        progress: told how far it is.
    """
    jumps = jumps_of(teacher.schedule, steps)
    keys = Keys.range(key_of(seed, "distil"), count)
    condition, x = told(keys), torch.zeros(count, *shape)
    x = jumps[0].sigma_t * White()(keys, x, "start")
    x = x if start is None else x + jumps[0].alpha_t * start.to(x)
    parts = []
    for rows in torch.arange(count).split(_CHUNK):
        held = None if folder is None else folder / f"{int(rows[0]):07d}"
        if held is not None and (held / MANIFEST).is_file():
            parts.append(read_model(held)[1]["ends"])
            continue
        made = []
        for some in rows.split(batch):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
                ends = walk(teacher, x[some].to(device), jumps, condition[some].to(device), calls)
            made.append(ends.cpu())
            if progress is not None:
                progress("walking the teacher's paths", (int(some[-1]) + 1) / count)
        parts.append(torch.cat(made, 1).transpose(0, 1).half().contiguous())
        if held is not None:
            write_model(held, {"format": "ebbtide-paths/1"}, {"ends": parts[-1]})
    return Paths(jumps, x.half(), torch.cat(parts), condition)


# --- lessons ------------------------------------------------------------------------------------


def distil(
    student: NetworkDenoiser,
    paths: Paths,
    settings: TrainingSettings,
    *,
    held_out: float = 0.05,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Trained:
    """Teach `student`, in place, the jumps of some paths. Use it with `DDIM(steps, FewStepGrid())`.

    Args:
        student: best a copy of the teacher's network; on the teacher's schedule.
        paths: of `walked`.
        settings: of the training; times and noise are those of the paths.
        held_out: share of the paths that the best weights are chosen by.
        seed: of the order of lessons.
        folder, resume, device, progress: as for `shared.training.train`.

    Raises:
        ValueError: when the paths are of another schedule.
        InputError, Diverged, Interrupted: as `shared.training.train`.
    """
    mine = jumps_of(student.schedule, len(paths.jumps))
    if any(a.alpha_t != b.alpha_t or a.sigma_t != b.sigma_t for a, b in zip(mine, paths.jumps, strict=True)):
        raise ValueError(f"the student is on {student.schedule}, the paths are not")
    count = len(paths.ends)
    kept = torch.arange(count) < round(held_out * count)
    return train(
        student,
        paths[(~kept).nonzero()[:, 0]],
        settings,
        held_out=paths[kept.nonzero()[:, 0]] if kept.any() else None,
        seed=seed,
        folder=folder,
        resume=resume,
        device=device,
        progress=progress,
    )


# --- a centre that jumps ------------------------------------------------------------------------


@dataclass(frozen=True)
class _OfCentre:
    """A Gaussian centre as a denoiser."""

    centre: GaussianCentre
    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = self.schedule(t.double())
        return self.centre.denoise(x_t, alpha.to(x_t.device), sigma.to(x_t.device), None)[0]


class JumpingCentre(nn.Module):
    """The centre of a student: in place of a Gaussian's mean given x_t, the D* of its own jump from there, so
    that an untrained student (F = 0) already draws from the Gaussian, in as few steps.

    Args:
        centre: the teacher's.
        schedule: the teacher's.
        steps: of the student.
        calls: of the centre for each jump; they cost little beside a network.
    """

    def __init__(self, centre: GaussianCentre, schedule: Schedule, steps: int, calls: int = 8) -> None:
        super().__init__()
        self.centre, self.jumps, self.calls = centre, jumps_of(schedule, steps), calls
        self.teacher = _OfCentre(centre, schedule)

    def prior(self, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.centre.prior()

    def posterior(self, known: Encoded, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise ValueError("a distilled denoiser draws from nothing, and does not fill")

    def denoise(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Encoded | None, fold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """D* of the Gaussian's jump and the standard deviation of x_0 given x_t. Elements of a batch may be
        at different jumps; times that begin none are taken to be the nearest's that does."""
        if known is not None:
            raise ValueError("a distilled denoiser draws from nothing, and does not fill")
        std = self.centre.denoise(x_t, alpha, sigma, None)[1]
        mine = (sigma / alpha).reshape(-1).expand(len(x_t)).log().clamp(-20, 20)
        starts = torch.tensor([jump.sigma_t / max(jump.alpha_t, 1e-9) for jump in self.jumps]).log()
        place = (mine[:, None].float() - starts.clamp(-20, 20).to(mine.device)).abs().argmin(1)
        aim = torch.empty_like(x_t)
        with torch.autocast(x_t.device.type, enabled=False), torch.no_grad():
            for k, jump in enumerate(self.jumps):
                rows = (place == k).nonzero()[:, 0]
                if len(rows):
                    x = x_t[rows].float()
                    aim[rows] = wanted(x, self._end(x, jump), jump).to(aim)
        return aim, std

    def _end(self, x: Tensor, jump: Step) -> Tensor:
        """Where a jump from x ends."""
        schedule, heun = self.teacher.schedule, Heun()
        last = torch.zeros_like(jump.t) if jump.s is None else jump.s
        levels = schedule.log_snr(torch.stack([jump.t, last])).clamp(-9, 9)
        way = levels[0] + torch.linspace(0, 1, self.calls // 2 + 1, dtype=torch.float64) * (
            levels[1] - levels[0]
        )
        times = schedule.time((-way / 2).exp())
        times[0] = jump.t
        if jump.s is not None:
            times[-1] = jump.s
        steps, keys = steps_of(schedule, times), Keys.range(0, len(x))
        for step in steps if jump.s is None else steps[:-1]:
            x = heun.step(self.teacher, x, step, NOTHING, keys)
        return x

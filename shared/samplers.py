r"""From noise to data. A sampler is one loop and one method: `step` takes x_t to x_s.

All are written for any (alpha, sigma), so one formula serves variance-preserving, variance-exploding and
flow schedules, a start at pure noise (alpha = 0) and an end at clean data (alpha = 1, sigma = 0). With
D = E[x_0 | x_t] and eps = (x_t - alpha_t D) / sigma_t, the probability-flow ODE is
dx = D d(alpha) + eps d(sigma).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .data import NOTHING, Condition
from .denoisers import Denoiser
from .noise import Keys, White
from .schedules import Schedule, Until, knee_grid, log_snr_grid

Grid = Callable[[Schedule, int], Tensor]


class NoiseSource(Protocol):
    """Noise shaped like x for each of `keys`; `stream` tells one use from another."""

    def __call__(self, keys: Keys, x: Tensor, stream: str) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One step from time t to the cleaner time s (both () float64); s is None for the step to clean data."""

    index: int
    t: Tensor
    s: Tensor | None
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float


def steps_of(schedule: Schedule, grid: Tensor) -> list[Step]:
    """Pair each time of a falling grid with the next; the last goes to clean data (alpha 1, sigma 0)."""
    alpha, sigma = ([float(c) for c in column] for column in schedule(grid))
    clean_alpha, clean_sigma, following = [*alpha[1:], 1.0], [*sigma[1:], 0.0], [*grid[1:], None]
    return [
        Step(i, grid[i], following[i], alpha[i], sigma[i], clean_alpha[i], clean_sigma[i])
        for i in range(len(grid))
    ]


@dataclass(frozen=True)
class _Lowered:
    """The denoiser in half precision, the state in float32: rounding a state at each step would add
    noise of its own, while D is a mean and may be rough."""

    denoiser: Denoiser
    dtype: torch.dtype

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.denoiser(x_t.to(self.dtype), t, condition).to(x_t.dtype)


@dataclass
class Sampler(ABC):
    """The loop every sampler shares.

    Args:
        steps: how many steps from noise to clean data.
        grid: which times; each sampler's default is the one that measured best (benchmarks/posterior.py).
        noise: the source of the starting noise and of the fresh noise of stochastic samplers.
    """

    steps: int = 20
    grid: Grid = knee_grid
    noise: NoiseSource = field(default_factory=White)

    @abstractmethod
    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        """x_s from x_t."""

    def begin(self) -> None:  # noqa: B027 (a hook: most have no history)
        """Forget the history of the last run (multistep samplers)."""

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        keys: Keys,
        condition: Condition = NOTHING,
        *,
        like: Tensor | None = None,
        start: Tensor | None = None,
        t_start: float = 1.0,
        callback: Callable[[Step, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw one sample for each of `keys`.

        Args:
            shape: (C, *S) of one sample.
            keys: B of them; element k of the result depends on keys[k] and the condition's row k alone.
            like: a tensor whose dtype and device to use; the state is float32 at least.
            start: (B, C, *S) clean data to be noised to `t_start` and denoised from there (a variation of
                it); without it the start is pure noise.
            t_start: where to begin, in (0, 1]; all `steps` are spent between it and clean data.
            callback: called after each step with it and the new x.

        Returns:
            (B, C, *S) clean data.

        Raises:
            ValueError: when t_start is outside (0, 1], or below 1 without `start`.
        """
        if not 0 < t_start <= 1 or (t_start < 1 and start is None):
            raise ValueError(f"t_start must be in (0, 1], and 1 without start; got {t_start}")
        like = torch.empty(0) if like is None else like
        dtype = torch.promote_types(like.dtype, torch.float32)
        x = torch.zeros(len(keys), *shape, dtype=dtype, device=like.device)
        if x.dtype != like.dtype:
            denoiser = _Lowered(denoiser, like.dtype)
        grid = self.grid(Until(denoiser.schedule, t_start), self.steps) * t_start
        steps = steps_of(denoiser.schedule, grid)
        noise, first = self.noise(keys, x, "start"), steps[0]
        if start is None:
            # The law of x at t = 1 is close to N(0, alpha^2 + sigma^2) for data of unit variance.
            x = noise * math.hypot(first.alpha_t, first.sigma_t)
        else:
            x = first.alpha_t * start.to(x) + first.sigma_t * noise
        self.begin()
        for step in steps:
            x = self.step(denoiser, x, step, condition, keys)
            if callback is not None:
                callback(step, x)
        return x.to(like.dtype)


def noise_of(x_t: Tensor, x_0: Tensor, alpha: float, sigma: float) -> Tensor:
    """eps = (x_t - alpha x_0) / sigma: the noise that x_0 says is in x_t."""
    return (x_t - alpha * x_0) / sigma


@dataclass
class DDIM(Sampler):
    r"""DDIM (Song, Meng & Ermon 2021, eq. 12 and 16): x_s = alpha_s D + sqrt(sigma_s^2 - tau^2) eps + tau z,
    tau^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2).

    The deterministic one is the Euler method: at 20 steps the standard deviation is 7 to 10 % too small,
    and no grid brings that below 6 %. Use Heun or a multistep solver.

    Args:
        eta: 0 is deterministic (order 1), 1 is DDPM's ancestral step.
    """

    eta: float = 0.0

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        x_0 = denoiser(x_t, step.t, condition)
        if step.s is None:
            return x_0
        eps = noise_of(x_t, x_0, step.alpha_t, step.sigma_t)
        kept = step.alpha_t * step.sigma_s / (step.alpha_s * step.sigma_t)  # of the noise, by the posterior
        tau = self.eta * step.sigma_s * math.sqrt(max(1 - kept**2, 0.0))
        x_s = step.alpha_s * x_0 + math.sqrt(max(step.sigma_s**2 - tau**2, 0.0)) * eps
        return x_s + tau * self.noise(keys, x_t, f"step {step.index}") if tau else x_s


@dataclass
class DDPM(DDIM):
    """Ancestral sampling (Ho, Jain & Abbeel 2020) over any grid. It replaces x_0 by its mean in each
    step and so loses spread even with the exact denoiser: 5 to 8 % of the standard deviation at 50 steps,
    1 to 2 % at 250."""

    eta: float = 1.0
    steps: int = 250


@dataclass
class Euler(DDIM):
    """Euler's method on the probability-flow ODE, order 1: DDIM with eta = 0 under its other name."""


@dataclass
class Heun(Sampler):
    r"""Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1), order 2, two
    evaluations a step and one in the last. The most accurate at 20 steps and fewer.

    It is walked in the straight coordinates z = x / (alpha + sigma), u = sigma / (alpha + sigma), where
    dz = (eps - D) du, whatever the schedule. On the variance-exploding path itself 20 steps leave 4.5 %
    too much standard deviation, here 0.5 % (0.7 % for data of standard deviation 0.1).
    """

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        x_0 = denoiser(x_t, step.t, condition)
        if step.s is None:
            return x_0
        eps = noise_of(x_t, x_0, step.alpha_t, step.sigma_t)
        euler = step.alpha_s * x_0 + step.sigma_s * eps
        x_0_s = denoiser(euler, step.s, condition)
        eps_s = noise_of(euler, x_0_s, step.alpha_s, step.sigma_s)
        norm_t, norm_s = step.alpha_t + step.sigma_t, step.alpha_s + step.sigma_s
        du = step.sigma_s / norm_s - step.sigma_t / norm_t
        return norm_s * (x_t / norm_t + du * (eps + eps_s - x_0 - x_0_s) / 2)


@dataclass
class Churned(Heun):
    r"""Stochastic Heun (Karras et al. 2022, algorithm 2): before each step the noise level is raised by a
    factor 1 + gamma with fresh noise, gamma = min(churn / steps, sqrt(2) - 1), which lets later steps
    mend the errors of earlier ones.

    Args:
        churn: total amount of fresh noise; 0 is Heun.
        low, high: the noise-to-signal ratios between which to churn.
    """

    churn: float = 10.0
    low: float = 0.05
    high: float = 50.0

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        if (
            gamma > 0
            and step.s is not None
            and self.low * step.alpha_t <= step.sigma_t <= self.high * step.alpha_t
        ):
            raised = torch.as_tensor((1 + gamma) * step.sigma_t / step.alpha_t, dtype=torch.float64)
            t = denoiser.schedule.time(raised)
            alpha, sigma = (float(c) for c in denoiser.schedule(t))
            kept = alpha / step.alpha_t
            fresh = math.sqrt(max(sigma**2 - (kept * step.sigma_t) ** 2, 0.0))
            x_t = kept * x_t + fresh * self.noise(keys, x_t, f"step {step.index}")
            step = replace(step, t=t, alpha_t=alpha, sigma_t=sigma)
        return super().step(denoiser, x_t, step, condition, keys)


def exponential_weights(h: float, nodes: list[float]) -> list[float]:
    r"""w_j with int_0^h e^(u - h) p(u / h) du = sum_j w_j p(node_j) for all polynomials p of degree below
    the number of nodes: what every multistep solver in half log-SNR needs, since the exact solution is
    x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) D du."""
    moments: list[float] = []
    for k in range(len(nodes)):
        if h > 1:  # by parts; the recursion loses digits for small h, the series needs many terms for large
            moments.append(1 - k / h * moments[-1] if k else -math.expm1(-h))
        else:
            terms = [(-h) ** n * math.factorial(k) / math.factorial(n + k + 1) for n in range(16)]
            moments.append(h * math.fsum(terms))
    powers = torch.tensor([[node**k for node in nodes] for k in range(len(nodes))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return weights


@dataclass
class DPMSolver2M(Sampler):
    r"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), order 2 with one evaluation a step:
    x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D', h the step in half log-SNR and D' the
    prediction extrapolated from this evaluation and the last. First and last step are of order 1. At 20
    steps the standard deviation is 1.3 % too wide, at 10 steps 4 %."""

    grid: Grid = log_snr_grid

    def begin(self) -> None:
        self._last: tuple[Tensor, float] | None = None

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        x_0 = denoiser(x_t, step.t, condition)
        if step.s is None:
            return x_0
        shrink = (step.sigma_s * step.alpha_t) / (step.alpha_s * step.sigma_t)  # exp(-h)
        h = -math.log(shrink) if shrink > 0 else math.inf
        predicted = x_0
        if self._last is not None:
            earlier, h_before = self._last
            predicted = x_0 + (h / (2 * h_before)) * (x_0 - earlier)
        # A first step from alpha = 0 has h = inf: it is of order 1, and no later step may lean on it.
        self._last = (x_0, h) if h < math.inf else None
        return self._move(x_t, predicted, step, shrink, keys)

    def _move(self, x_t: Tensor, x_0: Tensor, step: Step, shrink: float, keys: Keys) -> Tensor:
        return step.sigma_s / step.sigma_t * x_t + step.alpha_s * (1 - shrink) * x_0


@dataclass
class DPMSolverSDE(DPMSolver2M):
    r"""SDE-DPM-Solver++(2M) (Lu et al. 2022, section 4): DPM-Solver++(2M) for the reverse diffusion,
    x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D' + sigma_s sqrt(1 - e^-2h) z."""

    def _move(self, x_t: Tensor, x_0: Tensor, step: Step, shrink: float, keys: Keys) -> Tensor:
        fresh = 1 - shrink**2
        x_s = step.sigma_s / step.sigma_t * shrink * x_t + step.alpha_s * fresh * x_0
        return x_s + step.sigma_s * math.sqrt(fresh) * self.noise(keys, x_t, f"step {step.index}")


@dataclass
class DPMSolver3M(Sampler):
    r"""Multistep exponential Adams-Bashforth: DPM-Solver++ (Lu et al. 2022) carried to any order, one
    evaluation a step: x_s = (sigma_s / sigma_t) x_t + alpha_s sum_j w_j D_j over the last `order`
    evaluations. The first steps are of lower order, and so is the last. At 20 steps the standard deviation
    is right to 0.3 %; below 15 steps 2M or Heun is better (7 % at 10).

    The weights are exact for polynomials. Two widespread 3M codes halve the weight of the second
    difference, which leaves a method of order 2 (measured; this one is of order 3).

    Args:
        order: evaluations used, 1 to 4.
    """

    grid: Grid = log_snr_grid
    order: int = 3

    def begin(self) -> None:
        self._past: list[tuple[float, Tensor]] = []  # (half log-SNR, D), newest first

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        x_0 = denoiser(x_t, step.t, condition)
        if step.s is None:
            return x_0
        return self._predict(x_t, x_0, step)

    def _predict(self, x_t: Tensor, x_0: Tensor, step: Step) -> Tensor:
        if step.alpha_t == 0:
            return step.sigma_s / step.sigma_t * x_t + step.alpha_s * x_0
        level = math.log(step.alpha_t / step.sigma_t)
        self._past = [(level, x_0), *self._past][: self.order]
        return _exponential(x_t, self._past, step.sigma_s / step.sigma_t, step.alpha_s, step.sigma_s, level)


def _exponential(
    x: Tensor, known: list[tuple[float, Tensor]], kept: float, alpha: float, sigma: float, level: float
) -> Tensor:
    """kept x + alpha sum_j w_j D_j: from half log-SNR `level` to log(alpha / sigma), D given at `known`."""
    h = math.log(alpha / sigma) - level
    x = kept * x
    weights = exponential_weights(h, [(at - level) / h for at, _ in known])
    for weight, (_, x_0) in zip(weights, known, strict=True):
        x = x + alpha * weight * x_0
    return x


@dataclass
class UniPC(DPMSolver3M):
    r"""UniPC (Zhao et al. 2023): DPMSolver3M's step is the predictor; the evaluation made where it lands
    then also corrects that landing (Adams-Moulton), which raises the order by one at no further cost.
    The coefficients are the exact ones, which UniPC's are for every B(h) once all conditions are solved.
    At 20 steps the standard deviation is right to 0.3 %; at 10 to 7 %, where 2M or Heun is better."""

    def begin(self) -> None:
        super().begin()
        self._from: tuple[Tensor, Step] | None = None

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        x_0 = denoiser(x_t, step.t, condition)
        if step.s is None:
            return x_0
        corrected = self._correct(x_t, x_0, step)
        self._from = (corrected, step) if step.alpha_t > 0 else None
        return self._predict(corrected, x_0, step)

    def _correct(self, x_t: Tensor, x_0: Tensor, step: Step) -> Tensor:
        if self._from is None:
            return x_t
        x, last = self._from
        known, kept = [(math.log(step.alpha_t / step.sigma_t), x_0), *self._past], step.sigma_t / last.sigma_t
        return _exponential(x, known, kept, step.alpha_t, step.sigma_t, self._past[0][0])


@dataclass
class PredictorCorrector(Sampler):
    r"""A predictor's step, then Langevin steps at the new noise level (Song et al. 2021, algorithms 4, 5):
    x <- x - rate sigma eps + sqrt(2 rate - rate^2) sigma z. The noise is that of the exact
    Ornstein-Uhlenbeck step, so that it keeps the law where the noise is wider than the data; the rate
    is fixed, where the paper's depends on the batch.

    Args:
        predictor: the sampler whose steps to correct (its own grid and noise are not used).
        corrections: Langevin steps after each.
        rate: their size, in (0, 1].
    """

    predictor: Sampler = field(default_factory=Heun)
    corrections: int = 1
    rate: float = 0.1

    def begin(self) -> None:
        self.predictor.begin()

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        x = self.predictor.step(denoiser, x_t, step, condition, keys)
        if step.s is None:
            return x
        for k in range(self.corrections):
            eps = noise_of(x, denoiser(x, step.s, condition), step.alpha_s, step.sigma_s)
            fresh = self.noise(keys, x, f"step {step.index} correction {k}")
            spread = math.sqrt(2 * self.rate - self.rate**2)
            x = x - self.rate * step.sigma_s * eps + spread * step.sigma_s * fresh
        return x

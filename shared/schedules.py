r"""The forward process x_t = alpha(t) x_0 + sigma(t) eps, t in [0, 1], and where it is trained and sampled.

Three words for three things: a *schedule* maps t to (alpha, sigma); a *density* says which t are trained
on; a *grid* says which t are sampled at. Every schedule here has a closed-form inverse of the log
signal-to-noise ratio lambda(t) = 2 log(alpha / sigma), which falls strictly with t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError


class Schedule(ABC):
    """x_t = alpha(t) x_0 + sigma(t) eps. Subclasses give `ratio`, its inverse, and `scale`."""

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each shaped like t, for t in [0, 1]."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The t at which sigma / alpha equals `ratio` (clamped into the schedule's range)."""

    def ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha: the noise level seen by data of unit scale; inf where alpha is 0."""
        alpha, sigma = self(t)
        return sigma / alpha

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = 2 log(alpha / sigma)."""
        return -2 * self.ratio(t).log()


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Variance-preserving quarter circle: alpha = cos(theta), sigma = sin(theta), theta linear in t
    (Nichol & Dhariwal 2021, in the continuous form of Salimans & Ho 2022).

    Args:
        start: theta at t = 0, radians; tan(start) is the noise-to-signal ratio sampling ends on.
        stop: theta at t = 1; pi / 2 would be pure noise.

    Example:
        >>> alpha, sigma = Cosine()(torch.tensor([0.0, 0.5, 1.0]))
        >>> torch.allclose(alpha**2 + sigma**2, torch.ones(3))
        True
    """

    start: float = 2e-3
    stop: float = math.pi / 2 - 2e-3

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.start + (self.stop - self.start) * t
        return theta.cos(), theta.sin()

    def time(self, ratio: Tensor) -> Tensor:
        return ((ratio.atan() - self.start) / (self.stop - self.start)).clamp(0, 1)


@dataclass(frozen=True)
class LinearVP(Schedule):
    r"""Variance-preserving SDE with beta rising linearly (Song et al. 2021, eq. 32):
    alpha = exp(-B(t) / 2), sigma^2 = 1 - alpha^2, B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    Args:
        beta_min, beta_max: the rate at t = 0 and t = 1.
        start: a small time shift so that sigma(0) > 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 5e-5

    def integral(self, u: Tensor) -> Tensor:
        """B(u)."""
        return self.beta_min * u + (self.beta_max - self.beta_min) * u**2 / 2

    def inverse(self, integral: Tensor) -> Tensor:
        """The u at which B is `integral`: the positive root of a quadratic, in the form that does not
        cancel when beta_max is close to beta_min."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self.integral(self.start + (1 - self.start) * t)
        return (-integral / 2).exp(), (-torch.expm1(-integral)).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        # ratio^2 = exp(B) - 1
        return ((self.inverse(torch.log1p(ratio**2)) - self.start) / (1 - self.start)).clamp(0, 1)


@dataclass(frozen=True)
class ScaledLinearVP(LinearVP):
    r"""Variance-preserving with sqrt(beta) rising linearly (Rombach et al. 2022, latent diffusion)."""

    beta_min: float = 0.85
    beta_max: float = 12.0
    start: float = 5e-6

    def _root(self) -> tuple[float, float]:
        low = math.sqrt(self.beta_min)
        return low, math.sqrt(self.beta_max) - low

    def integral(self, u: Tensor) -> Tensor:
        low, slope = self._root()
        return low**2 * u + low * slope * u**2 + slope**2 * u**3 / 3

    def inverse(self, integral: Tensor) -> Tensor:
        low, slope = self._root()
        return ((low**3 + 3 * slope * integral) ** (1 / 3) - low) / slope


@dataclass(frozen=True)
class SubVP(LinearVP):
    r"""The sub-VP SDE (Song et al. 2021, eq. 29): alpha = exp(-B / 2), sigma = 1 - exp(-B)."""

    start: float = 1e-2

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self.integral(self.start + (1 - self.start) * t)
        return (-integral / 2).exp(), -torch.expm1(-integral)

    def time(self, ratio: Tensor) -> Tensor:
        # ratio = exp(B / 2) - exp(-B / 2) = 2 sinh(B / 2)
        return ((self.inverse(2 * (ratio / 2).asinh()) - self.start) / (1 - self.start)).clamp(0, 1)


@dataclass(frozen=True)
class SigmoidVP(Schedule):
    r"""Variance-preserving with alpha^2 a sigmoid of time, rescaled to run from 1 to exactly 0 (Jabri et
    al. 2023; Chen 2023, algorithm 1).

    Args:
        low, high: where on the sigmoid time runs from and to.
        temperature: its width.
        start: a small time shift so that sigma(0) > 0.
    """

    low: float = -3.0
    high: float = 3.0
    temperature: float = 1.0
    start: float = 1e-5

    def _ends(self) -> tuple[float, float]:
        first, last = (1 / (1 + math.exp(-end / self.temperature)) for end in (self.low, self.high))
        return first, last

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._ends()
        u = self.start + (1 - self.start) * t
        risen = torch.sigmoid((self.low + u * (self.high - self.low)) / self.temperature)
        noise = ((risen - first) / (last - first)).clamp(0, 1)
        noise = torch.where(t >= 1, torch.ones_like(noise), noise)  # rounding must not leave a signal
        return (1 - noise).sqrt(), noise.sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        first, last = self._ends()
        noise = 1 / (1 + ratio**-2)
        place = torch.logit(first + noise * (last - first)) * self.temperature
        u = (place - self.low) / (self.high - self.low)
        return ((u - self.start) / (1 - self.start)).clamp(0, 1)


@dataclass(frozen=True)
class VE(Schedule):
    r"""The variance-exploding SDE (Song et al. 2021, eq. 9): alpha = 1 and sigma geometric in t.

    Args:
        sigma_min, sigma_max: noise level at t = 0 and t = 1, in units of the data's standard deviation.
    """

    sigma_min: float = 2e-3
    sigma_max: float = 80.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time(self, ratio: Tensor) -> Tensor:
        return ((ratio / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)).clamp(0, 1)


@dataclass(frozen=True)
class EDM(Schedule):
    r"""alpha = 1 and sigma on the rho-warped path of Karras et al. 2022 (eq. 5), so that a uniform
    grid in t is their sampling grid.

    Args:
        sigma_min, sigma_max: noise level at t = 0 and t = 1, in units of the data's standard deviation.
        rho: 1 is linear in sigma; 7 spends the steps at low noise.
    """

    sigma_min: float = 2e-3
    sigma_max: float = 80.0
    rho: float = 7.0

    def _root(self) -> tuple[float, float]:
        return math.pow(self.sigma_min, 1 / self.rho), math.pow(self.sigma_max, 1 / self.rho)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._root()
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def time(self, ratio: Tensor) -> Tensor:
        low, high = self._root()
        return ((ratio ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    r"""The straight path x_t = (1 - u) x_0 + u eps (Liu et al. 2023; Lipman et al. 2023), u from
    `start` at t = 0 to 1 at t = 1: zero terminal signal-to-noise ratio, exactly.

    Args:
        start: u at t = 0, so that sigma(0) > 0.
    """

    start: float = 1e-3

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = self.start + (1 - self.start) * t
        return 1 - u, u

    def time(self, ratio: Tensor) -> Tensor:
        u = torch.where(ratio.isinf(), torch.ones_like(ratio), ratio / (1 + ratio))
        return ((u - self.start) / (1 - self.start)).clamp(0, 1)


# --- schedules made of schedules ----------------------------------------------------------------


@dataclass(frozen=True)
class Shifted(Schedule):
    r"""Another schedule with its noise-to-signal ratio multiplied by `factor`, alpha^2 + sigma^2 kept: for
    images n times as wide, whose neighbouring pixels agree more, a factor n restores the noise that a
    patch sees (Hoogeboom et al. 2023, eq. 4; Esser et al. 2024, section 5.3.2).

    Args:
        schedule: what to shift.
        factor: above 1 for more noise.
    """

    schedule: Schedule
    factor: float

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        total, shifted = alpha**2 + sigma**2, self.factor * sigma
        norm = (total / (alpha**2 + shifted**2)).sqrt()
        return alpha * norm, shifted * norm

    def time(self, ratio: Tensor) -> Tensor:
        return self.schedule.time(ratio / self.factor)


@dataclass(frozen=True)
class ZeroTerminal(Schedule):
    r"""A variance-preserving schedule rescaled so that x at t = 1 is pure noise (Lin et al. 2024,
    algorithm 1): alpha' = (alpha - alpha_1) alpha_0 / (alpha_0 - alpha_1), sigma'^2 = 1 - alpha'^2. Without
    it a network never sees, in training, the pure noise that sampling starts from.

    Args:
        schedule: what to rescale.

    Raises:
        ValueError: when alpha^2 + sigma^2 is not 1.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        alpha, sigma = self.schedule(torch.linspace(0, 1, 5, dtype=torch.float64))
        if not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)):
            raise ValueError(f"zero terminal SNR is for variance-preserving schedules, not {self.schedule}")

    def _ends(self) -> tuple[float, float]:
        first, last = self.schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[0].tolist()
        return first, last

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._ends()
        alpha = ((self.schedule(t)[0] - last) * first / (first - last)).clamp(min=0)
        alpha = torch.where(t >= 1, torch.zeros_like(alpha), alpha)
        return alpha, ((1 - alpha) * (1 + alpha)).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        first, last = self._ends()
        alpha = last + (1 + ratio**2) ** -0.5 * (first - last) / first
        return self.schedule.time(((1 - alpha) * (1 + alpha)).sqrt() / alpha)


@dataclass(frozen=True)
class Until(Schedule):
    """The part of a schedule from t = 0 to `stop`, stretched over [0, 1]: what a start at t_start walks."""

    schedule: Schedule
    stop: float

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule(t * self.stop)

    def time(self, ratio: Tensor) -> Tensor:
        return (self.schedule.time(ratio) / self.stop).clamp(0, 1)


# --- densities: which t we train on -------------------------------------------------------------


class Density(Protocol):
    """Which times to train on."""

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        """Times (B,) from uniform numbers (B,) in (0, 1), through the inverse distribution function."""
        ...


def _normal(uniform: Tensor) -> Tensor:
    normal: Tensor = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).to(uniform)
    return normal


@dataclass(frozen=True)
class UniformDensity:
    """Training times uniform in t."""

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        return uniform


@dataclass(frozen=True)
class LogNormalDensity:
    """Training times whose noise-to-signal ratio is log-normal (Karras et al. 2022, table 1).

    Args:
        mean, std: of log(sigma / alpha).
    """

    mean: float = -1.2
    std: float = 1.2

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        return schedule.time((self.mean + self.std * _normal(uniform)).exp())


@dataclass(frozen=True)
class LogitNormalDensity:
    """Training times whose logit is normal (Esser et al. 2024, eq. 19), for rectified flow.

    Args:
        mean, std: of log(t / (1 - t)).
    """

    mean: float = 0.0
    std: float = 1.0

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal(uniform))


@dataclass(frozen=True)
class Stratified:
    """Another density with one time in each of B equally likely strata, which lowers the variance of the
    loss (Kingma et al. 2021, appendix I.1). Element i of the batch gets stratum i: shuffle the data.

    Args:
        density: what to stratify.
    """

    density: Density = UniformDensity()

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        strata = torch.arange(len(uniform), dtype=uniform.dtype, device=uniform.device)
        return self.density.sample(schedule, (strata + uniform) / len(uniform))


# --- grids: which t we sample at ----------------------------------------------------------------


def knee_grid(schedule: Schedule, steps: int, knee: float = 0.3) -> Tensor:
    """`steps` times, uniform in r / (knee + r) for r = sigma / alpha: nearly uniform in r below the knee,
    which is about where fine detail is decided, and in 1 / r above it."""
    ends = schedule.ratio(torch.tensor([1.0, 0.0], dtype=torch.float64))
    ends = 1 / (1 + knee / ends)  # 1 where the ratio is infinite
    fraction = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
    risen = ends[0] + fraction * (ends[1] - ends[0])
    times = schedule.time(knee * risen / (1 - risen))
    times[0] = 1.0
    return times


def uniform_grid(schedule: Schedule, steps: int) -> Tensor:
    """`steps` times falling from 1, uniform in t. A last step from the lowest to clean data follows
    them, so `steps` network evaluations are made by a one-evaluation sampler. Shape (steps,), float64."""
    return torch.linspace(1, 0, max(steps, 2), dtype=torch.float64)[:steps]


def karras_grid(schedule: Schedule, steps: int, rho: float = 7.0, ceiling: float = 80.0) -> Tensor:
    """`steps` times, uniform in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5) between the
    schedule's ends; the first is always t = 1, also where its ratio is above `ceiling` or infinite."""
    ends = schedule.ratio(torch.tensor([1.0, 0.0], dtype=torch.float64)).clamp(max=ceiling) ** (1 / rho)
    fraction = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
    times = schedule.time((ends[0] + fraction * (ends[1] - ends[0])) ** rho)
    times[0] = 1.0
    return times


def log_snr_grid(schedule: Schedule, steps: int, floor: float = -6.0, ceiling: float = 12.5) -> Tensor:
    """`steps` times, uniform in the log signal-to-noise ratio (Lu et al. 2022) between `floor` and
    `ceiling`; the first is t = 1 also where its log-SNR is lower: from there one step is as good as many."""
    ends = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).clamp(floor, ceiling)
    fraction = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
    times = schedule.time((-(ends[0] + fraction * (ends[1] - ends[0])) / 2).exp())
    times[0] = 1.0
    return times


def start_time(strength: float, schedule: Schedule) -> float:
    """The time from which data are denoised again to vary them (SDEdit, Meng et al. 2022).

    Args:
        strength: share of noise, sigma / (alpha + sigma), in (0, 1]: 0.2 keeps all but fine detail, at 0.5
            data and noise are equally strong, 1 keeps nothing. It means the same under every schedule.

    Raises:
        InputError: `strength`, outside of it.
    """
    if not 0 < strength <= 1:
        raise InputError("strength", f"{strength} is not in (0, 1]", "", "0.3 to 0.7 is usual")
    if strength == 1:
        return 1.0
    ratio = torch.tensor(strength / (1 - strength), dtype=torch.float64)
    return max(float(schedule.time(ratio)), 1e-3)

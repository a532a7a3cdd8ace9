r"""The forward process x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1], and where it is trained and sampled.

Three words for three things: a *schedule* maps t to (alpha, sigma); a *density* says which t are trained
on; a *grid* says which t are sampled at. Every schedule here has a closed-form inverse of the log
signal-to-noise ratio lambda(t) = 2 log(alpha / sigma), which falls strictly with t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


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
    start: float = 1e-3

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = self.start + (1 - self.start) * t
        integral = self.beta_min * u + (self.beta_max - self.beta_min) * u**2 / 2
        return (-integral / 2).exp(), (-torch.expm1(-integral)).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        # ratio^2 = exp(B) - 1, so B = log1p(ratio^2); then the positive root of a quadratic in u,
        # in the form that does not cancel when beta_max is close to beta_min.
        integral = torch.log1p(ratio**2)
        slope = self.beta_max - self.beta_min
        u = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
        return ((u - self.start) / (1 - self.start)).clamp(0, 1)


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

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def time(self, ratio: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
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


# --- densities: which t we train on -------------------------------------------------------------


@dataclass(frozen=True)
class LogNormalDensity:
    """Training times whose noise-to-signal ratio is log-normal (Karras et al. 2022, table 1).

    Args:
        mean, std: of log(sigma / alpha).
    """

    mean: float = -1.2
    std: float = 1.2

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        """Times (B,) from uniform numbers (B,) in (0, 1), through the inverse distribution function."""
        normal = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).to(uniform)
        return schedule.time((self.mean + self.std * normal).exp())


@dataclass(frozen=True)
class UniformDensity:
    """Training times uniform in t."""

    def sample(self, schedule: Schedule, uniform: Tensor) -> Tensor:
        return uniform


# --- grids: which t we sample at ----------------------------------------------------------------


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


def log_snr_grid(schedule: Schedule, steps: int, floor: float = -10.0) -> Tensor:
    """`steps` times, uniform in the log signal-to-noise ratio (Lu et al. 2022); the first is t = 1."""
    ends = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).clamp(min=floor)
    fraction = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
    times = schedule.time((-(ends[0] + fraction * (ends[1] - ends[0])) / 2).exp())
    times[0] = 1.0
    return times

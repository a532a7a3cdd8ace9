r"""Denoisers: E[x_0 | x_t, what is known, condition], whatever the network inside was trained to output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .centre import Centre
from .data import NOTHING, Condition, Encoded, like
from .schedules import Schedule

Target = Literal["edm", "x0", "epsilon", "v", "flow"]


class Denoiser(Protocol):
    """Anything that knows the posterior mean of clean data: a trained network, a closed form, a guided
    denoiser, a filling one. Samplers ask for nothing else."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x_t (B, C, *S), t () or (B,) -> E[x_0 | x_t, condition], shaped like x_t."""
        ...


@dataclass(frozen=True)
class Parametrisation:
    r"""How a network's output F becomes a prediction of x_0: D = c_skip x_t + c_out F(c_in x_t, t).

    For x_t = alpha x_0 + sigma eps and data of standard deviation s (model space: s = 1):

    ========  =====================================  ==========================================
    target    what F learns                          c_skip, c_out
    ========  =====================================  ==========================================
    x0        x_0                                    0, 1
    epsilon   eps                                    1 / alpha, -sigma / alpha
    v         alpha eps - sigma x_0 (Salimans 2022)  alpha, -sigma, each / (alpha^2 + sigma^2)
    flow      eps - x_0 (Lipman 2023)                1, -sigma, each / (alpha + sigma)
    edm       unit-variance residual (Karras 2022)   alpha s^2 / m^2, sigma s / m
    ========  =====================================  ==========================================

    with m^2 = alpha^2 s^2 + sigma^2 and c_in = 1 / m for every target, so that the network's input has
    unit variance at every noise level.
    """

    target: Target = "edm"
    data_std: float = 1.0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in), each shaped like alpha."""
        s = self.data_std
        m = (alpha**2 * s**2 + sigma**2).sqrt()
        match self.target:
            case "x0":
                skip, out = torch.zeros_like(alpha), torch.ones_like(alpha)
            case "epsilon":
                skip, out = 1 / alpha, -sigma / alpha
            case "v":
                skip, out = alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)
            case "flow":
                skip, out = 1 / (alpha + sigma), -sigma / (alpha + sigma)
            case "edm":
                skip, out = alpha * s**2 / m**2, sigma * s / m
            case _:
                raise ValueError(f"target {self.target!r}: expected edm, x0, epsilon, v or flow")
        return skip, out, 1 / m


Weighting = Callable[[Tensor], Tensor]
"""From log-SNR (B,) to the weight (B,) of the squared error of x_0."""


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) (Hang et al. 2023): epsilon's weight, capped where x_0 is easy."""

    gamma: float = 5.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return log_snr.exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class SigmoidWeighting:
    """SNR sigmoid(bias - log SNR) (Kingma & Gao 2023; Hoogeboom et al. 2024): of epsilon's weight, less
    where the noise is low."""

    bias: float = -1.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return log_snr.exp() * torch.sigmoid(self.bias - log_snr)


@dataclass(frozen=True)
class Preconditioned:
    """D = base + out F(x, level, condition), known entries replaced by their values; the loss is counted in
    `unit`s, which broadcast over the data."""

    base: Tensor
    out: Tensor
    x: Tensor
    level: Tensor
    condition: Condition
    unit: Tensor


class NetworkDenoiser(nn.Module):
    """A network behind a parametrisation.

    The network is called as `network(x, noise_level, condition)` with x (B, C, *S) of unit variance and
    noise_level (B,) = log(sigma / alpha) / 4 (Karras et al. 2022); it returns a tensor shaped like x.
    Where `condition.known` is given, known entries of x_t are replaced by their clean values on the way
    in (scaled like clean data) and returned exactly on the way out, so that one set of weights generates
    and fills: the denoiser is E[x_0 | noisy unknown part, clean known part].

    Args:
        network: the module.
        schedule: the forward process that `t` refers to.
        parametrisation: what the network's output means.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, parametrisation: Parametrisation | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.parametrisation = parametrisation or Parametrisation()

    def levels(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma), float64 and broadcast over x_t, and the network's noise level (B,). Float64,
        because near the ends coefficients are ratios of nearly equal numbers."""
        t = t.to(x_t.device).double()
        level = (self.schedule.ratio(t).clamp(1e-8, 1e8).log() / 4).to(x_t.dtype)
        alpha, sigma = (like(c.expand(len(x_t)), x_t) for c in self.schedule(t))
        return alpha, sigma, level.expand(len(x_t))

    def precondition(self, x_t: Tensor, t: Tensor, condition: Condition) -> Preconditioned:
        """What goes into the network and what becomes of its output."""
        alpha, sigma, level = self.levels(x_t, t)
        skip, out, scale = (c.to(x_t.dtype) for c in self.parametrisation.coefficients(alpha, sigma))
        x, known = x_t * scale, condition.known
        if known is not None:
            x = torch.where(known.observed, known.values, x)
        return Preconditioned(skip * x_t, out, x, level, condition, out)

    def finish(self, parts: Preconditioned, known: Encoded | None) -> Tensor:
        """E[x_0 | x_t, ...] by one call of the network on what `precondition` prepared."""
        output = self.network(parts.x, parts.level, parts.condition).to(parts.base.dtype)
        x_0 = parts.base + parts.out * output
        return x_0 if known is None else torch.where(known.observed, known.values, x_0)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        return self.finish(self.precondition(x_t, t, condition), condition.known)

    def loss(
        self,
        x_0: Tensor,
        noise: Tensor,
        t: Tensor,
        condition: Condition,
        where: Tensor,
        weighting: Weighting | None = None,
    ) -> Tensor:
        r"""Weighted mean squared error per element of the batch: (B,).

        It is computed on x_0 and by default divided by c_out^2, which makes it the plain error of the
        network's own target (Karras et al. 2022, eq. 8).

        Args:
            x_0, noise: (B, C, *S), the clean data and the noise it is mixed with.
            t: (B,).
            where: bool (B, C, *S), entries that count: hidden from the network and yet really observed.
            weighting: weight of the squared error of x_0 as a function of log-SNR, in place of 1 / c_out^2.
        """
        alpha, sigma = (like(c, x_0).to(x_0.dtype) for c in self.schedule(t.double()))
        parts = self.precondition(alpha * x_0 + sigma * noise, t, condition)
        error = self.finish(parts, None) - x_0  # known entries do not count
        if weighting is None:
            error = error / parts.unit
        else:
            error = error * like(weighting(self.schedule.log_snr(t.double())).sqrt(), x_0).to(x_0.dtype)
        error, counts, axes = error.float().square(), where.float(), tuple(range(1, x_0.ndim))
        return (error * counts).sum(axes) / counts.sum(axes).clamp(min=1)


class CentredDenoiser(NetworkDenoiser):
    r"""A network around a centre: D = E_gauss[x_0 | x_t, known] + std_gauss F.

    The network is called as every other (see `NetworkDenoiser`), with its input and the known values
    standardised by the centre's prior, (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) and (x - m) / s; and
    with two more images for each channel at the end of `condition.channels`: the Gaussian's denoised mean,
    standardised, and the logarithm of its standard deviation over the prior's. The loss counts errors in
    data units, divided by the root mean square of std_gauss over the record.

    It is the preconditioning of Karras et al. 2022 with a full Gaussian in place of an isotropic one. An
    untrained network (F = 0) already is the exact denoiser of a Gaussian.

    Args:
        network: takes 2 C further condition channels (`UNet(context=2 * C)`).
        schedule: the forward process.
        centre: what is known before diffusion.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, centre: Centre) -> None:
        super().__init__(network, schedule)
        self.centre = centre

    def precondition(self, x_t: Tensor, t: Tensor, condition: Condition) -> Preconditioned:
        alpha, sigma, level = self.levels(x_t, t)
        known, fold = condition.known, condition.fold
        base, out = self.centre.denoise(x_t, alpha, sigma, known, fold)
        mean, std = self.centre.prior(fold)
        a, s = alpha.to(x_t.dtype), sigma.to(x_t.dtype)
        x = (x_t - a * mean) / (a**2 * std**2 + s**2).sqrt()
        shown = torch.cat([(base - mean) / std, (out / std).clamp(min=1e-3).log()], 1)
        channels = shown if condition.channels is None else torch.cat([condition.channels, shown], 1)
        hidden = torch.ones_like(x_t, dtype=torch.bool)
        if known is not None:
            hidden = ~known.observed
            known = Encoded((known.values - mean) / std * known.observed, known.observed)
            x = torch.where(known.observed, known.values, x)
        told = replace(condition, channels=channels, known=known)
        # One unit of error for a whole record: an entry that varies little matters little.
        axes = tuple(range(1, x_t.ndim))
        spread = (out**2 * hidden).sum(axes, keepdim=True) / hidden.sum(axes, keepdim=True).clamp(min=1)
        return Preconditioned(base, out, x, level, told, spread.sqrt().clamp(min=1e-8))

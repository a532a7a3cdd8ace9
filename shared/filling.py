r"""Filling in what was not observed, with any denoiser.

`fill` is the one call. The default passes the known entries to the denoiser as a condition, which is right
for denoisers trained with masks, and exact for exact ones. For denoisers that only know how to generate:

==================  ===========================================================  ========================
way                 what it is                                                   network calls per step
==================  ===========================================================  ========================
`MomentMatched`     a denoiser: the Gaussian correction from E and Cov[x_0|x_t]  1 + `iterations` backward
`RePaint`           a sampler: known entries are noised and pasted in, again     `repeats`
                    and again
`Twisted`           a sampler: many weighted particles for each sample           2 `particles`
==================  ===========================================================  ========================

What each is worth was measured on closed-form posteriors (benchmarks/posterior.py) and stands in its
docstring. Coverage of intervals does not see a wrong choice of mode; the mode weights do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .data import NOTHING, Condition, Encoded
from .denoisers import Denoiser
from .noise import Keys, key_of
from .samplers import DDIM, Heun, Sampler, Step, noise_of, steps_of
from .schedules import Schedule

_FAINT = 1e-3
"""Signal-to-noise ratio below which dD/dx_t is too small to divide by alpha."""


def fill(
    denoiser: Denoiser,
    known: Encoded,
    keys: Keys,
    condition: Condition = NOTHING,
    *,
    sampler: Sampler | None = None,
    callback: Callable[[Step, Tensor], None] | None = None,
) -> Tensor:
    """Draw what is unknown given what is known.

    Args:
        denoiser: takes `condition.known`, or a `MomentMatched` one.
        known: (B, C, *S) values and where they are known.
        keys: B of them.
        condition: whatever else is known (its `known` field is replaced).
        sampler: `Heun` by default; `RePaint` or `Twisted` for denoisers without masks.
        callback: called after each step.

    Returns:
        (B, C, *S): known entries bit for bit, the others drawn.
    """
    shape, told = tuple(known.values.shape[1:]), replace(condition, known=known)
    x = (sampler or Heun())(denoiser, shape, keys, told, like=known.values, callback=callback)
    return torch.where(known.observed, known.values, x)


def _split(condition: Condition) -> tuple[Encoded, Condition]:
    if condition.known is None:
        raise ValueError("filling needs condition.known; to generate, use the denoiser and sampler inside")
    return condition.known, replace(condition, known=None)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product for each element of the batch, shaped to multiply it."""
    axes = tuple(range(1, a.ndim))
    return (a * b).sum(axes, keepdim=True)


@dataclass(frozen=True)
class MomentMatched:
    r"""A denoiser without masks made to respect known entries (MMPS; Rozet et al. 2024, algorithm 2).

    With V = Cov[x_0 | x_t] = sigma^2 / alpha dD/dx_t and A the choice of known entries,
    D + V A^T (A V A^T + noise^2)^-1 (y - A D), the inner system by conjugate gradients, each product with V
    one backward pass. Exact when the data are one Gaussian and `iterations` suffice. For mixtures it draws
    inside the modes well and chooses between them badly: 0.18 (overlapping) to 0.20 (separated) of the mass
    in the wrong ones. One iteration leaves 12 % too much variance even for a Gaussian; three do not.

    Args:
        denoiser: without masks.
        iterations: of conjugate gradients.
        noise: standard deviation that known values are trusted to.
    """

    denoiser: Denoiser
    iterations: int = 3
    noise: float = 1e-3

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E[x_0 | x_t, known], (B, C, *S)."""
        known, free = _split(condition)
        alpha, sigma = (float(c) for c in self.schedule(t.double().reshape(-1)[0]))
        if alpha < _FAINT * sigma:
            return torch.where(known.observed, known.values, self.denoiser(x_t, t, free))
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x_0 = self.denoiser(x, t, free)
        seen, mean = known.observed.to(x_t), x_0.detach()

        def spread(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(x_0, x, v, retain_graph=True)
            return sigma**2 / alpha * product

        residual = seen * (known.values - mean)
        solution, direction, size = torch.zeros_like(mean), residual, _dot(residual, residual)
        for _ in range(self.iterations):
            image = seen * spread(direction) + self.noise**2 * direction
            step = size / _dot(direction, image).clamp(min=1e-30)
            solution, residual = solution + step * direction, residual - step * image
            size, before = _dot(residual, residual), size
            direction = residual + size / before.clamp(min=1e-30) * direction
        return torch.where(known.observed, known.values, mean + spread(solution))


@dataclass
class RePaint(Sampler):
    """Known entries are noised to the level of the step and pasted in; going back and forth over each step
    lets the rest take note of them (Lugmayr et al. 2022, algorithm 1; repeats = 1 is plain replacement).

    Right for one Gaussian given ten repeats (631 calls). For mixtures it then puts 0.12 (overlapping) to
    0.22 (separated) of the mass in the wrong modes, plain replacement 0.25 to 0.37: noisy pasted values do
    not say which mode they belong to.

    Args:
        inner: the sampler whose steps are taken (without history: DDIM, DDPM, Heun).
        repeats: times each step is taken.
    """

    inner: Sampler = field(default_factory=lambda: DDIM(eta=1.0))
    repeats: int = 10

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        known, free = _split(condition)
        for repeat in range(self.repeats):
            index = step.index * self.repeats + repeat  # of its own, so that its noise is too
            x_s = self.inner.step(denoiser, x_t, replace(step, index=index), free, keys)
            fresh = self.noise(keys, x_t, f"known {index}")
            pasted = step.alpha_s * known.values + step.sigma_s * fresh
            x_s = torch.where(known.observed, pasted, x_s)
            if step.s is None or repeat == self.repeats - 1:
                break
            kept = step.alpha_t / step.alpha_s
            added = math.sqrt(max(step.sigma_t**2 - (kept * step.sigma_s) ** 2, 0.0))
            x_t = kept * x_s + added * self.noise(keys, x_t, f"back {index}")
        return x_s


@dataclass
class Twisted(Sampler):
    r"""Twisted sequential Monte Carlo (Wu et al. 2023): for each sample a population of particles of its
    own, each guided toward the known entries, weighted by what the guidance got wrong, and resampled when
    the effective sample size falls below `gate`; one particle is returned, drawn by weight.

    The only one here that gets a mixture's mode weights right without masks in training: with 8 particles
    0.004 (separated) to 0.014 (overlapping) more of the mass is in wrong modes than for as many exact draws,
    with 32 none; with one particle, which is guidance alone, 0.11 to 0.27. Populations are independent,
    since one large one is overconfident. With many known entries the weights collapse: an `effective_`
    near 1 / particles says so; then give it more particles, or take `MomentMatched`.

    The twist is p(y | x_t) ~ N(y; A D, A V A^T) with V replaced by its value for data of unit variance,
    sigma^2 / (alpha^2 + sigma^2), and the proposal is DDPM's step with D moved by V's gradient.

    Args:
        particles: of each population.
        gate: resample below this share of effective particles.
    """

    steps: int = 100
    particles: int = 8
    gate: float = 0.5

    def step(self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition, keys: Keys) -> Tensor:
        """One guided step, unweighted (what a population of one does)."""
        x_0, x_y, _ = self._twist(denoiser, x_t, step, condition)
        return x_y if step.s is None else self._propose(x_t, x_0, x_y, step, keys)[0]

    def _twist(
        self, denoiser: Denoiser, x_t: Tensor, step: Step, condition: Condition
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D, D moved toward the known entries, and log p(y | x_t) up to a constant (B,)."""
        known, free = _split(condition)
        width = step.sigma_t**2 / (step.alpha_t**2 + step.sigma_t**2)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x_0 = denoiser(x, step.t, free)
            error = (known.observed * (known.values - x_0)).flatten(1).square().sum(1)
            log_twist = -error / (2 * width)
            (slope,) = torch.autograd.grad(log_twist.sum(), x)
        x_0 = x_0.detach()
        if step.alpha_t > _FAINT * step.sigma_t:
            return x_0, x_0 + step.sigma_t**2 / step.alpha_t * slope, log_twist.detach()
        return x_0, x_0, log_twist.detach()

    def _propose(
        self, x_t: Tensor, x_0: Tensor, x_y: Tensor, step: Step, keys: Keys
    ) -> tuple[Tensor, Tensor]:
        """x_s from DDPM's kernel around x_y, and log of its density around x_0 over that around x_y."""
        kept = step.alpha_t * step.sigma_s / (step.alpha_s * step.sigma_t)
        tau = step.sigma_s * math.sqrt(1 - kept**2)
        shift = (step.alpha_s - step.alpha_t * (kept * step.sigma_s / step.sigma_t)) * (x_y - x_0)
        eps = noise_of(x_t, x_0, step.alpha_t, step.sigma_t)
        noise = tau * self.noise(keys, x_t, f"step {step.index}")
        x_s = step.alpha_s * x_0 + kept * step.sigma_s * eps + shift + noise
        log_ratio = (noise.square() - (noise + shift).square()).flatten(1).sum(1) / (2 * tau**2)
        return x_s, log_ratio

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
        """One draw for each of `keys`; see `Sampler`. `effective_` holds the least effective share of each
        population before resampling, (B,)."""
        if start is not None:
            raise ValueError("a population starts from noise: start and t_start are not for Twisted")
        like, (b, p) = torch.empty(0) if like is None else like, (len(keys), self.particles)
        each = torch.arange(b).repeat_interleave(p)
        crowd = Keys(
            key_of(keys.seed, "particles"), keys.items[each], keys.draws[each] * p + torch.arange(p).repeat(b)
        )
        told = condition[each.to(like.device)]
        steps = steps_of(denoiser.schedule, self.grid(denoiser.schedule, self.steps))
        x = torch.empty(b * p, *shape, dtype=like.dtype, device=like.device)
        x = self.noise(crowd, x, "start") * math.hypot(steps[0].alpha_t, steps[0].sigma_t)
        log_w = previous = torch.zeros(b * p, dtype=torch.float64)
        self.effective_ = torch.ones(b, dtype=torch.float64)
        for step in steps:
            x_0, x_y, log_twist = self._twist(denoiser, x, step, told)
            log_w = log_w + log_twist.double().cpu() - previous
            effective = 1 / log_w.reshape(b, p).softmax(1).square().sum(1) / p
            self.effective_ = torch.minimum(self.effective_, effective)
            chosen = self._resampled(log_w.reshape(b, p), effective, keys, step)
            log_w = torch.where((effective < self.gate).repeat_interleave(p), 0.0, log_w)
            place = chosen.to(x.device)
            x, x_0, x_y, previous = x[place], x_0[place], x_y[place], log_twist.double().cpu()[chosen]
            if step.s is None:
                x = x_y
            else:
                x, log_ratio = self._propose(x, x_0, x_y, step, crowd)
                log_w = log_w + log_ratio.double().cpu()
            if callback is not None:
                callback(step, x)
        weights, u = log_w.reshape(b, p).softmax(1), keys.uniform((1,), "survivor")
        survivor = (weights.cumsum(1) < u).sum(1).clamp(max=p - 1) + torch.arange(b) * p
        return x[survivor.to(x.device)]

    def _resampled(self, log_w: Tensor, effective: Tensor, keys: Keys, step: Step) -> Tensor:
        """(B P,) which particle each place now holds: systematic resampling where the gate is passed."""
        b, p = log_w.shape
        u = (torch.arange(p) + keys.uniform((1,), f"resample {step.index}")) / p
        below = log_w.softmax(1).cumsum(1)
        picked = torch.searchsorted(below.contiguous(), u.contiguous()).clamp(max=p - 1)
        own = torch.arange(p).expand(b, p)
        picked = torch.where((effective < self.gate)[:, None], picked, own)
        return (picked + torch.arange(b)[:, None] * p).flatten()

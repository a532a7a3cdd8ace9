r"""Denoisers in closed form: the truth for tests and documentation, and a first experiment without training.

For x_0 ~ N(m, C) and x_t = alpha x_0 + sigma eps, E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1
(x_t - alpha m). Entries that `condition.known` gives are conditioned on first, which leaves a Gaussian of
the others. A mixture weighs its components by how well they explain both x_t and the known entries.
Everything is computed in float64 on the CPU, and element k of a batch has the same bits whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import NOTHING, Condition
from .noise import Keys
from .schedules import Schedule


def rows(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix, (..., d) x (..., d, e) -> (..., e), summed in one fixed order: BLAS chooses its order by
    shape and by a row's place, so that a row's bits would depend on the batch around it (seen with MKL)."""
    out = x[..., :1] * matrix[..., 0, :] if x.shape[-1] else x.new_zeros(*x.shape[:-1], matrix.shape[-1])
    for j in range(1, x.shape[-1]):
        out = out + x[..., j, None] * matrix[..., j, :]
    return out


def _mixed(shares: Tensor, parts: Tensor) -> Tensor:
    """sum_k shares (b, K) parts (b, K, d), in one fixed order."""
    out = shares[:, 0, None] * parts[:, 0]
    for k in range(1, shares.shape[1]):
        out = out + shares[:, k, None] * parts[:, k]
    return out


@dataclass(frozen=True)
class _Given:
    """K Gaussians after some entries became known: each has mean m + (x_known - m) gain and, over the u
    unknown entries, covariance V diag(l) V^T."""

    means: Tensor  # (K, d) of the prior
    observed: Tensor  # (d,) bool
    gain: Tensor  # (K, d, d), from the deviation of the known entries to that of all; 1 on the known ones
    precision: Tensor  # (K, d, d), inverse covariance of the known entries, 0 elsewhere
    log_volume: Tensor  # (K,) log det (2 pi covariance) of the known entries
    basis: Tensor  # (K, d, u) eigenvectors over the unknown entries
    values: Tensor  # (K, u) their eigenvalues

    @classmethod
    def of(cls, means: Tensor, covariances: Tensor, observed: Tensor) -> _Given:
        o, u = observed.nonzero()[:, 0], (~observed).nonzero()[:, 0]
        gain, precision = torch.zeros_like(covariances), torch.zeros_like(covariances)
        inside = covariances[:, o][:, :, o]
        inverse = torch.linalg.inv(inside)
        regression = inverse @ covariances[:, o][:, :, u]
        gain[:, o, o] = 1.0
        gain[:, o[:, None], u] = regression
        precision[:, o[:, None], o] = inverse
        left = covariances[:, u][:, :, u] - covariances[:, u][:, :, o] @ regression
        values, vectors = torch.linalg.eigh(left)
        basis = covariances.new_zeros(*means.shape, len(u))
        basis[:, u] = vectors
        volume = torch.linalg.slogdet(2 * math.pi * inside)[1] if len(o) else means.new_zeros(len(means))
        return cls(means, observed, gain, precision, volume, basis, values.clamp(min=0))

    def laws(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Means (b, K, d) given known values (b, d), and the log density (b, K) of those."""
        known = (values[:, None] - self.means) * self.observed
        square = (rows(known, self.precision) * known).sum(2)
        return self.means + rows(known, self.gain), -(square + self.log_volume) / 2


class MixtureDenoiser:
    r"""E[x_0 | x_t, known] for x_0 ~ sum_k w_k N(m_k, C_k), the exact conditional score included.

    Args:
        weights: (K,) positive, normalised here.
        means: (K, C, *S).
        covariances: (K, d, d) with d = C * prod(S).
        schedule: the forward process.

    Example:
        >>> from ebbtide.shared.schedules import Cosine
        >>> two = MixtureDenoiser(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1), Cosine())
        >>> two(torch.zeros(1, 1), torch.tensor(0.5), Condition()).abs().item() < 1e-12
        True
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule) -> None:
        self.shape = tuple(means.shape[1:])
        self.log_weights = (weights / weights.sum()).double().log()
        self.means, self.covariances = means.double().flatten(1), covariances.double()
        count, size = self.means.shape
        if self.covariances.shape != (count, size, size) or len(self.log_weights) != count:
            raise ValueError(
                f"{count} means of {size} entries need covariances ({count}, {size}, {size}) and "
                f"{count} weights, got {tuple(covariances.shape)} and {tuple(weights.shape)}"
            )
        self.schedule = schedule
        self._given: dict[bytes, _Given] = {}

    def _components(self, observed: Tensor) -> _Given:
        key = observed.numpy().tobytes()
        if key not in self._given:
            self._given[key] = _Given.of(self.means, self.covariances, observed)
        return self._given[key]

    def _groups(self, condition: Condition, batch: int) -> Iterator[tuple[Tensor, Tensor, _Given]]:
        """For each pattern of known entries: its rows, the known values (b, d), the components given it."""
        size = self.means.shape[1]
        if condition.known is None:
            nothing = torch.zeros(size, dtype=torch.bool)
            yield (
                torch.arange(batch),
                torch.zeros(batch, size, dtype=torch.float64),
                self._components(nothing),
            )
            return
        values = condition.known.values.double().cpu().flatten(1)
        flat = condition.known.observed.cpu().flatten(1)
        patterns, which = torch.unique(flat, dim=0, return_inverse=True)
        for i, observed in enumerate(patterns):
            index = (which == i).nonzero()[:, 0]
            yield index, values[index], self._components(observed)

    def _laws(
        self, law: _Given, values: Tensor, x_t: Tensor | None, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-weights (b, K), unnormalised; means (b, K, d); x_t's coordinates (b, K, u) around alpha times
        them; and the variances of those."""
        mean, evidence = law.laws(values)
        score, (a, s) = self.log_weights + evidence, (alpha[..., None], sigma[..., None])
        variance = a**2 * law.values + s**2
        if x_t is None:
            return score, mean, torch.zeros_like(variance), variance
        y = rows(x_t[:, None] - a * mean, law.basis)
        score = score - (y**2 / variance + (2 * math.pi * variance).log()).sum(2) / 2
        return score, mean, y, variance

    def _level(self, t: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        if t is None:  # clean data
            return torch.ones(batch, 1, dtype=torch.float64), torch.zeros(batch, 1, dtype=torch.float64)
        alpha, sigma = self.schedule(t.double().cpu().expand(batch))
        return alpha[:, None], sigma[:, None]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, known], (B, C, *S)."""
        x, (alpha, sigma) = x_t.double().cpu().flatten(1), self._level(t, len(x_t))
        x_0 = torch.zeros_like(x)
        for index, values, law in self._groups(condition, len(x_t)):
            scores, mean, y, variance = self._laws(law, values, x[index], alpha[index], sigma[index])
            parts = mean + rows(y * (alpha[index][..., None] * law.values / variance), law.basis.mT)
            x_0 = x_0.index_copy(0, index, _mixed(scores.softmax(1), parts))
        x_0 = x_0.reshape(x_t.shape).to(x_t)
        known = condition.known
        return x_0 if known is None else torch.where(known.observed, known.values.to(x_t), x_0)

    def weights(
        self, condition: Condition = NOTHING, x_t: Tensor | None = None, t: Tensor | None = None
    ) -> Tensor:
        """(B, K) probability of each component given the known entries, and x_t at t where given
        (clean data where t is None)."""
        batch = _batch(condition, x_t)
        alpha, sigma = self._level(t, batch)
        out = torch.zeros(batch, len(self.means), dtype=torch.float64)
        for index, values, law in self._groups(condition, batch):
            x = None if x_t is None else x_t.double().cpu().flatten(1)[index]
            out[index] = self._laws(law, values, x, alpha[index], sigma[index])[0].softmax(1)
        return out

    def moments(
        self, condition: Condition = NOTHING, x_t: Tensor | None = None, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, d) and covariance (B, d, d) of x_0 given the known entries, and x_t at t where given."""
        batch, size = _batch(condition, x_t), self.means.shape[1]
        alpha, sigma = self._level(t, batch)
        first = torch.zeros(batch, size, dtype=torch.float64)
        second = torch.zeros(batch, size, size, dtype=torch.float64)
        for index, values, law in self._groups(condition, batch):
            a, s = alpha[index][..., None], sigma[index][..., None]
            x = None if x_t is None else x_t.double().cpu().flatten(1)[index]
            scores, mean, y, variance = self._laws(law, values, x, alpha[index], sigma[index])
            left = law.values.expand_as(y)
            if x is not None:
                mean = mean + rows(y * a * law.values / variance, law.basis.mT)
                left = law.values * s**2 / variance
            shares = scores.softmax(1)
            first[index] = _mixed(shares, mean)
            second[index] = torch.einsum("bk,kiu,bku,kju->bij", shares, law.basis, left, law.basis)
            second[index] += torch.einsum("bk,bki,bkj->bij", shares, mean, mean)
        return first, second - first[:, :, None] * first[:, None, :]

    def log_density(self, x: Tensor, t: Tensor | None = None, condition: Condition = NOTHING) -> Tensor:
        """(B,) log density in nats of x_t at t (of clean data where t is None), of the unknown entries
        given the known ones."""
        alpha, sigma = self._level(t, len(x))
        out = torch.zeros(len(x), dtype=torch.float64)
        for index, values, law in self._groups(condition, len(x)):
            a, s, flat = alpha[index], sigma[index], x.double().cpu().flatten(1)[index]
            joint, known = (self._laws(law, values, y, a, s)[0].logsumexp(1) for y in (flat, None))
            out[index] = joint - known
        return out

    def sample(self, keys: Keys, condition: Condition = NOTHING) -> Tensor:
        """(B, C, *S) float64 exact draws given the known entries, one for each of `keys`."""
        noise, pick = keys.normal((self.means.shape[1],), "exact", torch.float64), keys.uniform((1,), "mode")
        out = torch.zeros_like(noise)
        for index, values, law in self._groups(condition, len(keys)):
            nothing = torch.zeros(len(index), 1, dtype=torch.float64)
            scores, mean, _, _ = self._laws(law, values, None, nothing, nothing)
            chosen = (scores.softmax(1).cumsum(1) < pick[index]).sum(1).clamp(max=len(self.means) - 1)
            z = noise[index][:, None, : law.values.shape[1]] * law.values.sqrt()
            draws = mean + rows(z, law.basis.mT)
            out[index] = draws[torch.arange(len(index)), chosen]
        return out.reshape(-1, *self.shape)


class GaussianDenoiser(MixtureDenoiser):
    """E[x_0 | x_t, known] for x_0 ~ N(mean, covariance), with its exact probability flow.

    Args:
        mean: (C, *S).
        covariance: (d, d) with d = C * prod(S).
        schedule: the forward process.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule) -> None:
        super().__init__(torch.ones(1), mean[None], covariance[None], schedule)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition = NOTHING) -> Tensor:
        r"""Where the probability-flow ODE takes x_t from t to s: along each axis of the covariance,
        x_s = alpha_s m + sqrt((alpha_s^2 l + sigma_s^2) / (alpha_t^2 l + sigma_t^2)) (x_t - alpha_t m)."""
        x = x_t.double().cpu().flatten(1)
        (alpha, sigma), (alpha_s, sigma_s) = self._level(t, len(x)), self._level(s, len(x))
        out = torch.zeros_like(x)
        for index, values, law in self._groups(condition, len(x)):
            a, b, a_s, b_s = alpha[index], sigma[index], alpha_s[index], sigma_s[index]
            mean, y = (part[:, 0] for part in self._laws(law, values, x[index], a, b)[1:3])
            basis, spread = law.basis[0], law.values[0]
            stretch = ((a_s**2 * spread + b_s**2) / (a**2 * spread + b**2)).sqrt()
            still = x[index] - a * mean - rows(y, basis.T)  # known entries have no spread but the noise
            out[index] = a_s * mean + rows(y * stretch, basis.T) + b_s / b * still
        return out.reshape(x_t.shape).to(x_t)


class FiniteSetDenoiser:
    r"""E[x_0 | x_t, known] when x_0 is one of N points, equally likely: the optimum of training without
    generalisation (softmax of -|x_t - alpha x_i|^2 / (2 sigma^2) over the points).

    Args:
        points: (N, C, *S).
        schedule: the forward process.
        tolerance: standard deviation allowed between a known entry and a point's.
    """

    def __init__(self, points: Tensor, schedule: Schedule, tolerance: float = 1e-3) -> None:
        self.points, self.schedule, self.tolerance = points.double().flatten(1), schedule, tolerance

    def weights(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """(B, N) probability of each point."""
        x = x_t.double().cpu().flatten(1)
        alpha, sigma = (c[:, None].expand_as(x) for c in self.schedule(t.double().cpu().expand(len(x))))
        if condition.known is not None:
            observed = condition.known.observed.cpu().flatten(1)
            values = condition.known.values.double().cpu().flatten(1)
            x, alpha = torch.where(observed, values, x), alpha.masked_fill(observed, 1.0)
            sigma = sigma.masked_fill(observed, self.tolerance)
        # -|x - alpha p|^2 / (2 sigma^2), less what all points share
        near = rows(alpha * x / sigma**2, self.points.T) - rows((alpha / sigma) ** 2, self.points.T**2) / 2
        return near.softmax(1)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, known], (B, C, *S)."""
        x_0 = rows(self.weights(x_t, t, condition), self.points).reshape(x_t.shape).to(x_t)
        known = condition.known
        return x_0 if known is None else torch.where(known.observed, known.values.to(x_t), x_0)


def _batch(condition: Condition, x_t: Tensor | None) -> int:
    if x_t is not None:
        return len(x_t)
    return 1 if condition.known is None else len(condition.known.values)

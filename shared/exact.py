r"""Denoisers in closed form: the truth for tests and documentation, and a first experiment without training.

For x_0 ~ N(m, C) and x_t = alpha x_0 + sigma eps, E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1
(x_t - alpha m). Entries that `condition.known` gives are conditioned on first, which leaves a Gaussian of
the others. A mixture weighs its components by how well they explain both x_t and the known entries.
Everything is computed in float64, and element k of a batch has the same bits whatever the batch.
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
    """x @ matrix, (B, d) x (d, e), summed in one fixed order: BLAS chooses its order by shape and by a row's
    place, so that a row's bits would depend on the batch around it (seen with MKL)."""
    out = x.new_zeros(len(x), matrix.shape[1])
    for column, row in zip(x.T, matrix, strict=True):
        out = out + column[:, None] * row
    return out


@dataclass(frozen=True)
class _Given:
    """A Gaussian after some entries became known: mean + gain (x_known - mean), covariance V diag(l) V^T."""

    mean: Tensor  # (d,) of the prior
    gain: Tensor  # (d, d), deviation of the known entries -> of all; the identity on the known ones
    precision: Tensor  # (d, d), inverse covariance of the known entries, 0 elsewhere
    log_volume: float  # log det (2 pi covariance) of the known entries
    basis: Tensor  # (d, u) eigenvectors over the unknown entries
    values: Tensor  # (u,) their eigenvalues

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, observed: Tensor) -> _Given:
        o, u = observed.nonzero()[:, 0], (~observed).nonzero()[:, 0]
        gain, precision, basis = (
            torch.zeros_like(covariance),
            torch.zeros_like(covariance),
            covariance.new_zeros,
        )
        inverse = torch.linalg.inv(covariance[o][:, o])
        regression = covariance[u][:, o] @ inverse
        gain[o, o] = 1.0
        gain[u[:, None], o] = regression
        precision[o[:, None], o] = inverse
        values, vectors = torch.linalg.eigh(covariance[u][:, u] - regression @ covariance[o][:, u])
        embedded = basis((len(mean), len(u)))
        embedded[u] = vectors
        volume = float(torch.logdet(2 * math.pi * covariance[o][:, o])) if len(o) else 0.0
        return cls(mean, gain, precision, volume, embedded, values.clamp(min=0))

    def centre(self, known: Tensor) -> Tensor:
        """(B, d) conditional means; `known` (B, d) holds the deviation of known entries, 0 elsewhere."""
        return self.mean + rows(known, self.gain.T)

    def evidence(self, known: Tensor) -> Tensor:
        """(B,) log density of the known entries."""
        return -((rows(known, self.precision) * known).sum(1) + self.log_volume) / 2


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
        self._given: dict[bytes, list[_Given]] = {}

    def _components(self, observed: Tensor) -> list[_Given]:
        key = observed.cpu().numpy().tobytes()
        if key not in self._given:
            pairs = zip(self.means, self.covariances, strict=True)
            self._given[key] = [_Given.of(m, c, observed) for m, c in pairs]
        return self._given[key]

    def _groups(self, condition: Condition, batch: int) -> Iterator[tuple[Tensor, Tensor, list[_Given]]]:
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
        values = condition.known.values.double().flatten(1)
        flat = condition.known.observed.flatten(1)
        patterns, which = torch.unique(flat, dim=0, return_inverse=True)
        for i, observed in enumerate(patterns):
            index = (which == i).nonzero()[:, 0]
            yield index, values[index], self._components(observed)

    def _laws(
        self, given: list[_Given], values: Tensor, x_t: Tensor | None, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Log-weights (b, K), unnormalised, and for each component its mean (b, d) and x_t's
        coordinates (b, u) around alpha times it."""
        scores, laws = [], []
        for prior, law in zip(self.log_weights, given, strict=True):
            known = (values - law.mean) * (law.gain.diagonal() == 1)
            mean = law.centre(known)
            score, y = prior + law.evidence(known), values.new_zeros(len(values), len(law.values))
            if x_t is not None:
                y = rows(x_t - alpha * mean, law.basis)
                variance = alpha**2 * law.values + sigma**2
                score = score - (y**2 / variance + (2 * math.pi * variance).log()).sum(1) / 2
            scores.append(score.expand(len(values)))
            laws.append((mean, y))
        return torch.stack(scores, 1), laws

    def _level(self, t: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        if t is None:  # clean data
            return torch.ones(batch, 1, dtype=torch.float64), torch.zeros(batch, 1, dtype=torch.float64)
        alpha, sigma = self.schedule(t.double().cpu().expand(batch))
        return alpha[:, None], sigma[:, None]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, known], (B, C, *S)."""
        x, (alpha, sigma) = x_t.double().flatten(1), self._level(t, len(x_t))
        x_0 = torch.zeros_like(x)
        for index, values, given in self._groups(condition, len(x_t)):
            a, s = alpha[index], sigma[index]
            scores, laws = self._laws(given, values, x[index], a, s)
            mixed = torch.zeros_like(values)
            for share, law, (mean, y) in zip(scores.softmax(1).T, given, laws, strict=True):
                shrink = a * law.values / (a**2 * law.values + s**2)
                mixed = mixed + share[:, None] * (mean + rows(y * shrink, law.basis.T))
            x_0 = x_0.index_copy(0, index, mixed)
        x_0 = x_0.reshape(x_t.shape).to(x_t.dtype)
        known = condition.known
        return x_0 if known is None else torch.where(known.observed, known.values.to(x_t.dtype), x_0)

    def weights(
        self, condition: Condition = NOTHING, x_t: Tensor | None = None, t: Tensor | None = None
    ) -> Tensor:
        """(B, K) probability of each component given the known entries, and x_t at t where given
        (clean data where t is None)."""
        batch = _batch(condition, x_t)
        alpha, sigma = self._level(t, batch)
        out = torch.zeros(batch, len(self.means), dtype=torch.float64)
        for index, values, given in self._groups(condition, batch):
            x = None if x_t is None else x_t.double().flatten(1)[index]
            out[index] = self._laws(given, values, x, alpha[index], sigma[index])[0].softmax(1)
        return out

    def moments(
        self, condition: Condition = NOTHING, x_t: Tensor | None = None, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, d) and covariance (B, d, d) of x_0 given the known entries, and x_t at t where given."""
        batch, size = _batch(condition, x_t), self.means.shape[1]
        alpha, sigma = self._level(t, batch)
        first = torch.zeros(batch, size, dtype=torch.float64)
        second = torch.zeros(batch, size, size, dtype=torch.float64)
        for index, values, given in self._groups(condition, batch):
            a, s = alpha[index], sigma[index]
            x = None if x_t is None else x_t.double().flatten(1)[index]
            scores, laws = self._laws(given, values, x, a, s)
            for share, law, (centre, y) in zip(scores.softmax(1).T, given, laws, strict=True):
                variance = a**2 * law.values + s**2
                mean = centre if x is None else centre + rows(y * a * law.values / variance, law.basis.T)
                left = law.values.expand(len(index), -1) if x is None else law.values * s**2 / variance
                spread = torch.einsum("iu,bu,ju->bij", law.basis, left, law.basis)
                first[index] += share[:, None] * mean
                second[index] += share[:, None, None] * (spread + mean[:, :, None] * mean[:, None, :])
        return first, second - first[:, :, None] * first[:, None, :]

    def log_density(self, x: Tensor, t: Tensor | None = None, condition: Condition = NOTHING) -> Tensor:
        """(B,) log density in nats of x_t at t (of clean data where t is None), of the unknown entries
        given the known ones."""
        alpha, sigma = self._level(t, len(x))
        out = torch.zeros(len(x), dtype=torch.float64)
        for index, values, given in self._groups(condition, len(x)):
            a, s, flat = alpha[index], sigma[index], x.double().flatten(1)[index]
            joint, known = (self._laws(given, values, y, a, s)[0].logsumexp(1) for y in (flat, None))
            out[index] = joint - known
        return out

    def sample(self, keys: Keys, condition: Condition = NOTHING) -> Tensor:
        """(B, C, *S) float64 exact draws given the known entries, one for each of `keys`."""
        noise, pick = keys.normal((self.means.shape[1],), "exact", torch.float64), keys.uniform((1,), "mode")
        out = torch.zeros_like(noise)
        for index, values, given in self._groups(condition, len(keys)):
            nothing = torch.zeros(len(index), 1)
            scores, laws = self._laws(given, values, None, nothing, nothing)
            chosen = (scores.softmax(1).cumsum(1) < pick[index]).sum(1).clamp(max=len(given) - 1)
            for k, (law, (mean, _)) in enumerate(zip(given, laws, strict=True)):
                z = noise[index][:, : len(law.values)] * law.values.sqrt()
                draw = mean + rows(z, law.basis.T)
                out[index] = torch.where((chosen == k)[:, None], draw, out[index])
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
        x = x_t.double().flatten(1)
        (alpha, sigma), (alpha_s, sigma_s) = self._level(t, len(x)), self._level(s, len(x))
        out = torch.zeros_like(x)
        for index, values, given in self._groups(condition, len(x)):
            a, b, a_s, b_s = alpha[index], sigma[index], alpha_s[index], sigma_s[index]
            ((mean, y),) = self._laws(given, values, x[index], a, b)[1]
            basis, spread = given[0].basis, given[0].values
            stretch = ((a_s**2 * spread + b_s**2) / (a**2 * spread + b**2)).sqrt()
            still = x[index] - a * mean - rows(y, basis.T)  # known entries have no spread but the noise
            out[index] = a_s * mean + rows(y * stretch, basis.T) + b_s / b * still
        return out.reshape(x_t.shape).to(x_t.dtype)


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
        x = x_t.double().flatten(1)
        alpha, sigma = (c[:, None].expand_as(x) for c in self.schedule(t.double().cpu().expand(len(x))))
        if condition.known is not None:
            observed, values = condition.known.observed.flatten(1), condition.known.values.double().flatten(1)
            x, alpha = torch.where(observed, values, x), alpha.masked_fill(observed, 1.0)
            sigma = sigma.masked_fill(observed, self.tolerance)
        # -|x - alpha p|^2 / (2 sigma^2), less what all points share
        near = rows(alpha * x / sigma**2, self.points.T) - rows((alpha / sigma) ** 2, self.points.T**2) / 2
        return near.softmax(1)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        """E[x_0 | x_t, known], (B, C, *S)."""
        x_0 = rows(self.weights(x_t, t, condition), self.points).reshape(x_t.shape).to(x_t.dtype)
        known = condition.known
        return x_0 if known is None else torch.where(known.observed, known.values.to(x_t.dtype), x_0)


def _batch(condition: Condition, x_t: Tensor | None) -> int:
    if x_t is not None:
        return len(x_t)
    return 1 if condition.known is None else len(condition.known.values)

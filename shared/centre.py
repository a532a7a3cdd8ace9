r"""The centre: mean and scale of what is hidden, known cheaply before diffusion; diffusion does the rest.

`GaussianCentre` models data as x = m + W z + e, z ~ N(0, I_k), e ~ N(0, diag(psi)): probabilistic PCA with a
noise of its own at every position. Whatever is observed, the posterior of z is Gaussian with precision
I + W^T D W, D diagonal (the Woodbury identity), so that a volume of 100,000 positions costs a k x k system.
It is fitted in closed form, or by a few rounds of EM where data are missing, and cross-fitted by subject,
so that a network trained on top of it meets the errors it will meet in use.

What the components leave over is not white: neighbours go together. Where noise is taken off, it may be held
to be independent in Haar packets of four positions along each axis (`bands`) in place of single positions: on
brains, and on photographs, a fifth of the squared error at middle noise, for two sums a position.

`denoisers.CentredDenoiser` puts a network around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from .data import Encoded
from .latent import haar_pack, haar_unpack
from .noise import Keys, key_of

_CHUNK = 2**24  # numbers held at once in the largest temporary
_FAR = 0.03  # weight of nothing known around: what is farther than the reach says little
_LARGE, _ITERATIONS = 1500, 10  # beyond so many records and positions axes are found by iterations
_SCARCE = 0.5  # share of entries missing up to which they are filled in: EM promises too much of few records
_LEVELS = 2  # of packing, where all sizes divide
_MOST = 20_000  # records that some dozen components are found from

P = ParamSpec("P")
T = TypeVar("T")


class Centre(Protocol):
    """Mean and scale of data given part of it, and given a noisy version too."""

    def prior(self, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_0, each (1 or B, C, *S)."""
        ...

    def posterior(self, known: Encoded, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_0 given the known entries (their value and 0), (B, C, *S).
        `fold` (B,) names for each record the cross-fitted centre that never saw it; -1 the one of all."""
        ...

    def denoise(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Encoded | None, fold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_0 given x_t = alpha x_0 + sigma eps and the known entries."""
        ...


def _in_full_precision(method: Callable[P, T]) -> Callable[P, T]:
    """Outside of autocast: rounded to bfloat16, a system of some dozen components is no longer definite."""

    @wraps(method)
    def exact(*args: P.args, **named: P.kwargs) -> T:
        centre = args[0]
        assert isinstance(centre, GaussianCentre)
        with torch.autocast(centre.mean.device.type, enabled=False):
            return method(*args, **named)

    return exact


class GaussianCentre(nn.Module):
    """A low-rank Gaussian with per-position noise.

    Args:
        mean: (C, *S).
        loadings: (d, k) with d = C * prod(S); k = 0 makes the diagonal Gaussian (a template and its spread).
        variance: (d,) noise variance at each position, positive.
        reach: how far, in positions, what is left of a known entry speaks for its neighbours (kriging by a
            normalised convolution; Knutsson & Westin 1993); 0 takes what is left as independent.
        bands: (d,) variance of what the components leave over in its Haar packets, in the order of
            `haar_pack`; None takes it as independent from position to position.

    Without `reach` and `bands` the centre is exact for a Gaussian of this form.
    """

    mean: Tensor
    loadings: Tensor
    variance: Tensor
    bands: Tensor | None

    def __init__(
        self,
        mean: Tensor,
        loadings: Tensor,
        variance: Tensor,
        reach: float = 0.0,
        bands: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.reach = tuple(mean.shape), reach
        self.register_buffer("mean", mean.flatten())
        self.register_buffer("loadings", loadings)
        self.register_buffer("variance", variance)
        self.register_buffer("bands", bands)

    @classmethod
    def blank(
        cls, shape: tuple[int, ...], components: int, reach: float = 0.0, packed: bool = False
    ) -> GaussianCentre:
        """A standard normal of the right shape, to load a saved state into."""
        size = math.prod(shape)
        bands = torch.ones(size) if packed else None
        return cls(torch.zeros(shape), torch.zeros(size, components), torch.ones(size), reach, bands)

    @classmethod
    def fit(
        cls,
        values: Tensor,
        observed: Tensor | None = None,
        *,
        components: int = 20,
        rounds: int = 10,
        floor: float = 1e-4,
        reach: float = 0.0,
        packed: bool = False,
        groups: Tensor | None = None,
    ) -> GaussianCentre:
        """Fit to n records: principal components where all is observed; from there, where some of it is not,
        by filling in and finding them anew, and where more is missing by EM.

        Args:
            values: (n, C, *S), 0 where unknown.
            observed: bool, same shape; None where all is.
            components: k, at most 4 n / 5 - 2 are kept.
            rounds: of either, where entries are missing.
            floor: least noise variance at a position.
            reach: as for the class.
            packed: find `bands`, where every size is even.
            groups: (n,) int64, whose record it is: what is left over is measured on groups that the
                components were not found from. None: each is its own.
        """
        x, shape = values.flatten(1), tuple(values.shape[1:])
        observed = torch.ones_like(values, dtype=torch.bool) if observed is None else observed
        seen = observed.flatten(1).to(x)
        k = max(0, min(components, len(x) * 4 // 5 - 2, x.shape[1] - 1))
        levels = _levels(shape) if packed else 0

        def principal(filled: Tensor, mean: Tensor) -> tuple[GaussianCentre, Tensor]:
            loadings, variance, bands = _principal(filled - mean, seen, k, floor, shape, levels, groups)
            return cls(mean.reshape(shape), loadings, variance, reach), bands

        mean = (x * seen).sum(0) / seen.sum(0).clamp(min=1)
        centre, bands = principal(torch.where(seen > 0, x, mean), mean)
        missing = 1 - float(seen.mean())
        for _ in range(rounds if missing else 0):
            if missing > _SCARCE:
                centre = centre._improved(x, seen, floor)
                continue
            known = Encoded(values * observed, observed)
            filled = centre.posterior(known)[0].flatten(1)
            centre, bands = principal(filled, filled.mean(0))
        if levels:
            # How what is left divides among the packets of a block; how much of it there is, `variance` says.
            share = bands / _of_blocks(bands, shape)
            low = haar_pack(centre.variance.reshape(1, *shape), levels)
            count = low.shape[1] // shape[0]
            total = low.unflatten(1, (-1, count))[:, :, :1].expand(-1, -1, count, *low.shape[2:])
            centre.bands = (share * total.flatten() / math.sqrt(count)).clamp(min=floor)
        return centre

    def _improved(self, x: Tensor, seen: Tensor, floor: float) -> GaussianCentre:
        """One round of EM for factor analysis with missing entries, loadings and mean together (z, 1)."""
        z, covariance = self._latent(seen / self.variance, seen / self.variance * (x - self.mean))
        z1 = torch.cat([z, z.new_ones(len(z), 1)], 1)
        second = z1[:, :, None] * z1[:, None, :]
        second[:, :-1, :-1] += covariance
        width, count = z1.shape[1], seen.sum(0)
        loadings, variance = torch.zeros(x.shape[1], width).to(x), torch.ones_like(self.variance)
        average = self.variance.mean()
        for places in torch.arange(x.shape[1]).split(max(1, _CHUNK // width**2)):
            a = (seen[:, places].T @ second.flatten(1)).reshape(-1, width, width)
            b = (seen[:, places] * x[:, places]).T @ z1
            # A standard normal prior on the loadings keeps positions that were seldom seen at rest.
            ridge = self.variance[places, None, None] * torch.eye(width).to(x)
            w = torch.linalg.solve(a + ridge, b)
            error = (
                (seen * x**2)[:, places].sum(0) - 2 * (w * b).sum(1) + torch.einsum("pi,pij,pj->p", w, a, w)
            )
            loadings[places], variance[places] = w, (error + average) / (count[places] + 1)
        variance = torch.where(count > 0, variance.clamp(min=floor), torch.ones_like(variance))
        mean = loadings[:, -1].reshape(self.shape)
        return GaussianCentre(mean, loadings[:, :-1].contiguous(), variance, self.reach)

    def _latent(self, precision: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean (B, k) and covariance (B, k, k) of z from measurements of W z at every position,
        with the given precisions (B, d) and precision times measurement (B, d)."""
        d, k = self.loadings.shape
        grams = [
            (self.loadings * part[:, :, None]).mT @ self.loadings
            for part in precision.split(max(1, _CHUNK // max(1, d * k)))
        ]
        system = torch.cat(grams).double() + torch.eye(k, dtype=torch.float64, device=pull.device)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(system)).to(pull)
        return (covariance @ (pull @ self.loadings)[:, :, None])[:, :, 0], covariance

    def _spread(self, covariance: Tensor) -> Tensor:
        """(B, d) diagonal of W covariance W^T."""
        parts = covariance.split(max(1, _CHUNK // max(1, self.loadings.numel())))
        return torch.cat([((self.loadings @ c) * self.loadings).sum(2) for c in parts]).clamp(min=0)

    def _expected(self, z: Tensor, known: Encoded | None) -> Tensor:
        """(B, d) m + W z, and at hidden positions what known neighbours say of the rest."""
        expected = self.mean + z @ self.loadings.T
        if known is None or not self.reach:
            return expected
        seen, std = known.observed.flatten(1).to(expected), self.variance.sqrt()
        left = seen * (known.values.flatten(1) - expected) / std
        both = _blurred(torch.stack([left, seen], 1).reshape(-1, 1, *self.shape[1:]), self.reach)
        around, weight = both.reshape(len(z), 2, -1).unbind(1)
        return expected + (1 - seen) * std * around / (weight + _FAR)

    def prior(self, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        std = (self.variance + self.loadings.square().sum(1)).sqrt()
        return self.mean.reshape(1, *self.shape), std.reshape(1, *self.shape)

    @_in_full_precision
    def posterior(self, known: Encoded, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values, observed = known.values.flatten(1), known.observed.flatten(1)
        precision = observed / self.variance
        z, covariance = self._latent(precision, precision * (values - self.mean))
        mean = torch.where(observed, values, self._expected(z, known))
        std = (self.variance + self._spread(covariance)).sqrt().masked_fill(observed, 0.0)
        return mean.reshape_as(known.values), std.reshape_as(known.values)

    @_in_full_precision
    def denoise(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Encoded | None, fold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""In closed form. Of what z leaves open, a share kept = alpha psi / (alpha^2 psi + sigma^2) of the
        residual is signal: x_0 = m + W z + kept (x_t - alpha (m + W z)); with `bands`, of each packet."""
        x = x_t.flatten(1)
        a, s = (c.to(x.dtype).reshape(-1, 1) for c in (alpha, sigma))
        if known is None and bool(((a == a[:1]) & (s == s[:1])).all()):
            # the same precision for all: one system to solve
            a, s = a[:1], s[:1]
        total = a**2 * self.variance + s**2
        precision, pull = a**2 / total, a / total * (x - a * self.mean)
        if known is not None:
            values, observed = known.values.flatten(1), known.observed.flatten(1)
            precision = torch.where(observed, 1 / self.variance, precision)
            pull = torch.where(observed, (values - self.mean) / self.variance, pull)
        z, covariance = self._latent(precision, pull)
        centre = self._expected(z, known)
        left = x - a * centre
        if known is not None:
            left = left.masked_fill(observed, 0.0)  # of that, `_expected` has told
        signal, noise = self._divided(left, a, s)
        mean = centre + signal
        variance = noise + (s**2 / total) ** 2 * self._spread(covariance)
        if known is not None:
            mean, variance = torch.where(observed, values, mean), variance.masked_fill(observed, 0.0)
        return mean.reshape_as(x_t), variance.sqrt().expand_as(x).reshape_as(x_t)

    def _divided(self, left: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Of a noisy residual alpha e + sigma eps, (B, d): the mean of e, and its variance, (B or 1, d)."""
        if self.bands is None:
            total = a**2 * self.variance + s**2
            return a * self.variance / total * left, self.variance * s**2 / total
        total, levels = a**2 * self.bands + s**2, _levels(self.shape)
        packets = haar_pack(left.reshape(-1, *self.shape), levels)
        kept = a * self.bands / total * packets.flatten(1)
        signal = haar_unpack(kept.reshape(packets.shape), self.shape[1:], levels).flatten(1)
        # Every packet of a block is spread evenly over its positions.
        open_ = _of_blocks(self.bands * s**2 / total, self.shape) / _of_blocks(self.bands, self.shape)
        return signal, self.variance * _at_positions(open_, self.shape)

    def sample(self, keys: Keys) -> Tensor:
        """(B, C, *S) draws of the Gaussian itself."""
        z = keys.normal((self.loadings.shape[1],), "latent", self.mean.dtype).to(self.mean.device)
        e = keys.normal((len(self.mean),), "residual", self.mean.dtype).to(self.mean.device)
        e = e * (self.variance if self.bands is None else self.bands).sqrt()
        if self.bands is not None:
            levels = _levels(self.shape)
            packets = haar_pack(e.new_zeros(1, *self.shape), levels).shape[1:]
            e = haar_unpack(e.reshape(-1, *packets), self.shape[1:], levels).flatten(1)
        return (self.mean + z @ self.loadings.T + e).reshape(-1, *self.shape)


def _levels(shape: tuple[int, ...]) -> int:
    """How often every axis of (C, *S) can be halved by packing without filling up."""
    return next(n for n in range(_LEVELS, -1, -1) if all(size % 2**n == 0 for size in shape[1:]))


def _of_blocks(packets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(..., d) in packets -> (..., d) the mean of those of a block, for each of them."""
    count = 2 ** (_levels(shape) * (len(shape) - 1))
    blocks = packets.unflatten(-1, (shape[0], count, -1))
    means: Tensor = blocks.mean(-2, keepdim=True).expand_as(blocks).flatten(-3)
    return means


def _at_positions(packets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, d) of which all packets of a block are alike -> (B, d) for each position."""
    levels, ndim = _levels(shape), len(shape) - 1
    sizes = [size // 2**levels for size in shape[1:]]
    blocks = packets.reshape(len(packets), shape[0], -1, *sizes)[:, :, 0]
    for axis in range(2, 2 + ndim):
        blocks = blocks.repeat_interleave(2**levels, axis)
    return blocks.flatten(1)


def _blurred(x: Tensor, width: float) -> Tensor:
    """(B, 1, *S) smoothed by a Gaussian of standard deviation `width`; zero beyond the edges."""
    radius = math.ceil(2.5 * width)
    kernel = [math.exp(-0.5 * (place / width) ** 2) for place in range(radius + 1)]
    total = kernel[0] + 2 * sum(kernel[1:])
    for axis in range(2, x.ndim):
        # Shifted sums: a convolution of one channel costs ten times as much.
        smooth = x * (kernel[0] / total)
        for place in range(1, min(radius, x.shape[axis] - 1) + 1):
            share, rest = kernel[place] / total, x.shape[axis] - place
            smooth.narrow(axis, place, rest).add_(x.narrow(axis, 0, rest), alpha=share)
            smooth.narrow(axis, 0, rest).add_(x.narrow(axis, place, rest), alpha=share)
        x = smooth
    return x


def _axes(x: Tensor, k: int) -> Tensor:
    """(d, k) principal axes of centred data (n, d): by way of the smaller of the n x n and d x d products,
    and where that is large by iterating on a subspace (Halko, Martinsson & Tropp 2011, algorithm 4.4)."""
    n, d = x.shape
    if min(n, d) > _LARGE:
        start = Keys.range(0, d).normal((min(k + 20, n, d),), "axes", torch.float32).to(x)
        basis = torch.linalg.qr(start).Q
        for _ in range(_ITERATIONS):
            basis = torch.linalg.qr(x.T @ (x @ basis)).Q
        turned: Tensor = basis @ _axes(x @ basis, k)
        return turned
    values, vectors = torch.linalg.eigh((x @ x.T if n <= d else x.T @ x).double())
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    if n <= d:
        vectors = x.double().T @ (vectors / values.clamp(min=1e-12).sqrt())
    axes: Tensor = vectors.to(x)
    return axes


def _principal(
    x: Tensor,
    seen: Tensor,
    k: int,
    floor: float,
    shape: tuple[int, ...],
    levels: int,
    groups: Tensor | None,
    folds: int = 5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loadings (d, k) of centred data (n, d), the noise variance (d,) of what is seen, and that in packets
    (of no meaning at no `levels` of packing).

    The axes are those of all records; how much varies along them, and how much is left, is measured on
    groups that the axes were not fitted to. With more positions than records, sample eigenvalues are
    mostly noise (30 records of 500 positions, rank 3, k = 10: the stated variance was 30 % too small).
    """
    along, left, packets = (torch.zeros(size).to(x) for size in (k, x.shape[1], x.shape[1]))
    owners = torch.arange(len(x)) if groups is None or len(groups.unique()) < 2 else groups
    fold = owners.unique(return_inverse=True)[1].to(x.device) % folds
    for f in range(min(folds, int(fold.max()) + 1)):
        mean = x[fold != f].mean(0)
        axes, new = _axes(x[fold != f] - mean, k), x[fold == f] - mean
        projected = new @ axes
        along += projected.square().sum(0) / len(x)
        rest = (new - projected @ axes.T) * seen[fold == f]
        left += rest.square().sum(0)
        if levels:
            packets += haar_pack(rest.reshape(-1, *shape), levels).flatten(1).square().sum(0) / len(x)
    counted = seen.sum(0)
    variance = torch.where(counted > 1, (left / counted.clamp(min=1)).clamp(min=floor), 1.0)
    axes = _axes(x, k)
    spread: Tensor = (along - variance @ axes.square()).clamp(min=0).sqrt()
    return axes * spread, variance, packets.clamp(min=floor)


class CrossFitted(nn.Module):
    """A centre fitted on all records, and one for each fold that never saw that fold's groups.

    Made by `CrossFitted.fit`; training passes `fold=centre.fold(groups)` in the condition.
    """

    groups: Tensor
    folds: Tensor

    def __init__(
        self, whole: GaussianCentre, parts: list[GaussianCentre], groups: Tensor, folds: Tensor
    ) -> None:
        super().__init__()
        self.whole, self.parts = whole, nn.ModuleList(parts)
        self.register_buffer("groups", groups)  # (G,) sorted
        self.register_buffer("folds", folds)  # (G,) the fold of each

    @classmethod
    def fit(
        cls,
        values: Tensor,
        observed: Tensor | None,
        groups: Tensor,
        *,
        folds: int = 4,
        components: int = 20,
        rounds: int = 10,
        reach: float = 0.0,
        floor: float = 1e-4,
        packed: bool = False,
    ) -> Self:
        """Fit folds + 1 centres, each to at most 20,000 records, which are drawn.

        Args:
            values, observed: as for `GaussianCentre.fit`.
            groups: (n,) int64, whose record it is: all records of a subject are in one fold.
            folds: at most the number of groups.

        Raises:
            ValueError: with fewer than two groups there is nothing to hold out.
        """
        names = groups.unique()
        if len(names) < 2:
            raise ValueError(f"cross-fitting needs two groups or more, got {len(names)}")
        order = torch.tensor([key_of("fold", int(name)) for name in names]).argsort().argsort()
        assigned = order % min(folds, len(names))
        where = assigned[torch.searchsorted(names, groups)]
        luck = Keys.range(0, len(groups)).uniform((), "centre")
        chosen = torch.zeros(len(groups), dtype=torch.bool)
        chosen[luck.argsort()[:_MOST]] = True

        def fitted(rows: Tensor) -> GaussianCentre:
            rows = rows & chosen
            seen = None if observed is None else observed[rows]
            return GaussianCentre.fit(
                values[rows].float() if values.dtype == torch.float16 else values[rows],
                seen,
                components=components,
                rounds=rounds,
                floor=floor,
                reach=reach,
                packed=packed,
                groups=groups[rows],
            )

        parts = [fitted(where != fold) for fold in range(int(assigned.max()) + 1)]
        return cls(fitted(torch.ones_like(where, dtype=torch.bool)), parts, names, assigned)

    def fold(self, groups: Tensor) -> Tensor:
        """(B,) the fold of each group; -1 for groups that were never seen."""
        place = torch.searchsorted(self.groups, groups).clamp(max=len(self.groups) - 1)
        return torch.where(self.groups[place] == groups, self.folds[place], -1)

    def _centre(self, fold: int) -> GaussianCentre:
        part = self.whole if fold < 0 else self.parts[fold]
        assert isinstance(part, GaussianCentre)
        return part

    def prior(self, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if fold is None:
            return self.whole.prior()
        pairs = [self._centre(int(f)).prior() for f in fold]
        return torch.cat([mean for mean, _ in pairs]), torch.cat([std for _, std in pairs])

    def posterior(self, known: Encoded, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if fold is None:
            return self.whole.posterior(known)
        mean, std = torch.empty_like(known.values), torch.empty_like(known.values)
        for f in fold.unique():
            rows = fold == f
            mean[rows], std[rows] = self._centre(int(f)).posterior(known[rows])
        return mean, std

    def denoise(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, known: Encoded | None, fold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if fold is None:
            return self.whole.denoise(x_t, alpha, sigma, known)
        mean, std, shape = torch.empty_like(x_t), torch.empty_like(x_t), (len(x_t), *(1,) * (x_t.ndim - 1))
        a, s = (c.reshape(-1, *(1,) * (x_t.ndim - 1)).expand(shape) for c in (alpha, sigma))
        for f in fold.unique():
            rows = fold == f
            some = None if known is None else known[rows]
            mean[rows], std[rows] = self._centre(int(f)).denoise(x_t[rows], a[rows], s[rows], some)
        return mean, std

r"""How near two sets of samples are, how near two pictures are, and whether something was copied.

Sets are compared by features, one row a sample, whatever network or formula they come from; pictures are
(B, C, *S) with one to three spatial axes. Everything is computed in float64 and in blocks, so that tens of
thousands of rows fit; nothing is drawn at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024
"""Rows compared at a time."""
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of MS-SSIM (Wang, Simoncelli & Bovik 2003)."""


# --- sets of features ---------------------------------------------------------------------------


def frechet(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    r"""The squared Frechet distance of two Gaussians (Dowson & Landau 1982):
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).

    By eigenvalues of symmetric matrices: no complex square root, and singular covariances are fine.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), symmetric.

    Example:
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> frechet(torch.zeros(3), eye, torch.ones(3), 4 * eye)
        6.0
    """
    mean1, cov1, mean2, cov2 = (t.double() for t in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    square = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * both
    return max(float(square), 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""`frechet` of the Gaussians fitted to two sets: FID when the features are Inception's (Heusel et al.
    2017).

    It shrinks as samples are added, so compare equal numbers. With fewer samples than features the trace is
    taken from the singular values of A1^T A2 (C = A A^T), which are as many as there are samples.

    Args:
        x, y: (n, D) and (m, D), at least two rows each.
    """
    _require_rows(x, y, 2)
    x, y = x.double(), y.double()
    if min(len(x), len(y)) >= x.shape[1]:
        return frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    a, b = ((s - s.mean(0)) / math.sqrt(len(s) - 1) for s in (x, y))
    both = torch.linalg.svdvals(a @ b.T).sum()
    square = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * both
    return max(float(square), 0.0)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    r"""The unbiased squared maximum mean discrepancy under the kernel (x . y / D + 1)^3: KID when the
    features are Inception's (Binkowski et al. 2018). Its expectation is 0 for equal laws whatever the number
    of samples, so a single value may be negative.

    Args:
        x, y: (n, D) and (m, D), at least two rows each.
    """
    _require_rows(x, y, 2)
    x, y = x.double(), y.double()

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([((part @ b.T) / a.shape[1] + 1).pow(3).sum() for part in a.split(BLOCK)]).sum()

    def itself(a: Tensor) -> Tensor:  # a sample is not compared with itself: that is what makes it unbiased
        return (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()

    n, m = len(x), len(y)
    within = (total(x, x) - itself(x)) / (n * (n - 1)) + (total(y, y) - itself(y)) / (m * (m - 1))
    return float(within - 2 * total(x, y) / (n * m))


def rbf_distance(x: Tensor, y: Tensor, permutations: int = 0, seed: int = 0) -> tuple[float, float]:
    r"""The unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3) under the kernel
    exp(-|x - y|^2 / 2 h^2), h the median distance between rows of x; and the share of random regroupings of
    the rows that lie as far apart or farther (a p-value; 1 without permutations).

    Its expectation is 0 for equal laws, so a single value may be negative. All distances are held at once:
    for some thousand rows.

    Args:
        x, y: (n, D) and (m, D), at least two rows each.
        permutations: how many regroupings. seed: of them.
    """
    _require_rows(x, y, 2)
    rows = torch.cat([x, y]).double()
    apart, n = torch.cdist(rows, rows), len(x)
    width = F.pdist(x.double()).median().clamp(min=1e-12)
    kernel = torch.exp(-(apart**2) / (2 * width**2)).fill_diagonal_(0)

    def discrepancy(order: Tensor) -> float:
        a, b = order[:n], order[n:]
        within = sum(kernel[s][:, s].sum() / (len(s) * (len(s) - 1)) for s in (a, b))
        return float(within - 2 * kernel[a][:, b].mean())

    found = discrepancy(torch.arange(len(rows)))
    generator = torch.Generator().manual_seed(seed)
    drawn = [discrepancy(torch.randperm(len(rows), generator=generator)) for _ in range(permutations)]
    return found, (1 + sum(one >= found for one in drawn)) / (1 + permutations)


@dataclass(frozen=True)
class PRDC:
    """Shares of samples, each in 0 ... 1 but density, which may pass 1.

    Args:
        precision: of synthetic samples that lie where real ones are.
        recall: of real samples that lie where synthetic ones are.
        density: how many real neighbourhoods hold a synthetic sample, over k: 1 when the laws are equal.
        coverage: of real samples whose neighbourhood holds a synthetic one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> PRDC:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), of which the
    latter two do not follow outliers.

    Args:
        real, fake: (n, D) and (m, D) features.
        k: the k-th nearest other sample of its own set is how far a sample's neighbourhood reaches.
    """
    _require_rows(real, fake, k + 1)
    real, fake = real.double(), fake.double()
    real_reach, fake_reach = _reach(real, k), _reach(fake, k)
    recalled, covered, hits, within = [], [], torch.zeros(len(fake), dtype=torch.int64), 0
    for part, reach in zip(real.split(BLOCK), real_reach.split(BLOCK), strict=True):
        distance = torch.cdist(part, fake)
        inside = distance < reach[:, None]
        hits += inside.sum(0).cpu()
        within += int(inside.sum())
        covered.append(inside.any(1))
        recalled.append((distance < fake_reach).any(1))
    return PRDC(
        precision=float((hits > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=within / (k * len(fake)),
        coverage=float(torch.cat(covered).double().mean()),
    )


def _reach(x: Tensor, k: int) -> Tensor:
    """(n,) distance of each row to its k-th nearest other row."""
    parts = []
    for start, part in zip(range(0, len(x), BLOCK), x.split(BLOCK), strict=True):
        distance = torch.cdist(part, x)
        rows = torch.arange(len(part), device=x.device)
        distance[rows, start + rows] = math.inf
        parts.append(distance.kthvalue(k, 1).values)
    return torch.cat(parts)


def _require_rows(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (n, D) and (m, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(len(x), len(y)) < least:
        raise ValueError(f"at least {least} samples of each set are needed, got {len(x)} and {len(y)}")


# --- copies -------------------------------------------------------------------------------------


def nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to, and position of, the nearest row of `among` for each row of x, both flattened."""
    x, among = x.flatten(1).double(), among.flatten(1).double()
    found = [torch.cdist(part, among).min(1) for part in x.split(BLOCK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


NEARER = 0.01
"""A synthetic sample is a near copy when it is nearer to a real one than all but this share of real ones are
to each other."""


@dataclass(frozen=True, eq=False)
class Copies:
    """What a search for copies found.

    Args:
        distances: (n,) of each synthetic sample to the nearest training sample.
        positions: (n,) which one that is.
        threshold: distance below which a sample is flagged.
        flagged: (n,) bool.
        expected: share that would be flagged if synthetic samples were new ones of the same kind.
    """

    distances: Tensor
    positions: Tensor
    threshold: float
    flagged: Tensor
    expected: float

    @classmethod
    def judged(
        cls, distances: Tensor, positions: Tensor, reference: Tensor, expected: float = NEARER
    ) -> Copies:
        """By distances that were measured elsewhere: `distances` (n,) of synthetic and `reference` (r,) of
        real samples that were not trained on, each to its nearest training sample."""
        threshold = float(torch.quantile(reference.double(), expected))
        return cls(distances, positions, threshold, distances < threshold, expected)

    @property
    def share(self) -> float:
        """Share of synthetic samples that are flagged."""
        return float(self.flagged.double().mean())


def copies(fake: Tensor, train: Tensor, reference: Tensor, expected: float = NEARER) -> Copies:
    """Find synthetic samples that lie nearer to a training sample than real ones that were never trained on
    do.

    A flag is a question, not a verdict: by the choice of threshold 1 % of new samples are flagged too.

    Args:
        fake: (n, ...) synthetic samples, or their features.
        train: (m, ...) what the model was trained on.
        reference: (r, ...) real samples that it was not trained on; some hundred at least.
        expected: which quantile of the distances from reference to training is the threshold.
    """
    distances, positions = nearest(fake, train)
    return Copies.judged(distances, positions, nearest(reference, train)[0], expected)


# --- pairs of pictures --------------------------------------------------------------------------


def psnr(x: Tensor, y: Tensor, data_range: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in decibel: (B,), inf where equal, NaN where the mask is empty.

    Args:
        x, y: (B, C, *S).
        data_range: the span of possible values.
        mask: bool, broadcast over x; only what lies in it counts.
    """
    error = (x.double() - y.double()).square().flatten(1)
    if mask is None:
        mean = error.mean(1)
    else:
        inside = mask.expand_as(x).flatten(1).double()
        mean = (error * inside).sum(1) / inside.sum(1)
    return 10 * (data_range**2 / mean).log10()


def ssim(
    x: Tensor, y: Tensor, data_range: float = 1.0, mask: Tensor | None = None, *, window: int = 11
) -> Tensor:
    """Structural similarity (Wang et al. 2004): (B,), 1 where equal.

    A Gaussian window (standard deviation 1.5, or less where it must be smaller than 11 positions) slides over
    all places where it fits. With a mask those places count whose centre lies in it: what surrounds the
    mask is seen too.

    Args:
        x, y: (B, C, *S), one to three spatial axes.
        data_range: the span of possible values.
        mask: bool (B, 1, *S) or broadcastable to it.
        window: positions along each axis; less where the picture is smaller.
    """
    window = _window(x, window)
    whole = _similarity(x, y, data_range, window)[0]
    if mask is None:
        return whole.flatten(1).mean(1)
    inside = mask.expand(len(x), 1, *x.shape[2:])
    for axis in range(2, x.ndim):
        inside = inside.narrow(axis, window // 2, whole.shape[axis])
    inside = inside.expand_as(whole).flatten(1).double()
    return (whole.flatten(1) * inside).sum(1) / inside.sum(1)


def ms_ssim(x: Tensor, y: Tensor, data_range: float = 1.0, *, window: int = 11) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003): (B,), 1 where equal.

    There are five scales where the shortest axis has at least 16 windows (176 positions for a window of 11),
    and fewer where it is shorter: as many as leave room for one window at the coarsest, their weights scaled
    to sum to 1. Values from different numbers of scales do not compare. Negative similarities count as 0.

    Args:
        x, y: (B, C, *S), one to three spatial axes of any size.
        data_range: the span of possible values.
        window: positions along each axis; less where the picture is smaller.
    """
    window = _window(x, window)
    count = min(len(SCALES), int(math.log2(min(x.shape[2:]) / window)) + 1)
    weights = [weight / sum(SCALES[:count]) for weight in SCALES[:count]]
    result, x, y = torch.ones(len(x), dtype=torch.float64, device=x.device), x.double(), y.double()
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    for level, weight in enumerate(weights):
        whole, contrast = _similarity(x, y, data_range, window)
        part = whole if level == count - 1 else contrast
        result = result * part.flatten(1).mean(1).clamp(min=0) ** weight
        if level < count - 1:
            x, y = pool(x, 2), pool(y, 2)
    return result


def _window(x: Tensor, wanted: int) -> int:
    """The window's length: odd, and no longer than the shortest axis."""
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"(B, C, *S) with one to three spatial axes is needed, got {tuple(x.shape)}")
    shortest: int = min(wanted, *x.shape[2:])
    return shortest - 1 + shortest % 2


def _similarity(x: Tensor, y: Tensor, data_range: float, window: int) -> tuple[Tensor, Tensor]:
    """Maps of structural similarity and of its contrast part, where the window fits: (B, C, *S')."""
    x, y = x.double(), y.double()
    mean_x, mean_y = _blurred(x, window), _blurred(y, window)
    var_x, var_y = _blurred(x * x, window) - mean_x**2, _blurred(y * y, window) - mean_y**2
    covariance = _blurred(x * y, window) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast, contrast


def _blurred(x: Tensor, window: int) -> Tensor:
    """Gaussian average along each spatial axis in turn, without padding."""
    offsets = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    kernel = torch.exp(-(offsets**2) / (2 * (1.5 * min(1.0, window / 11)) ** 2))
    kernel = kernel / kernel.sum()
    for axis in range(2, x.ndim):
        x = x.movedim(axis, -1)
        x = F.conv1d(x.reshape(-1, 1, x.shape[-1]), kernel[None, None]).reshape(*x.shape[:-1], -1)
        x = x.movedim(-1, axis)
    return x

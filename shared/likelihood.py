r"""How likely data are under a denoiser: the probability-flow ODE, and the surprise of a part given the rest.

In the coordinates y = x / alpha, u = log(sigma / alpha) the flow is dy/du = y - D(alpha y), so that
log p(x_0) = log N(y_1; 0, 1 + r_1^2) + int tr(1 - dD/dy) du along the path from the clean end to the noisy
one (Song et al. 2021, section 4.3), integrated by Runge and Kutta's fourth-order rule.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .data import NOTHING, Condition, Encoded
from .denoisers import Denoiser
from .noise import Keys


def log_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    keys: Keys,
    condition: Condition = NOTHING,
    *,
    steps: int = 40,
    probes: int | None = 1,
    ceiling: float = 80.0,
) -> Tensor:
    """Log density of x_0, of its unknown entries given the known ones where `condition.known` is given.

    Args:
        denoiser: differentiable in x_t. What is measured is the density of data blurred by the schedule's
            lowest noise level.
        x_0: (B, C, *S), model space (unit variance).
        keys: B of them, for the random probes of the trace (Hutchinson 1990).
        steps: of four evaluations each.
        probes: random directions for the trace, the same along the whole path; None computes it exactly,
            with as many backward passes as there are entries.
        ceiling: noise-to-signal ratio taken for pure noise.

    Returns:
        (B,) nats, float64. One probe errs by sqrt(2 sum of squared off-diagonal terms), about 0.5 % of the
        number of entries in bits for weakly correlated data; average over `draws` of keys or raise `probes`.
    """
    known, schedule = condition.known, denoiser.schedule
    free = torch.ones_like(x_0) if known is None else (~known.observed).to(x_0)
    size = free.flatten(1).sum(1)
    probe = _probes(free, keys, probes)

    def slope(y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """dy/du and tr(1 - dD/dy), over the unknown entries."""
        t = schedule.time(u.exp())
        alpha = float(schedule(t)[0])
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            x_0 = denoiser(alpha * leaf, t, condition)
            trace = torch.zeros(len(y), dtype=torch.float64, device=y.device)
            for v in probe:
                (product,) = torch.autograd.grad(x_0, leaf, v, retain_graph=True)
                trace += (product * v).flatten(1).sum(1)
        trace = trace / (len(probe) if probes else 1)
        return (y - x_0.detach()) * free, size - trace

    ends = schedule.ratio(torch.tensor([0.0, 1.0], dtype=torch.float64)).clamp(max=ceiling).log()
    grid = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    y, gained = x_0, torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    for u, h in zip(grid[:-1], grid.diff().tolist(), strict=True):
        k1, g1 = slope(y, u)
        k2, g2 = slope(y + h / 2 * k1, u + h / 2)
        k3, g3 = slope(y + h / 2 * k2, u + h / 2)
        k4, g4 = slope(y + h * k3, u + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gained = gained + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
    variance = 1 + math.exp(2 * float(grid[-1]))
    square = (y * free).double().flatten(1).square().sum(1)
    return gained - (square / variance + size * math.log(2 * math.pi * variance)) / 2


def _probes(free: Tensor, keys: Keys, probes: int | None) -> list[Tensor]:
    shape = tuple(free.shape[1:])
    if probes is None:
        every = torch.eye(math.prod(shape)).to(free)
        return [one.reshape(1, *shape) * free for one in every]
    signs = [keys.uniform(shape, f"probe {i}") < 0.5 for i in range(probes)]
    return [torch.where(sign.to(free.device), free, -free) for sign in signs]


def bits_per_dimension(log_density: Tensor, entries: Tensor | int) -> Tensor:
    """-log2 p / number of entries: less is likelier. For data stored in steps of q (8-bit pixels scaled to
    [-1, 1]: q = 2 / 255) add -log2 q for bits per stored number."""
    return -log_density / (entries * math.log(2))


def surprise(
    denoiser: Denoiser,
    x_0: Tensor,
    parts: Tensor,
    keys: Keys,
    condition: Condition = NOTHING,
    *,
    observed: Tensor | None = None,
    steps: int = 40,
    probes: int | None = 1,
) -> Tensor:
    """How unlikely each part is given all the rest: -log p(part | rest) per entry, for finding outliers.

    Args:
        denoiser: takes `condition.known`, differentiable in x_t.
        x_0: (B, C, *S), filled in where not observed: with any likely value, it cancels.
        parts: bool (P, C, *S), one mask for each part: a cell, a column, a region, a slice.
        observed: bool (B, C, *S), entries that are really known; the others count for no part.

    Returns:
        (B, P) nats per entry, NaN where nothing of the part is known. It is a density: compare a part with
        the same part of other records.
    """
    seen = torch.ones_like(x_0, dtype=torch.bool) if observed is None else observed

    def given(mask: Tensor) -> Tensor:
        told = replace(condition, known=Encoded(x_0 * mask, mask))
        return log_likelihood(denoiser, x_0, keys, told, steps=steps, probes=probes)

    columns, whole = [], None
    for part in parts:
        joint = given(seen & ~part)
        if not bool(seen.all()):  # p(part | rest) = p(part, missing | rest) / p(missing | part, rest)
            whole = given(seen) if whole is None else whole
            joint = joint - whole
        columns.append(-joint / (seen & part).flatten(1).sum(1))
    return torch.stack(columns, 1)

r"""Differentially private training of the levels network: DP-SGD, with what it costs.

A step takes every row with the same chance (Poisson sampling), cuts the gradient of each row down to norm C,
and adds Gaussian noise of standard deviation sigma C to their sum (Abadi et al. 2016, "Deep Learning with
Differential Privacy"). What all steps cost together is counted by Opacus' accountant of Renyi differential
privacy (Mironov 2017; Mironov et al. 2019 for the sampled Gaussian mechanism), which is an upper bound.

The unit is one row: whether it is there, or stands empty (a row of which every cell is unknown teaches
nothing, and its gradient is zero: Kairouz et al. 2021, "zero-out"). The number of rows is public.

A row's gradient is never written out: every weight of the network is met by a row as an outer product, whose
norm is a product of norms (Goodfellow 2015; Bu et al. 2022, "Differentially Private Optimization on Large
Model at Small Cost"). With several hidings of a row its gradient is a sum of outer products, whose norm is
had from their Gram matrices.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ema import Average, PowerFunction
from .errors import InputError
from .levels import LevelsDenoiser, LevelsNetwork

Spent = Sequence[tuple[float, float, int]]
"""Noise multiplier, sampling rate and repetitions of each mechanism: what the accountant adds up."""
PRIVACY, NOT_PRIVATE = "differential_privacy", "none"
"""The key of what a model says of its privacy, and what it says without."""
MOST_NOISE = 1e4
ROWS = 1024
"""Rows whose gradients are computed at once; with several hidings of each, fewer."""


def require_opacus() -> None:
    """Raise InputError where Opacus is not installed."""
    try:
        import opacus  # noqa: F401
    except ImportError as error:
        raise InputError(
            "no-opacus",
            "differential privacy needs Opacus, which is not installed",
            "--epsilon",
            "pip install 'ebbtide[dp]'",
        ) from error


def epsilon_of(spent: Spent, delta: float) -> float:
    """Epsilon of all mechanisms together, an upper bound, by Opacus' Renyi accountant."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(float(noise), float(rate), int(times)) for noise, rate, times in spent]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the best order lies at the end of its list: the bound holds, a bit loose
        return float(accountant.get_epsilon(delta=delta))


def noise_for(epsilon: float, delta: float, rate: float = 1.0, times: int = 1, beside: Spent = ()) -> float:
    """The least noise multiplier by which a mechanism, with what is spent beside it, costs at most `epsilon`.

    Raises:
        InputError: `epsilon`, no noise is enough.
    """
    low, high = 0.0, 1.0
    while epsilon_of([*beside, (high, rate, times)], delta) > epsilon:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            remedy = "ask for a larger epsilon"
            raise InputError("epsilon", f"no noise is enough for epsilon {epsilon:g}", "--epsilon", remedy)
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        enough = epsilon_of([*beside, (middle, rate, times)], delta) <= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high


def statement(about: Mapping[str, Any]) -> str:
    """What a model says of itself on differential privacy, as one sentence; "none" without.

    Args:
        about: of the model.
    """
    told = about.get(PRIVACY, NOT_PRIVATE)
    if not isinstance(told, Mapping):
        return NOT_PRIVATE
    return (
        f"epsilon {told['epsilon']:g}, delta {told['delta']:.2g}; unit: {told['unit']}; accountant: "
        f"{told['accountant']}; clipping norm {told['clipping_norm']:g}, noise multiplier "
        f"{told['noise_multiplier']:.3g}, sampling rate {told['sampling_rate']:.3g}, {told['steps']} steps; "
        f"counts with noise multiplier {told['counts_noise']:.3g}"
    )


@dataclass(frozen=True)
class PrivateTraining:
    """How to train.

    Args:
        noise: sigma, the noise multiplier.
        clip: C, the norm that a row's gradient is cut down to.
        rate: the chance of each row to be in a step.
        steps: how many.
        hidings: ways of hiding each row in a step, over which its gradient is averaged before it is cut.
        learning_rate: Adam's; it falls to zero along half a cosine.
    """

    noise: float
    clip: float
    rate: float
    steps: int
    hidings: int
    learning_rate: float

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


class _Rows:
    """What a batch's gradients are made of: for each weight two factors, or the gradient itself."""

    def __init__(self, rows: int, hidings: int) -> None:
        self.rows, self.hidings = rows, hidings
        self._outer: list[tuple[list[tuple[Tensor, int]], Tensor, Tensor]] = []
        self._whole: list[tuple[Tensor, Tensor]] = []

    def outer(self, parts: list[tuple[Tensor, int]], left: Tensor, right: Tensor) -> None:
        """Gradients of `parts`, one below the other, (P, Q): sums of left (R K, P) times right (R K, Q)."""
        left, right = (side.view(self.rows, self.hidings, -1) for side in (left, right))
        self._outer.append((parts, left, right))

    def whole(self, parameter: Tensor, gradient: Tensor) -> None:
        """The gradient (R K, P) of a vector."""
        self._whole.append((parameter, gradient.view(self.rows, self.hidings, -1).sum(1)))

    def norms(self) -> Tensor:
        """(R,) norms of the rows' gradients over all parameters."""
        squares = torch.zeros(self.rows, dtype=torch.float64)
        for _, left, right in self._outer:
            squares += ((left @ left.mT) * (right @ right.mT)).sum((1, 2)).double()
        for _, gradient in self._whole:
            squares += (gradient.double() ** 2).sum(1)
        return squares.clamp(min=0).sqrt()

    def add(self, factor: Tensor, into: dict[Tensor, Tensor]) -> None:
        """Add the gradients, each times its factor (R,)."""
        for parts, left, right in self._outer:
            scaled = (left * factor[:, None, None]).flatten(0, 1)
            made = scaled.T @ right.flatten(0, 1)
            for (parameter, _), part in zip(parts, made.split([size for _, size in parts]), strict=True):
                into[parameter] += part.view_as(parameter)
        for parameter, gradient in self._whole:
            into[parameter] += factor @ gradient


def _factors(denoiser: LevelsDenoiser, codes: Tensor, hidden: Tensor, hidings: int) -> _Rows:
    """Run the network forwards and backwards on rows, each `hidings` times (one after the other).

    Args:
        codes: (R K, C) int64; -1 is unknown: it is hidden, and does not count.
        hidden: (R K, C) bool.
    """
    network: LevelsNetwork = denoiser.network
    known = codes >= 0
    counted, hidden, codes = hidden & known, hidden | ~known, codes.clamp(min=0)
    rows = _Rows(len(codes) // hidings, hidings)
    # What a row shows: a one for each level that is seen, and one for each hidden column.
    seen = torch.zeros(len(codes), sum(network.shape.levels))
    seen.scatter_(1, codes + network.offsets, (~hidden).float())
    told = torch.cat([seen[:, network.own_at], seen @ network.waves, hidden.float()], 1)
    entered: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda part, given, out: entered.append((part, given[0].detach(), out)))
        for part in network.trunk.modules()
        if not list(part.children()) and list(part.parameters())
    ]
    try:
        with torch.no_grad():
            record = told @ torch.cat([network.own, network.smooth, network.hidden])
        record.requires_grad_()
        last = network.trunk(record)
    finally:
        for hook in hooks:
            hook.remove()
    logits = network.logits(last)
    surprise = denoiser.surprise(logits, codes) * counted
    loss = (surprise.sum(1) / counted.sum(1).clamp(min=1)).sum() / hidings
    slopes = torch.autograd.grad(loss, [record, logits, *(out for _, _, out in entered)])
    tables = [network.own, network.smooth, network.hidden]
    rows.outer([(table, len(table)) for table in tables], told, slopes[0])
    left = torch.cat([slopes[1][:, network.own_at], slopes[1] @ network.waves], 1)
    rows.outer([(t, len(t)) for t in (network.out, network.out_smooth)], left, last.detach())
    rows.whole(network.bias, slopes[1])
    for (part, given, _), slope in zip(entered, slopes[2:], strict=True):
        if isinstance(part, nn.Linear):
            rows.outer([(part.weight, len(part.weight))], slope, given)
        elif isinstance(part, nn.LayerNorm):
            rows.whole(part.weight, slope * nn.functional.layer_norm(given, given.shape[1:], eps=part.eps))
        else:
            raise TypeError(f"the gradient of a row is not known for {type(part).__name__}")
        rows.whole(part.bias, slope)
    return rows


def clipped_sum(
    denoiser: LevelsDenoiser, codes: Tensor, hidden: Tensor, clip: float
) -> tuple[dict[Tensor, Tensor], Tensor]:
    """The sum of the rows' gradients, none of them longer than `clip`.

    Args:
        denoiser: in evaluation mode (no dropout).
        codes: (R, C) int64 levels; -1 is unknown.
        hidden: (R, K, C) bool, the K hidings of each row.

    Returns:
        The sum by parameter, and the norms (R,) of the gradients before they were cut.
    """
    total: dict[Tensor, Tensor] = {
        parameter: torch.zeros_like(parameter) for parameter in denoiser.parameters()
    }
    norms, hidings = [torch.zeros(0, dtype=torch.float64)], hidden.shape[1]
    size = max(ROWS // hidings, 1)
    for part, how in zip(codes.split(size), hidden.split(size), strict=True):
        if not len(part):
            continue
        rows = _factors(denoiser, part.repeat_interleave(hidings, 0), how.flatten(0, 1), hidings)
        norms.append(rows.norms())
        # A hair less than C, for the rounding of the sum.
        factor = (clip * (1 - 1e-6) / norms[-1].clamp(min=1e-12)).clamp(max=1.0)
        with torch.no_grad():
            rows.add(factor.float(), total)
    return total, torch.cat(norms)


def secret() -> torch.Generator:
    """Random numbers that nobody can draw again: seeded by the operating system."""
    return torch.Generator().manual_seed(secrets.randbits(64) - 2**63)


def private_step(
    denoiser: LevelsDenoiser, codes: Tensor, how: PrivateTraining, rng: torch.Generator
) -> dict[Tensor, Tensor]:
    """The noisy mean gradient of one step, by parameter.

    Args:
        codes: (n, C) int64, the whole table; -1 is unknown.
        rng: of the choice of rows, of what is hidden and of the noise.
    """
    chosen = codes[torch.rand(len(codes), generator=rng, dtype=torch.float64) < how.rate]
    shape = (len(chosen) * how.hidings, codes.shape[1])
    times = torch.rand(shape[0], generator=rng, dtype=torch.float64)
    hidden = denoiser.hide(torch.randn(shape, generator=rng), times)
    total, _ = clipped_sum(denoiser, chosen, hidden.view(len(chosen), how.hidings, codes.shape[1]), how.clip)
    for gradient in total.values():
        gradient += how.noise * how.clip * torch.randn(gradient.shape, generator=rng)
        gradient /= how.rate * len(codes)
    return total


def train_privately(
    denoiser: LevelsDenoiser,
    codes: Tensor,
    how: PrivateTraining,
    *,
    rng: torch.Generator | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Train in place; it ends with averaged weights, in evaluation mode. The steps alone look at the rows.

    Args:
        codes: (n, C) int64 levels; -1 is unknown.
        rng: for tests. By itself the operating system's, for whoever knows the noise can take it off again:
            so a private training is never the same twice.
    """
    rng = rng or secret()
    denoiser.eval()  # no dropout; the norms below are those of the network as it is
    # What is averaged and how fast is learnt does not look at the rows.
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=how.learning_rate)
    average = Average(denoiser, PowerFunction(0.1))
    for step in range(how.steps):
        for parameter, gradient in private_step(denoiser, codes, how, rng).items():
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * (1 + math.cos(math.pi * step / how.steps)) / 2
        optimizer.step()
        average.update(step + 1)
        if progress is not None:
            progress(f"private step {step + 1} of {how.steps}", (step + 1) / how.steps)
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            parameter.copy_(average.tensors[name])
            parameter.grad = None

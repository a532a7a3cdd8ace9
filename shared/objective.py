r"""Refinements of training: self-conditioning, post-hoc averages, losses by noise level, augmentation.

Weightings over noise levels are in `denoisers`, beside the loss that they weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .data import NOTHING, Condition, Encoded
from .denoisers import Denoiser, NetworkDenoiser, Weighting
from .ema import PowerFunction
from .noise import Keys
from .schedules import Schedule


def with_channels(condition: Condition, extra: Tensor) -> Condition:
    """Append images (B, K, *S) to the condition's channels."""
    held = condition.channels
    return replace(condition, channels=extra if held is None else torch.cat([held, extra.to(held)], 1))


# --- self-conditioning --------------------------------------------------------------------------


class SelfConditioned(NetworkDenoiser):
    """A denoiser that is shown its last estimate of x_0 (Chen, Zhang & Hinton 2023, "Analog bits").

    The network gets C more context channels (`UNet(..., context=C + ...)`), the last of all. In training
    half of the elements see zeros there and half the network's own first guess, without gradient. In
    sampling it is the estimate of the step before; a rise of t or another batch size begins anew, and
    `forget()` does so by hand (before a second run that starts at the time where the first one ended).
    """

    _last: tuple[Tensor, float] | None = None

    def forget(self) -> None:
        self._last = None

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        shown, now = torch.zeros_like(x_t), float(t.max())
        if self._last is not None and self._last[0].shape == x_t.shape and now <= self._last[1]:
            shown = self._last[0]
        x_0 = super().forward(x_t, t, with_channels(condition, shown))
        self._last = x_0.detach(), now
        return x_0

    def loss(
        self,
        x_0: Tensor,
        noise: Tensor,
        t: Tensor,
        condition: Condition,
        where: Tensor,
        weighting: Weighting | None = None,
    ) -> Tensor:
        alpha, sigma = (c.reshape(-1, *(1,) * (x_0.ndim - 1)) for c in self.schedule(t.double()))
        with torch.no_grad():
            blind = with_channels(condition, torch.zeros_like(x_0))
            guess = super().forward((alpha * x_0 + sigma * noise).to(x_0.dtype), t, blind)
        # A coin that is a function of the element's noise alone, and yet independent of any part of it.
        coin = (noise.double().flatten(1).sum(1) * 1e4).remainder(1) < 0.5
        shown = torch.where(coin.reshape(-1, *(1,) * (x_0.ndim - 1)), guess, torch.zeros_like(guess))
        return super().loss(x_0, noise, t, with_channels(condition, shown), where, weighting)


# --- post-hoc averages --------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """An average of the weights at one moment.

    Args:
        step: of the training, from 1.
        std: of its power-function profile (`ema.PowerFunction`).
        weights: the averaged tensors by name.
    """

    step: int
    std: float
    weights: Mapping[str, Tensor]


def _product(a: tuple[float, float], b: tuple[float, float]) -> float:
    r"""Inner product of two power-function profiles (gamma, t), each p(tau) = (gamma + 1) tau^gamma /
    t^(gamma + 1) on [0, t] (Karras et al. 2024, eq. 133)."""
    (g, s), (h, t) = sorted([a, b], key=lambda profile: profile[1])
    return float((g + 1) * (h + 1) / (g + h + 1) * (s / t) ** h / t)


def mixing(snapshots: Sequence[Snapshot], step: int, std: float) -> Tensor:
    """Coefficients (len(snapshots),) float64 whose combination of the snapshots' profiles comes closest, in
    the square mean, to the profile of width `std` at `step` (Karras et al. 2024, section 3.2)."""
    held = [(PowerFunction(s.std).gamma, float(s.step)) for s in snapshots]
    wanted = (PowerFunction(std).gamma, float(step))
    # In units of each profile's own norm: the equations are far better conditioned.
    norm = torch.tensor([_product(a, a) ** 0.5 for a in held], dtype=torch.float64)
    gram = torch.tensor([[_product(a, b) for b in held] for a in held], dtype=torch.float64)
    right = torch.tensor([_product(a, wanted) for a in held], dtype=torch.float64)
    scaled: Tensor = torch.linalg.lstsq(gram / norm / norm[:, None], right / norm, driver="gelsd").solution
    return scaled / norm


def reconstruct(snapshots: Sequence[Snapshot], step: int, std: float) -> dict[str, Tensor]:
    """The weights as if they had been averaged with a window of `std` up to `step`, found after training.

    Keep snapshots of two widths (0.05 and 0.10, say) at some ten moments; widths between and somewhat
    beyond come back to within a few parts in a thousand of the weights' own movement.

    Raises:
        ValueError: without snapshots, or for a step after the last of them.
    """
    if not snapshots or step > max(s.step for s in snapshots):
        raise ValueError(f"step {step} is not covered by the {len(snapshots)} snapshots")
    shares = mixing(snapshots, step, std)
    return {
        name: sum(
            (w * s.weights[name].double() for w, s in zip(shares, snapshots, strict=True)), torch.zeros(())
        ).to(tensor.dtype)
        for name, tensor in snapshots[0].weights.items()
    }


# --- losses by noise level ----------------------------------------------------------------------


@dataclass
class LossByLevel:
    """Mean loss in bins of log(sigma / alpha): a total hides at which noise a network is bad.

    Args:
        edges: of the bins, rising; two more bins lie outside of them.
    """

    edges: tuple[float, ...] = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0)
    counts: Tensor = field(init=False)
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts, self.sums = (torch.zeros(len(self.edges) + 1, dtype=torch.float64) for _ in range(2))

    def add(self, schedule: Schedule, t: Tensor, loss: Tensor) -> None:
        """Count the losses (B,) at times t (B,)."""
        level = schedule.ratio(t.detach().double().cpu()).log()
        places = torch.bucketize(level, torch.tensor(self.edges, dtype=torch.float64), right=True)
        self.counts.index_add_(0, places, torch.ones_like(level))
        self.sums.index_add_(0, places, loss.detach().double().cpu())

    def means(self) -> dict[str, float]:
        """Mean loss of each bin that was visited, by a name such as "-1 to 0"."""
        ends = ["below", *(f"{e:g}" for e in self.edges), "above"]
        named = zip(ends, ends[1:], self.sums / self.counts, self.counts, strict=False)
        return {f"{low} to {high}": float(mean) for low, high, mean, count in named if count}


# --- augmentation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """Flips and shifts that do not leak: the network is told what was done to an example, in channels that
    are 0 in sampling, so it learns from transformed data and makes untransformed (Karras et al. 2022,
    appendix F.2). Channels and not covariates, because guidance drops those and the knowledge with them.

    Args:
        flips: spatial axes that may be mirrored, each half of the time.
        shift: largest shift along each axis, as a share of it; the edge is repeated.
        chance: of touching an example at all.
    """

    flips: tuple[int, ...] = ()
    shift: float = 0.0
    chance: float = 0.5

    def width(self, ndim: int) -> int:
        """How many channels tell what was done: the network's `context` grows by them."""
        return len(self.flips) + (ndim if self.shift else 0)

    def plan(self, keys: Keys, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What is done to each element: mirrored axes bool (B, n) and shifts in positions int64 (B, n)."""
        n = len(size)
        touched = keys.uniform((), "augment chance") < self.chance
        mirror = keys.uniform((n,), "augment flip") < 0.5
        mirror &= torch.tensor([axis in self.flips for axis in range(n)]) & touched[:, None]
        reach = (self.shift * torch.tensor(size, dtype=torch.float64)).floor()
        shift = (keys.uniform((n,), "augment shift") * (2 * reach + 1)).floor() - reach
        return mirror, (shift * touched[:, None]).long()

    def __call__(
        self, keys: Keys, x_0: Tensor, where: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor, Condition]:
        """Transform data, what counts of it, and the condition's images alike, and tell what was done."""
        size = x_0.shape[2:]
        mirror, shift = self.plan(keys, size)

        def moved(x: Tensor) -> Tensor:
            return torch.stack([self._move(x[k], mirror[k], shift[k]) for k in range(len(x))])

        known, channels = condition.known, condition.channels
        condition = replace(
            condition,
            known=None if known is None else Encoded(moved(known.values), moved(known.observed)),
            channels=None if channels is None else moved(channels),
        )
        done = [mirror[:, list(self.flips)].double()]
        if self.shift:
            done.append(shift / torch.tensor(size))
        told = torch.cat(done, 1).to(x_0).reshape(len(x_0), -1, *(1,) * len(size))
        return moved(x_0), moved(where), with_channels(condition, told.expand(-1, -1, *size))

    def _move(self, x: Tensor, mirror: Tensor, shift: Tensor) -> Tensor:
        for axis, n in enumerate(x.shape[1:]):
            place = (torch.arange(n) - shift[axis]).clamp(0, n - 1)
            x = x.index_select(axis + 1, (n - 1 - place if mirror[axis] else place).to(x.device))
        return x


@dataclass(frozen=True)
class Unaugmented:
    """A denoiser trained under `Augment`, told that nothing was done. For sampling.

    Args:
        denoiser: whose network was trained with the augmentation's channels last.
        width: how many there are (`Augment.width`).
    """

    denoiser: Denoiser
    width: int

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Tensor:
        nothing = x_t.new_zeros(len(x_t), self.width, *x_t.shape[2:])
        return self.denoiser(x_t, t, with_channels(condition, nothing))

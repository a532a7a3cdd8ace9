r"""Averages of the weights along the training, which are what is used afterwards.

theta_hat_k = beta_k theta_hat_{k-1} + (1 - beta_k) theta_k; a *profile* gives beta_k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn


class Profile(Protocol):
    """How much of the old average is kept at step k = 1, 2, ..."""

    def beta(self, step: int) -> float: ...


@dataclass(frozen=True)
class PowerFunction:
    r"""Weights grow as tau^gamma over the training so far (Karras et al. 2024, "Analyzing and improving the
    training dynamics of diffusion models", eq. 2): beta_k = (1 - 1/k)^(gamma + 1).

    The window widens with the training, so one number serves 500 steps and 500,000, and the first
    weights, which are random, are forgotten at once (beta_1 = 0).

    Args:
        std: width of the window, as its standard deviation over the length of the training.

    Example:
        >>> round(PowerFunction(0.10).gamma, 2)  # the paper's value for 10 %
        6.94
    """

    std: float = 0.05

    @cached_property
    def gamma(self) -> float:
        """The exponent: the root of std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
        low, high = 0.0, 1e6
        for _ in range(200):  # the right side falls with gamma: bisection
            middle = (low + high) / 2
            too_wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > self.std**2
            low, high = (middle, high) if too_wide else (low, middle)
        return low

    def beta(self, step: int) -> float:
        return math.pow(1 - 1 / step, self.gamma + 1)


@dataclass(frozen=True)
class Exponential:
    """beta = decay, warmed up as (1 + k) / (10 + k) so that a short training is averaged too.

    Args:
        decay: 0 keeps no average (the weights themselves), 0.999 averages about the last 1,000 steps.
    """

    decay: float = 0.999

    def beta(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


class Average:
    """The running average of a module's parameters; buffers are taken from the module as they are.

    Args:
        module: on its device already; the average starts from its weights and lives beside them.
        profile: the weights of the average.
    """

    def __init__(self, module: nn.Module, profile: Profile) -> None:
        self.profile = profile
        self._parameters = dict(module.named_parameters())
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (1, 2, ...)."""
        current = [p.detach() for p in self._parameters.values()]
        if current:
            torch._foreach_lerp_(list(self.tensors.values()), current, 1 - self.profile.beta(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module computes with the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Set the average, by name, copying into the memory it has."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

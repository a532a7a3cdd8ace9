"""A small honest model for tests about everything but the model: one Gaussian for the numbers, shares
for the levels.

It has the interface of `domains.tabular.model.TableModel`, is fitted in closed form in milliseconds, and
its draws
depend on (seed, item, draw) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

from ebbtide.domains.tabular import fitted
from ebbtide.domains.tabular.codec import Coded
from ebbtide.domains.tabular.model import Filled, ModelSettings
from ebbtide.shared.noise import Keys


@dataclass(frozen=True)
class GaussianModel:
    """Numbers ~ N(mean, covariance), conditioned on the observed ones; levels by their shares."""

    mean: np.ndarray
    covariance: np.ndarray
    shares: tuple[np.ndarray, ...]

    @classmethod
    def fit(
        cls,
        coded: Coded,
        cardinalities: Sequence[int],
        settings: ModelSettings | None = None,
        *,
        seed: int = 0,
        folder: Path | None = None,
        resume: bool = False,
        device: str = "auto",
        progress: Callable[[str, float], None] | None = None,
    ) -> Self:
        numbers = coded.numbers
        known = ~np.isnan(numbers)
        mean = np.nansum(numbers, 0) / np.maximum(known.sum(0), 1)
        centred = np.where(known, numbers - mean, 0.0)
        covariance = centred.T @ centred / max(len(numbers), 1)
        covariance += np.diag(1e-3 * np.diag(covariance) + 1e-9)
        shares = tuple(
            (np.bincount(column[column >= 0], minlength=k) + 0.5) / (np.sum(column >= 0) + 0.5 * k)
            for column, k in zip(coded.codes.T, cardinalities, strict=True)
        )
        if progress is not None:
            progress("training", 1.0)
        return cls(mean, covariance, shares)

    def fill(self, coded: Coded, items: np.ndarray, *, seed: int = 0, draws: int = 20) -> Filled:
        n, p = coded.numbers.shape
        q = coded.codes.shape[1]
        numbers, codes = np.empty((draws, n, p)), np.empty((draws, n, q), np.int32)
        mean, mode = coded.numbers.copy(), coded.codes.copy()
        probability = np.ones((n, q))
        who = torch.from_numpy(np.repeat(items.astype(np.int64), draws))
        keys = Keys(seed, who, torch.arange(draws).repeat(n))
        noise = keys.normal((p,), dtype=torch.float64).numpy().reshape(n, draws, p)
        uniform = keys.uniform((q,)).numpy().reshape(n, draws, q)
        for row in range(n):
            codes[:, row] = coded.codes[row]
            for draw in range(draws):
                numbers[draw, row], mean[row] = self._row(coded.numbers[row], noise[row, draw])
            for j in np.flatnonzero(coded.codes[row] < 0):
                codes[:, row, j] = np.searchsorted(np.cumsum(self.shares[j])[:-1], uniform[row, :, j])
                mode[row, j] = self.shares[j].argmax()
                probability[row, j] = self.shares[j].max()
        return Filled(
            numbers=numbers, codes=codes, mean=mean, median=mean, probability=probability, mode=mode
        )

    def _row(self, row: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gone = np.isnan(row)
        if not gone.any():
            return row, row
        known = ~gone
        gain = np.linalg.solve(self.covariance[np.ix_(known, known)], self.covariance[np.ix_(known, gone)]).T
        centre = self.mean[gone] + gain @ (row[known] - self.mean[known])
        rest = self.covariance[np.ix_(gone, gone)] - gain @ self.covariance[np.ix_(known, gone)]
        values, vectors = np.linalg.eigh((rest + rest.T) / 2)
        spread = vectors @ np.diag(np.sqrt(np.maximum(values, 0)))
        drawn, mean = row.copy(), row.copy()
        drawn[gone], mean[gone] = centre + spread @ noise[gone], centre
        return drawn, mean

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        tensors = {f"shares.{k}": torch.from_numpy(share) for k, share in enumerate(self.shares)}
        return {"levels": len(self.shares)}, {
            "mean": torch.from_numpy(self.mean),
            "covariance": torch.from_numpy(self.covariance),
            **tensors,
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Self:
        shares = tuple(tensors[f"shares.{k}"].numpy() for k in range(config["levels"]))
        return cls(tensors["mean"].numpy(), tensors["covariance"].numpy(), shares)


@pytest.fixture
def gaussian(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[GaussianModel]]:
    """Everything that fits or loads a table's model uses the Gaussian one."""
    monkeypatch.setattr(fitted, "TableModel", GaussianModel)
    yield GaussianModel

"""Label maps as shapes: a Gaussian over signed distances (Tsai et al. 2003, "A shape-based approach to the
segmentation of medical imagery using level sets"), from which new label maps are drawn.

One distance is that from the border of all labels together; in it each voxel belongs to the label that it
lies deepest in, so that neighbours stay neighbours without a gap between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ...shared.centre import GaussianCentre
from ...shared.noise import Keys

COMPONENTS = 12
"""Of the Gaussian, at most."""
FAR = 8.0
"""Voxels from a border beyond which a distance tells nothing more."""
_ROUNDS, _MAPS = 12, 48  # of finding the levels, and maps drawn in each
_HALVED = 2  # distances are smooth: kept at half the resolution


@dataclass(frozen=True)
class LabelShapes:
    """A distribution of label maps on a grid.

    Args:
        labels: their values, beside 0.
        size: (S) voxels of the grid.
        gaussian: of (1 + K, *S / 2) signed distances in voxels, positive inside: of all labels, of each.
        levels: (1 + K,) voxels, added to what is drawn. An average of distances is smoother than each, and
            cuts thin ends short: these make drawn labels as large as those of training, on average.
    """

    labels: tuple[int, ...]
    size: tuple[int, ...]
    gaussian: GaussianCentre
    levels: Tensor

    @classmethod
    def fit(cls, maps: Sequence[np.ndarray], labels: Sequence[int]) -> Self:
        """Learn from n label maps (*S) of integers, of one shape.

        Raises:
            ValueError: no map, or maps of different shapes.
        """
        if not maps or len({one.shape for one in maps}) > 1:
            raise ValueError("shapes are learnt from label maps of one shape, at least one")
        distances = torch.stack([_distances(one, labels) for one in maps])
        gaussian = GaussianCentre.fit(_coarse(distances), components=COMPONENTS)
        shapes = cls(tuple(labels), maps[0].shape, gaussian, torch.zeros(1 + len(labels)))
        return shapes.levelled(np.mean([[np.sum(one == label) for label in labels] for one in maps], 0))

    def levelled(self, volumes: np.ndarray) -> Self:
        """With the levels at which labels have mean volumes (K,) in voxels."""
        wanted, levels = torch.tensor(volumes).clamp(min=1.0), torch.zeros(1 + len(self.labels))
        shapes = self
        for _ in range(_ROUNDS):
            found = torch.zeros(len(self.labels), dtype=torch.float64)
            for number in range(_MAPS):  # one at a time: many would fill the memory on a large grid
                drawn = shapes.draw(Keys.range(0, 1, start=number))
                found += torch.stack([(drawn == label).sum() for label in self.labels]) / _MAPS
            found = found.clamp(min=1.0)
            # A border moved by a voxel changes a volume by a third or more: as a share it is no less.
            levels[0] += float((wanted.sum() / found.sum()).log())
            levels[1:] += ((wanted / wanted.sum()) / (found / found.sum())).log().clamp(-1, 1).float()
            shapes = replace(self, levels=levels.clone())
        return shapes

    def draw(self, keys: Keys) -> Tensor:
        """(B, *S) int64 label maps; map b depends on keys[b] alone. What the components leave over is not
        drawn: it is noise without neighbours, and would fray the borders."""
        z = keys.normal((self.gaussian.loadings.shape[1],), "label shapes", torch.float32)
        fine = self._fine(self.gaussian.mean + z @ self.gaussian.loadings.T)
        fine = fine + self.levels[:, None, None, None]
        place = fine[:, 1:].argmax(1)
        return torch.where(fine[:, 0] > 0, torch.tensor(self.labels)[place], 0)

    @property
    def middle(self) -> np.ndarray:
        """(3,) voxels: where the labels of the mean shape have their centre."""
        mean = self._fine(self.gaussian.mean[None])[0, 0]
        return np.asarray((mean > 0).nonzero().double().mean(0).numpy())

    def _fine(self, coarse: Tensor) -> Tensor:
        """(B, d) kept distances to (B, 1 + K, *S)."""
        kept = coarse.reshape(len(coarse), *self.gaussian.shape)
        return F.interpolate(kept, size=self.size, mode="trilinear", align_corners=False)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON and tensors for a model folder."""
        config = {"labels": list(self.labels), "components": self.gaussian.loadings.shape[1]}
        tensors = {f"shapes.{name}": t.half() for name, t in self.gaussian.state_dict().items()}
        return config, tensors | {"shapes.levels": self.levels}

    @classmethod
    def from_state(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], size: tuple[int, ...]
    ) -> Self:
        """What `state` wrote, for a grid of that size."""
        labels = tuple(config["labels"])
        shape = (1 + len(labels), *(-(-n // _HALVED) for n in size))
        gaussian = GaussianCentre.blank(shape, config["components"])
        held = {name.removeprefix("shapes."): t.float() for name, t in tensors.items()}
        levels = held.pop("levels", torch.zeros(1 + len(labels)))
        gaussian.load_state_dict(held)
        return cls(labels, size, gaussian, levels)


def one_hot(labels: Tensor, values: Sequence[int]) -> Tensor:
    """(B, *S) integers to (B, K, *S): 1 inside of each label, -1 outside."""
    return torch.stack([labels == value for value in values], 1).float() * 2 - 1


def _distances(labels: np.ndarray, values: Sequence[int]) -> Tensor:
    """(1 + K, *S) signed distances in voxels, from the border of all labels and of each."""
    return torch.stack([_signed(np.isin(labels, values)), *(_signed(labels == value) for value in values)])


def _signed(inside: np.ndarray) -> Tensor:
    """(*S) how deep in (positive) or how far away a voxel is, half a voxel beside the border."""
    if not inside.any() or inside.all():
        return torch.full(inside.shape, FAR if inside.any() else -FAR)
    deep, away = ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside)
    return torch.from_numpy(np.clip(np.where(inside, deep - 0.5, 0.5 - away), -FAR, FAR)).float()


def _coarse(distances: Tensor) -> Tensor:
    """(n, C, *S) at half the resolution: means of blocks of two voxels."""
    return F.avg_pool3d(distances, _HALVED, ceil_mode=True, count_include_pad=False)

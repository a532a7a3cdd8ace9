"""Extremely randomised trees as plain arrays: fitted by scikit-learn, kept and evaluated as tensors.

A forest of the chain is data, not code: it goes into safetensors and no pickle is ever read. Evaluating it
ourselves also makes the answer independent of the scikit-learn that happens to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.tree import ExtraTreeClassifier, ExtraTreeRegressor
from torch import Tensor

from ...shared.errors import EbbtideError


@dataclass(frozen=True)
class Forest:
    """T binary trees over F features with O outputs, their nodes one after another in depth-first order
    (so that a node's left child is the next node). Which nodes are leaves says all about their shape: where
    trees begin and which node is a right child follows from it and is not kept.

    Args:
        feature: (N,) int8, or int16 beyond 127 features: the feature a node asks about; -1 at a leaf.
        threshold: (N - L,) float16; a row goes left when its feature is not above it.
        values: (L, O) what a leaf predicts: float16, or for a class's share uint8 in 255ths.
    """

    feature: Tensor
    threshold: Tensor
    values: Tensor

    @classmethod
    def pack(cls, fitted: Sequence[ExtraTreeRegressor | ExtraTreeClassifier], width: int) -> Forest:
        """The arrays of fitted scikit-learn trees. A classifier's leaf holds `width` probabilities."""
        feature, threshold, values = [], [], []
        for estimator in fitted:
            tree = estimator.tree_
            leaf = tree.children_left < 0
            inner = np.flatnonzero(~leaf)
            if not np.array_equal(tree.children_left[inner], inner + 1):
                raise EbbtideError("tree-order", "this scikit-learn does not lay trees out depth first")
            feature.append(np.where(leaf, -1, tree.feature))
            threshold.append(_thresholds(tree.threshold[inner]))
            values.append(_leaf_values(estimator, tree.value[leaf], width))
        small = np.int8 if fitted[0].n_features_in_ <= np.iinfo(np.int8).max else np.int16
        return cls(
            torch.from_numpy(np.concatenate(feature).astype(small)),
            torch.from_numpy(np.concatenate(threshold)),
            torch.from_numpy(np.concatenate(values)),
        )

    @cached_property
    def _open(self) -> Tensor:
        """(N,) int64: of all nodes up to this one, inner nodes less leaves. A tree, or a subtree, ends where
        this falls below what it was before it for the first time."""
        return torch.where(self.feature < 0, -1, 1).cumsum(0)

    @property
    def trees(self) -> int:
        """T."""
        return -int(self._open[-1])

    @cached_property
    def _walk(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """For walking without asking who has arrived: a leaf asks feature 0, always answers left, and its
        left child is itself. (T,) int32 roots, (N,) int32 feature, (N,) threshold, (2 N,) int32 children,
        (N,) int32 rank of a leaf among the leaves."""
        nodes, leaf = len(self.feature), self.feature < 0
        here = torch.arange(nodes)
        # A node's right child follows the end of its left subtree: the first later node where one fewer is
        # open than at the node. Sorted by (open, place), that is the successor of (open - 1, own place).
        rank = (self._open - self._open.min()) * nodes + here
        ordered, order = rank.sort()
        after = torch.searchsorted(ordered, rank[~leaf] - nodes, right=True)
        right = here.clone()
        right[~leaf] = order[after] + 1
        children = torch.stack([torch.where(leaf, here, here + 1), right], 1).reshape(-1).int()
        threshold = torch.full((nodes,), torch.inf)
        threshold[~leaf] = self.threshold.float()
        lowest = self._open.cummin(0).values
        ends = torch.nonzero((lowest < 0) & (lowest.diff(prepend=lowest.new_zeros(1)) < 0)).squeeze(1)
        roots = torch.cat([ends.new_zeros(1), ends[:-1] + 1]).int()
        return roots, self.feature.clamp(min=0).int(), threshold, children, (leaf.cumsum(0) - 1).int()

    def predict(self, rows: Tensor) -> Tensor:
        """Mean of the trees. rows (n, F) float32 -> (n, O) float32."""
        n = len(rows)
        if n == 0:
            return torch.zeros(0, self.values.shape[1])
        rows = rows if rows.shape[1] else rows.new_zeros(n, 1)
        roots, feature, threshold, children, rank = self._walk
        flat, width, trees = rows.reshape(-1), rows.shape[1], len(roots)
        node = roots.repeat(n)
        start = (torch.arange(n, dtype=torch.int32) * width).repeat_interleave(trees)
        place: Tensor | None = None  # which (row, tree) each walker is; None while all are walking
        end = torch.empty(n * trees, dtype=torch.int32)
        while len(node):
            for _ in range(5):
                asked = flat.index_select(0, start + feature.index_select(0, node))
                right = asked > threshold.index_select(0, node)
                node = children.index_select(0, 2 * node + right)
            arrived = self.feature.index_select(0, node) < 0
            walking = (~arrived).nonzero().squeeze(1)
            if place is None:
                end, place = node.clone(), walking
            else:
                end.index_copy_(0, place, node)
                place = place.index_select(0, walking)
            node, start = node.index_select(0, walking), start.index_select(0, walking)
        leaves = rank.index_select(0, end)
        said = self.values.index_select(0, leaves).float().reshape(n, trees, -1).mean(1)
        return said / 255 if self.values.dtype == torch.uint8 else said

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Named tensors for safetensors."""
        return {f"{prefix}.{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], prefix: str, features: int) -> Forest:
        """Read and check: the nodes must make up whole trees."""
        forest = cls(*(tensors[f"{prefix}.{name}"] for name in cls.__dataclass_fields__))
        leaves = int((forest.feature < 0).sum())
        sound = (
            leaves > 0
            and forest.feature.dtype in (torch.int8, torch.int16)
            and bool((forest.feature < features).all())
            and len(forest.threshold) == len(forest.feature) - leaves
            and forest.values.ndim == 2
            and forest.values.dtype in (torch.float16, torch.uint8)
            and len(forest.values) == leaves
            # The last node closes the last tree, and no node is left over.
            and forest.trees > 0
            and bool((forest._open[:-1] > forest._open[-1]).all())
        )
        if not sound:
            raise EbbtideError("model-forest", "the nodes do not make up trees", prefix, "train it again")
        return forest


def _leaf_values(
    fitted: ExtraTreeRegressor | ExtraTreeClassifier, value: np.ndarray, width: int
) -> np.ndarray:
    """scikit-learn keeps (leaves, outputs, classes): a regressor's outputs, a classifier's class shares."""
    if isinstance(fitted, ExtraTreeRegressor):
        return np.asarray(value[:, :, 0].astype(np.float16))
    shares = np.zeros((len(value), width))
    counts = value[:, 0, :]
    shares[:, fitted.classes_.astype(int)] = counts / counts.sum(1, keepdims=True)
    return np.rint(255 * shares).astype(np.uint8)


def _thresholds(exact: np.ndarray) -> np.ndarray:
    """(N,) float16: 11 bits of a threshold are as good as 53 for rows of unit scale, and exact for codes up
    to 1,024, whose thresholds lie half-way between neighbours."""
    limit = float(np.finfo(np.float16).max)
    return np.asarray(exact.clip(-limit, limit).astype(np.float16))


def grow(rows: np.ndarray, target: np.ndarray, *, trees: int, leaf: int, width: int, seed: int) -> Forest:
    """Fit extremely randomised trees (Geurts, Ernst & Wehenkel 2006).

    The same trees as scikit-learn's ensembles of this seed, which are not used: forests are grown by several
    threads here, and ensembles change Python's warning filters, one set for all threads, while they work.

    Args:
        rows: (n, F) float32.
        target: (n, O) or (n,) float for a number, (n,) integer codes below `width` for a category.
        trees, leaf: how many trees, and the fewest rows in a leaf.
    """
    kind = ExtraTreeClassifier if np.issubdtype(target.dtype, np.integer) else ExtraTreeRegressor
    luck, rows = np.random.RandomState(seed), np.ascontiguousarray(at_least_one(rows), np.float32)
    fitted = [
        kind(min_samples_leaf=leaf, max_features=None, random_state=luck.randint(np.iinfo(np.int32).max))
        for _ in range(trees)
    ]
    return Forest.pack([tree.fit(rows, target, check_input=False) for tree in fitted], width)


def at_least_one(rows: np.ndarray) -> np.ndarray:
    """(n, F) with a constant column where a table has no other column to ask: the trees are leaves."""
    return rows if rows.shape[1] else np.zeros((len(rows), 1), np.float32)

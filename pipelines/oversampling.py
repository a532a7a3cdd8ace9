"""Augmentation in a training script: `fit_resample` for estimators, a data set that mixes for torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sized
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from torch.utils.data import Dataset

from ..domains.tabular.augmenting import Target, place_of
from ..domains.tabular.fitted import FittedTable
from ..domains.tabular.measures import downstream
from ..shared.errors import InputError
from ..shared.noise import key_of

Item = TypeVar("Item", covariant=True)
CLASS = "(class)"
"""Name of the column that y becomes."""


class Oversampler(BaseEstimator):  # type: ignore[misc]
    """Synthetic rows for the smaller classes, by the convention of imbalanced-learn.

    `fit_resample(X, y)` gives the rows of X and y followed by synthetic ones; near copies of real rows and
    the implausible are dropped. Use it inside each training fold, never before the split.

    Args:
        sampling_strategy: "auto" (or "not majority") brings every class to the size of the largest;
            "minority" only the smallest; a number is the wanted size over that of the largest, in (0, 1]; a
            dict gives the wanted size of each class.
        factor: times that. At 5 or 10 all classes grow, with more to learn from what the rows' teacher knows.
        vary: None draws new rows; a share in (0, 1] takes real rows and draws that part of their cells anew.
        kinds: column -> kind, where the recognised one is not right.
        random_state: of training and of the draws.

    Attributes:
        model_: what made the rows.
        dropped_: {"near copies": ..., "implausible": ...}.

    Example:
        >>> Oversampler("minority", vary=0.5)
        Oversampler(sampling_strategy='minority', vary=0.5)
    """

    def __init__(
        self,
        sampling_strategy: str | float | Mapping[Hashable, int] = "auto",
        *,
        factor: float = 1,
        vary: float | None = None,
        kinds: Mapping[Hashable, str] | None = None,
        random_state: int = 0,
    ) -> None:
        self.sampling_strategy = sampling_strategy
        self.factor = factor
        self.vary = vary
        self.kinds = kinds
        self.random_state = random_state

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        """The real rows, then the synthetic ones, in the types that X and y have.

        Args:
            X: (n, c) a DataFrame or an array; missing cells are allowed.
            y: (n,) classes.

        Raises:
            InputError: lengths that differ, one class alone, a strategy that asks for fewer rows than there
                are, cells that cannot be read.
        """
        labels = np.asarray(y)
        frame = X.reset_index(drop=True) if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))
        if len(labels) != len(frame) or labels.ndim != 1:
            raise InputError(
                "lengths-differ", f"{len(frame)} rows beside {labels.shape} classes", "fit_resample"
            )
        classes, codes = np.unique(labels, return_inverse=True)
        counts = np.bincount(codes)
        wanted = dict(zip([f"c{k}" for k in range(len(classes))], self._wanted(classes, counts), strict=True))
        if not any(wanted.values()):
            return X, y
        whole = frame.assign(**{CLASS: [f"c{code}" for code in codes]})
        made = self._made(whole, wanted)
        new = np.array([int(str(label)[1:]) for label in made[CLASS]], dtype=np.int64)
        return self._joined(X, frame, made.drop(columns=CLASS)), _appended(y, classes[new])

    def _wanted(self, classes: np.ndarray, counts: np.ndarray) -> list[int]:
        """How many rows each class lacks."""
        strategy, most = self.sampling_strategy, round(int(counts.max()) * self.factor)
        if len(classes) < 2:
            raise InputError("one-class", "there is one class alone", "fit_resample", "give two or more")
        if isinstance(strategy, Mapping):
            goal = [
                int(strategy.get(label, count)) for label, count in zip(classes.tolist(), counts, strict=True)
            ]
        elif strategy in ("auto", "not majority"):
            goal = [most] * len(counts)
        elif strategy == "minority":
            fewest = int(counts.argmin())
            goal = [most if at == fewest else int(count) for at, count in enumerate(counts)]
        elif isinstance(strategy, int | float) and 0 < strategy <= 1:
            goal = [max(round(strategy * most), int(count)) for count in counts]
        else:
            remedy = "auto, not majority, minority, a number in (0, 1] or a dict"
            raise InputError("sampling-strategy", f"{strategy!r} is no strategy", "Oversampler", remedy)
        if any(n < count for n, count in zip(goal, counts, strict=True)):
            what = "a class is asked to have fewer rows than it has"
            raise InputError("sampling-strategy", what, "Oversampler", "this adds rows and takes none away")
        return [int(n - count) for n, count in zip(goal, counts, strict=True)]

    def _made(self, whole: pd.DataFrame, wanted: Mapping[str, int]) -> pd.DataFrame:
        verb = "generate" if self.vary is None else "impute"
        kinds = {**(self.kinds or {}), CLASS: "category"}
        self.model_ = FittedTable.fit(whole, kinds=kinds, verbs=(verb,), seed=self.random_state)
        codec = self.model_.codec
        coded = codec.encode(whole)
        place, _ = place_of(codec, CLASS, balance=False, where="fit_resample")
        target = Target.of(place, coded)
        counts = np.array([wanted.get(str(level), 0) for level in target.levels])
        made = downstream.made_by(self.model_, whole, coded, target, counts, self.vary, self.random_state)
        self.dropped_ = {"near copies": made.copies, "implausible": made.implausible}
        return made.frame

    @staticmethod
    def _joined(X: Any, frame: pd.DataFrame, made: pd.DataFrame) -> Any:
        made = made.reindex(columns=frame.columns)
        for name in frame.columns:
            if made[name].dtype != frame[name].dtype and not made[name].isna().any():
                made[name] = made[name].astype(frame[name].dtype)
        if isinstance(X, pd.DataFrame):
            return pd.concat([frame, made], ignore_index=True)
        given = np.asarray(X)
        return np.concatenate([given, made.to_numpy(dtype=given.dtype)])


def _appended(y: Any, new: np.ndarray) -> Any:
    """y with classes appended, in its own type."""
    if isinstance(y, pd.Series):
        added: Any = pd.Series(new).astype(y.dtype)
        return pd.concat([y.reset_index(drop=True), added.rename(y.name)], ignore_index=True)
    whole = np.concatenate([np.asarray(y), new])
    return whole.tolist() if isinstance(y, list) else whole


class Items(Sized, Protocol[Item]):
    """Anything with a length and positions: a torch data set, a list, an array."""

    def __getitem__(self, at: int, /) -> Item:
        """The item at a position."""


class Augment(Dataset[Item], Generic[Item]):
    """Real samples with synthetic ones mixed in, for a DataLoader that shuffles.

    Items 0 ... n - 1 are the real ones, each once; the rest are synthetic ones, others in every epoch. Which
    ones depends on (seed, epoch, position) alone, whatever the workers.

    Args:
        real, synthetic: data sets (or lists, arrays) whose items are alike.
        share: of synthetic samples among all, in [0, 1).
        seed: of the choice.

    Example:
        >>> mixed = Augment(["a", "b", "c"], ["x", "y"], share=0.25)
        >>> len(mixed), mixed[0], mixed[3] in ("x", "y")
        (4, 'a', True)
    """

    def __init__(
        self, real: Items[Item], synthetic: Items[Item], share: float = 0.5, *, seed: int = 0
    ) -> None:
        if not 0 <= share < 1:
            raise InputError("share", f"a share of {share:g}", "Augment", "at least 0 and less than 1")
        if share and not len(synthetic):
            raise InputError("no-synthetic", "there is no synthetic sample", "Augment", "generate some")
        self.real, self.synthetic, self.share, self.seed, self.epoch = real, synthetic, share, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch to see other synthetic samples."""
        self.epoch = epoch

    def __len__(self) -> int:
        return round(len(self.real) / (1 - self.share))

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        if at < len(self.real):
            return self.real[at]
        return self.synthetic[key_of("mix", self.seed, self.epoch, at) % len(self.synthetic)]

    def is_synthetic(self, index: int) -> bool:
        """Whether an item is synthetic."""
        return index % len(self) >= len(self.real)

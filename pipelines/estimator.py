"""`ebbtide.TabularImputer`: imputing by reverse diffusion as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..domains import Statistic
from ..domains.tabular.filling import require_statistic
from ..domains.tabular.fitted import FittedTable, Missing, column_keys
from ..domains.tabular.model import ModelSettings
from ..shared.errors import InputError


class TabularImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Fill missing cells by reverse diffusion; fitted on one table, it fills the rows of others.

    DataFrames (any dtypes) come back as DataFrames and arrays as arrays, with all their columns; observed
    cells come back bit for bit. A column without one observed cell in training is kept and left missing
    (`empty_columns_` lists them).

    Parameters
    ----------
    draws : int, default=20
        How many times each missing cell is drawn.
    statistic : {"mean", "median", "mode", "sample"}, default="mean"
        What a filled number is. A filled category is the most probable level, except for "sample".
    missing : sequence, default=()
        Codes that mean "missing" besides NaN, None and NA: ("?", -999).
    kinds : dict of column -> kind, default=None
        Where the recognised kind is not right: {"zip": "category"}. Columns of arrays are named x0, x1, ...
    key : str, default=None
        A column of DataFrames that names their rows: the draws for a row follow its key. Without it they
        follow the row's content, so that neither the order of rows nor the other rows matter; two equal rows
        then share their draws.
    settings : ModelSettings, default=None
        The model's size and training.
    random_state : int, RandomState or None, default=None
        The seed. None means 0: results repeat.

    Attributes
    ----------
    model_ : FittedTable
        The encoding and the model.
    empty_columns_ : list
        Columns that had no observed cell, by name (or position, of arrays); nothing can be filled in them.
    n_features_in_ : int
    feature_names_in_ : ndarray of str, when fitted on a DataFrame with string column names.

    Examples
    --------
    >>> import numpy as np
    >>> from ebbtide.pipelines.estimator import TabularImputer
    >>> X = np.random.default_rng(0).normal(size=(60, 2))
    >>> X[:5, 1] = np.nan
    >>> bool(np.isnan(TabularImputer(draws=2).fit_transform(X)).any())  # doctest: +SKIP
    False
    """

    def __init__(
        self,
        *,
        draws: int = 20,
        statistic: Statistic = "mean",
        missing: Missing = (),
        kinds: Mapping[Hashable, str] | None = None,
        key: str | None = None,
        settings: ModelSettings | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.draws = draws
        self.statistic = statistic
        self.missing = missing
        self.kinds = kinds
        self.key = key
        self.settings = settings
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Self:
        """Learn from the rows of `X` (array or DataFrame, cells may be missing); `y` is ignored."""
        require_statistic(self.statistic)
        frame = self._frame(X, reset=True)
        self._items(frame)
        seed = self._seed()
        keyed: dict[Hashable, str] = {self.key: "id"} if self.key else {}
        self.model_ = FittedTable.fit(
            frame,
            missing=self.missing,
            kinds={**keyed, **(self.kinds or {})},
            settings=self.settings,
            seed=seed,
        )
        self.seed_ = seed
        self.empty_columns_ = list(self.model_.empty_names)
        return self

    def transform(self, X: Any) -> Any:
        """The completed rows: a DataFrame for a DataFrame, an array for an array."""
        check_is_fitted(self)
        frame = self._frame(X, reset=False)
        pieces = self.model_.fill_in_pieces(frame, self._items(frame), draws=self.draws, seed=self.seed_)
        filled = [piece.table(self.statistic) for piece in pieces]
        return self._like(pd.concat(filled) if len(filled) > 1 else filled[0], X)

    def sample(self, X: Any, draws: int | None = None) -> list[Any]:
        """Several completed tables, one for each draw, for multiple imputation.

        Args:
            X: array or DataFrame.
            draws: how many; `self.draws` when None.

        Returns:
            A list of completed tables, each of the type of `X`; see `ebbtide.pool` for Rubin's rules.
        """
        check_is_fitted(self)
        frame = self._frame(X, reset=False)
        count = self.draws if draws is None else draws
        pieces = [
            [piece.draw(index) for index in range(count)]
            for piece in self.model_.fill_in_pieces(frame, self._items(frame), draws=count, seed=self.seed_)
        ]
        return [self._like(pd.concat([p[i] for p in pieces]), X) for i in range(count)]

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write the fitted model as a folder of safetensors and JSON (`load` and `ebbtide impute
        --model`)."""
        check_is_fitted(self)
        names = [str(name) for name in getattr(self, "feature_names_in_", [])]
        about = {
            **self.model_.about,
            "imputer": {
                "draws": self.draws,
                "statistic": self.statistic,
                "key": self.key,
                "seed": self.seed_,
                "features": self.n_features_in_,
                "names": names,
            },
        }
        FittedTable(self.model_.codec, self.model_.model, about).save(Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The fitted imputer that `save` (or `ebbtide train`) wrote."""
        model = FittedTable.load(Path(folder))
        kept = model.about.get("imputer", {})
        columns = [column.name for column in model.codec.columns_]
        self = cls(
            draws=kept.get("draws", 20),
            statistic=kept.get("statistic", "mean"),
            key=kept.get("key"),
            random_state=kept.get("seed", model.about.get("seed", 0)),
        )
        self.model_, self.seed_ = model, self._seed()
        self.empty_columns_ = list(model.empty_names)
        self.n_features_in_ = kept.get("features", len(columns))
        names = kept.get("names", columns)
        if names:
            self.feature_names_in_ = np.asarray(names, dtype=object)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _seed(self) -> int:
        if self.random_state is None:
            return 0
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _frame(self, X: Any, reset: bool) -> pd.DataFrame:
        """`X` as a DataFrame with the columns' names (x0, x1, ... for arrays), after scikit-learn's
        checks."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, skip_check_array=True, reset=reset)
            frame = X
        else:
            # Infinity is refused later, with its column and rows.
            array = validate_data(
                self, X, dtype=None, ensure_all_finite=False, reset=reset, ensure_min_samples=1
            )
            frame = pd.DataFrame(array)
            if array.dtype == object:
                frame = frame.infer_objects()
        names = [f"x{i}" for i in range(frame.shape[1])]
        if not isinstance(X, pd.DataFrame) or not hasattr(self, "feature_names_in_"):
            return frame.set_axis(self._names() if not reset else names, axis=1)
        return frame

    def _names(self) -> list[Any]:
        return [column.label for column in self.model_.codec.columns_]

    def _items(self, frame: pd.DataFrame) -> np.ndarray | None:
        if self.key is None:
            return None
        if self.key not in frame.columns:
            raise InputError("key-unknown", f"there is no column {self.key!r}", "key")
        return column_keys(frame[self.key])

    def _like(self, filled: pd.DataFrame, X: Any) -> Any:
        """`filled` in the type of `X`. Without names from fitting, names are lost: an array."""
        if isinstance(X, pd.DataFrame) and hasattr(self, "feature_names_in_"):
            return filled
        array = filled.to_numpy()
        return array if array.flags.writeable else array.copy()

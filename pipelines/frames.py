"""`ebbtide.impute(df)`: a DataFrame in, the completed DataFrame out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd

from ..domains import Statistic
from ..domains.tabular.filling import Filling, require_statistic
from ..domains.tabular.fitted import FittedTable, Missing, column_keys, require_unique
from ..domains.tabular.model import ModelSettings
from ..shared.errors import InputError

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Imputation:
    """A completed table and how sure it is; all frames have the index of the table that was given.

    Args:
        table: the completed table: same index, columns, dtypes and order, observed cells bit for bit.
        mask: bool, shaped like `table`: the cells that were filled.
        std: numeric columns: standard deviation of the draws, 0 where observed.
        lower, upper: numeric columns: 90 % interval of each cell; an observed cell is its own bounds.
        probability: categorical columns: the model's probability of the most probable level; 1 where
        observed.
        tables: one completed table for each draw, for multiple imputation (see `ebbtide.pool`).
        model: what filled it; pass it on as `model=` or `model.save("folder")` it.
    """

    table: pd.DataFrame
    mask: pd.DataFrame
    std: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    probability: pd.DataFrame
    tables: tuple[pd.DataFrame, ...]
    model: FittedTable


@overload
def impute(
    table: pd.DataFrame,
    *,
    draws: int = ...,
    statistic: Statistic = ...,
    seed: int = ...,
    missing: Missing = ...,
    kinds: Mapping[Hashable, str] | None = ...,
    columns: Sequence[str] | None = ...,
    key: str | None = ...,
    model: FittedTable | Path | str | None = ...,
    settings: ModelSettings | None = ...,
    progress: Progress | None = ...,
    details: Literal[False] = ...,
) -> pd.DataFrame: ...


@overload
def impute(
    table: pd.DataFrame,
    *,
    draws: int = ...,
    statistic: Statistic = ...,
    seed: int = ...,
    missing: Missing = ...,
    kinds: Mapping[Hashable, str] | None = ...,
    columns: Sequence[str] | None = ...,
    key: str | None = ...,
    model: FittedTable | Path | str | None = ...,
    settings: ModelSettings | None = ...,
    progress: Progress | None = ...,
    details: Literal[True],
) -> Imputation: ...


def impute(
    table: pd.DataFrame,
    *,
    draws: int = 20,
    statistic: Statistic = "mean",
    seed: int = 0,
    missing: Missing = (),
    kinds: Mapping[Hashable, str] | None = None,
    columns: Sequence[str] | None = None,
    key: str | None = None,
    model: FittedTable | Path | str | None = None,
    settings: ModelSettings | None = None,
    progress: Progress | None = None,
    details: bool = False,
) -> pd.DataFrame | Imputation:
    """Fill the missing cells of a table by reverse diffusion.

    Ids, free text and columns without a single observed cell are carried through as they are.

    Args:
        draws: how many times each missing cell is drawn; 20 give a 90 % interval.
        statistic: what a filled number is: "mean" of the draws (lowest squared error), "median" (lowest
            absolute error), "mode", or one "sample" (keeps the distribution). A filled category is the most
            probable level, except for "sample".
        seed: same seed, same answer.
        missing: codes that mean "missing" besides empty cells: ("?", -999).
        kinds: column -> kind, where the recognised one is not right: {"zip": "category"}.
        columns: fill only these.
        key: a column that names the rows. Draws follow the key, and so do not depend on the order of the
        rows;
            without it they follow the position.
        model: a model trained before (its folder, or `Imputation.model`); None trains one on `table`.
        settings: of the model that is trained.
        progress: called with the stage and the fraction of it done.
        details: give an `Imputation`: the table with mask, spread, intervals and one table for each draw.

    Returns:
        The completed table, or an `Imputation`.

    Raises:
        InputError: a table without rows or columns, a value its column cannot hold, duplicate keys.
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(
            "not-a-frame",
            f"expected a pandas DataFrame, got {type(table).__name__}",
            "impute()",
            "pass pd.DataFrame(...), or use ebbtide.TabularImputer for arrays",
        )
    require_statistic(statistic)
    items = row_keys(table, key)
    fitted = _model(model)
    if fitted is None:
        kinds = {**({key: "id"} if key else {}), **(kinds or {})}
        fitted = FittedTable.fit(
            canonical(table, items if key else None),
            missing=missing,
            kinds=kinds,
            settings=settings,
            seed=seed,
            progress=progress,
        )
    options: dict[str, Any] = {"seed": seed, "draws": draws, "columns": columns}
    pieces: list[Any] = []
    total = fitted.pieces(len(table), draws)
    for number, filling in enumerate(fitted.fill_in_pieces(table, items, **options)):
        pieces.append(_details(filling, statistic) if details else filling.table(statistic))
        if progress is not None:
            progress("filling", (number + 1) / total)
    if not details:
        return _join(pieces)
    made, mask, std, lower, upper, probability = (_join([piece[i] for piece in pieces]) for i in range(6))
    tables = tuple(_join([piece[6][d] for piece in pieces]) for d in range(draws))
    return Imputation(made, mask, std, lower, upper, probability, tables, fitted)


def _details(filling: Filling, statistic: Statistic) -> tuple[Any, ...]:
    mask = pd.DataFrame(filling.where, index=filling.frame.index, columns=filling.frame.columns)
    tables = tuple(filling.draw(index) for index in range(filling.draws))
    return (
        filling.table(statistic),
        mask,
        filling.std(),
        *filling.bounds(),
        filling.probability(),
        tables,
    )


def _join(pieces: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pieces[0] if len(pieces) == 1 else pd.concat(pieces)


def row_keys(table: pd.DataFrame, key: str | None) -> np.ndarray:
    """(n,) int64: positions, or keys from the text of a column, which must be unique.

    Raises:
        InputError: no such column, or a key missing or repeated.
    """
    if key is None:
        return np.arange(len(table), dtype=np.int64)
    if key not in table.columns:
        raise InputError(
            "key-unknown", f"there is no column {key!r}", "key", "name one of the table's columns"
        )
    keys = column_keys(table[key])
    require_unique(keys, f"table, column {key}")
    return keys


def canonical(table: pd.DataFrame, keys: np.ndarray | None) -> pd.DataFrame:
    """The rows in the order of their keys, so that what is learnt does not depend on the order they came
    in."""
    return table if keys is None else table.iloc[np.argsort(keys, kind="stable")]


def _model(model: FittedTable | Path | str | None) -> FittedTable | None:
    if model is None or isinstance(model, FittedTable):
        return model
    return FittedTable.load(Path(model))

"""Deciding what a column means, from its dtype, its header and its observed cells.

The order of the questions matters: ids and contact data are looked for before numbers, numbers before
dates, dates before categories; what is left is free text. A column that could be read in two ways is
refused (InputError) or carried untouched, never guessed at.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...shared.errors import InputError
from . import columns
from .columns import Column
from .kinds import (
    label_column,
    number_column,
    number_kind,
    number_levels,
    refuse_mixed,
    text_kind,
    time_column,
    zone_of,
)
from .texts import from_text

if TYPE_CHECKING:
    from .cells import Series


def recognise(
    series: Series,
    label: Hashable,
    *,
    codes: Collection[Hashable] = (),
    kind: str | None = None,
    max_levels: int = 256,
    decimal: str | None = None,
) -> Column:
    """What the column means.

    Args:
        series: the cells, one row each.
        label: the header.
        codes: the missing codes of this column.
        kind: overrides recognition; "datetime:%d/%m/%Y" gives the form of text dates as well.
        max_levels: categories modelled; rarer ones are pooled.
        decimal: "." or "," when known, for text.

    Raises:
        InputError: infinities, text among numbers, cells that do not fit the kind asked for.
    """
    name = str(label)
    wanted, form = columns.check_kind(kind, name) if kind is not None else (None, "")
    held, python = columns.storage_of(series)
    facts: dict[str, Any] = {
        "name": name,
        "label": label,
        "dtype": str(series.dtype),
        "storage": held,
        "python": python,
    }
    gone = columns.missing(series, codes)
    if gone.all():
        return Column(
            kind=wanted or _empty_kind(held), notes=(("all-missing", "no cell was observed"),), **facts
        )
    facts["observed"] = int((~gone).sum())
    if wanted in ("id", "text") or held == "opaque":
        if wanted not in (None, "id", "text"):
            raise InputError(
                "wrong-kind", f"cells of dtype {series.dtype} cannot be read as {wanted}", f"column {name!r}"
            )
        return Column(kind=wanted or "text", **facts)
    if held == "text":
        return from_text(series, gone, facts, wanted, form, max_levels, decimal)
    if held in ("number", "datetime", "duration"):
        return _from_numbers(series, gone, facts, wanted, max_levels)
    return _from_labels(series, gone, facts, wanted, max_levels)


def _empty_kind(held: str) -> Any:
    return {
        "number": "number",
        "boolean": "boolean",
        "datetime": "datetime",
        "duration": "duration",
        "category": "category",
    }.get(held, "text")


def _from_numbers(
    series: Series, gone: np.ndarray, facts: dict[str, Any], wanted: str | None, most: int
) -> Column:
    """A column held as numbers, moments or durations."""
    held = facts["storage"]
    values = columns.as_floats(series, gone, held)[~gone]
    if held == "number":
        columns.refuse_extremes(columns.as_floats(series, gone, held), facts["name"], series.index)
    distinct = np.unique(values)
    facts["distinct"] = len(distinct)
    if wanted in ("category", "ordered", "boolean"):
        return number_levels(series, gone, facts, wanted, most)
    if held != "number":
        if wanted not in (None, held):
            raise InputError(
                "wrong-kind", f"a {held} cannot be read as {wanted}", f"column {facts['name']!r}"
            )
        facts["tz"] = zone_of(series)
        return time_column(values, held, facts)
    if wanted in ("datetime", "duration"):
        raise InputError(
            "wrong-kind",
            f"numbers cannot be read as {wanted}",
            f"column {facts['name']!r}",
            "convert the column with pandas.to_datetime or to_timedelta first",
        )
    kind = wanted or number_kind(facts["label"], distinct, len(values))
    if kind in ("id",):
        return Column(kind="id", **facts)
    if kind in ("boolean", "category"):
        return number_levels(series, gone, facts, kind, most)
    return number_column(kind, values, facts, columns.count_float_decimals(series, values))


def _from_labels(
    series: Series, gone: np.ndarray, facts: dict[str, Any], wanted: str | None, most: int
) -> Column:
    """Booleans, pandas categories, and objects of mixed types."""
    held = facts["storage"]
    if wanted is not None and wanted not in columns.CATEGORIES:
        raise InputError(
            "wrong-kind",
            f"cells of dtype {series.dtype} cannot be read as {wanted}",
            f"column {facts['name']!r}",
            "convert the column to that type first",
        )
    if held == "boolean":
        values = series[~gone].astype(bool)
        found = [b for b in (False, True) if (values == b).any()]
        facts["distinct"] = len(found)
        counts = [int((values == b).sum()) for b in found]
        return label_column(list(found), counts, facts, wanted or "boolean", most)
    if held == "category":
        return _from_categories(series, gone, facts, wanted, most)
    tally: dict[tuple[str, Hashable], int] = {}
    for value in series[~gone]:
        tally[type(value).__name__, value] = tally.get((type(value).__name__, value), 0) + 1
    facts["distinct"] = len(tally)
    refuse_mixed([(str(v) if isinstance(v, str) else v) for _, v in tally], series, gone, facts)
    kind = wanted or ("text" if len(tally) > 20 and len(tally) > 0.9 * facts["observed"] else "category")
    if kind == "text":
        return Column(kind="text", **facts)
    return label_column([v for _, v in tally], list(tally.values()), facts, kind, most)


def _from_categories(
    series: Series, gone: np.ndarray, facts: dict[str, Any], wanted: str | None, most: int
) -> Column:
    categorical: Any = series.array
    tally = np.bincount(np.asarray(categorical.codes)[~gone], minlength=len(categorical.categories))
    at = np.flatnonzero(tally)
    levels = [categorical.categories[i] for i in at]
    facts["distinct"] = len(levels)
    if not columns._hashable(levels):
        return Column(kind="text", **facts)
    if wanted is None and not categorical.ordered and all(isinstance(v, str) for v in levels):
        kind = text_kind(facts["label"], levels, facts["observed"])
        if kind in ("id", "text"):
            return Column(kind=kind, **facts)  # type: ignore[arg-type]
    kind = wanted or ("ordered" if categorical.ordered else "category")
    if (
        set(levels) <= {True, False}
        and all(isinstance(v, bool | np.bool_) for v in levels)
        and wanted is None
    ):
        kind = "boolean"
    return label_column(levels, tally[at].tolist(), facts, kind, most)

"""What a column of text cells means: numbers, dates, durations, booleans, ids, categories or free text."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import cells, columns
from .columns import NUMBERS, Column
from .kinds import (
    PERSON_WORDS,
    label_column,
    number_column,
    number_kind,
    refuse_mixed,
    sorted_levels,
    text_kind,
    time_column,
)

if TYPE_CHECKING:
    from .cells import Series

TRUTH = ({"false", "true"}, {"f", "t"}, {"no", "yes"}, {"n", "y"})
HASH = re.compile(r"[0-9a-fA-F]{16,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\S+@\S+\.\w+")
"""Hashes, UUIDs and e-mail addresses."""


def from_text(
    series: Series,
    gone: np.ndarray,
    facts: dict[str, Any],
    wanted: str | None,
    form: str,
    most: int,
    decimal: str | None,
) -> Column:
    """A column of text cells: numbers, dates, booleans and categories are recognised from their spelling."""
    tally = series[~gone].astype(object).value_counts(sort=False)
    texts: list[str] = tally.index.tolist()
    counts: list[int] = tally.tolist()
    facts["distinct"] = len(texts)
    filled = [t for t in texts if t.strip()]
    if wanted in columns.CATEGORIES or not filled:
        return label_column(*sorted_levels(texts, counts, wanted), facts, wanted or "category", most)
    stripped = [t.strip() for t in filled]
    if wanted is None:
        wanted = _id_text(facts["label"], stripped, facts["observed"])
        if wanted:
            return Column(kind="id", **facts)
        for pair in TRUTH:
            if {t.lower() for t in stripped} <= pair and len(stripped) <= 2 and len(texts) == len(filled):
                return label_column(*sorted_levels(texts, counts, "boolean"), facts, "boolean", most)
    sign = (
        decimal
        if decimal is not None and cells.decimal_sign(stripped) is not None
        else cells.decimal_sign(stripped)
    )
    thousands = sign is None and all(
        cells.THOUSANDS.fullmatch(t) or cells.NUMBER.fullmatch(t) for t in stripped
    )
    if thousands and decimal == ",":
        sign = ","
    if sign is not None and (wanted in NUMBERS or not any(cells.CODED.fullmatch(t) for t in stripped)):
        return _number_text(series, gone, texts, counts, facts, wanted, sign, most)
    if wanted in ("number", "integer") or (wanted is None and not thousands):
        refuse_mixed(stripped, series, gone, facts, sure=wanted is not None)
    if wanted in (None, "datetime", "duration") and (
        found := _time_text(series, gone, stripped, facts, wanted, form)
    ):
        return found
    if wanted in ("datetime", "duration"):
        raise InputError(
            "wrong-kind",
            f"not all cells can be read as {wanted}",
            f"column {facts['name']!r}",
            'give the form of dates as the kind "datetime:%d/%m/%Y"',
        )
    notes = facts.pop("notes", ())
    if thousands:
        notes += (("ambiguous-comma", "a comma that may be a decimal sign or separate thousands"),)
    kind = "text" if thousands or notes else text_kind(facts["label"], texts, facts["observed"])
    if kind in ("id", "text"):
        return Column(kind=kind, notes=notes, **facts)  # type: ignore[arg-type]
    return label_column(texts, counts, facts, kind, most)


def _id_text(label: Hashable, stripped: list[str], observed: int) -> str | None:
    """ "id" for contact data, hashes, and codes whose leading zeros are mostly distinct."""
    if PERSON_WORDS & columns.tokens(label) or all(HASH.fullmatch(t) and not t.isdecimal() for t in stripped):
        return "id"
    if any(cells.CODED.fullmatch(t) for t in stripped) and all(
        re.fullmatch(r"[+-]?\d+", t) for t in stripped
    ):
        return (
            "id"
            if len(stripped) > 0.5 * observed and (len(stripped) > 20 or len(stripped) == observed)
            else None
        )
    return None


def _number_text(
    series: Series,
    gone: np.ndarray,
    texts: list[str],
    counts: list[int],
    facts: dict[str, Any],
    wanted: str | None,
    sign: str,
    most: int,
) -> Column:
    """Numbers held as text; blank cells among them are missing."""
    every = cells.to_numbers(series.astype(object).where(~gone, ""), sign)
    columns.refuse_extremes(every, facts["name"], series.index)
    values = every[~np.isnan(every)]
    distinct = np.unique(values)
    kind = wanted or number_kind(facts["label"], distinct, len(values))
    filled = [t for t in texts if t.strip()]
    if kind == "id":
        return Column(kind="id", **facts)
    if kind in ("boolean", "category") and len(filled) <= len(distinct) + 1 and len(filled) == len(texts):
        return label_column(*sorted_levels(texts, counts, kind), facts, kind, most)
    if kind in ("boolean", "category"):
        kind = "integer"
    stripped = [t.strip() for t in filled]
    prefix, suffix = cells.common_blanks(filled)
    spelling = cells.spelling(stripped, sign)
    facts["spelling"] = cells.Spelling(
        sign, spelling.decimals, spelling.fixed, spelling.least, prefix, suffix
    )
    facts["observed"] = len(values)
    return number_column(kind, values, facts, spelling.decimals)


def _time_text(
    series: Series,
    gone: np.ndarray,
    stripped: list[str],
    facts: dict[str, Any],
    wanted: str | None,
    form: str,
) -> Column | None:
    """Dates or durations held as text, or None. Day/month order that cannot be told is noted, not guessed."""
    if wanted != "datetime" and (duration := cells.duration_form(stripped)):
        values = np.array([cells.duration_seconds(t) for t in stripped])
        return time_column(values, "duration", facts | {"form": duration})
    if wanted == "duration":
        return None
    suffix = cells.zone_suffix(stripped)
    bare = [t.removesuffix(suffix) for t in stripped]
    found: list[tuple[str, np.ndarray]] = []
    texts = pd.Series(bare, dtype="str")
    for candidate in [form] if form else cells.date_forms(bare):
        seconds = cells.to_seconds(texts, candidate)
        if not np.isnan(seconds).any():
            found.append((candidate, seconds))
    if not found:
        return None
    if any(not np.array_equal(found[0][1], other) for _, other in found[1:]):
        facts["notes"] = (("ambiguous-dates", "the order of day and month cannot be told"),)
        return None
    spelled = form or cells.date_spelling(bare, found[0][0])
    return time_column(found[0][1], "datetime", facts | {"form": spelled, "suffix": suffix})

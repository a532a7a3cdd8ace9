"""Deciding what a column means, from its dtype, its header and its observed cells.

The order of the questions matters: ids and contact data are looked for before numbers, numbers before
dates, dates before categories; what is left is free text. A column that could be read in two ways is
refused (InputError) or carried untouched, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import cells, columns
from .columns import EXACT, NUMBERS, Column

if TYPE_CHECKING:
    from .cells import Series

ID_WORDS = frozenset(
    [
        "id",
        "ids",
        "uuid",
        "guid",
        "mrn",
        "identifier",
        "index",
        "rowid",
        "row",
        "accession",
        "barcode",
        "hash",
        "token",
        "unnamed",
    ]
)
PERSON_WORDS = frozenset(
    [
        "email",
        "mail",
        "phone",
        "telephone",
        "mobile",
        "fax",
        "ssn",
        "mrn",
        "passport",
        "iban",
        "surname",
        "lastname",
        "firstname",
        "forename",
        "username",
        "address",
        "street",
        "nhsnumber",
    ]
)
"""Header words of columns that name a person: carried untouched whatever they hold as text."""
TRUTH = ({"false", "true"}, {"f", "t"}, {"no", "yes"}, {"n", "y"})
HASH = re.compile(r"[0-9a-fA-F]{16,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\S+@\S+\.\w+")
"""Hashes, UUIDs and e-mail addresses."""
ENOUGH = 10
"""With fewer observed cells than this, two distinct whole numbers do not make a category."""


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
        return _from_text(series, gone, facts, wanted, form, max_levels, decimal)
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


# ------------------------------------------------------------------------------------------------- numbers


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
        return _levels_of_numbers(series, gone, facts, wanted, most)
    if held != "number":
        if wanted not in (None, held):
            raise InputError(
                "wrong-kind", f"a {held} cannot be read as {wanted}", f"column {facts['name']!r}"
            )
        facts["tz"] = _zone(series)
        return _moments(values, held, facts)
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
        return _levels_of_numbers(series, gone, facts, kind, most)
    return _number(kind, values, facts, columns.count_float_decimals(series, values))


def number_kind(label: Hashable, distinct: np.ndarray, observed: int) -> str:
    """ "integer", "number", "boolean", "category" or "id" for the sorted distinct numbers of a column."""
    whole = bool((np.floor(distinct) == distinct).all())
    if not whole:
        return "number"
    if np.abs(distinct).max() > EXACT:
        return "id" if np.abs(distinct).max() < 2**64 else "number"
    if ID_WORDS & columns.tokens(label) and len(distinct) > 1:
        if len(distinct) == observed or len(distinct) > 20:
            return "id"
        return "category"
    if len(distinct) == 2 and observed >= ENOUGH:
        return "boolean" if set(distinct) == {0.0, 1.0} else "category"
    return "integer"


def _number(kind: str, values: np.ndarray, facts: dict[str, Any], decimals: int | None) -> Column:
    if kind == "integer" and not (np.floor(values) == values).all():
        raise InputError(
            "wrong-kind",
            "not all cells are whole numbers",
            f"column {facts['name']!r}",
            "call the column a number",
        )
    facts |= {"low": float(values.min()), "high": float(values.max())}
    return Column(kind=kind, decimals=0 if kind == "integer" else decimals, **facts)  # type: ignore[arg-type]


def _zone(series: Series) -> str | None:
    dtype = series.dtype
    zone = (
        dtype.pyarrow_dtype.tz
        if isinstance(dtype, pd.ArrowDtype) and hasattr(dtype.pyarrow_dtype, "tz")
        else None
    )
    zone = dtype.tz if isinstance(dtype, pd.DatetimeTZDtype) else zone
    return None if zone is None else str(zone)


def _moments(values: np.ndarray, kind: str, facts: dict[str, Any]) -> Column:
    """Dates or durations in seconds: range, and the coarsest step that all are multiples of."""
    local = values
    if facts.get("tz"):
        stamps = pd.to_datetime(np.round(values * 1e6).astype(np.int64), unit="us", utc=True)
        offsets = stamps.tz_convert(facts["tz"]).tz_localize(None) - stamps.tz_localize(None)
        local = values + offsets.total_seconds().to_numpy()
    step = next((s for s in (86400.0, 3600.0, 60.0, 1.0) if not np.mod(local, s).any()), 0.0)
    if not step:
        step = 1e-3 if np.abs(np.round(local * 1e3) / 1e3 - local).max() < 1e-7 else 1e-6
    facts |= {"low": float(values.min()), "high": float(values.max()), "step": step}
    return Column(kind=kind, **facts)  # type: ignore[arg-type]


def _levels_of_numbers(
    series: Series, gone: np.ndarray, facts: dict[str, Any], kind: str, most: int
) -> Column:
    """A column of numbers, moments or durations whose values are labels; levels are written back as they were."""
    values = columns.as_floats(series, gone, facts["storage"])[~gone]
    levels, counts = np.unique(values, return_counts=True)
    whole = bool((np.floor(levels) == levels).all())
    labels: list[Hashable] = [int(v) if whole else float(v) for v in levels]
    return _labelled(labels, counts.tolist(), facts, kind, most)


# -------------------------------------------------------------------------------------------------- labels


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
        return _labelled(list(found), counts, facts, wanted or "boolean", most)
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
    return _labelled([v for _, v in tally], list(tally.values()), facts, kind, most)


def _from_categories(
    series: Series, gone: np.ndarray, facts: dict[str, Any], wanted: str | None, most: int
) -> Column:
    categorical = series.array
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
    return _labelled(levels, tally[at].tolist(), facts, kind, most)


def _labelled(
    levels: Sequence[Hashable], counts: Sequence[int], facts: dict[str, Any], kind: str, most: int
) -> Column:
    """Choose the modelled levels. Ordered and two-level columns keep the given order, others go by frequency."""
    if kind == "boolean" and len(levels) > 2:
        raise InputError(
            "wrong-kind",
            f"{len(levels)} different cells cannot be a boolean",
            f"column {facts['name']!r}",
            "call the column a category",
        )
    if kind in ("ordered", "boolean") and len(levels) <= most:
        return Column(kind=kind, levels=tuple(levels), counts=tuple(counts), **facts)  # type: ignore[arg-type]
    return Column(kind=kind, **columns.pool(levels, counts, most), **facts)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- text


def _from_text(
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
        return _labelled(*_sorted_levels(texts, counts, wanted), facts, wanted or "category", most)
    stripped = [t.strip() for t in filled]
    if wanted is None:
        wanted = _id_text(facts["label"], stripped, facts["observed"])
        if wanted:
            return Column(kind="id", **facts)
        for pair in TRUTH:
            if {t.lower() for t in stripped} <= pair and len(stripped) <= 2 and len(texts) == len(filled):
                return _labelled(*_sorted_levels(texts, counts, "boolean"), facts, "boolean", most)
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
    return _labelled(texts, counts, facts, kind, most)


def _sorted_levels(texts: list[str], counts: list[int], kind: str | None) -> tuple[list[Hashable], list[int]]:
    """Levels in their natural order: numbers by value, then text by alphabet (false before true, no before yes)."""

    def place(i: int) -> tuple[bool, float, str]:
        text = texts[i].strip()
        number = bool(cells.NUMBER.fullmatch(text))
        return not number, float(text) if number else 0.0, texts[i].lower()

    order = sorted(range(len(texts)), key=place)
    return [texts[i] for i in order], [counts[i] for i in order]


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


def text_kind(label: Hashable, texts: Sequence[str], observed: int) -> str:
    """ "id", "text" or "category" for the distinct texts of a column with `observed` cells.

    Ids are (nearly) all distinct and short; free text is mostly distinct with several words in a cell.
    """
    distinct = len(texts)
    words = columns.tokens(label)
    if PERSON_WORDS & words:
        return "id"
    if distinct > 0.5 * observed and distinct > 1 and (words & ID_WORDS or "name" in words):
        return "id"
    length = sum(len(t) for t in texts) / distinct
    several = sum(len(t.split()) for t in texts) / distinct
    if distinct > 0.5 * observed and distinct > 5 and (several >= 4 or length >= 40):
        return "text"
    if length >= 200:
        return "text"
    return "id" if distinct > 20 and distinct > 0.9 * observed else "category"


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
        return _labelled(*_sorted_levels(texts, counts, kind), facts, kind, most)
    if kind in ("boolean", "category"):
        kind = "integer"
    stripped = [t.strip() for t in filled]
    prefix, suffix = cells.common_blanks(filled)
    spelling = cells.spelling(stripped, sign)
    facts["spelling"] = cells.Spelling(
        sign, spelling.decimals, spelling.fixed, spelling.least, prefix, suffix
    )
    facts["observed"] = len(values)
    return _number(kind, values, facts, spelling.decimals)


def refuse_mixed(
    distinct: Sequence[Any], series: Series, gone: np.ndarray, facts: dict[str, Any], *, sure: bool = False
) -> None:
    """InputError when a column is numbers but for a few cells: is that text a code for missing, or damage?

    Told from a category by its numbers: more than 20 different ones that outnumber the texts, or texts that are
    all common codes for missing ("?", "NA"). With `sure` the caller has called the column a number.
    """
    odd = [v for v in distinct if not _numeric(v)]
    numbers = len(distinct) - len(odd)
    code = bool(odd) and all(isinstance(v, str) and v.strip().lower() in cells.MISSING_CODES for v in odd)
    if not odd or not (sure or (numbers > 20 and numbers > len(odd)) or (code and numbers > 1)):
        return
    strange = set(odd)
    bad = np.zeros(len(series), dtype=bool)
    bad[~gone] = [(v.strip() if isinstance(v, str) else v) in strange for v in series[~gone]]
    remedy = "correct the cells, or call the column a category or text (kinds)"
    if code:
        shown = ", ".join(sorted({repr(str(v).strip()) for v in odd}))
        remedy = f"if {shown} stands for missing, say so (--missing); else call the column a category (kinds)"
    raise InputError(
        "text-in-number-column",
        "text among numbers",
        f"column {facts['name']!r}, {columns.rows_of(bad, series.index)}",
        remedy,
    )


def _numeric(value: Any) -> bool:
    if isinstance(value, str):
        text = value.strip()
        return not text or bool(cells.NUMBER.fullmatch(text) or cells.COMMA_NUMBER.fullmatch(text))
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


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
        return _moments(values, "duration", facts | {"form": duration})
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
    return _moments(found[0][1], "datetime", facts | {"form": spelled, "suffix": suffix})

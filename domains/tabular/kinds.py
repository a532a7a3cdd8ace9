"""What kinds of columns there are signs of, and the facts that each kind records."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import cells, columns
from .columns import EXACT, Column

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
ENOUGH = 10
"""With fewer observed cells than this, two distinct whole numbers do not make a category."""


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


def number_column(kind: str, values: np.ndarray, facts: dict[str, Any], decimals: int | None) -> Column:
    if kind == "integer" and not (np.floor(values) == values).all():
        raise InputError(
            "wrong-kind",
            "not all cells are whole numbers",
            f"column {facts['name']!r}",
            "call the column a number",
        )
    facts |= {"low": float(values.min()), "high": float(values.max())}
    return Column(kind=kind, decimals=0 if kind == "integer" else decimals, **facts)  # type: ignore[arg-type]


def zone_of(series: Series) -> str | None:
    dtype = series.dtype
    zone = (
        dtype.pyarrow_dtype.tz
        if isinstance(dtype, pd.ArrowDtype) and hasattr(dtype.pyarrow_dtype, "tz")
        else None
    )
    zone = dtype.tz if isinstance(dtype, pd.DatetimeTZDtype) else zone
    return None if zone is None else str(zone)


def time_column(values: np.ndarray, kind: str, facts: dict[str, Any]) -> Column:
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


def number_levels(series: Series, gone: np.ndarray, facts: dict[str, Any], kind: str, most: int) -> Column:
    """A column of numbers, moments or durations whose values are labels."""
    values = columns.as_floats(series, gone, facts["storage"])[~gone]
    levels, counts = np.unique(values, return_counts=True)
    whole = bool((np.floor(levels) == levels).all())
    labels: list[Hashable] = [int(v) if whole else float(v) for v in levels]
    return label_column(labels, counts.tolist(), facts, kind, most)


def label_column(
    levels: Sequence[Hashable], counts: Sequence[int], facts: dict[str, Any], kind: str, most: int
) -> Column:
    """The modelled levels. Ordered and two-level columns keep the order given, others go by frequency."""
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


def sorted_levels(texts: list[str], counts: list[int], kind: str | None) -> tuple[list[Hashable], list[int]]:
    """Levels in their natural order: numbers by value, then text by alphabet (no before yes)."""

    def place(i: int) -> tuple[bool, float, str]:
        text = texts[i].strip()
        number = bool(cells.NUMBER.fullmatch(text))
        return not number, float(text) if number else 0.0, texts[i].lower()

    order = sorted(range(len(texts)), key=place)
    return [texts[i] for i in order], [counts[i] for i in order]


def refuse_mixed(
    distinct: Sequence[Any], series: Series, gone: np.ndarray, facts: dict[str, Any], *, sure: bool = False
) -> None:
    """InputError when a column is numbers but for a few cells: is that text a code for missing, or damage?

    Told from a category by its numbers: more than 20 different ones that outnumber the texts, or texts that
    are all common codes for missing ("?", "NA"). With `sure` the caller has called the column a number.
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

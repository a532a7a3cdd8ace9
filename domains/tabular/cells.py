"""Single cells: what a piece of text means, and how a value is spelled as text."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from typing import TypeAlias

    Series: TypeAlias = pd.Series[Any]

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
"""A number as text, with a decimal point."""
COMMA_NUMBER = re.compile(r"[+-]?(?:\d+,\d+|,\d+|\d+)(?:[eE][+-]?\d+)?")
"""A number as text, with a decimal comma."""
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
"""Text that a decimal comma and a thousands separator explain equally well: 1,234."""
CODED = re.compile(r"[+-]?0\d+")
"""Whole digits that begin with a zero: a code (00123), whose zeros a number would lose."""
PLAIN = frozenset("0123456789+-.,eE")
"""Characters of plain numbers."""
MISSING_CODES = frozenset(
    [
        "?",
        "na",
        "n/a",
        "n.a.",
        "nan",
        "null",
        "none",
        "nil",
        "missing",
        "unknown",
        "unk",
        "not",
        "available",
        "#n/a",
        "#na",
        ".",
        "-",
        "--",
        "*",
        "-9",
        "-99",
        "-999",
        "-9999",
    ]
)
"""Spellings that often stand for "missing" (lower case); suggested by the checker, never assumed."""


@dataclass(frozen=True)
class Spelling:
    """How the numbers of a text column are written, so that a new number looks like its neighbours.

    Args:
        decimal: "." or ",".
        decimals: the most digits after the decimal sign; None when numbers are written with exponents.
        fixed: every number has exactly `decimals` digits; else zeros at the end are dropped.
        least: the fewest digits after the decimal sign.
        prefix, suffix: text around every number (blanks after a delimiter, say).
    """

    decimal: str = "."
    decimals: int | None = 0
    fixed: bool = True
    least: int = 0
    prefix: str = ""
    suffix: str = ""

    def write(self, value: float) -> str:
        """The text of one finite number.

        Example:
            >>> Spelling(",", 2, fixed=False, least=1).write(2.5), Spelling(decimals=2).write(-0.001)
            ('2,5', '0.00')
        """
        if self.decimals is None:
            text = repr(float(value))
        else:
            text = f"{value:.{self.decimals}f}"
            if float(text) == 0:
                text = text.lstrip("-")
            if not self.fixed:
                whole, _, digits = text.partition(".")
                digits = digits.rstrip("0").ljust(self.least, "0")
                text = f"{whole}.{digits}" if digits else whole
        return self.prefix + text.replace(".", self.decimal) + self.suffix


def common_blanks(texts: Sequence[str]) -> tuple[str, str]:
    """Blanks that every text begins and ends with (adult.data writes `, Private`)."""
    first = texts[0]
    lead, tail = first[: len(first) - len(first.lstrip())], first[len(first.rstrip()) :]
    if all(len(t) - len(t.lstrip()) == len(lead) and len(t) - len(t.rstrip()) == len(tail) for t in texts):
        return lead, tail
    return "", ""


def decimal_sign(texts: Sequence[str]) -> str | None:
    """ "." or "," when all stripped texts are numbers so written; None when not, or when it cannot be told.

    Example:
        >>> decimal_sign(["1.5", "2"]), decimal_sign(["1,5", "2"]), decimal_sign(["1,234", "2,345"])
        ('.', ',', None)
    """
    if all(NUMBER.fullmatch(t) for t in texts):
        return "."
    if all(COMMA_NUMBER.fullmatch(t) for t in texts):
        with_comma = [t for t in texts if "," in t]
        return None if all(THOUSANDS.fullmatch(t) for t in with_comma) else ","
    return None


def spelling(texts: Sequence[str], decimal: str) -> Spelling:
    """Learn how the (stripped) number texts are written."""
    if any("e" in t or "E" in t for t in texts):
        return Spelling(decimal, None, False)
    digits = [len(t.partition(decimal)[2]) for t in texts]
    return Spelling(decimal, max(digits), min(digits) == max(digits), min(digits))


def to_numbers(texts: Series, decimal: str) -> np.ndarray:
    """(n,) float64 of text cells; NaN where a text is not a number. "nan" and "inf" are text, not numbers."""
    if (quick := _quick_numbers(texts.tolist(), decimal)) is not None:
        return quick
    stripped = texts.str.strip()
    pattern = (COMMA_NUMBER if decimal == "," else NUMBER).pattern
    good = stripped.str.fullmatch(pattern, na=False).to_numpy(dtype=bool)
    out = np.full(len(texts), np.nan)
    if good.any():
        cells = stripped[good].str.replace(",", ".", regex=False) if decimal == "," else stripped[good]
        out[good] = cells.astype(object).to_numpy().astype(np.float64)
    return out


def _quick_numbers(texts: list[str], decimal: str) -> np.ndarray | None:
    """The same for cells that are empty or made of the characters of numbers alone, as nearly all are."""
    used = set("".join(texts))
    if not used <= PLAIN or (decimal == "," and "." in used) or (decimal == "." and "," in used):
        return None
    if decimal == ",":
        texts = [text.replace(",", ".") for text in texts]
    try:
        return np.array([float(text) if text else np.nan for text in texts], dtype=np.float64)
    except ValueError:
        return None


def count_decimals(values: np.ndarray, limit: int = 8) -> int | None:
    """Fewest digits after the point that write all `values` exactly; None when more than `limit`.

    Example:
        >>> count_decimals(np.array([0.1, 2.25])), count_decimals(np.array([1 / 3]))
        (2, None)
    """
    for digits in range(limit + 1):
        if np.array_equal(np.round(values, digits), values):
            return digits
    return None


# --------------------------------------------------------------------------------------- dates and durations

DATES = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d/%m/%y",
    "%m/%d/%y",
    "%d.%m.%y",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%b %d, %Y",
    "%d %B %Y",
    "%B %d, %Y",
)
TIMES = (
    "",
    " %H:%M:%S",
    "T%H:%M:%S",
    " %H:%M",
    "T%H:%M",
    " %H:%M:%S.%f",
    "T%H:%M:%S.%f",
    " %I:%M:%S %p",
    " %I:%M %p",
)
ZONE = re.compile(r"(?<=\d)(?: ?[+-]\d{2}:?\d{2}|Z| UTC)$")
CLOCK = re.compile(r"(-?)(\d+):(\d{2})(?::(\d{2})(\.\d{1,9})?)?")
DAYS = re.compile(r"(-?\d+) days?(?:,? ([+-]?)(\d+):(\d{2}):(\d{2})(\.\d{1,9})?)?")


def zone_suffix(texts: Sequence[str]) -> str:
    """The offset ("Z", "+01:00") that every text ends with, or "" ."""
    found = ZONE.search(texts[0])
    return found.group() if found and all(t.endswith(found.group()) for t in texts) else ""


def to_seconds(texts: Series, form: str, suffix: str = "") -> np.ndarray:
    """(n,) seconds since 1970 of cells written as strptime `form` plus `suffix`; NaN for others."""
    stripped = texts.str.strip().astype("string")
    if suffix:
        stripped = stripped.where(stripped.str.endswith(suffix).fillna(False).astype(bool)).str.removesuffix(
            suffix
        )
    times = pd.to_datetime(stripped, format=padded(form), errors="coerce").to_numpy()
    seconds = times.astype("datetime64[us]").astype(np.int64) / 1e6
    return np.where(np.isnat(times), np.nan, seconds)


def padded(form: str) -> str:
    """The form without the mark for unpadded fields (%-d), which reading does not need."""
    return form.replace("%-", "%").replace("%3f", "%f")


def date_forms(texts: Sequence[str]) -> Iterator[str]:
    """Forms that read the first few texts; the caller checks the rest."""
    for date, time in product(DATES, TIMES):
        if all(_reads(text, date + time) for text in texts[:20]):
            yield date + time


def _reads(text: str, form: str) -> bool:
    try:
        dt.datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def write_time(seconds: float, form: str, suffix: str = "") -> str:
    """The text of a moment, in seconds since 1970, in the column's own form.

    Example:
        >>> write_time(86400 * 31, "%-d/%-m/%Y"), write_time(0.5, "%H:%M:%S.%3f", "Z")
        ('1/2/1970', '00:00:00.500Z')
    """
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)
    form = form.replace("%3f", f"{moment.microsecond // 1000:03d}")
    form = re.sub(r"%-([dmHI])", lambda m: str(int(moment.strftime("%" + m.group(1)))), form)
    form = form.replace("%Y", f"{moment.year:04d}")
    return moment.strftime(form) + suffix


def date_spelling(texts: Sequence[str], form: str) -> str:
    """`form`, with unpadded fields and milliseconds where the texts are so written."""
    unpadded = re.sub(r"%([dmHI])", r"%-\1", form)
    no_hours = re.sub(r"%([dm])", r"%-\1", form)
    stamps = [dt.datetime.strptime(t, form).replace(tzinfo=dt.UTC).timestamp() for t in texts[:1000]]
    for candidate in (form, form.replace("%f", "%3f"), no_hours, unpadded):
        if all(write_time(s, candidate) == t for s, t in zip(stamps, texts[:1000], strict=True)):
            return candidate
    return form


def duration_seconds(text: str) -> float:
    """Seconds of "1:02:03", "12:30" (hours and minutes) or "2 days 03:04:05"; NaN for other text.

    Example:
        >>> duration_seconds("1:00:30"), duration_seconds("-0:30"), duration_seconds("1 days 00:00:01.5")
        (3630.0, -1800.0, 86401.5)
    """
    if found := CLOCK.fullmatch(text):
        sign, hours, minutes, seconds, part = found.groups()
        total = int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0) + float(part or 0)
        return -total if sign else float(total)
    if found := DAYS.fullmatch(text):
        days, sign, hours, minutes, seconds, part = found.groups()
        clock = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(part or 0)
        return int(days) * 86400 + (-clock if sign == "-" else float(clock))
    return float("nan")


def duration_form(texts: Sequence[str]) -> str:
    """One of "days", "H:M:S", "HH:M:S", "H:M", "HH:M", with "+k" for k digits of a second; "" for none."""
    if all(DAYS.fullmatch(t) for t in texts):
        return "days"
    found = [CLOCK.fullmatch(t) for t in texts]
    if not all(found):
        return ""
    groups = [m.groups() for m in found if m]
    if len({g[3] is None for g in groups}) != 1:
        return ""
    hours = "HH" if all(len(g[1]) >= 2 for g in groups) else "H"
    digits = max(len(g[4] or ".") - 1 for g in groups)
    return f"{hours}:M" + ("" if groups[0][3] is None else ":S") + (f"+{digits}" if digits else "")


def write_duration(seconds: float, form: str) -> str:
    """The text of a duration in the column's own form.

    Example:
        >>> write_duration(3630.0, "HH:M:S"), write_duration(-1800.0, "H:M"), write_duration(86401.0, "days")
        ('01:00:30', '-0:30', '1 days 00:00:01')
    """
    if form == "days":
        return str(pd.Timedelta(round(seconds * 1e6), unit="us"))
    form, _, digits = form.partition("+")
    sign, total = ("-" if seconds < 0 else ""), abs(seconds)
    total = round(total, int(digits or 0)) if "S" in form else round(total / 60) * 60
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{hours:02d}" if form.startswith("HH") else str(hours)
    text += f":{minutes:02d}"
    width = 3 + int(digits) if digits else 2
    return sign + text + (f":{rest:0{width}.{int(digits or 0)}f}" if "S" in form else "")

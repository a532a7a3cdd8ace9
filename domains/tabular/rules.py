"""What must hold in every row that is generated: words of a user, and what the training rows all obeyed.

A rule is one of
`age>=18`, `18<=age<=90` (a range), `start<=end`, `low<high` (columns in order), `total=fare+tip - rebate`
(a sum; a minus has blanks around it), `together(city,country)` (only combinations that were seen),
`unique(site,day)` (no two rows alike there).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ...shared.errors import InputError
from . import cells
from .codec import Coded
from .columns import Column
from .parts import grid_of

_LISTED = re.compile(r"\s*(together|unique)\s*\((.*)\)\s*")
_COMPARED = re.compile(r"(<=|>=|<|>)")
FEWEST = 100
"""Rows from which a regularity without an exception is taken for a rule."""
SURPRISING = 0.05
"""Share of rows, were the columns independent, that would have to break an order for it to be a rule."""


@dataclass(frozen=True)
class Order:
    """Number `low` is at most number `high` (names), and not equal when strict."""

    low: str
    high: str
    strict: bool = False


@dataclass(frozen=True)
class Rules:
    """What holds in every row; missing cells break no rule.

    Args:
        ranges: number -> (low, high), infinite where open.
        orders: pairs of numbers.
        sums: number -> (sign, number) of its terms.
        together, unique: groups of columns.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    orders: tuple[Order, ...] = ()
    sums: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    together: tuple[tuple[str, ...], ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str], columns: Sequence[Column]) -> Rules:
        """Read rules.

        Raises:
            InputError: `rule`, not of one of the forms above; `rule-column`, a column that there is not or
                that is not a number where one is needed.
        """
        known = {column.name: column for column in columns}
        ranges: dict[str, tuple[float, float]] = {}
        orders: list[Order] = []
        sums: dict[str, tuple[tuple[int, str], ...]] = {}
        groups: dict[str, list[tuple[str, ...]]] = {"together": [], "unique": []}
        for text in texts:
            where = f"--constraint {text!r}"
            if found := _LISTED.fullmatch(text):
                names = tuple(name.strip() for name in found[2].split(","))
                groups[found[1]].append(tuple(_named(name, known, where).name for name in names))
            elif _COMPARED.search(text):
                _compare(text, known, where, ranges, orders)
            elif "=" in text:
                total, terms = _sum(text, known, where)
                sums[total] = terms
            else:
                raise InputError(
                    "rule",
                    "this is no rule",
                    where,
                    'write "a<=b", "age>=18", "total=fare+tip", "together(a,b)" or "unique(a,b)"',
                )
        return cls(ranges, tuple(orders), sums, tuple(groups["together"]), tuple(groups["unique"]))

    def __or__(self, other: Rules) -> Rules:
        """Both."""
        ranges = dict(self.ranges)
        for name, (low, high) in other.ranges.items():
            held = ranges.get(name, (-math.inf, math.inf))
            ranges[name] = max(low, held[0]), min(high, held[1])
        return Rules(
            ranges,
            (*self.orders, *other.orders),
            {**self.sums, **other.sums},
            tuple(dict.fromkeys((*self.together, *other.together))),
            tuple(dict.fromkeys((*self.unique, *other.unique))),
        )

    def ordered(self) -> list[Order]:
        """The orders and all that follow from them."""
        held = {(order.low, order.high): order.strict for order in self.orders}
        names = {name for pair in held for name in pair}
        for middle in names:
            for low in names:
                for high in names:
                    first, second = held.get((low, middle)), held.get((middle, high))
                    if low != high and first is not None and second is not None:
                        held[low, high] = held.get((low, high), False) or first or second
        return [Order(low, high, strict) for (low, high), strict in held.items()]

    @property
    def lines(self) -> list[str]:
        """The rules as they are written."""
        made = [f"{low:g}<={name}<={high:g}" for name, (low, high) in self.ranges.items()]
        made += [f"{o.low}{'<' if o.strict else '<='}{o.high}" for o in self.orders]
        for total, terms in self.sums.items():
            signed = " ".join(f"{'+' if sign > 0 else '-'} {name}" for sign, name in terms)
            made.append(f"{total} = {signed.removeprefix('+ ')}")
        made += [f"together({','.join(names)})" for names in self.together]
        return made + [f"unique({','.join(names)})" for names in self.unique]


def _named(name: str, known: Mapping[str, Column], where: str, number: bool = False) -> Column:
    column = known.get(name)
    if column is None:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(known)[:20])}"
        raise InputError("rule-column", f"there is no column {name!r}", where, advice)
    if number and not column.is_number:
        raise InputError("rule-column", f"column {name!r} is a {column.kind}, and no number", where)
    return column


def _compare(
    text: str,
    known: Mapping[str, Column],
    where: str,
    ranges: dict[str, tuple[float, float]],
    orders: list[Order],
) -> None:
    """Read `a<=b`, `18<=age<=90` and the like."""
    parts = [part.strip() for part in _COMPARED.split(text)]
    for left, sign, right in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
        low, high = (left, right) if sign[0] == "<" else (right, left)
        strict = len(sign) == 1
        if low in known and high in known:
            names = [_named(name, known, where, number=True).name for name in (low, high)]
            orders.append(Order(names[0], names[1], strict))
            continue
        name, word = (high, low) if high in known else (low, high)
        column = _named(name, known, where, number=True)
        if not any(sign.isdigit() for sign in word):
            _named(word, known, where)
        value = number_of(column, word, where)
        step = grid_of(column) or math.ulp(value)
        held = ranges.get(name, (-math.inf, math.inf))
        if name == high:
            ranges[name] = max(held[0], value + strict * step), held[1]
        else:
            ranges[name] = held[0], min(held[1], value - strict * step)


def _sum(text: str, known: Mapping[str, Column], where: str) -> tuple[str, tuple[tuple[int, str], ...]]:
    total, _, rest = text.partition("=")
    words = re.split(r"\s*(\+)\s*|\s+(-)\s+", f"+ {rest.strip()}")
    words = [word.strip() for word in words if word and word.strip()]
    signs, names = words[::2], words[1::2]
    column = _named(total.strip(), known, where, number=True)
    terms = tuple(
        (1 if sign == "+" else -1, _named(name, known, where, number=True).name)
        for sign, name in zip(signs, names, strict=True)
    )
    if column.name in [name for _, name in terms]:
        raise InputError("rule", "a column cannot be a part of itself", where)
    return column.name, terms


def number_of(column: Column, word: str, where: str) -> float:
    """A number, or a date in the column's own form or in ISO's, as the codec counts it.

    Raises:
        InputError: `condition-value`.
    """
    word = word.strip()
    try:
        if column.kind == "datetime":
            if column.form and column.storage == "text":
                values = cells.to_seconds(pd.Series([word], dtype=object), column.form, column.suffix)
                if not np.isnan(values[0]):
                    return float(values[0])
            moment = pd.Timestamp(word)
            if moment.tzinfo is None and column.tz is not None:
                moment = moment.tz_localize(column.tz)
            return float(moment.timestamp())
        if column.kind == "duration":
            seconds = cells.duration_seconds(word)
            return float(pd.Timedelta(word).total_seconds()) if math.isnan(seconds) else float(seconds)
        value = float(word)
        if math.isfinite(value):
            return value
    except ValueError:
        pass
    raise InputError(
        "condition-value",
        f"{word!r} is no {column.kind}",
        where,
        f"write a {column.kind}, such as {_example(column)}",
    )


def _example(column: Column) -> str:
    if column.kind == "datetime" and column.low is not None:
        return pd.Timestamp(column.low, unit="s").strftime("%Y-%m-%d")
    return "1 days" if column.kind == "duration" else f"{column.low:g}"


def found_orders(coded: Coded, numbers: Sequence[Column]) -> tuple[Order, ...]:
    """Pairs of numbers of one kind that are in order in every training row, and not by chance."""
    found, rng = [], np.random.default_rng(0)
    values = coded.numbers[rng.permutation(len(coded))[:20_000]]
    for a, first in enumerate(numbers):
        for b, second in enumerate(numbers):
            times = "datetime", "duration"
            if a == b or (first.kind if first.kind in times else "") != (
                second.kind if second.kind in times else ""
            ):
                continue
            low, high = values[:, a], values[:, b]
            both = ~(np.isnan(low) | np.isnan(high))
            if both.sum() < FEWEST or (low[both] > high[both]).any():
                continue
            if (rng.permutation(low[both]) > high[both]).mean() < SURPRISING:
                continue
            whole = ~(np.isnan(coded.numbers[:, a]) | np.isnan(coded.numbers[:, b]))
            if (coded.numbers[whole, a] <= coded.numbers[whole, b]).all():
                found.append(Order(first.name, second.name))
    return tuple(found)


def found_anchors(coded: Coded, numbers: Sequence[Column], orders: Iterable[Order]) -> dict[int, int]:
    """Number -> the number that it follows so closely that the difference is what is to be learned."""
    place = {column.name: at for at, column in enumerate(numbers)}
    best: dict[int, tuple[float, int]] = {}
    for order in orders:
        a, b = place[order.low], place[order.high]
        low, high = coded.numbers[:, a], coded.numbers[:, b]
        if numbers[b].kind != "datetime" or (np.isnan(low) != np.isnan(high)).any():
            continue
        spread = float(np.nanstd(high - low)) / max(float(np.nanstd(high)), 1e-12)
        if spread < 0.25 and spread < best.get(b, (1.0, 0))[0]:
            best[b] = spread, a
    # An order has no circles, unless two columns are equal: then the first of them is the anchor.
    return {b: a for b, (_, a) in best.items() if not (a in best and best[a][1] == b and a > b)}


def found_pairs(levels: np.ndarray, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Places of parts of which the first says the second in every row, and not by chance.

    Every further row with a level of the first is a test of it; were the two independent, it would be
    passed with the chance that two rows agree in the second.
    """
    found = []
    for a, many in enumerate(counts):
        held = np.bincount(levels[:, a], minlength=many)
        different = int((held > 0).sum())
        tests = len(levels) - different
        if different < 2 or tests < max(FEWEST, len(levels) / 2):
            continue
        for b, few in enumerate(counts):
            share = np.bincount(levels[:, b], minlength=few) / len(levels)
            chance = float((share**2).sum())
            if a == b or chance > 1 - SURPRISING or tests * -math.log(chance) < 25:
                continue
            if len(np.unique(levels[:, a] * few + levels[:, b])) == different:
                found.append((a, b))
    return found

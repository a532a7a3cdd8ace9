"""What is asked of generated rows, in words, as what a walk obeys: conditions and rules."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...shared.errors import InputError
from .columns import Column
from .rules import Rules, number_of
from .walk import Demand

if TYPE_CHECKING:
    from .generator import TableGenerator


def demanded(
    generator: TableGenerator, condition: Mapping[str, str], texts: Sequence[str], complete: bool
) -> Demand:
    """The demand of a wish.

    Args:
        condition: column -> words: "70", "60..80", "60..", "F", "F|M", or "*", as in training.
        texts: rules beside those that the generator knows.
        complete: no missing cells.

    Raises:
        InputError: `condition-unknown`, `condition-value`, a column or words there are not; rules that cannot
            be read; `condition-empty`, a range in which nothing was seen.
    """
    parts = generator.parts
    names = {column.name: column for column in parts.columns}
    rules = generator.rules | Rules.parse(texts, parts.columns)
    _only_trained(generator, rules)
    numbers = {column.name: at for at, column in enumerate(parts.numbers)}
    low, high = np.full(len(numbers), -math.inf), np.full(len(numbers), math.inf)
    for name, (least, most) in rules.ranges.items():
        low[numbers[name]], high[numbers[name]] = least, most
    levels: dict[int, np.ndarray] = {}
    pooled: dict[int, float] = {}
    asked = []
    for name, words in condition.items():
        column = _known(name, names)
        if words.strip() == "*":
            continue
        asked.append(name)
        if column.is_number:
            least, most = _range(column, words)
            at = numbers[name]
            low[at], high[at] = max(low[at], least), min(high[at], most)
            continue
        place = next(k for k, part in enumerate(parts.parts) if part.name == name)
        part = parts.parts[place]
        levels[place] = _levels(column, words, part.levels, pooled, part.at)
    for name, at in numbers.items():
        if low[at] > high[at]:
            raise InputError(
                "condition-empty", f"nothing is left of {name!r}", f"--condition {name}", "ask for less"
            )
    present = {k for k, part in enumerate(parts.parts) if part.gone and (complete or part.name in asked)}
    demand = Demand.of(
        parts,
        low,
        high,
        rules.ordered(),
        levels=levels,
        present=frozenset(present),
        sums={numbers[t]: tuple((s, numbers[n]) for s, n in terms) for t, terms in rules.sums.items()},
        groups=generator.groups,
        zeros=generator.zeros,
        pooled=pooled,
        first=_first(generator, asked),
    )
    for name in asked:
        if name in numbers:
            _require_seen(names[name], demand.low[numbers[name]], demand.high[numbers[name]])
    return demand


def _only_trained(generator: TableGenerator, rules: Rules) -> None:
    """Combinations are known only where they were asked for in training, or found."""
    parts = generator.parts.parts
    held = [{parts[place].name for place in group} for group, _ in generator.groups]
    for names in rules.together:
        if set(names) not in held:
            raise InputError(
                "rule-untrained",
                "the model does not know which combinations there are",
                f"--constraint together({','.join(names)})",
                "say it when training: ebbtide train --constraint ...",
            )


def _known(name: str, columns: Mapping[str, Column]) -> Column:
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, n=1)
    raise InputError(
        "condition-unknown",
        f"the model has no column {name!r}",
        "--condition",
        f"did you mean {near[0]}?" if near else f"it has {', '.join(list(columns)[:20])}",
    )


def _range(column: Column, words: str) -> tuple[float, float]:
    """ "70", "60..80", "60.." or "..80" as a range."""
    where = f"--condition {column.name}"
    first, sign, last = words.partition("..")
    if not sign:
        value = number_of(column, words, where)
        return value, value
    low = number_of(column, first, where) if first.strip() else -math.inf
    high = number_of(column, last, where) if last.strip() else math.inf
    if low > high:
        raise InputError(
            "condition-value", "the range ends before it begins", where, "write the smaller one first"
        )
    return low, high


def _levels(column: Column, words: str, count: int, pooled: dict[int, float], at: int) -> np.ndarray:
    """(count,) bool: the levels that words name, several parted by "|"."""
    allowed = np.zeros(count, bool)
    known = [str(level).strip() for level in column.levels]
    rare = [str(level).strip() for level in column.pooled]
    for word in (one.strip() for one in words.split("|")):
        exact = [k for k, level in enumerate(known) if level == word]
        found = exact or [k for k, level in enumerate(known) if level.lower() == word.lower()]
        if found:
            allowed[found[0]] = True
        elif word in rare and words.strip() == word:
            allowed[len(known)] = True
            edges = np.cumsum([0, *column.pooled_counts]) / sum(column.pooled_counts)
            k = rare.index(word)
            pooled[at] = float(edges[k] + edges[k + 1]) / 2
        else:
            near = difflib.get_close_matches(word, known, n=1)
            raise InputError(
                "condition-value",
                f"the model knows no {column.name} of that name",
                f"--condition {column.name}",
                f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known[:20])}",
            )
    return allowed


def _require_seen(column: Column, low: float, high: float) -> None:
    assert column.low is not None and column.high is not None
    if low > high or low > column.high or high < column.low:
        raise InputError(
            "condition-empty",
            "nothing like this was seen in training",
            f"--condition {column.name}",
            f"ask for something from {column.low:g} to {column.high:g}"
            if column.kind in ("number", "integer")
            else "ask for something within the training data",
        )


def _first(generator: TableGenerator, asked: Sequence[str]) -> tuple[int, ...]:
    """The parts of these columns and of those that they are differences to, in the order of generation."""
    parts = generator.parts
    wanted = set(asked)
    for part in reversed(parts.parts):
        if part.name in wanted and part.anchor >= 0:
            wanted.add(parts.numbers[part.anchor].name)
    return tuple(place for place, part in enumerate(parts.parts) if part.name in wanted)

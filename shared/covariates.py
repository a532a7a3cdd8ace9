"""Named facts about an example (age, sex, site) as the numbers of a `Condition`, and what is asked of them.

Numbers are standardised; the levels of a text are indicators; NaN says that a fact is unknown.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .errors import Fault, InputError
from .noise import Keys

Fact = float | str | None
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Covariate:
    """One named fact.

    Args:
        name: of it.
        mean, std: of a number; 0 and 1 for a text.
        levels: of a text, sorted; none for a number.
        quantiles: of a number, 0, 5, ... 100 %: its law in training, coarse enough to be no one's own value.
        shares: of a text's levels.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0
    levels: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return len(self.levels) or 1

    def encode(self, fact: Fact) -> list[float]:
        """`width` numbers; NaN where unknown, a level never seen among them."""
        if self.levels:
            if fact not in self.levels:
                return [math.nan] * self.width
            return [1.0 if fact == level else -1.0 for level in self.levels]
        known = isinstance(fact, (int, float)) and math.isfinite(fact)
        return [(float(fact) - self.mean) / self.std if known else math.nan]  # type: ignore[arg-type]

    def as_in_training(self, uniform: float) -> Fact:
        """The fact at a place of its law in training."""
        if self.levels:
            places = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
            return self.levels[min(int((places < uniform).sum()), len(self.levels) - 1)]
        at = uniform * (len(self.quantiles) - 1)
        low = int(at)
        high = min(low + 1, len(self.quantiles) - 1)
        return self.quantiles[low] + (at - low) * (self.quantiles[high] - self.quantiles[low])

    def asked(self, words: str, uniform: float) -> Fact:
        """What is asked in words: a value, a range `60..80` (uniform), or `*` (as in training).

        Raises:
            InputError: `condition-value`.
        """
        words = words.strip()
        if words == "*":
            return self.as_in_training(uniform)
        if self.levels:
            found = {level.lower(): level for level in self.levels}.get(words.lower())
            if found is None:
                raise InputError(
                    "condition-value",
                    f"the model knows no {self.name} of that name",
                    f"--condition {self.name}",
                    f"choose one of {', '.join(self.levels[:20])}",
                )
            return found
        if span := _RANGE.fullmatch(words):
            low, high = float(span[1]), float(span[2])
            return low + uniform * (high - low)
        if re.fullmatch(_NUMBER, words):
            return float(words)
        raise InputError(
            "condition-value",
            f"{self.name} is a number",
            f"--condition {self.name}",
            f"write {self.name}=70, {self.name}=60..80, or {self.name}=* for what there was in training",
        )


@dataclass(frozen=True)
class Covariates:
    """Some named facts, in order.

    Example:
        >>> facts = Covariates.fit([{"age": 60.0, "sex": "F"}, {"age": 80.0, "sex": "M"}], ["age", "sex"])
        >>> facts.encode([{"age": 80.0, "sex": None}])[0].tolist()
        [1.0, nan, nan]
    """

    columns: tuple[Covariate, ...] = ()

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, Fact]], names: Sequence[str]) -> Self:
        """Learn the scale of numbers and the levels of texts.

        Args:
            rows: of each example.
            names: which facts, in order.

        Raises:
            InputError: `covariate-unknown`, a name that no row has; `covariate-empty`, never observed;
                `covariate-levels`, a text with more than 50 levels.
        """
        return cls(tuple(_fitted(name, rows) for name in names))

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def width(self) -> int:
        """K, how many numbers an example gets."""
        return sum(column.width for column in self.columns)

    def encode(self, rows: Sequence[Mapping[str, Fact]]) -> Tensor | None:
        """(n, K) float32, NaN where unknown; None when there are no covariates."""
        if not self.columns:
            return None
        coded = [[x for column in self.columns for x in column.encode(row.get(column.name))] for row in rows]
        return torch.tensor(coded, dtype=torch.float32).reshape(len(rows), self.width)

    def asked(self, wish: Mapping[str, str], keys: Keys) -> list[dict[str, Fact]]:
        """The facts of each of the B samples to make; what was not asked for is unknown.

        Args:
            wish: name -> words; see `Covariate.asked`.
            keys: B of them: which place of a range a sample takes.

        Raises:
            InputError: `condition-unknown`, a name that the model was not trained with.
        """
        for name in wish:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, n=1)
                known = f"it knows {', '.join(self.names)}" if self.names else "it was trained without any"
                raise InputError(
                    "condition-unknown",
                    f"the model was not trained with {name!r}",
                    "--condition",
                    f"did you mean {near[0]}?" if near else known,
                )
        rows: list[dict[str, Fact]] = [{} for _ in range(len(keys))]
        for column in self.columns:
            if column.name in wish:
                places = keys.uniform((), f"condition {column.name}").tolist()
                for row, place in zip(rows, places, strict=True):
                    row[column.name] = column.asked(wish[column.name], place)
        return rows

    def unlike(self, wish: Mapping[str, str]) -> list[Fault]:
        """Warnings of what is asked for beyond what there was in training."""
        found = []
        for column in self.columns:
            words = wish.get(column.name, "*")
            if column.levels or words.strip() == "*":
                continue
            ends = [column.asked(words, place) for place in (0.0, 1.0)]
            if not all(
                isinstance(e, float) and column.quantiles[0] <= e <= column.quantiles[-1] for e in ends
            ):
                usual = f"{column.quantiles[1]:.3g} to {column.quantiles[-2]:.3g}"
                what = f"{column.name} lies beyond all that the model was trained on (mostly {usual})"
                where, remedy = f"--condition {column.name}", "do not rely on what comes of it"
                found.append(Fault("condition-beyond", what, where, remedy, "warning"))
        return found

    def state(self) -> list[dict[str, Any]]:
        """Plain JSON."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_state(cls, held: Sequence[Mapping[str, Any]]) -> Self:
        """What `state` wrote."""
        plain: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in column.items()} for column in held
        ]
        return cls(tuple(Covariate(**column) for column in plain))


def _fitted(name: str, rows: Sequence[Mapping[str, Fact]]) -> Covariate:
    where = f"--condition {name}"
    if not any(name in row for row in rows):
        known = sorted({key for row in rows for key in row})
        near = difflib.get_close_matches(name, known, n=1)
        told = f"there are {', '.join(known)}" if known else "there are none: is a participants.tsv beside?"
        advice = f"did you mean {near[0]}?" if near else told
        raise InputError("covariate-unknown", f"no example has a {name!r}", where, advice)
    facts = [row[name] for row in rows if row.get(name) is not None]
    if not facts:
        raise InputError("covariate-empty", f"{name!r} is unknown for every example", where, "leave it away")
    if all(isinstance(fact, (int, float)) for fact in facts):
        numbers = torch.tensor([float(fact) for fact in facts], dtype=torch.float64)  # type: ignore[arg-type]
        places = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
        std = float(numbers.std(correction=0)) or 1.0
        return Covariate(name, float(numbers.mean()), std, (), tuple(numbers.quantile(places).tolist()))
    texts = [str(fact) for fact in facts]
    levels = sorted(set(texts))
    if len(levels) > 50:
        raise InputError(
            "covariate-levels",
            f"{name!r} has {len(levels)} different texts",
            where,
            "leave it away: is it an id?",
        )
    shares = tuple(texts.count(level) / len(texts) for level in levels)
    return Covariate(name, levels=tuple(levels), shares=shares)


def parse_wish(text: str | None) -> dict[str, str]:
    """ "age=60..80,sex=F" as name -> words.

    Raises:
        InputError: `condition`.

    Example:
        >>> parse_wish("age=60..80, sex=F")
        {'age': '60..80', 'sex': 'F'}
    """
    wish = {}
    for pair in (text or "").split(","):
        if not pair.strip():
            continue
        name, sign, words = pair.partition("=")
        if not sign or not name.strip() or not words.strip():
            raise InputError(
                "condition", f"{pair.strip()!r} is not name=value", "--condition", "write age=70,sex=F"
            )
        wish[name.strip()] = words.strip()
    return wish

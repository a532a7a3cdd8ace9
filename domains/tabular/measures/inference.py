"""What else a synthetic table may give away: secrets, links between data sets, and single people.

Each attack is run on training people (the attack), in the same way on held-out people (the control: what the
population gives away, whoever was in the table), and blindly (the baseline). The leak is what the attack has
over the control. The design is that of Giomi et al. (2023), "A Unified Framework for Quantifying Privacy Risk
in Synthetic Data", written anew from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ..codec import Coded
from .intervals import Rate, more_often, smallest_difference
from .pair import Pair, Place, some, take
from .spaces import Space, nearest

TARGETS = 1000
"""People attacked of either kind, at most."""
SECRETS = 12
"""Columns that are guessed in turn, at most."""
TOLERANCE = 0.1
"""A guessed number is right within so many standard deviations."""
LINKED = 5
"""Neighbours that a linking attacker looks at."""
ALONE, GUESSES = 500, 5000
"""Descriptions that fit one synthetic row alone: how many are wanted, and how many are tried to find them."""
SHUFFLES = 999
WORDS = 4
"""Columns in such a description."""


@dataclass(frozen=True)
class Attack:
    """One attack with its control and its baseline.

    Args:
        code: short name; `name` is for people.
        about: the column guessed, or "".
        attack: on training people.
        control: on held-out people.
        baseline: by blind guessing.
        p: that the attack succeeds more often than the control.
        smallest: the smallest excess over the control that would have been seen four times in five.
    """

    code: str
    name: str
    about: str
    attack: Rate
    control: Rate
    baseline: Rate
    p: float
    smallest: float

    @property
    def risk(self) -> float:
        """(attack - control) / (1 - control): the share of what is left to find out that is given away."""
        rest = 1 - self.control.share
        return (self.attack.share - self.control.share) / rest if rest > 0 else 0.0


def _attack(code: str, name: str, about: str, hits: Sequence[np.ndarray], tests: int) -> Attack:
    attack, control, baseline = (Rate(int(found.sum()), len(found)) for found in hits)
    smallest = smallest_difference(control, attack.trials, tests)
    return Attack(code, name, about, attack, control, baseline, more_often(attack, control), smallest)


def infer_attributes(pair: Pair, seed: int, tests: int = 1) -> list[Attack]:
    """The attacker knows all of a person but one cell, and reads it off the most similar synthetic row."""
    assert pair.holdout is not None
    rng = np.random.default_rng([seed, 23])
    space = Space.of(pair, "rank")
    people = [take(table, some(table, TARGETS, rng)) for table in (pair.real, pair.holdout)]
    found = []
    for secret in secrets(pair):
        known = space.points(pair.synthetic, (secret.name,))
        if not known.shape[1]:
            continue
        guesses = [
            secret.of(pair.synthetic)[nearest(space.points(table, (secret.name,)), known)[1][:, 0]]
            for table in people
        ]
        blind = secret.of(pair.synthetic)[rng.integers(len(pair.synthetic), size=len(people[0]))]
        truths = [people[0], people[1], people[0]]
        hits = [
            right(guess, secret.of(table), secret, pair)
            for guess, table in zip([*guesses, blind], truths, strict=True)
        ]
        if min(len(part) for part in hits):
            found.append(_attack("attribute", "attribute inference", secret.name, hits, tests))
    return found


def secrets(pair: Pair) -> list[Place]:
    """The columns guessed: all, or evenly chosen ones of many."""
    step = max(1, -(-len(pair.places) // SECRETS))
    return list(pair.places[::step])


def right(guess: np.ndarray, truth: np.ndarray, place: Place, pair: Pair) -> np.ndarray:
    """(k,) bool, for the people whose secret is known: whether the guess is right."""
    known = ~np.isnan(truth)
    if not place.is_number:
        return np.asarray(guess[known] == truth[known])
    spread = float(np.nanstd(place.of(pair.real)))
    return np.asarray(np.abs(guess[known] - truth[known]) <= TOLERANCE * spread)


def link(pair: Pair, seed: int, tests: int = 1) -> Attack | None:
    """Two parties hold different columns of the same person, and look whether the synthetic table joins them.

    A link is made when the five nearest synthetic rows by the one half of the columns and the five nearest by
    the other have a row in common. None with fewer than two columns.
    """
    assert pair.holdout is not None
    if len(pair.places) < 2:
        return None
    rng = np.random.default_rng([seed, 24])
    space = Space.of(pair, "rank")
    names = [place.name for place in pair.places]
    halves = names[::2], names[1::2]
    hits = []
    for table in (pair.real, pair.holdout):
        people = take(table, some(table, TARGETS, rng))
        near = [
            nearest(space.points(people, half), space.points(pair.synthetic, half), LINKED)[1]
            for half in halves
        ]
        hits.append(in_common(*near))
    n = len(pair.synthetic)
    blind = [np.stack([rng.choice(n, min(LINKED, n), replace=False) for _ in range(500)]) for _ in range(2)]
    return _attack("linkability", "linkability", "", [*hits, in_common(*blind)], tests)


def in_common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the rows of two (n, k) lists share an entry.

    Example:
        >>> in_common(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [1, 2]])).tolist()
        [True, False]
    """
    return np.asarray((a[:, :, None] == b[:, None, :]).any(axis=(1, 2)))


# ------------------------------------------------------------------------------------------- singling out


@dataclass(frozen=True)
class Description:
    """Words that may fit a person: for each column a level, or a number that theirs is at least or at most.

    Args:
        places: the columns.
        values: (w,) codes or numbers.
        sides: (w,) 0 equal, 1 at least, -1 at most.
    """

    places: tuple[Place, ...]
    values: np.ndarray
    sides: np.ndarray

    def fits(self, cells: dict[str, np.ndarray]) -> int:
        """How many people it fits."""
        return int(self.who(cells).sum())

    def who(self, cells: dict[str, np.ndarray]) -> np.ndarray:
        """(n,) bool: whom it fits."""
        who = np.ones(len(next(iter(cells.values()))), bool)
        for place, value, side in zip(self.places, self.values, self.sides, strict=True):
            column = cells[place.name]
            who &= column == value if side == 0 else column >= value if side > 0 else column <= value
        return who


def single_out(pair: Pair, seed: int, tests: int = 1) -> Attack | None:
    """Descriptions that fit exactly one synthetic row: do they fit exactly one person of the real table?

    Real and held-out people are taken in equal number, as the chance of being alone depends on the crowd. The
    baseline's descriptions join words of unrelated rows. None when no description fits one synthetic row.
    """
    assert pair.holdout is not None
    rng = np.random.default_rng([seed, 25])
    n = min(len(pair.real), len(pair.holdout))
    crowds = [_cells(pair, take(table, some(table, n, rng))) for table in (pair.real, pair.holdout)]
    synthetic = _cells(pair, take(pair.synthetic, some(pair.synthetic, n, rng)))
    made = (described(pair, synthetic, rng) for _ in range(GUESSES))
    alone = list(islice((d for d in made if d is not None and d.fits(synthetic) == 1), ALONE))
    if not alone:
        return None
    blind = [d for d in (described(pair, synthetic, rng, mixed=True) for _ in alone) if d is not None]
    fits = [np.stack([d.who(crowd) for d in alone]) for crowd in crowds]
    hits = [who.sum(1) == 1 for who in fits]
    hits.append(np.array([d.fits(crowds[0]) == 1 for d in blind]))
    found = _attack("singling-out", "singling out", "", hits, tests)
    return replace(found, p=relabelled(fits[0], fits[1], rng))


def _cells(pair: Pair, coded: Coded) -> dict[str, np.ndarray]:
    return {place.name: place.of(coded) for place in pair.places}


def described(
    pair: Pair, synthetic: dict[str, np.ndarray], rng: np.random.Generator, *, mixed: bool = False
) -> Description | None:
    """A description of a synthetic row by a few of its columns (each of another row when `mixed`).

    Numbers above the median are described as at least theirs, others as at most. None when a cell of it is
    missing.
    """
    width = min(WORDS, len(pair.places))
    chosen = [pair.places[j] for j in rng.choice(len(pair.places), width, replace=False)]
    n = len(next(iter(synthetic.values())))
    rows = rng.integers(n, size=width) if mixed else np.full(width, rng.integers(n))
    values = np.array([synthetic[place.name][row] for place, row in zip(chosen, rows, strict=True)])
    if np.isnan(values).any():
        return None
    middle = [float(np.nanmedian(synthetic[p.name])) if p.is_number else 0.0 for p in chosen]
    sides = np.where(values > middle, 1, -1) * np.array([p.is_number for p in chosen])
    return Description(tuple(chosen), values, sides)


def relabelled(real: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> float:
    """One-sided p that descriptions single out real people more often than held-out ones.

    Nobody would notice if the people of both tables changed places, unless the descriptions were made from
    the one: exact by permutation of the people, however alike the descriptions are.

    Args:
        real, held: (d, n) bool, whom each description fits.
    """
    both = np.concatenate([real, held], axis=1).astype(np.float32)
    n, total = real.shape[1], both.sum(1, keepdims=True)
    side = np.zeros((both.shape[1], SHUFFLES + 1), dtype=np.float32)
    side[:n, 0] = 1
    for shuffle in range(1, SHUFFLES + 1):
        side[rng.permutation(len(side))[:n], shuffle] = 1
    inside = both @ side
    excess = (inside == 1).sum(0) - (total - inside == 1).sum(0)
    return float((excess >= excess[0]).mean())

"""Can it be told from the synthetic table who was in the real one? Membership inference without the model.

The attack is a density ratio, as in DOMIAS (van Breugel et al. 2023, "Membership Inference Attacks against
Synthetic Data through Overfitting Detection"), with nearest neighbours in place of flows: a person is called
a member when synthetic rows are denser around them than other people are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .intervals import Area, Rate, area, more_often, smallest_area, smallest_difference
from .pair import Pair, some, stacked, take
from .spaces import Space, nearest

REFERENCE = 3
"""One in so many held-out people is the attacker's reference and is not attacked."""
MEMBERS = 5000
"""People of either kind that are attacked, at most."""
FALSE_ALARMS = (0.001, 0.01, 0.1)
FEWEST = 20
"""People of either kind in a group that is looked at by itself, at least."""
MINORITY = 0.2
"""A level that at most this share of the people has makes a minority."""
GROUPS = 6
EVERYBODY = "everybody"


@dataclass(frozen=True)
class Caught:
    """Members found at a fixed rate of false alarms.

    Args:
        false_alarms: the rate asked for.
        found: members above the threshold.
        alarms: held-out people above it, which is as near to the rate asked for as their number allows.
        resolved: whether there are held-out people enough for that rate (one of 1/rate, at least).
    """

    false_alarms: float
    found: Rate
    alarms: Rate
    resolved: bool


@dataclass(frozen=True)
class Membership:
    """One attack on one group of people.

    Args:
        code: short name; `name` is for people.
        group: "everybody", or whom it is about.
        area: over members against held-out people; 0.5 is guessing.
        caught: at 0.1 %, 1 % and 10 % false alarms.
        p: that members are told apart, by the area or among the 1 % most suspected (Bonferroni of two).
        smallest_area: what would have been seen four times in five.
        smallest_rate: the same, of members found at 1 % false alarms.
    """

    code: str
    name: str
    group: str
    area: Area
    caught: tuple[Caught, ...]
    p: float
    smallest_area: float
    smallest_rate: float


@dataclass(frozen=True)
class Scores:
    """Every attacked person's score, members first.

    Args:
        rows: (m + h,) positions of the members in the real table, then of the others in the holdout.
        members: how many of them are members.
        near: (m + h,) log of how much nearer the closest synthetic row is than the closest reference person.
        dense: (m + h,) the same of the fifth.
        lonely: (m + h,) distance to the fifth reference person: outliers have the largest.
    """

    rows: np.ndarray
    members: int
    near: np.ndarray
    dense: np.ndarray
    lonely: np.ndarray


def score_people(pair: Pair, seed: int) -> Scores:
    """Attack two thirds of the held-out people, and as many training people.

    The last third are the people of whom the attacker knows how they are spread. Being nobody's target they
    keep the scores of all targets independent, so that the tests of them are exact.
    """
    assert pair.holdout is not None
    rng = np.random.default_rng([seed, 22])
    space = Space.of(pair, "rank")
    order = rng.permutation(len(pair.holdout))
    cut = len(order) // REFERENCE
    reference, held = np.sort(order[:cut][:MEMBERS]), np.sort(order[cut:][:MEMBERS])
    members = some(pair.real, len(held), rng)
    people = space.points(stacked(take(pair.real, members), take(pair.holdout, held)))
    k = min(5, len(pair.synthetic), cut)
    to_synthetic, _ = nearest(people, space.points(pair.synthetic), k)
    to_reference, _ = nearest(people, space.points(take(pair.holdout, reference)), k)
    tiny = 1e-6 * max(float(np.median(to_reference)), 1e-6)
    ratio = np.log(to_reference + tiny) - np.log(to_synthetic + tiny)
    return Scores(
        np.concatenate([members, held]), len(members), ratio[:, 0], ratio[:, -1], to_reference[:, -1]
    )


ATTACKS = (
    ("membership-nearest", "density ratio, by the nearest synthetic row"),
    ("membership-dense", "density ratio, by the five nearest synthetic rows"),
)


def infer_membership(pair: Pair, seed: int, tests: int = 1, group_tests: int = 1) -> list[Membership]:
    """Both attacks on everybody, then the first on the most unusual tenth and on each minority.

    Args:
        tests, group_tests: how many tests the report makes, on everybody and on groups.
    """
    scores = score_people(pair, seed)
    is_member = np.arange(len(scores.rows)) < scores.members
    found = [
        judged(code, name, EVERYBODY, values, is_member, tests)
        for (code, name), values in zip(ATTACKS, (scores.near, scores.dense), strict=True)
    ]
    for group, who in groups(pair, scores):
        if min(is_member[who].sum(), (~is_member[who]).sum()) >= FEWEST:
            code, name = ATTACKS[0]
            found.append(judged(code, name, group, scores.near[who], is_member[who], group_tests))
    return found


def judged(
    code: str, name: str, group: str, scores: np.ndarray, is_member: np.ndarray, tests: int
) -> Membership:
    """The attack by its scores: area, and members found at fixed rates of false alarms."""
    members, others = scores[is_member], scores[~is_member]
    whole = area(members, others)
    caught = tuple(catch(members, others, rate) for rate in FALSE_ALARMS)
    most = min(1.0, 2 * min(whole.p, suspected(members, others)))
    return Membership(
        code,
        name,
        group,
        whole,
        caught,
        most,
        smallest_area(len(members), len(others), tests),
        caught[1].alarms.share + smallest_difference(caught[1].alarms, len(members), tests),
    )


def catch(members: np.ndarray, others: np.ndarray, rate: float) -> Caught:
    """Call those members whose score lies above that of all but a share `rate` of the others.

    Example:
        >>> caught = catch(np.array([5.0, 1.0]), np.arange(4.0), 0.25)
        >>> caught.found.share, caught.alarms.share
        (0.5, 0.25)
    """
    allowed = int(np.floor(rate * len(others) + 1e-9))
    threshold = np.sort(others)[len(others) - 1 - allowed]
    found, alarms = int((members > threshold).sum()), int((others > threshold).sum())
    return Caught(rate, Rate(found, len(members)), Rate(alarms, len(others)), len(others) >= round(1 / rate))


def suspected(members: np.ndarray, others: np.ndarray, share: float = 0.01) -> float:
    """One-sided exact p that members crowd among the most suspected 1 % (Fisher): what the area overlooks
    when few people leak, and those for sure."""
    both = np.concatenate([members, others])
    top = max(5, int(np.ceil(share * len(both))))
    threshold = np.sort(both)[-min(top, len(both))]
    above = [Rate(int((part >= threshold).sum()), len(part)) for part in (members, others)]
    return more_often(above[0], above[1])


def groups(pair: Pair, scores: Scores) -> Iterator[tuple[str, np.ndarray]]:
    """(who, (n,) indices into `scores`): the most unusual tenth, then the smallest minorities."""
    count = max(1, len(scores.lonely) // 10)
    yield "the most unusual tenth", np.argsort(-scores.lonely, kind="stable")[:count]
    assert pair.holdout is not None
    tables = take(pair.real, scores.rows[: scores.members]), take(pair.holdout, scores.rows[scores.members :])
    codes = np.concatenate([table.codes for table in tables])
    minorities = []
    for place in pair.categories:
        for level, label in enumerate(place.column.levels):
            who = np.flatnonzero(codes[:, place.at] == level)
            if 2 * FEWEST <= len(who) <= MINORITY * len(codes):
                minorities.append((len(who), f"{place.name} = {str(label).strip()}", who))
    for _, name, who in sorted(minorities, key=lambda found: found[0])[:GROUPS]:
        yield name, who

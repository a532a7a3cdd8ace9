"""Everything that is measured of a synthetic table, in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ....shared.measures import PRDC, prdc
from ..codec import Coded
from . import fidelity as alike
from .copies import Copies, closer_to_training, find_copies
from .inference import Attack, infer_attributes, link, secrets, single_out
from .intervals import ALPHA, Rate, holm
from .learners import TwoSample, Usefulness, guess_targets, two_sample, usefulness
from .manifold import AlphaBeta, alpha_beta
from .membership import EVERYBODY, GROUPS, Membership, infer_membership
from .pair import Pair, some, take
from .spaces import Space
from .whitebox import CODE, attack_by_loss

Progress = Callable[[str, float], None]
NEIGHBOUR_ROWS, JUDGED_ROWS = 5000, 10_000
"""Rows of each table in measures by neighbours, and in the classifier's test, at most."""
FLOOR = 50
"""With fewer training or held-out people than this, privacy is not judged."""
MAIN_TESTS = 5
"""On everybody and with all columns: copies, two of membership, linkability, singling out."""


@dataclass(frozen=True)
class Fidelity:
    """How like the real table another is.

    Args:
        shape: KS or TV complement by column.
        trend: correlation or contingency similarity by pair of columns.
        boosting, logistic: classifiers that try to tell the tables apart.
        alpha_beta, prdc: where the rows lie.
        missing: share of missing cells by column.
        patterns: similarity of the patterns of missing cells.
        violations: of what the real table obeys; None when the other is a part of it.
        rows: how many rows of each were compared by their neighbours.
    """

    shape: Mapping[str, float]
    trend: Mapping[tuple[str, str], float]
    boosting: TwoSample
    logistic: TwoSample
    alpha_beta: AlphaBeta
    prdc: PRDC
    missing: Mapping[str, float]
    patterns: float
    violations: alike.Violations | None
    rows: int


@dataclass(frozen=True)
class Privacy:
    """What attacks found.

    Args:
        copies, membership, attacks: the attacks.
        closer: the smoke alarm.
        adjusted: of every one of `tests()`; below ALPHA is a leak. The chance that any is, when nothing
            leaks, is ALPHA: half of it for the attacks on everybody, half for those on groups and columns,
            each shared out by Holm's method.
    """

    copies: Copies
    membership: tuple[Membership, ...]
    attacks: tuple[Attack, ...]
    closer: Rate
    adjusted: tuple[float, ...] = ()

    def tests(self) -> list[tuple[str, float, bool]]:
        """(what was tried, p, whether on everybody and with all columns) of every test."""
        found = [("copies of training rows", self.copies.p, True)]
        found += [(f"{m.name} ({m.group})", m.p, m.group == EVERYBODY) for m in self.membership]
        for a in self.attacks:
            found.append((f"{a.name}{' of ' if a.about else ''}{a.about}", a.p, not a.about))
        return found

    def judged(self) -> Privacy:
        """The same with its p-values adjusted."""
        tests = self.tests()
        adjusted = np.ones(len(tests))
        for family in (True, False):
            at = [k for k, test in enumerate(tests) if test[2] is family]
            adjusted[at] = np.minimum(1.0, 2 * np.array(holm([tests[k][1] for k in at])))
        return replace(self, adjusted=tuple(float(p) for p in adjusted))

    @property
    def leaks(self) -> list[str]:
        """What the tests found."""
        return [test[0] for test, p in zip(self.tests(), self.adjusted, strict=True) if p < ALPHA]

    @property
    def white_box(self) -> bool:
        """Whether the model itself was attacked."""
        return any(m.code == CODE for m in self.membership)

    @property
    def n_attacks(self) -> int:
        """How many different attacks: not counting groups and columns."""
        return 1 + len({m.code for m in self.membership}) + len({a.code for a in self.attacks})


@dataclass(frozen=True)
class Assessment:
    """All that is known of a synthetic table.

    Args:
        synthetic: its fidelity.
        reference: the same figures of held-out people, or of one half of the real table against the other.
        reference_name: which of both.
        targets, target_reason: what was predicted, and why that.
        useful: by target.
        privacy: None when it cannot be assessed, for `privacy_reason`.
    """

    synthetic: Fidelity
    reference: Fidelity
    reference_name: str
    targets: tuple[str, ...]
    target_reason: str
    useful: tuple[Usefulness, ...]
    privacy: Privacy | None
    privacy_reason: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)


Losses = tuple[np.ndarray, np.ndarray]
"""Of the real rows, and of the held-out ones, by the model that made the synthetic table."""


def assess(
    pair: Pair,
    *,
    target: str | None = None,
    losses: Losses | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Assessment:
    """Measure fidelity, utility and, where there are held-out people, privacy. Same seed, same answer.

    Args:
        target: the column to predict; guessed when None.
        losses: for the attack of somebody who has the model; None when the model is not at hand.
    """
    tell = progress or (lambda stage, fraction: None)
    tell("fidelity", 0.0)
    halves = halved(pair, seed) if pair.holdout is None else pair
    assert halves.holdout is not None
    rows = min(NEIGHBOUR_ROWS, *(len(table) for table in halves.tables().values()))
    synthetic = fidelity(pair, "synthetic", pair.synthetic, rows, seed)
    tell("fidelity", 0.2)
    reference = fidelity(halves, "holdout", halves.holdout, rows, seed)
    if pair.holdout is None:
        reference = replace(reference, violations=None)
    targets, reason = guess_targets(pair, target)
    useful = []
    for at, name in enumerate(targets):
        tell("utility", 0.4 + 0.3 * at / len(targets))
        useful.append(usefulness(pair, name, JUDGED_ROWS, seed))
    why_not = not_assessable(pair)
    found = (
        None
        if why_not
        else assess_privacy(pair, seed, lambda part: tell("privacy", 0.7 + 0.3 * part), losses)
    )
    tell("privacy", 1.0)
    return Assessment(
        synthetic,
        reference,
        "held-out people" if pair.holdout is not None else "one half of the real rows against the other",
        targets,
        reason,
        tuple(one for one in useful if one is not None),
        found,
        why_not,
        {role: len(table) for role, table in pair.tables().items()},
    )


def halved(pair: Pair, seed: int) -> Pair:
    """The real table as two: what it looks like when nothing is wrong."""
    order = np.random.default_rng([seed, 31]).permutation(len(pair.real))
    parts = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    real, other = (take(pair.real, rows) for rows in parts)
    unseen = {**pair.unseen, "holdout": np.zeros(len(other), bool)}
    return replace(pair, real=real, holdout=other, unseen=unseen)


def fidelity(pair: Pair, role: str, other: Coded, rows: int, seed: int) -> Fidelity:
    """All figures of one table against the real one."""
    rng = np.random.default_rng([seed, 32])
    space = Space.of(pair, "range")
    real, points = (space.points(take(table, some(table, rows, rng))) for table in (pair.real, other))
    return Fidelity(
        shape=alike.shape(pair, other),
        trend=alike.trend(pair, other),
        boosting=two_sample(pair, other, "boosting", JUDGED_ROWS, seed),
        logistic=two_sample(pair, other, "logistic", JUDGED_ROWS, seed),
        alpha_beta=alpha_beta(real, points),
        prdc=prdc(torch.from_numpy(real), torch.from_numpy(points)),
        missing=alike.missing_shares(pair, other),
        patterns=alike.missing_pattern_similarity(pair, other),
        violations=alike.violations(pair, role),
        rows=rows,
    )


def not_assessable(pair: Pair) -> str:
    """Why privacy cannot be assessed, in a sentence; empty when it can."""
    if pair.holdout is None:
        return "Privacy cannot be assessed without held-out people."
    few = min(len(table) for table in pair.tables().values())
    if few < FLOOR:
        return (
            f"Privacy cannot be assessed with so few rows: {few} in the smallest table, {FLOOR} are needed "
            "at the very least."
        )
    return ""


def assess_privacy(
    pair: Pair, seed: int, tell: Callable[[float], None], losses: Losses | None = None
) -> Privacy:
    """Every attack; then all p-values together, by Holm's method."""
    main, slices = (
        2 * (MAIN_TESTS + (losses is not None)),
        2 * (1 + GROUPS * bool(pair.categories) + len(secrets(pair))),
    )
    copies = find_copies(pair, seed, main)
    tell(0.3)
    membership = infer_membership(pair, seed, main, slices)
    if losses is not None:
        membership.append(attack_by_loss(*losses, seed, main))
    tell(0.5)
    attacks = [*infer_attributes(pair, seed, slices), link(pair, seed, main), single_out(pair, seed, main)]
    tell(0.9)
    kept = tuple(attack for attack in attacks if attack is not None)
    return Privacy(copies, tuple(membership), kept, closer_to_training(pair, seed)).judged()

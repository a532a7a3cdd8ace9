"""What a count can and cannot show: intervals, exact tests, and the smallest effect that would be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LEVEL = 0.95
"""Of all intervals."""
ALPHA = 0.05
"""Chance of a false alarm of a whole report, over all of its attacks (Holm)."""
POWER = 0.8
"""How often the "smallest leak that could have been seen" would be seen."""


@dataclass(frozen=True)
class Rate:
    """Successes of a number of trials, with its Clopper-Pearson interval.

    Example:
        >>> rate = Rate(0, 100)
        >>> rate.share, rate.low, round(rate.high, 4)
        (0.0, 0.0, 0.0362)
    """

    successes: int
    trials: int

    @property
    def share(self) -> float:
        return self.successes / self.trials if self.trials else float("nan")

    @cached_property
    def _ends(self) -> tuple[float, float]:
        from scipy.stats import beta

        k, n, tail = self.successes, self.trials, (1 - LEVEL) / 2
        low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
        high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
        return low, high

    @property
    def low(self) -> float:
        return self._ends[0]

    @property
    def high(self) -> float:
        return self._ends[1]


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve with an interval (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
        value: 0.5 is guessing.
        low, high: of the 95 % interval.
        p: one-sided, that it is above one half (Mann-Whitney, normal approximation with ties).
    """

    value: float
    low: float
    high: float
    p: float


def area(members: np.ndarray, others: np.ndarray) -> Area:
    """How well a score tells members from others; ties count half.

    Example:
        >>> area(np.array([3.0, 2, 2]), np.array([1.0, 2])).value
        0.8333333333333334
    """
    from scipy.stats import mannwhitneyu, norm, rankdata

    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    above = (ranks[:m] - rankdata(members)) / n
    below = 1 - (ranks[m:] - rankdata(others)) / m
    value = float(above.mean())
    spread = np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n) if min(m, n) > 1 else 0.5
    half = float(norm.ppf((1 + LEVEL) / 2) * spread)
    p = float(mannwhitneyu(members, others, alternative="greater", method="asymptotic").pvalue)
    return Area(value, max(0.0, value - half), min(1.0, value + half), 1.0 if np.isnan(p) else p)


def more_often(attack: Rate, control: Rate) -> float:
    """One-sided p of Fisher's exact test that the attack's chance of success is above the control's."""
    from scipy.stats import fisher_exact

    table = [[r.successes, r.trials - r.successes] for r in (attack, control)]
    return float(fisher_exact(table, alternative="greater").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below ALPHA with a chance of at most ALPHA when nothing leaks, all together.

    Example:
        >>> [round(float(x), 3) for x in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p)[order] * (len(p) - np.arange(len(p)))
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(p) else steps
    return [float(x) for x in out]


def _reach(tests: int) -> float:
    """How many standard errors an effect must measure to be seen with POWER by one of `tests` tests."""
    from scipy.stats import norm

    return float(norm.isf(ALPHA / max(tests, 1)) + norm.ppf(POWER))


def smallest_difference(control: Rate, trials: int, tests: int) -> float:
    """The smallest excess of an attack's rate over the control's that would be seen: shares, 0 to 1."""
    p = (control.successes + 1) / (control.trials + 2)
    error = np.sqrt(p * (1 - p) * (1 / max(trials, 1) + 1 / max(control.trials, 1)))
    return float(min(1 - p, _reach(tests) * error))


def smallest_area(members: int, others: int, tests: int) -> float:
    """The smallest area under the ROC curve that would be told from one half."""
    error = np.sqrt((members + others + 1) / (12 * members * others))
    return float(min(1.0, 0.5 + _reach(tests) * error))


def fewest_copies(background: float, chance: float, hit_rate: float, tests: int) -> int:
    """How many copies are found out with POWER, when `background` records are flagged anyhow (binomial).

    Args:
        chance: share of the flagged that lie near training people when nothing was copied.
        hit_rate: how often the detector flags a copy.
    """
    from scipy.stats import binom

    base = round(background * chance)
    rest = round(background) - base
    needed = next(
        k for k in range(1, 10**6) if binom.sf(base + k - 1, base + k + rest, chance) < ALPHA / max(tests, 1)
    )
    if hit_rate <= 0:
        return 10**9
    copies = needed
    while binom.sf(needed - 1, copies, min(hit_rate, 1.0)) < POWER:
        copies += max(1, copies // 50)
    return copies

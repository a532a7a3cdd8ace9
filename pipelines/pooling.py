"""Rubin's rules: one answer from an analysis that was run on each of several completed tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..shared.errors import InputError


@dataclass(frozen=True)
class Pooled:
    """A pooled estimate and how sure it is.

    Args:
        estimate: the mean of the estimates.
        variance: total variance, T = W + (1 + 1/m) B.
        within: W, the mean of the squared standard errors.
        between: B, the variance of the estimates over the completed tables.
        degrees: degrees of freedom of the t distribution of (estimate - truth) / sqrt(T).
        missing_information: the share of the information about the estimate that is lost to missing cells
            (gamma of Rubin 1987, eq. 3.1.10, with his large-sample degrees of freedom).
        lower, upper: the interval.
        level: the interval's coverage, 0.95 unless asked otherwise.
    """

    estimate: float
    variance: float
    within: float
    between: float
    degrees: float
    missing_information: float
    lower: float
    upper: float
    level: float

    @property
    def error(self) -> float:
        """The standard error, sqrt(T)."""
        return math.sqrt(self.variance)

    @property
    def p_value(self) -> float:
        """Two-sided, for the hypothesis that the truth is 0."""
        if self.variance == 0:
            return 0.0 if self.estimate else 1.0
        return 2 * _t_tail(abs(self.estimate) / self.error, self.degrees)


def pool(
    estimates: Sequence[float],
    variances: Sequence[float],
    *,
    complete_degrees: float = math.inf,
    level: float = 0.95,
) -> Pooled:
    """Combine one estimate and its squared standard error from each of m completed tables.

    Rubin (1987), chapter 3; degrees of freedom by Barnard & Rubin (1999), which never exceed those that the
    analysis would have with no cell missing.

    Args:
        estimates: m numbers, for example one regression coefficient fitted on each completed table.
        variances: their squared standard errors.
        complete_degrees: degrees of freedom of the analysis on a complete table (rows minus parameters).
        level: coverage of the interval.

    Raises:
        InputError: fewer than two tables, lengths that differ, a number not finite or a variance below 0.

    Example:
        >>> pooled = pool([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
        >>> pooled.estimate, round(pooled.variance, 4), round(pooled.degrees, 3)
        (2.0, 2.3333, 6.125)
    """
    m = len(estimates)
    _check(estimates, variances, level)
    estimate = math.fsum(estimates) / m
    within = math.fsum(variances) / m
    between = math.fsum((q - estimate) ** 2 for q in estimates) / (m - 1)
    total = within + (1 + 1 / m) * between
    share = (1 + 1 / m) * between / total if total else 0.0  # lambda: of the variance, due to missing cells
    degrees = _degrees(share, m, complete_degrees)
    information = share + (1 - share) * 2 / ((m - 1) / share**2 + 3) if share else 0.0
    half = _t_quantile((1 + level) / 2, degrees) * math.sqrt(total)
    return Pooled(
        estimate, total, within, between, degrees, information, estimate - half, estimate + half, level
    )


def _degrees(share: float, m: int, complete: float) -> float:
    """Barnard & Rubin (1999), eq. 3: 1 / (1 / old + 1 / observed)."""
    old = (m - 1) / share**2 if share else math.inf
    if math.isinf(complete) or share >= 1:
        return old
    observed = (complete + 1) / (complete + 3) * complete * (1 - share)
    return 1 / (1 / old + 1 / observed)


def _check(estimates: Sequence[float], variances: Sequence[float], level: float) -> None:
    if len(estimates) != len(variances):
        raise InputError(
            "pool-lengths", f"{len(estimates)} estimates beside {len(variances)} variances", "pool()"
        )
    if len(estimates) < 2:
        raise InputError(
            "pool-one-table",
            "Rubin's rules need the results of at least two completed tables",
            "pool()",
            "impute with --draws 20 --all-draws 20 and analyse each of the tables",
        )
    if not all(math.isfinite(number) for number in (*estimates, *variances)) or min(variances) < 0:
        raise InputError("pool-numbers", "estimates must be finite, and variances finite and >= 0", "pool()")
    if not 0 < level < 1:
        raise InputError("pool-level", "the level must lie between 0 and 1", "pool()", "0.95, say")


def _t_tail(value: float, degrees: float) -> float:
    """P(T > value) of Student's t, or of the normal distribution at infinitely many degrees."""
    from scipy.stats import norm, t

    return float(norm.sf(value) if math.isinf(degrees) else t.sf(value, degrees))


def _t_quantile(probability: float, degrees: float) -> float:
    from scipy.stats import norm, t

    return float(norm.ppf(probability) if math.isinf(degrees) else t.ppf(probability, degrees))

"""Rubin's rules against published numbers and against their limits."""

from __future__ import annotations

import math

import pytest

from ebbtide.pipelines.pooling import pool
from ebbtide.shared.errors import InputError

# SAS/STAT User's Guide, "The MIANALYZE Procedure", Reading Means and Standard Errors: mean oxygen uptake
# in the fitness data, five imputations of 31 rows, complete-data degrees of freedom 30.
MEANS = [47.0120, 47.2407, 47.4995, 47.1485, 47.0042]
ERRORS = [0.95984, 0.93540, 1.00766, 0.95439, 0.96528]


def test_the_published_example() -> None:
    pooled = pool(MEANS, [error**2 for error in ERRORS], complete_degrees=30)
    assert pooled.estimate == pytest.approx(47.180993, abs=2e-5)
    assert pooled.between == pytest.approx(0.041478, abs=2e-5)
    assert pooled.within == pytest.approx(0.930853, abs=2e-5)
    assert pooled.variance == pytest.approx(0.980626, abs=2e-5)
    assert pooled.degrees == pytest.approx(26.298, abs=1e-3)
    assert pooled.missing_information == pytest.approx(0.051977, abs=2e-5)
    assert (pooled.lower, pooled.upper) == pytest.approx((45.1466, 49.2154), abs=1e-4)


def test_large_samples_by_hand() -> None:
    # W = 1, B = 1, m = 3: T = 7/3, r = 4/3, Rubin's degrees (m - 1)(1 + 1/r)^2 = 2 (7/4)^2.
    pooled = pool([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert pooled.variance == pytest.approx(7 / 3)
    assert pooled.degrees == pytest.approx(2 * (7 / 4) ** 2)
    assert pooled.missing_information == pytest.approx((4 / 3 + 2 / (6.125 + 3)) / (7 / 3))


def test_equal_answers_lose_no_information() -> None:
    pooled = pool([2.0, 2.0], [0.25, 0.25])
    assert pooled.missing_information == 0
    assert pooled.error == 0.5
    assert pooled.upper == pytest.approx(2 + 1.959964 * 0.5, abs=1e-6)
    assert pooled.p_value == pytest.approx(6.334e-5, rel=1e-3)


def test_degrees_never_exceed_those_of_a_complete_table() -> None:
    assert pool([1.0, 1.001], [1.0, 1.0], complete_degrees=12).degrees < 12
    assert math.isfinite(pool([1.0, 2.0], [0.0, 0.0], complete_degrees=12).degrees)


@pytest.mark.parametrize(
    "estimates, variances, level, code",
    [
        ([1.0], [1.0], 0.95, "pool-one-table"),
        ([1.0, 2.0], [1.0], 0.95, "pool-lengths"),
        ([1.0, math.nan], [1.0, 1.0], 0.95, "pool-numbers"),
        ([1.0, 2.0], [1.0, -1.0], 0.95, "pool-numbers"),
        ([1.0, 2.0], [1.0, 1.0], 1.0, "pool-level"),
    ],
)
def test_bad_input_is_named(estimates: list[float], variances: list[float], level: float, code: str) -> None:
    with pytest.raises(InputError, match=code):
        pool(estimates, variances, level=level)

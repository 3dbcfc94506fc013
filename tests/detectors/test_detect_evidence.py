from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.detectors import quantiles
from harness.detectors.evidence import GRANTED_BIRTHS, Pool, log_evidence, smallest_visible

DOSES = [Pool(20), Pool(40), Pool(80), Pool(160)]
STANDARD = [Pool(20), Pool(40)] + [Pool(80, 1 / 7)] * 7
columns = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 400)), min_size=2, max_size=8)


@pytest.mark.parametrize("burst", [0, 30])
@pytest.mark.parametrize("pools", [DOSES, STANDARD], ids=["quick", "standard"])
def test_the_worst_null_that_is_granted_is_reported_at_most_alpha_often(pools: list[Pool], burst: int) -> None:
    random = np.random.default_rng(11)
    alpha, runs = 0.05, 1500
    alarms = 0
    for _ in range(runs):
        survivors = random.poisson([pool.granted for pool in pools])
        survivors[random.integers(len(pools))] += burst
        alarms += log_evidence(survivors.tolist(), pools) >= math.log(1 / alpha)
    assert alarms <= runs * alpha + 3 * math.sqrt(runs * alpha * (1 - alpha))


@given(columns)
@settings(deadline=None)
def test_more_survivors_never_speak_less_against_the_null(column: list[tuple[int, int]]) -> None:
    survivors = [kept for kept, _ in column]
    pools = [Pool(units) for _, units in column]
    before = log_evidence(survivors, pools)
    for pool in range(len(pools)):
        more = [kept + (index == pool) for index, kept in enumerate(survivors)]
        assert log_evidence(more, pools) >= before - 1e-9 * (1 + abs(before))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 100_000))
@settings(deadline=None)
def test_one_burst_of_any_size_is_no_evidence(units: list[int], where: int, size: int) -> None:
    survivors = [size if index == where % len(units) else 0 for index in range(len(units))]
    assert log_evidence(survivors, [Pool(each) for each in units]) <= 0


@pytest.mark.parametrize(("births", "at_most"), [(0.25, 0.002), (1.0, 0.08)])
def test_what_a_cache_without_end_risks(births: float, at_most: float) -> None:
    """`births` that stay each time that the work has doubled are more than is granted; seen: 1 in 10,000, and 0.057."""
    random = np.random.default_rng(5)
    work = 40 + np.cumsum([0, *(pool.units for pool in STANDARD)])
    expected = births * np.diff(np.log2(work))
    columns = [random.poisson(expected).tolist() for _ in range(2000)]
    alarms = sum(log_evidence(column, STANDARD) >= math.log(117 / 0.004) for column in columns)
    assert alarms <= at_most * len(columns)


def test_a_leak_of_one_a_unit_is_overwhelming() -> None:
    assert log_evidence([19, 38, 76, 152], DOSES) > math.log(1e20)


def test_births_are_granted_for_each_size_of_dose_not_for_each_dose() -> None:
    assert sum(pool.granted for pool in STANDARD) == pytest.approx(3 * GRANTED_BIRTHS)
    assert log_evidence([0, 0, 1, 1, 1, 1, 1, 1, 1], STANDARD) > log_evidence([0, 0, 7], [*STANDARD[:2], Pool(560)])


@pytest.mark.parametrize(
    "pools",
    [DOSES, STANDARD, [*DOSES, Pool(160), Pool(160), Pool(320), Pool(320)], [Pool(100)] * 3],
    ids=["quick", "standard", "rounds", "equal"],
)
def test_the_smallest_visible_rate_is_found_nine_times_in_ten(pools: list[Pool]) -> None:
    random = np.random.default_rng(3)
    threshold = math.log(50 / 0.005)
    rate = smallest_visible(pools, threshold)
    runs = 300
    expected = [rate * pool.units for pool in pools]
    found = sum(log_evidence(random.poisson(expected).tolist(), pools) >= threshold for _ in range(runs))
    assert 0.85 * runs <= found <= 0.99 * runs


def test_nothing_is_visible_to_a_single_pool() -> None:
    assert smallest_visible([Pool(100)], 5.0) == 0.0


def test_intervals_are_the_textbook_ones() -> None:
    assert quantiles.binomial_interval(0, 10) == pytest.approx((0.0, 0.30850), abs=1e-4)
    assert quantiles.binomial_interval(10, 10) == pytest.approx((0.69150, 1.0), abs=1e-4)
    assert quantiles.binomial_interval(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-4)
    assert quantiles.poisson_interval(0, 1.0) == pytest.approx((0.0, 3.68888), abs=1e-4)
    assert quantiles.poisson_interval(10, 2.0) == pytest.approx((4.79539 / 2, 18.39036 / 2), abs=1e-4)
    assert quantiles.student_quantile(0.975, 14) == pytest.approx(2.14479, abs=1e-4)
    assert quantiles.student_tail(2.14479, 14) == pytest.approx(0.025, abs=1e-5)

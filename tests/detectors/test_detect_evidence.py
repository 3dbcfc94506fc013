from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.detectors import quantiles
from harness.detectors.evidence import GRANTED_BIRTHS, log_evidence, smallest_visible

DOSES = [20, 40, 80, 160]
columns = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 400)), min_size=2, max_size=8)


@pytest.mark.parametrize("burst", [0, 30])
def test_the_worst_null_that_is_granted_is_reported_at_most_alpha_often(burst: int) -> None:
    random = np.random.default_rng(11)
    alpha, runs = 0.05, 1500
    alarms = 0
    for _ in range(runs):
        survivors = random.poisson(GRANTED_BIRTHS, len(DOSES))
        survivors[random.integers(len(DOSES))] += burst
        alarms += log_evidence(survivors.tolist(), DOSES) >= math.log(1 / alpha)
    assert alarms <= runs * alpha + 3 * math.sqrt(runs * alpha * (1 - alpha))


@given(columns)
@settings(deadline=None)
def test_more_survivors_never_speak_less_against_the_null(column: list[tuple[int, int]]) -> None:
    survivors, units = [list(part) for part in zip(*column, strict=True)]
    before = log_evidence(survivors, units)
    for pool in range(len(units)):
        more = [kept + (index == pool) for index, kept in enumerate(survivors)]
        assert log_evidence(more, units) >= before - 1e-9 * (1 + abs(before))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 100_000))
@settings(deadline=None)
def test_one_burst_of_any_size_is_no_evidence(units: list[int], where: int, size: int) -> None:
    survivors = [size if index == where % len(units) else 0 for index in range(len(units))]
    assert log_evidence(survivors, units) <= 0


def test_a_leak_of_one_a_unit_is_overwhelming() -> None:
    assert log_evidence([19, 38, 76, 152], DOSES) > math.log(1e20)


@pytest.mark.parametrize("units", [DOSES, [*DOSES, 160, 160, 320, 320], [100, 100, 100]])
def test_the_smallest_visible_rate_is_found_nine_times_in_ten(units: list[int]) -> None:
    random = np.random.default_rng(3)
    threshold = math.log(50 / 0.005)
    rate = smallest_visible(units, threshold)
    runs = 300
    found = sum(log_evidence(random.poisson(rate * np.array(units)).tolist(), units) >= threshold for _ in range(runs))
    assert 0.85 * runs <= found <= 0.99 * runs


def test_nothing_is_visible_to_a_single_pool() -> None:
    assert smallest_visible([100], 5.0) == 0.0


def test_intervals_are_the_textbook_ones() -> None:
    assert quantiles.binomial_interval(0, 10) == pytest.approx((0.0, 0.30850), abs=1e-4)
    assert quantiles.binomial_interval(10, 10) == pytest.approx((0.69150, 1.0), abs=1e-4)
    assert quantiles.binomial_interval(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-4)
    assert quantiles.poisson_interval(0, 1.0) == pytest.approx((0.0, 3.68888), abs=1e-4)
    assert quantiles.poisson_interval(10, 2.0) == pytest.approx((4.79539 / 2, 18.39036 / 2), abs=1e-4)
    assert quantiles.student_quantile(0.975, 14) == pytest.approx(2.14479, abs=1e-4)
    assert quantiles.student_tail(2.14479, 14) == pytest.approx(0.025, abs=1e-5)

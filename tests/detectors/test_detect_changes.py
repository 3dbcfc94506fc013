"""Where builds changed: how often nothing is accused, and what is seen."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from harness.detectors.changes import LEAST, changes

ALPHA = 0.01
Noise = Callable[[Random], float]


def normal(random: Random) -> float:
    return random.gauss(10, 1)


def rounded(random: Random) -> float:
    return float(round(random.gauss(1, 0.6)))


def wild(random: Random) -> float:
    return random.gauss(10, 1) if random.random() > 0.1 else random.uniform(100, 1000)


@pytest.mark.parametrize("noise", [normal, rounded, wild])
@pytest.mark.parametrize("builds", [8, 25])
def test_a_series_without_a_change_is_accused_as_seldom_as_said(noise: Noise, builds: int) -> None:
    accused = 0
    for seed in range(100):
        random = Random(f"{noise.__name__} {builds} {seed}")
        accused += bool(changes([noise(random) for _ in range(builds)], ALPHA))
    assert accused <= 4  # of 100: more has a chance of 3 in 1000 (binomial)


def test_a_step_is_found_where_it_is() -> None:
    at: list[int] = []
    for seed in range(60):
        random = Random(seed)
        values = [random.gauss(10, 1) for _ in range(6)] + [random.gauss(14, 1) for _ in range(6)]
        at += [change.at for change in changes(values, ALPHA)]
    assert len(at) >= 48
    assert sum(where == 6 for where in at) >= 0.9 * len(at)


def test_a_leak_that_comes_and_goes_is_two_changes() -> None:
    values = [0.0] * 8 + [0.98, 0.99, 0.97, 0.99, 0.98, 1.0, 0.99, 0.98] + [0.0] * 8
    first, second = changes(values, ALPHA)
    assert (first.at, first.before) == (8, 0.0)
    assert (second.at, second.after) == (16, 0.0)
    assert first.after == second.before == pytest.approx(0.985)


def test_one_wild_build_is_no_change() -> None:
    values = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 500.0, 1.0, 1.1, 0.9, 1.0, 1.1]
    assert changes(values, ALPHA) == []


def test_few_builds_prove_nothing_however_far_apart() -> None:
    assert changes([0.0] * LEAST + [9.0] * LEAST, ALPHA) == []
    assert changes([0.0] * 20 + [9.0] * (LEAST - 1), ALPHA) == []
    assert [change.at for change in changes([0.0] * 20 + [9.0] * LEAST, ALPHA)] == [20]


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 30])
def test_nothing_to_see(values: list[float]) -> None:
    assert changes(values, ALPHA) == []


def test_the_same_series_gets_the_same_answer() -> None:
    random = Random(5)
    values = [random.gauss(0, 1) for _ in range(10)] + [random.gauss(3, 1) for _ in range(10)]
    assert changes(values, ALPHA) == changes(values, ALPHA)

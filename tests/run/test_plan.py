"""The order and the sizes of the doses."""

from __future__ import annotations

from harness.run.plan import PROFILES, Plan
from reports.record import DOSES_PER_ROUND


def test_count_doses_double_after_the_warm_up() -> None:
    steps = list(Plan(PROFILES["quick"], 20).counts())
    assert [(step.phase, step.units) for step in steps] == [
        ("warm-up", 20),
        ("warm-up", 20),
        ("count", 20),
        ("count", 40),
        ("count", 80),
        ("count", 160),
    ]


def test_memory_rounds_have_sixteen_equal_doses_that_double_from_round_to_round() -> None:
    plan = Plan(PROFILES["standard"], 5)
    for number in range(3):
        steps = list(plan.memory_round(number))
        assert len(steps) == DOSES_PER_ROUND
        assert {(step.phase, step.units, step.round) for step in steps} == {("memory", 5 << number, number)}
    assert plan.units_of_round_0 == 80


def test_every_profile_gives_more_than_the_one_before() -> None:
    work = [sum(step.units for step in Plan(PROFILES[name], 1).counts()) for name in ("quick", "standard", "soak")]
    assert work == sorted(work)

"""The rules that people go by: each does what its description says, on worlds where the answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.score.rules import RULES
from reports.record import Descriptor, Dose, Memory, Process, RunRecord, Samples, Snapshot, TargetInfo

UNITS = (10, 20, 30, 45, 70, 100, 150, 230, 340)


def record(rss: Callable[[int], int], descriptors: Callable[[int], int] = lambda work: 5) -> RunRecord:
    """One process, whose memory and descriptors are functions of the work done."""
    doses, rows, work = [], [], 0
    for number, units in enumerate((10, *UNITS)):
        work += units if number else 0
        held = [Descriptor(fd, "file", "x") for fd in range(descriptors(work))]
        process = Process(1, 1, "smtp", memory=Memory(rss=rss(work)), descriptors=held)
        phase = "count" if number else "warm-up"
        doses.append(Dose(units=units, phase=phase, snapshot=Snapshot(processes=[process])))  # type: ignore[arg-type]
        rows += [(float(number * 10 + tick), 1, len(held), rss(work) + tick % 2) for tick in range(10)]
    return RunRecord("x", TargetInfo("x"), doses=doses, samples=Samples(rows=rows))


def said(one: RunRecord) -> set[str]:
    return {name for name, rule in RULES.items() if rule(one)}


def test_flat_memory_is_accused_by_nobody() -> None:
    assert said(record(lambda work: 50_000_000)) == set()


def test_a_leak_of_memory_is_seen_by_all_that_look_at_memory() -> None:
    assert said(record(lambda work: 50_000_000 + 1_000 * work)) == {"64 KB", "Mann-Kendall", "psleak"}


def test_a_cache_that_fills_up_is_accused_by_the_simple_rules_and_not_by_psleak() -> None:
    assert said(record(lambda work: 50_000_000 + int(100_000 * log(1 + work / 10)))) == {"64 KB", "Mann-Kendall"}


def test_a_descriptor_more_is_accused_by_the_count() -> None:
    assert said(record(lambda work: 50_000_000, lambda work: 5 + (work > 100))) == {"count"}


@pytest.mark.parametrize("name", RULES)
def test_a_record_without_doses_is_no_leak(name: str) -> None:
    assert not RULES[name](RunRecord("x", TargetInfo("x")))


@given(st.lists(st.integers(0, 2**40), min_size=10, max_size=10))
def test_any_numbers_give_an_answer(values: Sequence[int]) -> None:
    works = [0, *(sum(UNITS[: number + 1]) for number in range(len(UNITS)))]
    table = dict(zip(works, values, strict=True))
    assert said(record(lambda work: table[work])) <= set(RULES)

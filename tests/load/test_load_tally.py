from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.load.orders import decode_answer, line
from harness.load.tally import MOST_ERRORS, Exchange, Outcome, Tally, percentile_ms, summary


def outcome_of(*took_s: float, error: str = "", **fields: object) -> Outcome:
    return Outcome([Exchange("MAIL", 0.0, took, error) for took in took_s], **fields)  # type: ignore[arg-type]


def test_outcomes_add_up() -> None:
    tally = Tally(dose=3, units=2)
    tally.add(outcome_of(0.001, 0.002, greeted=True, finished=True, messages=2, accepted=["a"], refused_recipients=1))
    tally.add(outcome_of(0.003, error="451 later", greeted=True, messages=1))
    tally.add(outcome_of(0.004, error="no route"))
    tally.add(outcome_of(0.001, greeted=True, finished=True, broken_off=False))
    tally.add(outcome_of(0.001, greeted=True, broken_off=True))
    tally.include(Tally(sessions=1, unfinished=1, broken_off=1))
    assert (tally.unfinished, tally.broken_off) == (4, 2)
    assert (tally.sessions, tally.messages, tally.accepted) == (5, 3, ["a"])
    assert (tally.refused_recipients, tally.commands, tally.failures) == (1, 6, 2)
    assert tally.errors == ["MAIL: 451 later", "MAIL: no route"]


def test_tallies_do_not_share_what_they_gather() -> None:
    Tally().add(outcome_of(0.1, error="x", accepted=["a"]))
    fresh = Tally()
    assert (fresh.accepted, fresh.errors, fresh.latency_us) == ([], [], {})


def test_only_the_first_few_different_errors_are_kept() -> None:
    tally = Tally()
    for number in range(50):
        tally.add(outcome_of(0.1, error=f"error {number // 2}"))
    assert tally.failures == 50
    assert tally.errors == [f"MAIL: error {number}" for number in range(MOST_ERRORS)]


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_within_five_percent_of_the_exact_one(took_s: list[float], fraction: float) -> None:
    tally = Tally()
    tally.add(outcome_of(*took_s))
    exact_ms = sorted(took_s)[max(0, -int(-fraction * len(took_s) // 1) - 1)] * 1000
    assert percentile_ms(tally.latency_us, fraction) == pytest.approx(exact_ms, rel=0.051, abs=0.0006)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 3600.0), max_size=1000))
def test_the_histogram_stays_small(took_s: list[float]) -> None:
    tally = Tally()
    tally.add(outcome_of(*took_s))
    assert sum(tally.latency_us.values()) == len(took_s)
    assert all(len(str(bucket).rstrip("0")) <= 2 for bucket in tally.latency_us)


@settings(deadline=None)
@given(st.builds(Tally, dose=st.integers(0, 99), accepted=st.lists(st.text()), errors=st.lists(st.text()),
                 latency_us=st.dictionaries(st.integers(0, 10**8), st.integers(1, 10**6))))  # fmt: skip
def test_a_tally_is_one_line_and_comes_back_the_same(tally: Tally) -> None:
    sent = line(tally)
    assert sent.count(b"\n") == 1
    assert decode_answer(sent) == tally


def test_a_line_that_is_no_answer_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_answer(b'{"type":"Nonsense"}')


def test_the_summary_of_a_run() -> None:
    first, second = Tally(took_s=1.0), Tally(took_s=3.0)
    first.add(outcome_of(*[0.001] * 99))
    second.add(outcome_of(0.5, error="late"))
    load = summary([first, second])
    assert load.requests_per_s == 25.0
    assert load.failures == 1
    assert load.errors == ["MAIL: late"]
    assert load.response_ms == {"p50": 1.0, "p99": 1.0}


def test_a_run_without_a_dose_has_a_summary_too() -> None:
    assert summary([]).requests_per_s == 0.0

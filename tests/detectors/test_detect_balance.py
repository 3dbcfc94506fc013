from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from detector_worlds import COUNT_DOSES, UNIT, blank, connection, idle_process
from hypothesis import given, settings
from hypothesis import strategies as st

import reports.record
from harness.detectors import balance, verdict
from harness.detectors.balance import PER_ENVELOPE
from reports.record import Descriptor, Dose, Finding, RunRecord, Snapshot

ROLES = {"smtp.session": "smtp", "mta.session": "transfer", "mta.relay": "transfer", "scheduler.envelope": "scheduler"}
QUIET = 40  # gauges beside the one in question, that stay at 0
UNITS = (20, *COUNT_DOSES)
RUNS = 60
Random = np.random.Generator


def record_of(
    values: Sequence[int],
    name: str = "mta.relay",
    units: Sequence[int] = UNITS,
    envelopes: Sequence[int | None] | None = None,
) -> RunRecord:
    """A warm-up, then count doses; `values` are the gauge's at each rest."""
    record = blank()
    for index, (value, work) in enumerate(zip(values, units, strict=True)):
        gauges = {name: ROLES.get(name, "smtp"), **{f"quiet.{number}": "queue" for number in range(QUIET)}}
        snapshot = Snapshot(
            processes=[
                idle_process(role, 101 + number) for number, role in enumerate(("smtp", "transfer", "scheduler"))
            ],
            counters={name: value, "smtp.session.total": 1000 * index, **dict.fromkeys(gauges.keys() - {name}, 0)},
            gauges=gauges,
            envelopes=0 if envelopes is None else envelopes[index],
        )
        record.doses.append(Dose(units=work, phase="count" if index else "warm-up", snapshot=snapshot))
    return record


def found(record: RunRecord) -> list[Finding]:
    return balance.judge(record).findings


def by_label(record: RunRecord) -> dict[str, reports.record.Tested]:
    return {each.label: each for each in balance.judge(record).tested}


def drawn(random: Random, rate: float, units: Sequence[int] = UNITS) -> list[int]:
    """A gauge that is left one too high for `rate` of all units."""
    return [int(value) for value in np.cumsum(random.binomial(units, rate))]


# ---- what is out of balance


def test_a_gauge_that_never_comes_down_is_named_with_rate_and_proof() -> None:
    [finding] = found(record_of([20, 40, 80, 160, 320]))
    assert (finding.resource, finding.kind, finding.label, finding.role) == (
        "counter",
        "gauge",
        "mta.relay",
        "transfer",
    )
    assert (finding.dose_units, finding.survivors) == ([20, 40, 80, 160], [20, 40, 80, 160])
    assert (finding.count, finding.rate, finding.unit, finding.first_dose) == (300, 1.0, UNIT, 1)
    assert finding.low > 0.98
    assert finding.confidence > 0.9999
    assert finding.pids == [102]
    assert finding.message == (
        "transfer's mta.relay goes up with the work and does not come back, to 320: 300 in 300 refused messages"
    )
    assert "mta.relay" in finding.advice


def test_a_gauge_that_is_counted_down_too_often_is_named_too() -> None:
    [finding] = found(record_of([100, 80, 40, -40, -200]))
    assert (finding.kind, finding.label, finding.count, finding.rate) == ("underflow", "mta.relay", 300, 1.0)
    assert "falls below zero, to -200" in finding.message
    [finding] = found(record_of([1000, 980, 940, 860, 700]))
    assert "falls below where it began, to 700" in finding.message


def test_one_below_zero_is_certain() -> None:
    [finding] = found(record_of([0, 0, -1, -1, -1]))
    assert (finding.kind, finding.count, finding.confidence) == ("underflow", 1, 1.0)


def test_one_stuck_gauge_is_certain_and_says_that_nothing_moves() -> None:
    record = record_of([0, 0, 0, 1, 1], "mta.session")
    assert found(record) == []
    record.doses[-1].snapshot.stuck = ["mta.session"]
    [finding] = found(record)
    assert (finding.label, finding.count, finding.confidence) == ("mta.session", 1, 1.0)
    assert "stuck at 1 though nothing moves" in finding.message


def test_a_gauge_that_got_stuck_in_the_warm_up_is_told() -> None:
    record = record_of([7, 7, 7, 7, 7], "mta.session")
    for dose in record.doses:
        dose.snapshot.stuck = ["mta.session"]
    [finding] = found(record)
    assert (finding.count, finding.rate) == (7, 0.0)


def test_totals_are_not_judged() -> None:
    assert "smtp.session.total" not in by_label(record_of([0] * 5))


def test_a_target_without_gauges_is_not_judged_and_decided() -> None:
    record = blank()
    record.doses = [Dose(units=20, snapshot=Snapshot(counters={"a": index})) for index in range(5)]
    assert balance.judge(record) == balance.Judged()


def test_it_counts_in_the_verdict() -> None:
    assert verdict.judge(record_of([20, 40, 80, 160, 320])).verdict == "leak"
    assert verdict.judge(record_of([0] * 5)).verdict == "clean"


# ---- the truth


def test_sessions_that_are_really_open_are_a_leak_of_sockets_and_not_of_the_counter() -> None:
    for name, role, to_us in (("smtp.session", "smtp", True), ("mta.session", "transfer", False)):
        record = record_of([20, 40, 80, 160, 320], name)
        for dose in record.doses:
            (process,) = (each for each in dose.snapshot.processes if each.role == role)
            open_ = [connection(100 + number, number) for number in range(dose.snapshot.counters[name])]
            if to_us:
                open_ = [
                    Descriptor(each.fd, "tcp", each.target, local="127.0.0.1:2525", peer=each.local) for each in open_
                ]
            process.descriptors = process.descriptors + open_
        assert found(record) == []
        process.descriptors = process.descriptors[:-100]  # a hundred of them are no more
        record.doses[-1].snapshot.stuck = [name]
        [finding] = found(record)
        assert (finding.label, finding.count) == (name, 100)


def test_the_scheduler_is_held_against_the_disk_in_both_directions() -> None:
    queue = [20, 40, 80, 160, 320]
    assert found(record_of(queue, "scheduler.envelope", envelopes=queue)) == []
    [more] = found(record_of(queue, "scheduler.envelope", envelopes=[0] * 5))
    assert more.message.startswith(
        "scheduler counts more envelopes than are on disk: 320 by scheduler.envelope, 0 on disk"
    )
    [fewer] = found(record_of([0] * 5, "scheduler.envelope", envelopes=queue))
    assert fewer.message.startswith("scheduler counts fewer envelopes than are on disk")
    assert fewer.count == 300
    [unseen] = found(record_of(queue, "scheduler.envelope", envelopes=[None] * 5))
    assert "on disk" not in unseen.message


@given(st.lists(st.integers(0, 500), min_size=5, max_size=5), st.lists(st.floats(-PER_ENVELOPE, PER_ENVELOPE)))
@settings(deadline=None, max_examples=60)
def test_what_the_queued_mail_costs_is_explained(queue: list[int], shares: list[float]) -> None:
    share = abs(shares[0]) if shares else 1.0
    values = [10 + round(share * queued) for queued in queue]
    assert found(record_of(values, "mta.host", envelopes=queue)) == []


def test_more_than_the_queued_mail_costs_is_not() -> None:
    queue = [20, 40, 80, 160, 320]
    [finding] = found(record_of([(PER_ENVELOPE + 1) * queued for queued in queue], "mta.host", envelopes=queue))
    assert finding.rate == 1.0


# ---- error rates


def lazy(random: Random) -> list[int]:
    """Three tables that are made once each, mostly early."""
    born = random.exponential(1.0, 3)
    return [int((born < index).sum()) for index in range(len(UNITS))]


def pool(random: Random) -> list[int]:
    """Up to eight that are kept alive, or not, at every rest."""
    return [int(value) for value in random.binomial(8, 0.4, len(UNITS))]


def cache(random: Random) -> list[int]:
    """Filled once, whatever its size."""
    size, full = int(random.integers(1, 500)), int(random.integers(0, len(UNITS)))
    return [size * (index >= full) for index in range(len(UNITS))]


def emptied(random: Random) -> list[int]:
    return [500 - value for value in cache(random)]


def high_water(random: Random) -> list[int]:
    """Slots for the most that were ever there at once."""
    return [int(value) for value in np.maximum.accumulate(random.poisson(6, len(UNITS)))]


def walk(random: Random) -> list[int]:
    """Neighbouring rests resemble each other."""
    level, values = 0.0, []
    for _ in UNITS:
        level = 0.7 * level + random.normal(0, 2)
        values.append(max(0, round(level)))
    return values


@pytest.mark.parametrize("world", [lazy, pool, cache, emptied, high_water, walk])
def test_leak_free_gauges_give_no_false_alarm(world: Callable[[Random], list[int]]) -> None:
    alarms = sum(bool(found(record_of(world(np.random.default_rng(seed))))) for seed in range(RUNS))
    assert alarms == 0  # alpha / 10 = 0.001 a run


@pytest.mark.parametrize(("rate", "least"), [(1.0, 1.0), (0.5, 1.0), (0.1, 0.85)])
@pytest.mark.parametrize("direction", [1, -1])
def test_power(rate: float, least: float, direction: int) -> None:
    seen = 0
    for seed in range(RUNS):
        values = [1000 + direction * value for value in drawn(np.random.default_rng(seed), rate)]
        seen += [finding.label for finding in found(record_of(values))] == ["mta.relay"]
    assert seen >= least * RUNS


def test_a_clean_gauge_says_what_it_would_have_shown() -> None:
    each = by_label(record_of([0] * 5))["mta.relay"]
    assert (each.verdict, each.metric, each.rate) == ("clean", "gauge", 0.0)
    assert 0.02 < each.smallest_visible < 0.2


def test_evidence_that_is_not_yet_enough_is_undecided() -> None:
    judged = balance.judge(record_of([0, 1, 2, 4, 8]))
    assert judged.findings == []
    assert not judged.decided


def test_judging_changes_nothing_and_repeats() -> None:
    record = record_of([0, 1, 2, 4, 80])
    assert balance.judge(record) == balance.judge(record)

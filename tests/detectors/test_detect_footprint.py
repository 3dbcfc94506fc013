from __future__ import annotations

import numpy as np
import pytest
from detector_worlds import COUNT_DOSES, UNIT, blank, idle_process

from harness.detectors import footprint, verdict
from harness.detectors.footprint import BYTES_EACH, BYTES_QUEUED
from reports.record import AgentReading, Dose, Memory, RunRecord, Snapshot, Traffic

UNITS = (20, *COUNT_DOSES)
ENVELOPES = "scheduler.envelope.incoming"


def exchanged(
    kind: str, each: int, *, per_unit: int = 2, envelopes_per_unit: int = 2, sender: str = "queue"
) -> RunRecord:
    """A run in which queue sends scheduler `per_unit` messages of `each` bytes for each unit of work."""
    record = blank()
    done = 0
    for index, units in enumerate(UNITS):
        done += units
        traffic = [Traffic(sender, "scheduler", kind, per_unit * done, per_unit * done * each)]
        record.doses.append(
            Dose(
                units=units,
                phase="count" if index else "warm-up",
                snapshot=Snapshot(
                    processes=[idle_process("queue", 101)],
                    counters={ENVELOPES: envelopes_per_unit * done},
                    traffic=traffic,
                ),
            )
        )
    return record


def queued(bytes_each: float, *, objects_each: float = 0.0, seed: int = 1) -> RunRecord:
    """A run whose queue grows with every dose; scheduler's memory with it, and nobody else's."""
    random = np.random.default_rng(seed)
    record = blank()
    owed = 0
    for index, units in enumerate(UNITS):
        owed += units
        processes = []
        for pid, (role, grows) in enumerate({"scheduler": 1, "smtp": 0}.items(), 101):
            process = idle_process(role, pid)
            dirty = 25_000_000 + grows * bytes_each * owed + random.normal(0, 8192)
            process.memory = Memory(private_dirty=round(dirty / 4096) * 4096)
            process.agent = AgentReading(blocks=100_000 + round(grows * objects_each * owed))
            processes.append(process)
        snapshot = Snapshot(processes=processes, envelopes=owed, backlog=owed)
        record.doses.append(Dose(units=units, phase="count" if index else "warm-up", snapshot=snapshot))
    return record


def test_a_whole_envelope_structure_in_each_message_is_a_finding_by_pair_and_kind() -> None:
    record = exchanged("SUBMIT", 8600)
    [finding] = footprint.judge(record)
    assert (finding.resource, finding.kind, finding.role) == ("memory", "footprint", "queue")
    assert finding.label == "imsg queue -> scheduler SUBMIT"
    assert (finding.rate, finding.count, finding.unit) == (17200, 8600, UNIT)
    assert finding.message == (
        "queue sends scheduler 8,600 bytes in each SUBMIT, 2 for each refused message; more than 4,096 is too much"
    )
    assert verdict.judge(record).verdict == "leak"


@pytest.mark.parametrize(
    ("kind", "each", "per_unit", "envelopes_per_unit", "sender"),
    [
        ("DELIVER", BYTES_EACH, 2, 2, "queue"),  # at the limit
        ("BATCH", 8200, 1, 1000, "queue"),  # one tells of a thousand envelopes
        ("COMMIT_MESSAGE", 30_000, 1, 1, "smtp"),  # carries the mail
        ("OK", 30_000, 1, 1, "control"),  # what we asked for
    ],
)
def test_what_may_be_large_is_none(kind: str, each: int, per_unit: int, envelopes_per_unit: int, sender: str) -> None:
    record = exchanged(kind, each, per_unit=per_unit, envelopes_per_unit=envelopes_per_unit, sender=sender)
    assert footprint.judge(record) == []


def test_a_few_messages_are_not_weighed() -> None:
    record = exchanged("CONFIG", 100_000)
    for dose in record.doses:
        dose.snapshot.traffic = [Traffic("parent", "smtp", "CONFIG", 3, 300_000)]
    assert footprint.judge(record) == []


def test_the_warm_up_does_not_count_and_the_judged_doses_are_measured() -> None:
    record = exchanged("DELIVER", 250)
    for dose in record.doses:
        [sent] = dose.snapshot.traffic
        dose.snapshot.traffic = [Traffic(sent.sender, sent.receiver, sent.kind, sent.messages + 9, sent.bytes + 10**6)]
    [each] = footprint.measure(record).traffic
    assert (each.messages_per_unit, each.bytes_per_unit, each.bytes_each) == (2, 500, 250)


def test_memory_for_each_queued_envelope_is_measured_role_by_role() -> None:
    measured = {(each.role, each.metric): each for each in footprint.measure(queued(700, objects_each=4)).queued}
    scheduler = measured["scheduler", "private dirty"]
    assert scheduler.low < 700 < scheduler.high
    assert measured["scheduler", "python objects"].each == pytest.approx(4, abs=0.01)
    assert measured["smtp", "private dirty"].low < 0 < measured["smtp", "private dirty"].high
    assert footprint.judge(queued(700)) == []


def test_too_much_memory_for_each_queued_envelope_is_a_finding() -> None:
    [finding] = footprint.judge(queued(8600))
    assert (finding.resource, finding.kind, finding.role) == ("memory", "footprint", "scheduler")
    assert finding.low < 8600 < finding.high
    assert finding.unit == "queued envelope"


def test_its_error_rates() -> None:
    """A quarter of the limit is never reported, twice the limit always."""
    assert not [seed for seed in range(60) if footprint.judge(queued(BYTES_QUEUED / 4, seed=seed))]
    assert len([seed for seed in range(60) if footprint.judge(queued(2 * BYTES_QUEUED, seed=seed))]) == 60


def test_a_run_without_a_backlog_measures_none() -> None:
    record = exchanged("DELIVER", 250)
    assert footprint.measure(record).queued == []
    assert footprint.measure(blank()) == footprint.Footprint()

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest
from detector_worlds import ROLES, World, blank, cumulative, memory_record, noise, record_of

from harness.detectors import growth, verdict
from reports.record import Dose, Incident, Process, Promise, RunRecord

REUSE = "let the remote MX hold its greeting while a dose is submitted"


def world(leak: float = 0.0) -> World:
    return World(np.random.default_rng(1), leak=leak)


def with_memory(leak: float = 0.0, objects: float = 0.0, units: tuple[int, ...] = (20, 40)) -> RunRecord:
    """Count doses as in a clean or leaking world, then rounds in which `transfer` grows by `objects` a unit."""
    record = record_of(world(leak), memory=True)
    random = np.random.default_rng(2)
    work = cumulative(units)
    levels = {
        role: noise(random, len(work), scale=1.4) + (objects if role == "transfer" else 0) * work for role in ROLES
    }
    rounds = memory_record(levels, units, objects=True)
    # The processes go on from the count phase: same pids, same descriptors.
    for dose in rounds.doses:
        for process, before in zip(dose.snapshot.processes, record.doses[-1].snapshot.processes, strict=True):
            process.pid, process.started, process.descriptors = before.pid, before.started, before.descriptors
        record.doses.append(dose)
    return record


def test_clean_says_so_and_what_was_tested() -> None:
    judged = verdict.judge(with_memory())
    assert judged.verdict == "clean"
    assert judged.findings == []
    assert judged.reasons == []
    assert {each.resource for each in judged.tested} >= {"descriptor", "socket", "memory", "process", "thread"}


def test_descriptors_and_memory_are_both_found() -> None:
    judged = verdict.judge(with_memory(leak=1.0, objects=3.0))
    assert judged.verdict == "leak"
    assert [(finding.resource, finding.role) for finding in judged.findings] == [
        ("descriptor", "transfer"),
        ("memory", "transfer"),
    ]


def test_a_finding_wins_over_every_reason() -> None:
    record = record_of(world(1.0), memory=True)
    record.incidents.append(Incident("interrupted", "interrupted during dose 6"))
    record.promises.append(Promise("refused_messages", 1000, 300.0))
    judged = verdict.judge(record)
    assert judged.verdict == "leak"
    assert judged.reasons == []


def test_a_death_is_a_finding_before_everything_else() -> None:
    record = record_of(world(1.0))
    record.incidents.append(Incident("died", "transfer died: signal 11", role="transfer", pid=107))
    assert [finding.kind for finding in verdict.judge(record).findings] == ["died", "file"]


def test_a_broken_promise_is_inconclusive_and_says_what_to_do() -> None:
    record = record_of(world())
    record.promises = [Promise("messages_per_session_out", 20, 1.0, REUSE), Promise("refused_messages", 300, 300.0)]
    judged = verdict.judge(record)
    assert judged.verdict == "inconclusive"
    assert judged.reasons == [
        f"the scenario promises at least 20 messages per outbound session; there were 1.0: {REUSE}"
    ]


@pytest.mark.parametrize(
    ("incident", "expected"),
    [
        (Incident("interrupted", "interrupted during dose 3"), "interrupted during dose 3"),
        (Incident("load", "no answer"), "the load failed: no answer"),
        (Incident("remote-mx", "gone"), "the remote MX failed: gone"),
        (Incident("target", "control socket is mute"), "control socket is mute"),
    ],
)
def test_a_run_that_broke_is_inconclusive(incident: Incident, expected: str) -> None:
    record = record_of(world())
    record.incidents.append(incident)
    assert verdict.judge(record).reasons == [expected]


def test_a_load_that_failed_is_not_also_said_to_have_been_too_little() -> None:
    record = record_of(world())
    record.promises = [Promise("messages_per_session_out", 20, 1.0, REUSE), Promise("refused_messages", 300, 80.0)]
    record.incidents.append(Incident("load", "550 no"))
    failed, short = verdict.judge(record).reasons
    assert failed == "the load failed: 550 no"
    assert "messages per outbound session; there were 1.0" in short


def test_nothing_seen_is_never_clean() -> None:
    empty = verdict.judge(blank())
    assert empty.verdict == "inconclusive"
    assert "judged doses: 0" in empty.reasons[0]
    lazy = record_of(world(), counts=(0, 0, 0))
    assert "did no work" in verdict.judge(lazy).reasons[0]
    blind = record_of(world())
    for dose in blind.doses:
        dose.snapshot.processes = []
    assert verdict.judge(blind).reasons == ["no process of the target was seen"]


def test_what_the_probe_was_not_permitted_to_see_spoils_a_clean_run() -> None:
    record = record_of(world())
    for dose in record.doses:
        dose.snapshot.unreadable = ["descriptors of pid 107: run as root"]
    assert verdict.judge(record).reasons == ["not permitted to see everything: descriptors of pid 107: run as root"]


def test_memory_that_was_wanted_and_not_decided_is_inconclusive() -> None:
    assert verdict.judge(record_of(world(), memory=True)).verdict == "inconclusive"
    grows = verdict.judge(with_memory(objects=3.0, units=(20,)))
    assert grows.verdict == "inconclusive"
    assert grows.reasons[0].startswith("memory of transfer: after 320 refused messages it grows by")


def test_owed_mail_does_not_spoil_the_run() -> None:
    record = with_memory(objects=3.0)
    for index, dose in enumerate(record.doses):
        dose.snapshot.backlog = index
    judged = verdict.judge(record)
    assert judged.verdict == "clean"
    assert {each.reason for each in judged.tested if each.resource == "memory"} == {growth.OWED}


def test_a_run_goes_on_while_memory_or_the_counts_are_in_doubt() -> None:
    assert verdict.judge(with_memory()).decided
    assert not verdict.judge(with_memory(objects=3.0, units=(20,))).decided
    doubt = record_of(world(0.02))
    assert growth.decided(doubt)
    assert not verdict.judge(doubt).findings
    assert not verdict.judge(doubt).decided


def test_a_leak_of_one_in_fifty_is_found_by_going_on_while_in_doubt() -> None:
    """One memory round is always given; up to two more as long as `decided` says no."""
    runs, found = 40, 0
    for seed in range(runs):
        leaky = World(np.random.default_rng(seed), leak=0.02)
        record = record_of(leaky, rounds=(20,))
        for number in (1, 2):
            if verdict.judge(record).decided:
                break
            units = 20 << number
            for _ in range(16):
                snapshot = leaky.after(99, units)
                record.doses.append(Dose(units=units, phase="memory", round=number, snapshot=snapshot))
        found += verdict.judge(record).verdict == "leak"
    assert found >= 0.8 * runs


def test_a_record_gives_the_same_verdict_tomorrow() -> None:
    record = with_memory(leak=0.1, objects=1.0)
    before = msgspec.json.encode(record)
    judged = verdict.judge(record)
    assert msgspec.json.encode(record) == before
    again = verdict.judge(msgspec.json.decode(before, type=RunRecord))
    assert again == judged


def test_everything_that_is_reported_survives_json() -> None:
    record = with_memory(leak=1.0, objects=3.0)
    judged = verdict.judge(record)
    record.findings, record.tested = judged.findings, judged.tested
    decoded = msgspec.json.decode(msgspec.json.encode(record), type=RunRecord)
    assert decoded.findings == judged.findings
    assert decoded.tested == judged.tested


def test_a_zombie_does_not_disturb_the_judgement_of_memory() -> None:
    record = with_memory()
    record.doses[-1].snapshot.processes.append(Process(999, 1, "transfer", ppid=101, state="Z"))
    assert verdict.judge(record).verdict == "clean"


def test_importing_the_detectors_does_not_load_scipy() -> None:
    script = "import sys, harness.detectors.verdict; sys.exit('scipy' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from detector_worlds import (
    COUNT_DOSES,
    STANDARD_DOSES,
    UNIT,
    World,
    blank,
    connection,
    idle_process,
    message_file,
    record_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.detectors import identities
from reports.record import AgentReading, Descriptor, Dose, Finding, Process, RunRecord, Snapshot

NULL_RUNS = 60
POWER_RUNS = 60


def findings(record: RunRecord) -> list[Finding]:
    return identities.judge(record).findings


def world(seed: int = 1, **what: Any) -> World:
    return World(np.random.default_rng(seed), **what)


def run(snapshots: list[Snapshot], units: tuple[int, ...] = (20, *COUNT_DOSES)) -> RunRecord:
    """A record from snapshots made by hand: one warm-up, then count doses."""
    record = blank()
    for index, (snapshot, dose) in enumerate(zip(snapshots, units, strict=False)):
        record.doses.append(Dose(units=dose, phase="count" if index else "warm-up", snapshot=snapshot))
    return record


def holding(descriptors: list[list[Descriptor]], pids: list[int] | None = None) -> list[Snapshot]:
    """Snapshots of one process, `transfer`, which holds these."""
    pids = pids or [107] * len(descriptors)
    snapshots = []
    for held, pid in zip(descriptors, pids, strict=True):
        process = idle_process("transfer", pid)
        process.descriptors = process.descriptors + held
        snapshots.append(Snapshot(processes=[process]))
    return snapshots


# ---- error rates


WORLDS: list[dict[str, Any]] = [
    {},
    {"lazy": True},
    {"pool": True},
    {"logs": True},
    {"cache": 0.25},
    {"lazy": True, "pool": True, "logs": True},
]


@pytest.mark.parametrize("doses", [COUNT_DOSES, STANDARD_DOSES], ids=["quick", "standard"])
@pytest.mark.parametrize("what", WORLDS, ids=lambda what: " ".join(what) or "quiet")
def test_leak_free_worlds_give_no_false_alarm(what: dict[str, Any], doses: tuple[int, ...]) -> None:
    alarms = sum(bool(findings(record_of(world(seed, **what), doses))) for seed in range(NULL_RUNS))
    # alpha / 2 = 0.005 for this family: two in 60 would have a chance of 4 in 100.
    assert alarms <= 1


def test_leak_free_memory_rounds_give_no_false_alarm() -> None:
    messy = [record_of(world(seed, lazy=True, pool=True, logs=True), rounds=(20, 40)) for seed in range(30)]
    assert sum(bool(findings(record)) for record in messy) <= 1


@pytest.mark.parametrize(
    ("leak", "rounds", "least"),
    [(1.0, (), 1.0), (0.1, (), 0.85), (0.02, (20, 40), 0.85)],
)
@pytest.mark.parametrize("messy", [False, True])
def test_power(leak: float, rounds: tuple[int, ...], least: float, messy: bool) -> None:
    runs = 10 if leak == 1.0 else POWER_RUNS
    found = 0
    for seed in range(runs):
        leaks = findings(record_of(world(seed, leak=leak, lazy=messy, pool=messy, logs=messy), rounds=rounds))
        found += [finding.label for finding in leaks] == ["message file (deleted)"]
    assert found >= least * runs


@pytest.mark.parametrize("messy", [False, True])
def test_one_in_fifty_is_proven_by_the_620_units_of_the_standard_profile(messy: bool) -> None:
    found = 0
    for seed in range(POWER_RUNS):
        leaks = findings(record_of(world(seed, leak=0.02, lazy=messy, pool=messy, logs=messy), STANDARD_DOSES))
        found += [finding.label for finding in leaks] == ["message file (deleted)"]
    assert found >= 0.9 * POWER_RUNS


@given(st.lists(st.integers(0, 30), min_size=5, max_size=5), st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_whoever_holds_as_many_as_before_leaks_none_however_they_are_replaced(replaced: list[int], size: int) -> None:
    """Pools, rotated logs, caches of open files: the members change, their number does not."""
    first, rests = 0, []
    for number in replaced:
        first += min(number, size)
        rests.append([message_file(100 + place % 100, place) for place in range(first, first + size)])
    assert findings(run(holding(rests))) == []


@given(st.lists(st.integers(0, 3), min_size=5, max_size=5), st.integers(2, 4))
@settings(deadline=None, max_examples=60)
def test_a_leak_of_some_for_each_unit_is_found_beside_any_pool(pool: list[int], leak: int) -> None:
    kept, rests = 0, []
    for units, idle in zip((20, *COUNT_DOSES), pool, strict=True):
        kept += leak * units
        held = [message_file(200 + number, number) for number in range(kept)]
        rests.append(held + [connection(20 + slot, 10_000 * kept + slot) for slot in range(idle)])
    assert [finding.rate for finding in findings(run(holding(rests)))] == [leak]


# ---- the proof


def test_the_finding_names_counts_and_proves() -> None:
    record = record_of(world(leak=1.0))
    [finding] = findings(record)
    assert (finding.role, finding.resource, finding.kind) == ("transfer", "descriptor", "file")
    assert finding.dose_units == [20, 40, 80, 160]
    assert finding.survivors == [20, 40, 80, 160]
    assert (finding.count, finding.rate, finding.high, finding.unit) == (300, 1.0, 1.0, UNIT)
    assert finding.low == pytest.approx(0.98778, abs=1e-4)
    assert finding.first_dose == 1
    assert finding.pids == [107]
    assert len(finding.examples) == 5
    assert all(path.endswith("/message (deleted)") for path in finding.examples)
    assert finding.message == "transfer keeps 1 message file (deleted) open for each refused message: 300 of 300"
    assert "seatbelt fds" in finding.advice
    assert finding.confidence > 0.9999


def test_more_than_one_a_unit_has_a_poisson_interval() -> None:
    [finding] = findings(record_of(world(leak=2.0)))
    assert finding.rate == 2.0
    assert finding.low < 2.0 < finding.high
    assert "2 x message file (deleted)" in finding.message


def test_the_memory_rounds_count_but_stay_out_of_the_table() -> None:
    [finding] = findings(record_of(world(leak=1.0), rounds=(5,)))
    assert finding.count == 300 + 16 * 5
    assert finding.dose_units == [20, 40, 80, 160]


def test_judging_changes_nothing_and_repeats() -> None:
    record = record_of(world(leak=0.1, pool=True))
    assert identities.judge(record) == identities.judge(record)


def test_every_key_is_tested_and_says_what_it_could_have_seen() -> None:
    judged = identities.judge(record_of(world()))
    assert {each.verdict for each in judged.tested} == {"clean"}
    assert {each.role for each in judged.tested} >= {"transfer", "queue", "smtp"}
    assert all(0.02 < each.smallest_visible < 0.2 for each in judged.tested)


# ---- what must not be taken for a leak


def test_what_the_warm_up_leaves_is_baseline() -> None:
    leaked = [message_file(fd, fd) for fd in range(100, 120)]
    assert findings(run(holding([leaked] * 5))) == []


def test_a_pool_that_is_built_once_is_no_leak_whatever_its_size() -> None:
    pool = [connection(fd, fd) for fd in range(100, 140)]
    assert findings(run(holding([[], [], [], pool, pool]))) == []
    assert findings(run(holding([[], [], [], [], pool]))) == []


def test_a_pool_that_replaces_its_members_is_no_leak() -> None:
    def pool(first: int) -> list[Descriptor]:
        return [connection(100 + number, number) for number in range(first, first + 50)]

    assert findings(run(holding([pool(0), pool(10), pool(20), pool(35), pool(48)]))) == []


def test_a_restarted_process_brings_its_own_baseline() -> None:
    own = [Descriptor(fd, "file", f"/etc/maps/{fd}.db", inode=fd) for fd in range(50, 80)]
    assert findings(run(holding([own] * 5, [107, 207, 207, 307, 307]))) == []


def test_a_leak_in_a_process_that_was_started_late_is_found() -> None:
    held = [[message_file(100 + number, number) for number in range(count)] for count in (0, 0, 40, 120, 280)]
    [finding] = findings(run(holding(held, [107, 207, 207, 207, 207])))
    assert finding.pids == [207]
    assert finding.survivors == [0, 40, 80, 160]


LIFE = 8  # rests of a worker, before another takes its place


def recycling(at_rest: Callable[[int, int], list[Descriptor]]) -> RunRecord:
    """Four workers over two memory rounds, none of which sees the end: `at_rest(worker's number, its age)` is held."""
    record = record_of(world(), (20, 20), (20, 40))
    for number, dose in enumerate(record.doses):
        for slot in range(4):
            life, age = divmod(number + 2 * slot, LIFE)
            worker = idle_process("smtpd", 500 + slot, started=1000 + life)
            worker.descriptors = worker.descriptors + at_rest(4 * life + slot, age)
            dose.snapshot.processes.append(worker)
    return record


def test_a_leak_in_workers_that_recycle_is_found_though_every_worker_takes_its_own_along() -> None:
    record = recycling(lambda worker, age: [message_file(50 + each, 100 * worker + each) for each in range(2 * age)])
    (finding,) = findings(record)
    assert (finding.role, finding.label) == ("smtpd", "message file (deleted)")
    # Eight at a rest, whatever its dose, less what each worker held when it was first seen.
    assert finding.rate == pytest.approx(8 * 32 / (20 + 16 * 20 + 16 * 40), rel=0.25)


@pytest.mark.parametrize("opens", [1, 3])
def test_what_every_worker_opens_once_when_it_needs_it_is_no_leak(opens: int) -> None:
    def lazily(worker: int, age: int) -> list[Descriptor]:
        return [connection(50 + each, 1000 + 10 * worker + each) for each in range(min(opens, age))]

    assert findings(recycling(lazily)) == []


def test_a_dose_without_rest_is_not_judged_but_its_work_counts() -> None:
    held = [[message_file(100 + number, number) for number in range(count)] for count in (0, 20, 60, 140, 300)]
    record = run(holding(held))
    record.doses[2].rested = False
    [finding] = findings(record)
    assert finding.dose_units == [20, 120, 160]
    assert finding.survivors == [20, 120, 160]


def test_one_dose_alone_proves_nothing() -> None:
    held = [[], [message_file(100 + number, number) for number in range(20)]]
    judged = identities.judge(run(holding(held)))
    assert judged.tested == []
    assert not judged.decided


# ---- other resources


def test_a_connection_that_drifts_to_close_wait_stays_one_leak() -> None:
    snapshots = []
    for last, count in enumerate((0, 20, 60, 140, 300)):
        drifted = [
            connection(100 + number, number, "CLOSE_WAIT" if last == 4 else "ESTABLISHED") for number in range(count)
        ]
        snapshots += holding([drifted])
    [finding] = findings(run(snapshots))
    assert (finding.resource, finding.label, finding.survivors) == ("socket", "tcp/CLOSE_WAIT", [20, 40, 80, 160])
    assert finding.examples[0].endswith("-> 127.0.0.1:43211")


def test_zombies_are_their_parents_fault() -> None:
    snapshots = []
    for count in (0, 20, 60, 140, 300):
        dead = [Process(1000 + number, 5, "sendmail", ppid=101, state="Z") for number in range(count)]
        snapshots.append(Snapshot(processes=[idle_process("parent", 101), *dead]))
    [finding] = findings(run(snapshots))
    assert (finding.resource, finding.kind, finding.role, finding.count) == ("process", "zombie", "parent", 300)


def test_children_that_never_end_are_found() -> None:
    snapshots = []
    for count in (0, 20, 60, 140, 300):
        left = [idle_process("delivery", 1000 + number) for number in range(count)]
        snapshots.append(Snapshot(processes=[idle_process("parent", 101), *left]))
    found = findings(run(snapshots))
    assert [(finding.kind, finding.role) for finding in found] == [("child", "delivery")]
    assert found[0].pids == list(range(1000, 1300))


def test_threads_that_never_end_are_found() -> None:
    snapshots = []
    for count in (0, 20, 60, 140, 300):
        process = idle_process("lookup", 101)
        process.threads = 1 + count
        snapshots.append(Snapshot(processes=[process]))
    [finding] = findings(run(snapshots))
    assert (finding.resource, finding.survivors) == ("thread", [20, 40, 80, 160])


@pytest.mark.parametrize(
    ("watcher", "label"),
    [
        (Descriptor(3, "eventpoll", "anon_inode:[eventpoll]", watches=9), "epoll watch of a closed descriptor"),
        (Descriptor(3, "inotify", "anon_inode:inotify"), "inotify watch"),
    ],
)
def test_watches_of_what_is_gone_are_found(watcher: Descriptor, label: str) -> None:
    snapshots = []
    for count in (0, 20, 60, 140, 300):
        process = idle_process("queue", 101)
        stale = count if watcher.kind == "eventpoll" else 0
        process.descriptors = [msgspec.structs.replace(watcher, watches=watcher.watches + count, stale_watches=stale)]
        snapshots.append(Snapshot(processes=[process]))
    [finding] = findings(run(snapshots))
    assert (finding.resource, finding.label, finding.survivors) == ("descriptor", label, [20, 40, 80, 160])


@pytest.mark.parametrize(("field", "label"), [("tasks", "asyncio task"), ("timers", "asyncio timer")])
def test_tasks_and_timers_that_wait_for_ever_are_found(field: str, label: str) -> None:
    snapshots = []
    for count in (0, 20, 60, 140, 300):
        process = idle_process("lookup", 101)
        process.agent = AgentReading(1000, 100, **{field: 2 + count})
        snapshots.append(Snapshot(processes=[process]))
    [finding] = findings(run(snapshots))
    assert (finding.resource, finding.label, finding.survivors) == ("task", label, [20, 40, 80, 160])


def test_what_an_epoll_watches_may_grow_with_what_is_open() -> None:
    snapshots = []
    for count in (0, 20, 60, 140, 300):
        process = idle_process("queue", 101)
        process.descriptors = [Descriptor(3, "eventpoll", "anon_inode:[eventpoll]", watches=1 + count)]
        snapshots.append(Snapshot(processes=[process]))
    assert findings(run(snapshots)) == []


def test_timers_that_come_and_go_are_no_leak() -> None:
    snapshots = []
    for timers in (1, 9, 4, 12, 6):
        process = idle_process("lookup", 101)
        process.agent = AgentReading(1000, 100, timers=timers)
        snapshots.append(Snapshot(processes=[process]))
    assert findings(run(snapshots)) == []


def test_a_thread_pool_that_breathes_is_no_leak() -> None:
    snapshots = []
    for threads in (1, 9, 4, 12, 6):
        process = idle_process("lookup", 101)
        process.threads = threads
        snapshots.append(Snapshot(processes=[process]))
    assert findings(run(snapshots)) == []


def test_orphan_messages_are_found_and_owed_mail_is_not() -> None:
    orphans, owed = [], []
    for count in (0, 20, 60, 140, 300):
        messages = [f"queue/00/{number:08x}/message" for number in range(count)]
        envelopes = [f"queue/00/{number:08x}/{number:08x}00000001" for number in range(count)]
        orphans.append(Snapshot(files=messages))
        owed.append(Snapshot(files=messages + envelopes, backlog=count))
    [finding] = findings(run(orphans))
    assert (finding.resource, finding.kind, finding.count) == ("file", "orphan", 300)
    assert findings(run(owed)) == []


# ---- in doubt


def test_some_evidence_that_is_not_yet_enough_is_undecided() -> None:
    held = [[message_file(100 + number, number) for number in range(count)] for count in (0, 1, 2, 4, 8)]
    judged = identities.judge(run(holding(held)))
    assert judged.findings == []
    assert not judged.decided


def test_a_clean_run_is_decided() -> None:
    assert identities.judge(record_of(world())).decided

"""identities: descriptors, sockets, processes, threads and spool files that outlive the work that made them.

Owns: survivors (born in one dose, alive at every later rest), key by key, and the judgement on them.
Never: judges memory, reads anything but the record.

A key is (role, resource, kind, class). What keeps innocent behaviour out:
- a process that appears after the baseline brings its own baseline: only what it opens after its first rest counts;
- an identity is filed under its class at its last sighting, so a connection that drifts to CLOSE_WAIT stays one;
- survivors count as evidence only as far as the number held has risen, so a pool that replaces its members is no leak;
- no single burst is evidence (`evidence`).
A worker that ends after its hundredth client (prefork) takes along what it kept. That counts as kept, up to its last
rest, if it came at LEAST_RISES or more of that worker's rests: opening a few things when they are first needed, in
every life anew, is no leak, and that is what fewer look like.
Threads have no identity that /proc shows, nor tasks and timers one that an agent could tell, so each process's lasting
rise in their number stands for survivors.

Error rates: four tenths of the run's alpha are for this family, divided by the number of keys tested (Bonferroni, valid
under any dependence): LEAK at e >= keys / (0.4 alpha). Measured by
tests/detectors/test_detect_identities.py at alpha 0.01: no false alarm in 12 x 60 leak-free runs of 49 keys (quiet,
lazy opens, keep-alive pool, rotating logs, a cache that fills, all of them; quick and standard doses); a leak of 1/10
is found by doses 20 40 80 160 (seen: 99 in 100), asserted at 85 in 100; one of 1/50 by 20 40 and seven of 80 (seen: 97
in 100), asserted at 90, and by the first and two memory rounds of 16 x 20 and 16 x 40 (seen: always); a leak of 1
always.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from harness.detectors import wording
from harness.detectors.classes import Class, descriptor_class, example, listening_ports, unexplained_files
from harness.detectors.evidence import log_evidence, smallest_visible
from harness.detectors.rates import Rate, floors, rate_of
from harness.detectors.rests import Rests, rests
from reports.record import AgentReading, Finding, Process, Resource, RunRecord, Snapshot, Tested

ALPHA_SHARE = 0.4
MAX_EXAMPLES = 5
LEAST_RISES = 5
LARGEST_EXPONENT = 700.0  # exp() of more is no float

Identity = tuple[object, ...]
ProcessId = tuple[int, int]  # pid, start time


class Key(NamedTuple):
    role: str
    resource: Resource
    kind: str
    label: str


class Sighting(NamedTuple):
    key: Key
    owner: ProcessId | None  # whose presence at the rest before makes a birth; None: nobody's
    pid: int  # 0: no process holds it
    example: str


@dataclass
class Series:
    """One key over the judged rests."""

    survivors: list[int]
    held: list[int]  # alive at the baseline, then at each judged rest
    pids: set[int] = field(default_factory=set)
    examples: list[str] = field(default_factory=list)

    def risen(self) -> list[int]:
        """Survivors as far as the number held has lastingly risen since the lowest rest."""
        lowest, *later = floors(self.held)
        counted: list[int] = []
        for survivors, floor in zip(self.survivors, later, strict=True):
            counted.append(min(survivors, floor - lowest - sum(counted)))
        return counted


@dataclass(frozen=True)
class Judged:
    findings: list[Finding] = field(default_factory=list)  # the most instances first
    tested: list[Tested] = field(default_factory=list)
    decided: bool = True  # no key has evidence of a leak that is not yet enough: more work would change nothing


def judge(record: RunRecord) -> Judged:
    """Every key that was seen. Empty when fewer than two doses ended in rest."""
    judged = rests(record)
    pools = judged.pools()
    if len(pools) < 2 or judged.units == 0:
        return Judged(decided=False)
    by_key = series(judged)
    tests = len(by_key)
    log_threshold = math.log(max(1, tests) / (record.judgement.alpha * ALPHA_SHARE))
    visible = smallest_visible(pools, log_threshold)
    findings: list[Finding] = []
    tested: list[Tested] = []
    decided = True
    for key, column in sorted(by_key.items()):
        log_e = log_evidence(judged.pooled(column.risen()), pools)
        leaks = log_e >= log_threshold
        decided = decided and (leaks or log_e <= 0)
        rate = rate_of(column.survivors, [rest.units for rest in judged.judged])
        tested.append(_tested(record, key, rate, visible, leaks=leaks))
        if leaks:
            confidence = 1 - min(1.0, tests * math.exp(-min(log_e, LARGEST_EXPONENT)))
            findings.append(_finding(record, judged, key, column, rate, confidence))
    return Judged(sorted(findings, key=lambda finding: -finding.count), tested, decided)


def series(judged: Rests) -> dict[Key, Series]:
    """Every key that was seen at any judged rest or at the baseline."""
    snapshots = [judged.baseline, *(rest.snapshot for rest in judged.judged)]
    alive = [dict(sightings(snapshot)) for snapshot in snapshots]
    present = [{_id(process) for process in snapshot.processes} for snapshot in snapshots]
    last: dict[Identity, Sighting] = {}
    for seen in alive:
        last.update(seen)
    columns: defaultdict[Key, Series] = defaultdict(lambda: Series([0] * len(judged.judged), [0] * len(snapshots)))
    for number, seen in enumerate(alive):
        for identity in seen:
            columns[last[identity].key].held[number] += 1
    for identity, sighting in sorted(alive[-1].items(), key=lambda item: item[1].example):
        born = len(alive) - 1
        while born > 0 and identity in alive[born - 1]:
            born -= 1
        if born == 0 or (sighting.owner is not None and sighting.owner not in present[born - 1]):
            continue
        column = columns[sighting.key]
        column.survivors[born - 1] += 1
        if sighting.pid:
            column.pids.add(sighting.pid)
        if len(column.examples) < MAX_EXAMPLES:
            column.examples.append(sighting.example)
    _add_ended(columns, alive, present)
    _add_anonymous(columns, snapshots)
    return dict(columns)


def _add_ended(
    columns: dict[Key, Series], alive: list[dict[Identity, Sighting]], present: list[set[ProcessId]]
) -> None:
    """What processes that ended had kept up to their last rest: it stays counted, as if they had not."""
    for end, (now, later) in enumerate(pairwise(present)):
        births: defaultdict[tuple[ProcessId, Key], list[tuple[int, Sighting]]] = defaultdict(list)
        for identity, sighting in alive[end].items() if now - later else ():
            owner = sighting.owner
            if owner is None or owner in later:
                continue
            born = end
            while born > 0 and identity in alive[born - 1]:
                born -= 1
            if born > 0 and owner in present[born - 1]:
                births[owner, sighting.key].append((born, sighting))
        for (owner, key), born_at in births.items():
            if len({born for born, _ in born_at}) < LEAST_RISES:
                continue
            column = columns[key]
            column.pids.add(owner[0])
            for born, sighting in born_at:
                column.survivors[born - 1] += 1
                if len(column.examples) < MAX_EXAMPLES:
                    column.examples.append(sighting.example)
            for number in range(end + 1, len(present)):
                column.held[number] += len(born_at)


def sightings(snapshot: Snapshot) -> Iterator[tuple[Identity, Sighting]]:
    """Everything with an identity at one rest."""
    listening = listening_ports(snapshot)
    roles = {process.pid: process.role for process in snapshot.processes}
    for process in snapshot.processes:
        owner = _id(process)
        if process.state == "Z":
            # Who failed to wait for it is its parent.
            key = Key(roles.get(process.ppid, process.role), "process", "zombie", "zombie child")
            yield ("zombie", *owner), Sighting(key, None, process.pid, f"{process.role} (pid {process.pid})")
            continue
        key = Key(process.role, "process", "child", "process")
        yield ("process", *owner), Sighting(key, None, process.pid, process.title or f"{process.role} {process.pid}")
        for open_ in process.descriptors:
            kept = Key(process.role, *descriptor_class(open_, listening))
            identity = (*owner, open_.fd, open_.kind, open_.device, open_.inode, open_.flags)
            yield identity, Sighting(kept, owner, process.pid, example(open_))
    for name, what in unexplained_files(snapshot).items():
        yield ("file", name), Sighting(_file_key(what), None, 0, name)


def held(snapshot: Snapshot) -> Counter[Key]:
    """How many of each key there are at one rest, those included that have no identity."""
    counted = Counter(sighting.key for _, sighting in sightings(snapshot))
    for process in snapshot.processes:
        for resource, kind, label, number_of in _numbered(process):
            counted[Key(process.role, resource, kind, label)] += number_of(process)
    return counted


def _file_key(what: Class) -> Key:
    return Key("", *what)


def _id(process: Process) -> ProcessId:
    return process.pid, process.started


def _add_anonymous(columns: dict[Key, Series], snapshots: list[Snapshot]) -> None:
    """Lasting rises of what a process has a number of and no identities: threads, watches, tasks, timers.

    For the processes that live to the end.
    """
    counts = [{_id(process): process for process in snapshot.processes} for snapshot in snapshots]
    for identity, process in counts[-1].items():
        born = len(counts) - 1
        while born > 0 and identity in counts[born - 1]:
            born -= 1
        for resource, kind, label, number_of in _numbered(process):
            numbers = [number_of(at_rest[identity]) for at_rest in counts[born:]]
            column = columns[Key(process.role, resource, kind, label)]
            if _add_rises(column, numbers, born):
                column.pids.add(process.pid)


def _add_rises(column: Series, numbers: list[int], born: int) -> bool:
    """`numbers` from rest `born` on. Whether there was a lasting rise, which is never at a process's own first rest."""
    floor = first = min(numbers)
    for number, held in enumerate(numbers, born):
        column.held[number] += held
        lasting = min(numbers[number - born :])
        if lasting > floor:
            column.survivors[number - 1] += lasting - floor
            floor = lasting
    return floor > first


def _agents(process: Process) -> AgentReading:
    return process.agent or AgentReading(0)


def _stale_watches(process: Process) -> int:
    return sum(each.stale_watches for each in process.descriptors)


def _inotify_watches(process: Process) -> int:
    return sum(each.watches for each in process.descriptors if each.kind == "inotify")


Counted = tuple[Resource, str, str, Callable[[Process], int]]
COUNTED: tuple[Counted, ...] = (
    ("thread", "thread", "thread", lambda process: process.threads),
    ("descriptor", "epoll watch", "epoll watch of a closed descriptor", _stale_watches),
    ("descriptor", "inotify watch", "inotify watch", _inotify_watches),
)
COUNTED_BY_AGENT: tuple[Counted, ...] = (
    ("task", "task", "asyncio task", lambda process: _agents(process).tasks),
    ("task", "timer", "asyncio timer", lambda process: _agents(process).timers),
)


def _numbered(process: Process) -> tuple[Counted, ...]:
    return COUNTED if process.agent is None else (*COUNTED, *COUNTED_BY_AGENT)


def _tested(record: RunRecord, key: Key, rate: Rate, visible: float, *, leaks: bool) -> Tested:
    return Tested(
        resource=key.resource,
        label=key.label,
        role=key.role,
        metric="survivors",
        verdict="leak" if leaks else "clean",
        unit=record.judgement.unit,
        rate=rate.per_unit,
        low=rate.low,
        high=rate.high,
        smallest_visible=visible,
    )


def _finding(
    record: RunRecord,
    judged: Rests,
    key: Key,
    column: Series,
    rate: Rate,
    confidence: float,
) -> Finding:
    count = sum(column.survivors)
    table = [(rest, kept) for rest, kept in zip(judged.judged, column.survivors, strict=True) if rest.phase == "count"]
    return Finding(
        resource=key.resource,
        kind=key.kind,
        label=key.label,
        role=key.role,
        pids=sorted(column.pids),
        count=count,
        unit=record.judgement.unit,
        rate=rate.per_unit,
        low=rate.low,
        high=rate.high,
        confidence=confidence,
        first_dose=next(rest.dose for rest, kept in zip(judged.judged, column.survivors, strict=True) if kept),
        examples=column.examples,
        dose_units=[rest.units for rest, _ in table],
        survivors=[kept for _, kept in table],
        message=wording.message(
            key.role, key.resource, key.label, rate.per_unit, count, judged.units, record.judgement.unit
        ),
        advice=wording.advice(key.role, key.resource, key.kind, key.label),
    )

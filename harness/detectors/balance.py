"""balance: the daemon's own counters against the truth, in both directions.

Owns: the judgement on gauges, the counters that say how many there are *now* (sessions, envelopes, relays, slots,
tokens). Never: judges totals, which only ever grow; the snapshot says which counters are gauges.

A gauge is out of balance when, from rest to rest, it rises with the work and does not come back (nobody counts down, a
token is not returned), or falls with it (counted down twice). What explains a rise is taken off first:
- of sessions, the connections that the process really holds: what leaks then is the socket, and `identities` says so;
- of the scheduler's envelopes, those on disk; here less than on disk is as wrong, mail that nobody will try;
- of every other gauge, what the queued mail may cost it: two for each envelope by which the queue has changed.
Two things need no statistics: a number of things below zero; and a gauge at the last rest that says that something
moves while, by the kernel and the disk, nothing does (`Snapshot.stuck`).
For all else the evidence is that of `evidence`, on lasting rises and on lasting falls, so that a cache that is filled
once, or a pool that is closed once, is none. Error rates: a tenth of the run's alpha is for this family, divided by
twice the number of gauges. Measured by tests/detectors/test_detect_balance.py at alpha 0.01, doses 20 40 80 160 and 41
gauges: no false alarm in 6 x 60 leak-free runs (lazy tables, pool, a cache filled or emptied once, high-water mark,
autoregressive walk); 1 in 2 units is always found, up or down, 1 in 10 in 96 of 100 runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from harness.detectors.classes import listening_ports
from harness.detectors.evidence import log_evidence, smallest_visible
from harness.detectors.rates import Rate, floors, rate_of
from harness.detectors.rests import Rests, rests
from harness.detectors.wording import plural
from reports.record import Finding, RunRecord, Snapshot, Tested

ALPHA_SHARE = 0.1
CERTAIN = 1.0
LARGEST_EXPONENT = 700.0  # exp() of more is no float
PER_ENVELOPE = 2  # of anything: what one queued envelope may keep, a place in a list and a place in a heap
INBOUND, OUTBOUND = "smtp.session", "mta.session"  # gauges of OpenSMTPD's names, and so of the embedded target's
SCHEDULED = "scheduler.envelope"

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Judged:
    findings: list[Finding] = field(default_factory=list)  # the most out of balance first
    tested: list[Tested] = field(default_factory=list)
    decided: bool = True  # no gauge has evidence that is not yet enough


@dataclass(frozen=True)
class Gauge:
    """One gauge over the baseline and the judged rests."""

    name: str
    role: str  # that counts
    values: list[int]  # as the daemon says
    unexplained: list[int]  # … less what the truth explains
    stuck: bool  # at the last rest, though nothing moves

    def lasting(self, direction: Direction) -> list[int]:
        """How far it moved for good, by judged rest."""
        sign = 1 if direction == "up" else -1
        levels = floors([sign * value for value in self.unexplained])
        return [now - before for before, now in pairwise(levels)]


def judge(record: RunRecord) -> Judged:
    """Every gauge. Empty when the target has none, or when fewer than two doses ended in rest."""
    judged = rests(record)
    pools = judged.pools()
    seen = list(gauges(judged))
    if not seen or len(pools) < 2 or judged.units == 0:
        return Judged(decided=not seen)
    tests = 2 * len(seen)
    log_threshold = math.log(tests / (record.judgement.alpha * ALPHA_SHARE))
    visible = smallest_visible(pools, log_threshold)
    findings: list[Finding] = []
    tested: list[Tested] = []
    decided = True
    for gauge in seen:
        verdicts: list[bool] = []
        for direction in ("up", "down"):
            moved = gauge.lasting(direction)
            log_e = log_evidence(judged.pooled(moved), pools)
            certain = _certain(gauge, direction)
            leaks = certain or log_e >= log_threshold
            verdicts.append(leaks)
            decided = decided and (leaks or log_e <= 0)
            if leaks:
                chance = 0.0 if certain else min(1.0, tests * math.exp(-min(log_e, LARGEST_EXPONENT)))
                findings.append(_finding(record, judged, gauge, direction, 1 - chance))
        rate = rate_of(gauge.lasting("up"), [rest.units for rest in judged.judged])
        tested.append(_tested(record, gauge, rate, visible, leaks=any(verdicts)))
    return Judged(sorted(findings, key=lambda finding: -finding.count), tested, decided)


def gauges(judged: Rests) -> Iterator[Gauge]:
    """Those that the last judged rest has, by name. One that was not there yet at an earlier rest was 0."""
    if not judged.judged:
        return
    snapshots = [judged.baseline, *(rest.snapshot for rest in judged.judged)]
    last = snapshots[-1]
    for name, role in sorted(last.gauges.items()):
        values = [snapshot.counters.get(name, 0) for snapshot in snapshots]
        unexplained = [_unexplained(name, role, snapshot, judged.baseline) for snapshot in snapshots]
        yield Gauge(name, role, values, unexplained, name in last.stuck)


def _unexplained(name: str, role: str, snapshot: Snapshot, baseline: Snapshot) -> int:
    """The gauge without what the truth accounts for."""
    value = snapshot.counters.get(name, 0)
    if name == SCHEDULED and snapshot.envelopes is not None:
        return value - snapshot.envelopes
    if name in (INBOUND, OUTBOUND):
        return value - min(max(value, 0), _connections(snapshot, role, inbound=name == INBOUND))
    change = value - baseline.counters.get(name, 0)
    may_be = PER_ENVELOPE * (_owed(snapshot) - _owed(baseline))
    if (change > 0) != (may_be > 0):
        return value
    return value - (min(change, may_be) if change > 0 else max(change, may_be))


def _owed(snapshot: Snapshot) -> int:
    return snapshot.backlog if snapshot.envelopes is None else snapshot.envelopes


def _connections(snapshot: Snapshot, role: str, *, inbound: bool) -> int:
    """TCP connections of `role`, whatever their state: from one of the target's own ports, or from any other."""
    listening = listening_ports(snapshot)
    return sum(
        (descriptor.local.rpartition(":")[2] in listening) == inbound
        for process in snapshot.processes
        if process.role == role
        for descriptor in process.descriptors
        if descriptor.kind == "tcp" and descriptor.peer
    )


def _certain(gauge: Gauge, direction: Direction) -> bool:
    if direction == "down":
        return min(gauge.values) < 0
    return gauge.stuck and gauge.unexplained[-1] > 0


def _tested(record: RunRecord, gauge: Gauge, rate: Rate, visible: float, *, leaks: bool) -> Tested:
    return Tested(
        resource="counter",
        label=gauge.name,
        role=gauge.role,
        metric="gauge",
        verdict="leak" if leaks else "clean",
        unit=record.judgement.unit,
        rate=rate.per_unit,
        low=rate.low,
        high=rate.high,
        smallest_visible=visible,
    )


def _finding(record: RunRecord, judged: Rests, gauge: Gauge, direction: Direction, confidence: float) -> Finding:
    moved = gauge.lasting(direction)
    # What got stuck in the warm-up and stays so has not moved since.
    count, unit = sum(moved) or abs(gauge.unexplained[-1]), record.judgement.unit
    rate = rate_of(moved, [rest.units for rest in judged.judged])
    table = [(rest, by) for rest, by in zip(judged.judged, moved, strict=True) if rest.phase == "count"]
    first = next((rest.dose for rest, by in zip(judged.judged, moved, strict=True) if by), judged.judged[0].dose)
    pids = {process.pid for process in judged.judged[-1].snapshot.processes if process.role == gauge.role}
    return Finding(
        resource="counter",
        kind="gauge" if direction == "up" else "underflow",
        label=gauge.name,
        role=gauge.role,
        pids=sorted(pids) if gauge.role else [],
        count=count,
        unit=unit,
        rate=rate.per_unit,
        low=rate.low,
        high=rate.high,
        confidence=confidence,
        first_dose=first,
        examples=[f"{gauge.name} by rest: {' '.join(map(str, gauge.values))}"],
        dose_units=[rest.units for rest, _ in table],
        survivors=[by for _, by in table],
        message=_message(gauge, direction, count, judged, unit),
        advice=_advice(gauge, direction),
    )


def _message(gauge: Gauge, direction: Direction, count: int, judged: Rests, unit: str) -> str:
    who, name, last = gauge.role or "the target", gauge.name, gauge.values[-1]
    of = f"{count} in {judged.units} {plural(unit)}"
    truth = judged.judged[-1].snapshot
    if name == SCHEDULED and truth.envelopes is not None:
        than = f"{last} by {name}, {truth.envelopes} on disk"
        more = "more" if direction == "up" else "fewer"
        return f"{who} counts {more} envelopes than are on disk: {than}, {of}"
    if direction == "down":
        below = "below zero" if min(gauge.values) < 0 else "below where it began"
        return f"{who}'s {name} falls {below}, to {last}: {of}"
    if gauge.stuck:
        return f"{who}'s {name} is stuck at {last} though nothing moves: {of}"
    return f"{who}'s {name} goes up with the work and does not come back, to {last}: {of}"


def _advice(gauge: Gauge, direction: Direction) -> str:
    name = gauge.name
    if name == SCHEDULED:
        return "Look at what tells the scheduler of an envelope's end, and at what becomes of one that is never told."
    if direction == "down":
        return f"Look for an end that counts {name} down twice: an error path that falls through to the usual one."
    return f"Look for an end that does not count {name} down: refusal, time-out, a peer that is gone, a failed start."

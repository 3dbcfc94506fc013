"""footprint: what a unit of work costs between processes, and what a queued envelope costs in memory.

Owns: the measurement (`measure`), and two limits beyond which it is a finding (`judge`). Never: judges growth with the
work; that is `growth`.

Messages between processes are weighed by pair and kind over the judged doses. The weight is bytes for each message,
or for each envelope that was scheduled where there were more of these: one message may rightly tell of a thousand
envelopes. Kinds that carry mail itself are as large as the mail, and have no limit. Neither have talks with control,
which are our own questions. In clean runs the heaviest is SUBMIT_ENVELOPE with 246 to 259 bytes, then DELIVER with 239
to 251; an envelope whose every field is as long as RFC 5321 allows has some 1,400. An MTA that sends its whole
envelope structure each time (OpenSMTPD before 2013: 8.5 KB) is far above the limit of 4,096.

Memory for each queued envelope is the slope of a role's level over the envelopes on disk, at the judged rests of a run
whose queue differs by at least 100 from rest to rest. Measured on the embedded target, a backlog of 1,352 in a
quick run: 640 bytes and exactly 6 Python objects in scheduler, 680 bytes in queue, 80 to 170 and no object in every
other role, which is what high-water marks leave in so short a run (under 16 in benchmarks/footprint.py's long one).
Beyond 4,096 bytes with 95 % confidence is a finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.detectors.quantiles import TWO_SIDED, student_quantile
from harness.detectors.rests import Rests, rests
from harness.detectors.slopes import line
from harness.detectors.wording import plural
from reports.record import Finding, Footprint, Process, QueuedFootprint, RunRecord, Snapshot, TrafficFootprint

BYTES_EACH = 4096  # a message of one kind, on one pair
MESSAGES = 20  # of a kind in a run, before their mean is judged
BYTES_QUEUED = 4096  # of memory in one role, for each queued envelope
LEAST_QUEUED = 100  # envelopes between the emptiest and the fullest rest
LEAST_RESTS = 4
CERTAIN = 1.0
PAGE_BYTES = 4096
MAIL = frozenset({"COMMIT_MESSAGE", "FILTER_DATA"})  # kinds of message that carry mail
CONTROL = "control"
ENVELOPES = "scheduler.envelope.incoming"  # a total


def measure(record: RunRecord) -> Footprint:
    """What the judged doses cost; empty lists for what the target does not tell or the run did not do."""
    judged = rests(record)
    return Footprint(list(_queued(judged)), list(_traffic(judged)))


def judge(record: RunRecord) -> list[Finding]:
    """Messages that are too heavy, then roles that keep too much for each queued envelope."""
    judged = rests(record)
    unit = record.judgement.unit
    findings = [_too_heavy(each, judged, unit) for each in _traffic(judged) if _is_too_heavy(each, judged.units)]
    for each in _queued(judged):
        if each.metric == "private dirty" and each.low > BYTES_QUEUED:
            findings.append(_too_large(each, judged))
    return findings


def _traffic(judged: Rests) -> Iterator[TrafficFootprint]:
    if not judged.judged or not judged.units:
        return
    first, last = judged.baseline, judged.judged[-1].snapshot
    before = {(each.sender, each.receiver, each.kind): each for each in first.traffic}
    envelopes = last.counters.get(ENVELOPES, 0) - first.counters.get(ENVELOPES, 0)
    for now in last.traffic:
        if CONTROL in (now.sender, now.receiver):
            continue
        then = before.get((now.sender, now.receiver, now.kind))
        messages = now.messages - (then.messages if then else 0)
        size_bytes = now.bytes - (then.bytes if then else 0)
        if messages <= 0:
            continue
        yield TrafficFootprint(
            now.sender,
            now.receiver,
            now.kind,
            messages_per_unit=messages / judged.units,
            bytes_per_unit=size_bytes / judged.units,
            bytes_each=size_bytes / max(messages, envelopes),
        )


def _is_too_heavy(each: TrafficFootprint, units: int) -> bool:
    enough = each.messages_per_unit * units >= MESSAGES
    return enough and each.kind not in MAIL and each.bytes_each > BYTES_EACH


def _queued(judged: Rests) -> Iterator[QueuedFootprint]:
    snapshots = [judged.baseline, *(rest.snapshot for rest in judged.judged)]
    queued = [_envelopes(snapshot) for snapshot in snapshots]
    if len(snapshots) < LEAST_RESTS or max(queued) - min(queued) < LEAST_QUEUED:
        return
    for role in sorted({process.role for process in judged.judged[-1].snapshot.processes}):
        by_rest = [[process for process in snapshot.processes if process.role == role] for snapshot in snapshots]
        for metric, step in (("private dirty", PAGE_BYTES), ("python objects", 1)):
            level = [_level(processes, metric) for processes in by_rest]
            if all(level):
                yield _per_envelope(role, metric, queued, level, step)


def _level(processes: Sequence[Process], metric: str) -> int:
    """0 where it is not known of every process."""
    if metric == "private dirty":
        found = [process.memory.private_dirty for process in processes]
    else:
        found = [process.agent.blocks if process.agent else 0 for process in processes]
    return sum(found) if all(found) else 0


def _per_envelope(role: str, metric: str, queued: Sequence[int], level: Sequence[int], step: float) -> QueuedFootprint:
    fitted, _ = line(queued, level, step)
    half = student_quantile((1 + TWO_SIDED) / 2, fitted.freedom) * fitted.error
    return QueuedFootprint(role, metric, fitted.per_unit, fitted.per_unit - half, fitted.per_unit + half)


def _envelopes(snapshot: Snapshot) -> int:
    return snapshot.backlog if snapshot.envelopes is None else snapshot.envelopes


def _too_heavy(each: TrafficFootprint, judged: Rests, unit: str) -> Finding:
    label = f"imsg {each.sender} -> {each.receiver} {each.kind}"
    per_unit = f"{each.messages_per_unit:.3g} for each {unit}"
    return Finding(
        resource="memory",
        kind="footprint",
        label=label,
        role=each.sender,
        count=math.ceil(each.bytes_each),
        unit=unit,
        rate=each.bytes_per_unit,
        low=each.bytes_per_unit,
        high=each.bytes_per_unit,
        confidence=CERTAIN,
        first_dose=judged.judged[0].dose,
        message=(
            f"{each.sender} sends {each.receiver} {each.bytes_each:,.0f} bytes in each {each.kind}, {per_unit}; "
            f"more than {BYTES_EACH:,} is too much"
        ),
        advice="Send what the other side needs, in a form of variable length: not a whole structure with its buffers.",
    )


def _too_large(each: QueuedFootprint, judged: Rests) -> Finding:
    return Finding(
        resource="memory",
        kind="footprint",
        label="private memory for each queued envelope",
        role=each.role,
        count=math.ceil(each.each),
        unit="queued envelope",
        rate=each.each,
        low=each.low,
        high=each.high,
        confidence=TWO_SIDED,
        first_dose=judged.judged[0].dose,
        message=(
            f"{each.role} takes {each.each:,.0f} bytes of memory for each of the queued {plural('envelope')}; "
            f"more than {BYTES_QUEUED:,} is too much"
        ),
        advice=f"Look at what {each.role} keeps of an envelope until it is tried; its text is on disk too.",
    )

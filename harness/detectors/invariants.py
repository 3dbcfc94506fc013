"""invariants: what must hold whatever the dose: nobody dies, no session is broken off, no mail is lost or doubled,
everything comes to rest.

Owns: findings that need no statistics. Never: judges what is kept.
"""

from __future__ import annotations

from collections import Counter

from harness.detectors.identities import Identity, sightings
from harness.detectors.quantiles import binomial_interval
from harness.detectors.rests import rests
from harness.detectors.wording import quantity
from reports.record import Finding, Incident, RunRecord, Snapshot

MAX_EXAMPLES = 5
CERTAIN = 1.0
GAUGES = ("session", "inflight", "running", "task", "relay", "connector", "due", "pending", "active")


def judge(record: RunRecord) -> list[Finding]:
    """Deaths first, then broken sessions, lost and duplicated mail, then a target that did not come to rest."""
    return _died(record) + _broken_off(record) + _mail(record) + _restless(record)


def _died(record: RunRecord) -> list[Finding]:
    by_role: dict[str, list[Incident]] = {}
    for incident in record.incidents:
        if incident.kind == "died":
            by_role.setdefault(incident.role or "the target", []).append(incident)
    findings = []
    for role, incidents in by_role.items():
        texts = list(dict.fromkeys(incident.text for incident in incidents))
        first = texts[0] if texts[0].startswith(role) else f"{role} died: {texts[0]}"
        times = f" ({len(incidents)} times)" if len(incidents) > 1 else ""
        findings.append(
            Finding(
                resource="process",
                kind="died",
                label=f"{role} died",
                role=role,
                pids=sorted({incident.pid for incident in incidents if incident.pid}),
                count=len(incidents),
                unit=record.judgement.unit,
                confidence=CERTAIN,
                first_dose=_dose_of(record, incidents[0]),
                examples=texts[:MAX_EXAMPLES],
                message=f"{first}{times}",
                advice="Its last words are in the target's log, in the run's directory.",
            )
        )
    return findings


def _broken_off(record: RunRecord) -> list[Finding]:
    """Sessions that the server ended though it had been content with all that was said in them."""
    findings = []
    for incident in record.incidents:
        if incident.kind == "broken-off":
            who, sessions = incident.role or "the target", quantity(incident.count, "session")
            findings.append(
                Finding(
                    resource="socket",
                    kind="broken-off",
                    label="sessions broken off",
                    role=incident.role,
                    pids=[incident.pid] if incident.pid else [],
                    count=incident.count,
                    unit="session",
                    confidence=CERTAIN,
                    first_dose=_dose_of(record, incident),
                    examples=[incident.text],
                    message=f"{who} broke off {sessions} in the middle, without a 421",
                    advice="Look for a descriptor closed twice, or by another than its owner; and for a crash.",
                )
            )
    return findings


def _mail(record: RunRecord) -> list[Finding]:
    findings = []
    accepted = max(record.work.accepted, len(record.mail))
    lost = [message_id for message_id, fate in record.mail.items() if fate == "lost"]
    for kind, count, examples, what, advice in (
        (
            "lost",
            max(record.work.lost, len(lost)),
            lost,
            "lost: neither delivered nor bounced nor in the spool",
            "Search the target's log for these Message-IDs; look at what is removed before the remote MX has answered.",
        ),
        (
            "duplicated",
            record.work.duplicated,
            [],
            "delivered more than once to the same recipient",
            "Look at what happens between the 250 of the remote MX and the removal of the envelope.",
        ),
    ):
        if count == 0:
            continue
        trials = max(accepted, count)
        low, high = binomial_interval(count, trials)
        findings.append(
            Finding(
                resource="mail",
                kind=kind,
                label=f"{kind} mail",
                count=count,
                unit="accepted message",
                rate=count / trials,
                low=low,
                high=high,
                confidence=CERTAIN,
                examples=examples[:MAX_EXAMPLES],
                message=f"{count} of {trials} accepted messages {'was' if count == 1 else 'were'} {what}",
                advice=advice,
            )
        )
    return findings


def _restless(record: RunRecord) -> list[Finding]:
    doses = [index for index, dose in enumerate(record.doses) if not dose.rested]
    incidents = [incident for incident in record.incidents if incident.kind == "restless"]
    if not doses and not incidents:
        return []
    first = doses[0] if doses else _dose_of(record, incidents[0])
    still: list[str] = []
    pids: list[int] = []
    if doses:
        still, pids = _still_open(rests(record).baseline, record.doses[first].snapshot)
    said = [incident.text for incident in incidents]
    what = f" ({', '.join(still)})" if still else ""
    return [
        Finding(
            resource="task" if still else "process",
            kind="restless",
            label="did not come to rest",
            role=incidents[0].role if incidents else "",
            pids=pids,
            count=max(1, len(doses)),
            unit=record.judgement.unit,
            confidence=CERTAIN,
            first_dose=first,
            examples=(said + still)[:MAX_EXAMPLES],
            message=f"the target did not come to rest after dose {first + 1}{what}",
            advice="Look at what waits without a time-out; `seatbelt fds PID` shows what is open.",
        )
    ]


def _still_open(baseline: Snapshot, snapshot: Snapshot) -> tuple[list[str], list[int]]:
    """What is there beyond the baseline, in words, and who holds it: backlog, daemon counters, connections."""
    still: list[str] = []
    if snapshot.backlog > baseline.backlog:
        still.append(f"{snapshot.backlog} envelopes in the backlog")
    for name, value in snapshot.counters.items():
        if name.rpartition(".")[2] in GAUGES and value > baseline.counters.get(name, 0):
            still.append(f"{name} {value}")
    known: set[Identity] = {identity for identity, _ in sightings(baseline)}
    new = [
        seen
        for identity, seen in sightings(snapshot)
        if identity not in known and seen.key.resource == "socket" and not seen.key.label.endswith("/LISTEN")
    ]
    connections = Counter((seen.key.role, seen.key.label) for seen in new)
    still += [f"{count} {label} in {role}" for (role, label), count in connections.most_common()]
    return still, sorted({seen.pid for seen in new})


def _dose_of(record: RunRecord, incident: Incident) -> int:
    """Index of the dose that an incident belongs to; the one under way when it does not say."""
    if incident.dose >= 0:
        return incident.dose
    finished = [index for index, dose in enumerate(record.doses) if dose.began <= incident.at]
    return finished[-1] if finished else 0

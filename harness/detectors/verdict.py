"""verdict: leak over inconclusive over clean.

Owns: the order in which judgements merge, and the reasons for having none. Never: looks at evidence itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.detectors import balance, footprint, growth, identities, invariants
from harness.detectors.rests import rests
from reports.record import Finding, Promise, RunRecord, Tested, Verdict

LEAST_DOSES = 2  # one dose cannot show that something grows with the work
PROMISED = {  # fields of Work whose names do not read well
    "messages_per_session_in": "messages per inbound session",
    "messages_per_session_out": "messages per outbound session",
    "sessions_out": "outbound sessions",
    "messages_out": "outbound transactions",
}


@dataclass(frozen=True)
class Judged:
    verdict: Verdict
    findings: list[Finding] = field(default_factory=list)
    tested: list[Tested] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # why inconclusive, one sentence each; empty otherwise
    decided: bool = True  # another memory round could not change the verdict


def judge(record: RunRecord) -> Judged:
    """The verdict on what has been recorded so far. Pure: the same record gives the same verdict.

    Any finding makes it "leak"; else any reason not to trust the run makes it "inconclusive": work that was promised
    and not done, an interrupt, a broken load, what the probe could not see, memory that could not be decided. What is
    counted may be in doubt as long as there are rounds, because its evidence holds at any time.
    """
    kept = identities.judge(record)
    counters = balance.judge(record)
    memory = growth.judge(record)
    findings = invariants.judge(record) + kept.findings + counters.findings + memory.findings + footprint.judge(record)
    tested = kept.tested + counters.tested + memory.tested
    decided = kept.decided and counters.decided and memory.decided
    if findings:
        return Judged("leak", findings, tested, decided=decided)
    reasons = _untrustworthy(record) + memory.reasons
    return Judged("inconclusive" if reasons else "clean", [], tested, reasons, decided)


def conclude(record: RunRecord) -> None:
    """Judge it as it is now, and write the judgement into it."""
    judged = judge(record)
    record.verdict, record.findings = judged.verdict, judged.findings
    record.tested, record.reasons = judged.tested, judged.reasons


def _untrustworthy(record: RunRecord) -> list[str]:
    """Why "nothing was found" would prove nothing."""
    reasons = [incident.text for incident in record.incidents if incident.kind in ("interrupted", "target")]
    failed = [f"the load failed: {incident.text}" for incident in record.incidents if incident.kind == "load"]
    reasons += failed
    reasons += [f"the remote MX failed: {each.text}" for each in record.incidents if each.kind == "remote-mx"]
    if record.doses or not record.was_interrupted:  # else nobody had the time to keep a promise
        broken = [promise for promise in record.promises if promise.measured < promise.at_least]
        # A load that failed was also too little, which tells nothing new.
        reasons += [_broken(promise) for promise in broken if _is_ratio(promise) or not failed]
    judged = rests(record)
    if len(judged.pools()) < LEAST_DOSES:
        reasons.append(f"judged doses: {len(judged.pools())}; a leak needs {LEAST_DOSES} to show")
    elif judged.units == 0:
        reasons.append(f"the judged doses did no work: not one {record.judgement.unit}")
    elif not any(rest.snapshot.processes for rest in judged.judged):
        reasons.append("no process of the target was seen")
    unseen = sorted({text for rest in judged.judged for text in rest.snapshot.unreadable})
    reasons += [f"not permitted to see everything: {text}" for text in unseen]
    return reasons


def _is_ratio(promise: Promise) -> bool:
    return "per" in promise.what.split("_")


def _broken(promise: Promise) -> str:
    """``the scenario promises at least 20 messages per session out; there were 1.0: advice``."""
    what = PROMISED.get(promise.what, promise.what.replace("_", " "))
    # A ratio is told with its decimal, a count without.
    measured = f"{promise.measured:.1f}" if _is_ratio(promise) else f"{promise.measured:g}"
    were = "was" if measured == "1" else "were"
    text = f"the scenario promises at least {promise.at_least:g} {what}; there {were} {measured}"
    return f"{text}: {promise.advice}" if promise.advice else text

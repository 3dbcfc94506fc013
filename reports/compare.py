"""compare: two records of one scenario: what leaks more, what leaks less, what is new, what is gone, what costs more.

Owns: which finding is the same in both, and when a rate or a footprint has changed. Pure. Never: opens files.

A finding is the same when resource, kind, role and label are. Its rate has changed when the two 95 % intervals do not
meet and it differs by more than a tenth. A footprint in memory has grown by the same rule. Messages between processes
have no interval: between clean runs of rejected-reuse with other seeds no kind's bytes for each message differed by
more than 5 bytes, so growth beyond a quarter and beyond 16 bytes counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reports.record import Finding, RunRecord, Verdict

RATE_TOLERANCE = 0.1
TRAFFIC_TOLERANCE = 0.25
TRAFFIC_BYTES = 16.0  # less is noise, whatever the share

Change = Literal["new", "more", "same", "less", "gone", "unknown"]
Key = tuple[str, str, str, str]  # resource, kind, role, label


class Incomparable(Exception):
    """The records are of different things; the text says which."""


@dataclass(frozen=True)
class Pair:
    """One finding in both records, or in one of them."""

    change: Change
    old: Finding | None
    new: Finding | None

    @property
    def finding(self) -> Finding:
        found = self.new or self.old
        assert found is not None
        return found


@dataclass(frozen=True)
class Cost:
    """One footprint that both records have."""

    what: str
    old: float
    new: float
    unit: str
    grown: bool


@dataclass(frozen=True)
class Comparison:
    findings: list[Pair]
    costs: list[Cost]
    reasons: list[str]  # why nothing is proven, one sentence each

    def of(self, *changes: Change) -> list[Pair]:
        return [pair for pair in self.findings if pair.change in changes]

    @property
    def grown(self) -> list[Cost]:
        return [cost for cost in self.costs if cost.grown]

    @property
    def verdict(self) -> Verdict:
        """``leak`` when something is new or worse, ``inconclusive`` when the new run proves nothing."""
        if self.of("new", "more") or self.grown:
            return "leak"
        return "inconclusive" if self.reasons else "clean"


def key_of(finding: Finding) -> Key:
    return finding.resource, finding.kind, finding.role, finding.label


def compare(old: RunRecord, new: RunRecord) -> Comparison:
    """Raises Incomparable for records of different scenarios, targets or units of work."""
    for what, before, after in (
        ("scenario", old.scenario, new.scenario),
        ("target", old.target.name, new.target.name),
        ("unit of work", old.judgement.unit, new.judgement.unit),
    ):
        if before != after:
            raise Incomparable(
                f"the {what} of the old record is {before!r}, of the new one {after!r}: compare like runs"
            )
    reasons = [f"the new run: {reason}" for reason in new.reasons] if new.verdict == "inconclusive" else []
    if new.verdict == "inconclusive" and not reasons:
        reasons = ["the new run is inconclusive"]
    return Comparison(list(_findings(old, new)), list(_costs(old, new)), reasons)


def is_more(rate: float, low: float, than: float, than_high: float) -> bool:
    """Whether `rate`, which is at least `low`, is certainly above another."""
    return low > than_high and rate > than * (1 + RATE_TOLERANCE)


def _findings(old: RunRecord, new: RunRecord) -> Iterator[Pair]:
    before = {key_of(finding): finding for finding in old.findings}
    after = {key_of(finding): finding for finding in new.findings}
    for key, finding in after.items():
        was = before.get(key)
        yield Pair("new" if was is None else _change(was, finding), was, finding)
    for key, finding in before.items():
        if key not in after:
            yield Pair("unknown" if new.verdict == "inconclusive" else "gone", finding, None)


def _change(old: Finding, new: Finding) -> Change:
    if is_more(new.rate, new.low, old.rate, old.high):
        return "more"
    return "less" if is_more(old.rate, old.low, new.rate, new.high) else "same"


def _costs(old: RunRecord, new: RunRecord) -> Iterator[Cost]:
    queued = {(each.role, each.metric): each for each in old.footprint.queued}
    for now in new.footprint.queued:
        if (then := queued.get((now.role, now.metric))) is not None:
            noun = "objects" if now.metric == "python objects" else "bytes"
            grown = is_more(now.each, now.low, max(0.0, then.each), max(0.0, then.high))
            yield Cost(f"{now.role}, {now.metric}", then.each, now.each, f"{noun} for each queued envelope", grown)
    traffic = {(each.sender, each.receiver, each.kind): each.bytes_each for each in old.footprint.traffic}
    for sent in new.footprint.traffic if traffic else ():
        was = traffic.get((sent.sender, sent.receiver, sent.kind), 0.0)
        grown = sent.bytes_each > was * (1 + TRAFFIC_TOLERANCE) and sent.bytes_each - was > TRAFFIC_BYTES
        what = f"{sent.sender} -> {sent.receiver} {sent.kind}"
        yield Cost(what, was, sent.bytes_each, "bytes for each message", grown)

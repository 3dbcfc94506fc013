"""history: what is kept of a run for a comparison over many builds: one line of JSON. Pure.

Owns: which numbers of a record are kept, and which lines of a history are of the same kind. Never: opens files, judges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from reports.record import RunRecord, Verdict

Kind = tuple[str, str, str, str]  # scenario, target, defects, profile


class HistoryError(Exception):
    """A line that is none; says which and why."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run."""

    began: str  # ISO 8601, UTC
    build: str  # of the server, in the words of whoever ran it
    scenario: str
    target: str
    profile: str
    verdict: Verdict
    defects: list[str] = []
    kept: dict[str, float] = {}  # of what is counted: left behind for each unit of work, where it is anything
    costs: dict[str, float] = {}  # memory for each unit of work, and footprints, as far as measured

    @property
    def kind(self) -> Kind:
        """Only runs of the same kind are compared."""
        return self.scenario, self.target, " ".join(self.defects), self.profile


@dataclass(frozen=True)
class Series:
    """One number over the builds that have it."""

    name: str
    builds: list[str]
    values: list[float]


def entry(record: RunRecord, build: str) -> Entry:
    kept: dict[str, float] = {}
    costs: dict[str, float] = {}
    for tested in record.tested:
        name = f"{tested.role or 'spool'}: {tested.label} for each {tested.unit or record.judgement.unit}"
        if tested.metric == "survivors":
            if tested.rate > 0:
                kept[name] = tested.rate
        elif tested.resource == "memory" and tested.unit:
            costs[name] = tested.rate
    for queued in record.footprint.queued:
        costs[f"{queued.role}: {queued.metric} for each queued envelope"] = queued.each
    for sent in record.footprint.traffic:
        costs[f"{sent.sender} -> {sent.receiver} {sent.kind}: bytes for each message"] = sent.bytes_each
    return Entry(
        began=record.began,
        build=build,
        scenario=record.scenario,
        target=record.target.name,
        profile=record.judgement.profile,
        verdict=record.verdict,
        defects=record.target.defects,
        kept=kept,
        costs=costs,
    )


def line(entry: Entry) -> bytes:
    return msgspec.json.encode(entry) + b"\n"


def read(lines: Iterable[bytes]) -> list[Entry]:
    """Raises HistoryError."""
    decode = msgspec.json.Decoder(Entry).decode
    entries = []
    for number, text in enumerate(lines, 1):
        try:
            entries.append(decode(text))
        except (msgspec.DecodeError, RecursionError) as error:
            raise HistoryError(f"line {number}: not a run of a history: {error}") from error
    return entries


def kinds(entries: Iterable[Entry]) -> dict[Kind, list[Entry]]:
    """In the order of their first runs."""
    found: defaultdict[Kind, list[Entry]] = defaultdict(list)
    for each in entries:
        found[each.kind].append(each)
    return dict(found)


def series(entries: Sequence[Entry]) -> list[Series]:
    """Of runs of one kind. What a conclusive run did not see kept is 0; a cost that it did not measure is not there."""
    judged = [each for each in entries if each.verdict != "inconclusive"]
    names = sorted({name for each in judged for name in each.kept})
    found = [
        Series(name, [each.build for each in judged], [each.kept.get(name, 0.0) for each in judged]) for name in names
    ]
    for name in sorted({name for each in entries for name in each.costs}):
        having = [each for each in entries if name in each.costs]
        found.append(Series(name, [each.build for each in having], [each.costs[name] for each in having]))
    return found

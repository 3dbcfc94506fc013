"""baseline: findings that are known, and accepted until a day, in a TOML file that a person edits.

    [[accepted]]
    scenario = "rejected-reuse"
    target = "embedded"
    resource = "descriptor"
    kind = "file"
    role = "transfer"
    label = "message file (deleted)"
    rate = 0.996                # the most that is accepted, for each `unit`
    unit = "refused message"
    reason = "fixed in 6.9; ticket 123"
    until = 2026-12-31          # the last day on which it is accepted

Owns: the file, and what it accepts of a record. Never: knows what day it is; the caller says.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import tomlkit

from reports import output
from reports.compare import RATE_TOLERANCE, Key, key_of
from reports.record import Finding, RunRecord

HEAD = "Findings that are known. None fails until its day is over, or it leaks more than is accepted."


class BaselineError(Exception):
    """The file cannot be read or written; names the file, the key and what is wrong there."""


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    scenario: str
    target: str
    resource: str
    kind: str
    role: str = ""
    label: str
    rate: float
    unit: str
    reason: str
    until: datetime.date

    @property
    def key(self) -> Key:
        return self.resource, self.kind, self.role, self.label


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accepted: list[Accepted] = []


State = Literal["accepted", "expired", "worse", "unknown"]


@dataclass(frozen=True)
class Judged:
    """One finding, and the entry that is about it; days left are negative once it has expired."""

    finding: Finding
    state: State
    entry: Accepted | None = None
    days_left: int = 0


@dataclass(frozen=True)
class Ruling:
    findings: list[Judged]
    idle: list[Accepted]  # entries about this scenario and target that match nothing

    @property
    def failing(self) -> list[Judged]:
        return [judged for judged in self.findings if judged.state != "accepted"]


def load(path: Path) -> Baseline:
    """Raises BaselineError."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise BaselineError(f"{path}: cannot read the baseline: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: not TOML: {error}") from error
    try:
        found = msgspec.convert(data, Baseline)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise BaselineError(f"{path}: {where.strip('`$.') or 'top'}: {what}") from error
    for number, entry in enumerate(found.accepted):
        if not entry.reason.strip():
            raise BaselineError(f"{path}: accepted[{number}].reason: is empty; say why it is accepted")
        if entry.rate < 0:
            raise BaselineError(f"{path}: accepted[{number}].rate: is {entry.rate}; it must be at least 0")
    return found


def judge(baseline: Baseline, record: RunRecord, today: datetime.date) -> Ruling:
    """Each finding of `record`: accepted, expired, worse than was accepted, or unknown to the baseline."""
    about = [
        entry for entry in baseline.accepted if (entry.scenario, entry.target) == (record.scenario, record.target.name)
    ]
    entries = {entry.key: entry for entry in about}
    met = {key_of(finding) for finding in record.findings}
    judged = [_judged(finding, entries.get(key_of(finding)), today) for finding in record.findings]
    return Ruling(judged, [entry for entry in about if entry.key not in met])


def _judged(finding: Finding, entry: Accepted | None, today: datetime.date) -> Judged:
    if entry is None or entry.unit != finding.unit:
        return Judged(finding, "unknown")
    left = (entry.until - today).days
    if left < 0:
        return Judged(finding, "expired", entry, left)
    # Certainly worse: the whole interval lies above what was accepted, and by more than a tenth.
    if finding.low > entry.rate and finding.rate > entry.rate * (1 + RATE_TOLERANCE):
        return Judged(finding, "worse", entry, left)
    return Judged(finding, "accepted", entry, left)


def accept(path: Path, record: RunRecord, findings: Sequence[Finding], reason: str, until: datetime.date) -> None:
    """Write entries for `findings` of `record`, in the place of what was there about them; comments stay.

    Raises BaselineError.
    """
    if path.exists():
        load(path)
        document = tomlkit.parse(path.read_text())
    else:
        document = tomlkit.document()
        document.add(tomlkit.comment(HEAD))
    tables = document.setdefault("accepted", tomlkit.aot())
    for finding in findings:
        entry = {
            "scenario": record.scenario,
            "target": record.target.name,
            "resource": finding.resource,
            "kind": finding.kind,
            "role": finding.role,
            "label": finding.label,
            "rate": float(f"{max(finding.rate, finding.high):.4g}"),
            "unit": finding.unit,
            "reason": reason,
            "until": until,
        }
        same = ("scenario", "target", "resource", "kind", "role", "label")
        for table in tables:
            if all(table.get(name, "") == entry[name] for name in same):
                table.update(entry)
                break
        else:
            table = tomlkit.table()
            table.update(entry)
            tables.append(table)
    try:
        output.write(path, tomlkit.dumps(document).encode())
    except OSError as error:
        raise BaselineError(f"{path}: cannot write the baseline: {error.strerror}") from error

"""comparing: `seatbelt compare`, and what `seatbelt run --baseline` adds to a run's report."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime
from pathlib import Path

from rich.console import Console

from reports import baseline as baselines
from reports.baseline import Baseline, BaselineError, Ruling
from reports.compare import Comparison, Incomparable, Pair, compare
from reports.record import Finding, RecordError, RunRecord, load
from reports.terminal import number

CLEAN, FINDING, USAGE, INCONCLUSIVE = 0, 1, 2, 3
STATUS = {"clean": CLEAN, "leak": FINDING, "inconclusive": INCONCLUSIVE}


def run(old: Path, new: Path, baseline: Path | None, reason: str | None, until: str | None) -> int:
    """Returns the exit status."""
    try:
        day = _day(reason, until, baseline)
        before, after = load(old), load(new)
        comparison = compare(before, after)
        if baseline is not None and reason is not None and day is not None:
            return _accept(baseline, after, reason, day)
        ruling = None if baseline is None else _ruling(baselines.load(baseline), after)
    except (RecordError, Incomparable, BaselineError, ValueError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    status = _status(comparison, ruling)
    console = Console(highlight=False, markup=False, emoji=False)
    word = {CLEAN: "NOT WORSE", FINDING: "WORSE", INCONCLUSIVE: "INCONCLUSIVE"}[status]
    console.print(f"{word}: {after.scenario} on {after.target.name}, {old} to {new}", style="bold", soft_wrap=True)
    for pair in comparison.findings:
        console.print(f"{pair.change:<9} {told(pair)}", soft_wrap=True)
    for cost in comparison.grown:
        text = f"{cost.what}: {number(cost.old)} to {number(cost.new)} {cost.unit}"
        console.print(f"{'costs':<9} {text}", soft_wrap=True)
    if not comparison.findings and not comparison.grown:
        console.print("no finding in either, and no footprint has grown")
    for why in comparison.reasons:
        console.print(f"{'unproven':<9} {why}", soft_wrap=True)
    if ruling is not None:
        _tell(console, ruling)
    return status


def settle(path: Path, record: RunRecord, *, quiet: bool) -> int:
    """The exit status of a run whose known findings are in the baseline `path`. Raises BaselineError."""
    ruling = _ruling(baselines.load(path), record)
    if not quiet:
        _tell(Console(highlight=False, markup=False, emoji=False), ruling)
    if ruling.failing:
        return FINDING
    return CLEAN if record.verdict == "leak" else STATUS[record.verdict]


def _ruling(baseline: Baseline, record: RunRecord) -> Ruling:
    return baselines.judge(baseline, record, datetime.now(UTC).date())


def _status(comparison: Comparison, ruling: Ruling | None) -> int:
    if ruling is None:
        return STATUS[comparison.verdict]
    state = {id(judged.finding): judged.state for judged in ruling.findings}
    failing = [pair for pair in comparison.of("new", "more") if state[id(pair.new)] != "accepted"]
    failing += [pair for pair in comparison.of("same", "less") if state[id(pair.new)] in ("expired", "worse")]
    if failing or comparison.grown:
        return FINDING
    return INCONCLUSIVE if comparison.reasons else CLEAN


def _accept(path: Path, record: RunRecord, reason: str, until: date) -> int:
    findings: list[Finding] = record.findings
    if path.exists():
        findings = [judged.finding for judged in _ruling(baselines.load(path), record).failing]
    if not findings:
        print("nothing to accept: no finding that the baseline does not accept already")
        return CLEAN
    baselines.accept(path, record, findings, reason, until)
    for finding in findings:
        print(f"accepted until {until}: {finding.message or finding.label}")
    return CLEAN


def _day(reason: str | None, until: str | None, baseline: Path | None) -> date | None:
    """Raises ValueError for options that do not go together."""
    if (reason is None) != (until is None):
        raise ValueError("--accept REASON and --until DATE go together")
    if reason is None or until is None:
        return None
    if baseline is None:
        raise ValueError("--accept needs --baseline FILE, where it is written")
    if not reason.strip():
        raise ValueError("--accept: the reason is empty; say why it is accepted")
    try:
        day = date.fromisoformat(until)
    except ValueError as error:
        raise ValueError(f"--until {until}: not a date; write it as 2027-01-31") from error
    if day < datetime.now(UTC).date():
        raise ValueError(f"--until {until}: that day is over, and nothing would be accepted")
    return day


def told(pair: Pair) -> str:
    """One finding of a comparison, in a line."""
    what = pair.finding.message or pair.finding.label
    if pair.old is None or pair.new is None or pair.new.high <= 0:
        return what
    return f"{what} (rate {number(pair.old.rate)} to {number(pair.new.rate)} for each {pair.new.unit})"


def _tell(console: Console, ruling: Ruling) -> None:
    for judged in ruling.findings:
        what = judged.finding.message or judged.finding.label
        if judged.entry is None:
            console.print(f"not accepted: {what}", soft_wrap=True)
            continue
        told = {
            "accepted": f"accepted for {judged.days_left} more days",
            "expired": f"acceptance expired on {judged.entry.until}",
            "worse": f"worse than the accepted {number(judged.entry.rate)}",
        }[judged.state]
        console.print(f"{told}: {what} ({judged.entry.reason})", soft_wrap=True)
    for entry in ruling.idle:
        role = f" in {entry.role}" if entry.role else ""
        console.print(f"accepted, and not seen: {entry.label}{role}; take it out of the baseline", soft_wrap=True)

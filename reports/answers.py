"""answers: what a reader wants to know of a finding before all else: what, where, how much, since when, opened where.

Owns: the words. Pure. Never: judges.
"""

from __future__ import annotations

from reports import terminal
from reports.record import Finding, RunRecord

MADE = {"memory": "Made at", "process": "Started at", "thread": "Started at"}


def answers(record: RunRecord, finding: Finding) -> list[tuple[str, str]]:
    """Question and answer; only questions that have one."""
    found = [
        ("What", finding.label),
        ("Where", _where(finding)),
        ("How much", how_much(finding)),
        ("Since when", since(record, finding)),
        (opened(finding), finding.opened_at[0] if finding.opened_at else ""),
    ]
    return [(question, answer) for question, answer in found if answer]


def opened(finding: Finding) -> str:
    """What the lines of `opened_at` are of this resource."""
    return MADE.get(finding.resource, "Opened at")


def further(finding: Finding) -> str:
    """What the lines after the first are: of memory other places, else whoever called."""
    return "Also made at" if finding.resource == "memory" else "Called from"


def how_much(finding: Finding) -> str:
    """``0.987 for each refused message (95 % interval 0.966 to 0.996)``; empty for what has no rate."""
    if finding.high <= 0:
        return ""
    interval = f"95 % interval {terminal.number(finding.low)} to {terminal.number(finding.high)}"
    return f"{terminal.number(finding.rate)} for each {finding.unit} ({interval})"


def since(record: RunRecord, finding: Finding) -> str:
    """``dose 3 of 6, the first that was judged, after 40 refused messages, 1.2 s into the run``."""
    told = f"dose {finding.first_dose + 1} of {len(record.doses)}"
    if not is_kept(finding) or finding.first_dose >= len(record.doses):
        return f"in {told}"
    before = record.doses[: finding.first_dose]
    is_first = all(dose.phase == "warm-up" for dose in before)
    work = terminal.quantity(sum(dose.units for dose in before), record.judgement.unit)
    began_s = record.doses[finding.first_dose].began
    return f"{told}{', the first that was judged' if is_first else ''}, after {work}, {began_s:.1f} s into the run"


def lifetime(record: RunRecord, finding: Finding) -> str:
    """How long what is kept has been kept: nothing of it was let go of at any later rest. Empty for what is not kept,
    and for memory, whose bytes have no age.
    """
    rests = [dose for dose in record.doses[finding.first_dose :] if dose.rested]
    if not rests or not is_kept(finding) or finding.resource in ("memory", "counter", "mail"):
        return ""
    held_s = rests[-1].snapshot.taken - rests[0].ended
    return (
        f"{finding.count:,} at the last rest, none of them let go of; the oldest held for {max(0.0, held_s):.1f} s "
        f"through {terminal.quantity(len(rests), 'rest')}"
    )


def is_kept(finding: Finding) -> bool:
    """A death and lost mail are kept by nobody."""
    return finding.kind not in terminal.NOT_KEPT


def _where(finding: Finding) -> str:
    pids = f" (pid {terminal.some(finding.pids)})" if finding.pids else ""
    return f"{finding.role}{pids}" if finding.role else ""

"""outcome: one run compared with the truth. Pure, but for reading the source that an opener's name points into."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

from harness.run.attribution import is_attributable
from harness.score.cases import Case
from harness.score.rules import RULES
from mta_under_test.defects import Defect
from reports.record import Finding, RunRecord
from reports.score import Row

HOME = Path(__file__).resolve().parents[2]
NOBODYS = frozenset({"mail", "file"})  # resources whose findings name no process
_LINE = re.compile(r"^(?P<path>\S+?):(?P<line>\d+)")


def row(case: Case, record: RunRecord, seconds: float) -> Row:
    """`seconds`: of the whole run, from the start of the command to its end."""
    defect = case.defect
    found = _blank(case)
    found.verdict = record.verdict
    found.seconds = seconds
    found.verdict_s = record.doses[-1].snapshot.taken if record.doses else 0.0
    found.sessions = record.work.sessions
    found.units = sum(dose.units for dose in record.doses)
    found.unit = record.judgement.unit
    found.reasons = record.reasons
    found.rules = {name: rule(record) for name, rule in RULES.items()}
    told = record.findings[0] if record.findings else None
    if defect is not None and record.findings:
        right = [finding for finding in record.findings if _is_right(finding, defect)]
        found.right = bool(right)
        told = right[0] if right else told
        if told is not None and defect.opener and right and is_attributable(told):
            found.attributed = bool(told.opened_at) and _points_at(told.opened_at[0], defect.opener)
    if told is not None:
        found.by = f"{told.resource}: {told.label}{f' in {told.role}' if told.role else ''}"
        found.rate, found.low, found.high = told.rate, told.low, told.high
        found.opened_at = told.opened_at
    return found


def failed(case: Case, text: str, seconds: float) -> Row:
    """A run that gave no record."""
    found = _blank(case)
    found.seconds, found.reasons = seconds, [text]
    return found


def _blank(case: Case) -> Row:
    defect = case.defect
    if defect is None:
        return Row(name=case.name, kind="clean", scenario=case.scenario, profile=case.profile, seed=case.seed)
    return Row(
        name=case.name,
        kind=defect.difficulty,
        scenario=case.scenario,
        profile=case.profile,
        seed=case.seed,
        chapter=defect.chapter,
        role=defect.role,
        resources=list(defect.resources),
        true_rate=defect.rate,
        opener=defect.opener,
    )


def _is_right(finding: Finding, defect: Defect) -> bool:
    """The right resource, in the right process where the finding names one."""
    role = finding.role == defect.role or finding.resource in NOBODYS or not finding.role
    return role and finding.resource in defect.resources


def _points_at(line: str, opener: str) -> bool:
    """Whether ``path:212 in message_fd (queue)`` lies in one of `path:function`, or `path` if it names no function."""
    match = _LINE.match(line)
    if match is None:
        return False
    places = [place.partition(":")[::2] for place in opener.split() if place.partition(":")[0] == match["path"]]
    return any(
        not function or any(first <= int(match["line"]) <= last for first, last in _spans(path, function))
        for path, function in places
    )


@lru_cache(maxsize=256)
def _spans(path: str, function: str) -> list[tuple[int, int]]:
    """First and last lines of every function of that name."""
    tree = ast.parse((HOME / path).read_text())
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == function
    ]

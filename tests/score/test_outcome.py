"""A run against the truth: right process, right resource, right line; and which runs there are."""

from __future__ import annotations

import pytest

from harness.score import outcome
from harness.score.cases import Case, cases, haste
from mta_under_test import defects
from reports.record import Finding, RunRecord, TargetInfo
from reports.score import Row

LEAK = defects.load("transfer-fd-leak")
OPENED = "mta_under_test/spool/disk.py:{} in message_fd (queue)"


def judged(*findings: Finding) -> Row:
    verdict = "leak" if findings else "clean"
    record = RunRecord("rejected-reuse", TargetInfo("embedded"), verdict=verdict, findings=list(findings))
    return outcome.row(Case("rejected-reuse", "quick", 1, LEAK), record, 3.0)


def inside() -> int:
    """A line of the function that the truth names."""
    ((first, _),) = outcome._spans("mta_under_test/spool/disk.py", "message_fd")
    return first + 1


@pytest.mark.parametrize(
    ("finding", "right"),
    [
        (Finding("descriptor", "file", "message file", role="transfer"), True),
        (Finding("descriptor", "file", "message file", role="queue"), False),
        (Finding("memory", "objects", "Python objects", role="transfer"), False),
    ],
)
def test_a_finding_is_right_about_process_and_resource(finding: Finding, right: bool) -> None:
    row = judged(finding)
    assert (row.right, row.is_passed) == (right, right)
    assert row.by.startswith(f"{finding.resource}: {finding.label} in ")


def test_the_right_finding_counts_wherever_it_stands() -> None:
    wrong = Finding("memory", "objects", "Python objects", role="queue", rate=9.0)
    right = Finding("descriptor", "file", "message file", role="transfer", rate=0.9)
    row = judged(wrong, right)
    assert row.is_passed
    assert row.rate == 0.9


@pytest.mark.parametrize(("line", "right"), [(0, False), (None, True), (10_000, False)])
def test_the_opener_is_right_when_its_line_lies_in_the_function(line: int | None, right: bool) -> None:
    at = [OPENED.format(inside() if line is None else line), "elsewhere.py:1 in x (queue)"]
    assert judged(Finding("descriptor", "file", "m", role="transfer", opened_at=at)).attributed is right


def test_without_a_trace_the_opener_is_not_right() -> None:
    assert judged(Finding("descriptor", "file", "m", role="transfer")).attributed is False


def test_a_leak_that_is_not_found_is_no_pass_and_an_accused_innocent_neither() -> None:
    assert not judged().is_passed
    clean = Case("accepted", "quick", 1)
    accused = RunRecord("accepted", TargetInfo("embedded"), verdict="leak", findings=[Finding("file", "x", "y")])
    assert not outcome.row(clean, accused, 1.0).is_passed
    assert outcome.row(clean, RunRecord("accepted", TargetInfo("embedded"), verdict="clean"), 1.0).is_passed
    assert not outcome.failed(clean, "no port", 1.0).is_passed


def test_the_glob_chooses_defects_and_twins_and_the_long_ones_are_run_first() -> None:
    everything = cases(defects.every().values(), ["accepted", "connect-quit"], clean=2)
    names = [case.name for case in everything]
    assert {"transfer-fd-leak", "clean accepted 1", "clean connect-quit 2"} <= set(names)
    first = [case.name for case in sorted(everything, key=haste)]
    assert first.index("rarely-left-lock") < first.index("relay-object-leak") < first.index("transfer-fd-leak")
    assert first.index("clean connect-quit 2") < first.index("transfer-fd-leak")
    assert [case.name for case in cases([LEAK], ["accepted"], only="clean *")] == ["clean accepted 1"]
    assert [case.name for case in cases([LEAK], ["accepted"], only="transfer-*")] == ["transfer-fd-leak"]

"""junit: a run record as JUnit XML, one case for each invariant and for each role's resource.

Owns: which case a finding belongs to. Pure: the same record gives the same document. A finding is a failure; what keeps
the run from a verdict is an error of the case "the run proves something", so that no CI server shows it as passed.
The dialect is the one that Jenkins, GitLab and pytest share (testsuites, testsuite, testcase, failure, error).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from reports import terminal
from reports.record import Finding, RunRecord

PROOF = "the run proves something"
INVARIANTS = {  # kind of finding -> the case in which it is a failure
    "lost": "mail: every accepted message is delivered, bounced or queued",
    "duplicated": "mail: nobody gets a message twice",
    "died": "process: nobody dies",
    "restless": "process: the target comes to rest",
    "broken-off": "socket: nobody's session is broken off",
    "footprint": "memory: what a message costs",
}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 §2.2


def render(record: RunRecord) -> str:
    """The whole document, with its declaration."""
    cases = _cases(record)
    failures = sum(bool(findings) for findings in cases.values())
    errors = int(record.verdict == "inconclusive")
    seconds = max((dose.ended + dose.drained_s for dose in record.doses), default=0.0)
    numbers = {"tests": str(len(cases) + 1), "failures": str(failures), "errors": str(errors), "time": f"{seconds:.3f}"}
    suites = ET.Element("testsuites", numbers)
    name = f"seatbelt {record.scenario} on {record.target.name}"
    suite = ET.SubElement(
        suites, "testsuite", {"name": _clean(name), **numbers, "skipped": "0", "timestamp": record.began[:19]}
    )
    where = {"classname": _clean(f"seatbelt.{record.target.name}.{record.scenario}")}
    for told, findings in cases.items():
        case = ET.SubElement(suite, "testcase", {**where, "name": _clean(told), "time": "0"})
        if findings:
            failure = ET.SubElement(case, "failure", {"message": _clean(findings[0].message), "type": findings[0].kind})
            failure.text = _clean("\n\n".join(_text(finding) for finding in findings))
    proof = ET.SubElement(suite, "testcase", {**where, "name": PROOF, "time": f"{seconds:.3f}"})
    if errors:
        reasons = record.reasons or ["no reason was recorded"]
        error = ET.SubElement(proof, "error", {"message": _clean(reasons[0]), "type": "inconclusive"})
        error.text = _clean("\n".join(reasons))
    ET.SubElement(suite, "system-out").text = _clean(terminal.as_text(record))
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _cases(record: RunRecord) -> dict[str, list[Finding]]:
    """Every case with its findings: the invariants first, then what was tested, by role. Without mail there is no case
    about mail: nobody looked.
    """
    looked_at = [name for name in INVARIANTS.values() if record.work.accepted or not name.startswith("mail:")]
    cases: dict[str, list[Finding]] = {name: [] for name in looked_at}
    for tested in sorted(record.tested, key=lambda each: (each.role, each.resource)):
        cases.setdefault(_series(tested.role, tested.resource), [])
    for finding in record.findings:
        name = INVARIANTS.get(finding.kind) or _series(finding.role, finding.resource)
        cases.setdefault(name, []).append(finding)
    return cases


def _series(role: str, resource: str) -> str:
    return f"{role or 'target'}: {resource} is let go of"


def _text(finding: Finding) -> str:
    return "\n".join(_lines(finding))


def _lines(finding: Finding) -> Iterable[str]:
    yield finding.message
    if finding.high > 0:
        yield f"rate {terminal.number(finding.rate)} for each {finding.unit}, 95 % interval " + (
            f"{terminal.number(finding.low)} to {terminal.number(finding.high)}"
        )
    if finding.dose_units:
        yield "by dose " + " ".join(map(str, finding.dose_units))
        yield "left    " + " ".join(map(str, finding.survivors))
    yield from (f"example {text}" for text in finding.examples)
    yield from (f"opened at {text}" for text in finding.opened_at)
    if finding.advice:
        yield finding.advice


def _clean(text: str) -> str:
    """Without the characters that no XML document may have."""
    return _NOT_XML.sub("\ufffd", text)

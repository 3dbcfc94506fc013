"""markdown: a run record for a pull request or a job's summary, and as annotations of a GitHub workflow.

Owns: the words and the layout, in the dialect of GitHub and GitLab. Pure: the same record gives the same text. What
came from the target is shown as it is and never becomes markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reports import answers, terminal
from reports.record import Finding, RunRecord

SIGNS = {"leak": "❌", "clean": "✅", "inconclusive": "⚠️"}
MAX_STACK = 6
_PLACE = re.compile(r"(?P<file>[^:\s]+):(?P<line>\d+)\b")
_MARKUP = re.compile(r"([\\`*_\[\]#|<>~&$@])")


def render(record: RunRecord) -> str:
    """The whole text, which ends with a newline."""
    return "\n".join(_lines(record)) + "\n"


def workflow_commands(record: RunRecord) -> list[str]:
    """``::error file=…,line=…,title=…::…``, a line each (GitHub Actions, workflow commands)."""
    if record.verdict == "inconclusive":
        return [_command("warning", {"title": "Seatbelt: inconclusive"}, "\n".join(record.reasons))]
    return [
        _command("error", {**_place(finding), "title": f"Seatbelt: {record.scenario}"}, finding.message)
        for finding in record.findings
    ]


def _lines(record: RunRecord) -> Iterator[str]:
    yield f"### {SIGNS[record.verdict]} Seatbelt: {_escaped(str(terminal.headline(record)))}"
    yield ""
    yield _escaped(
        f"{record.scenario} on {record.target.name} {record.target.version}".rstrip()
        + (f" with {', '.join(record.target.defects)}" if record.target.defects else "")
        + f", profile {record.judgement.profile}, seed {record.seed}"
    )
    for number, finding in enumerate(record.findings, 1):
        yield ""
        yield from _finding(record, number, finding)
    if record.verdict == "inconclusive":
        yield ""
        yield from (f"- {_escaped(reason)}" for reason in record.reasons)
    yield ""
    yield "<details><summary>The whole report</summary>"
    yield ""
    yield from _fenced(terminal.as_text(record))
    yield ""
    yield "</details>"


def _finding(record: RunRecord, number: int, finding: Finding) -> Iterator[str]:
    who = f" in {finding.role}" if finding.role else ""
    yield f"**{number}. {_escaped(finding.resource)}: {_escaped(finding.label + who)}**"
    yield ""
    yield _escaped(finding.message)
    yield ""
    for label, told in (("How much", answers.how_much(finding)), ("Since when", answers.since(record, finding))):
        if told:
            yield f"- {label}: {_escaped(told)}"
    if finding.dose_units:
        yield ""
        yield f"| {_escaped(finding.unit)} | " + " | ".join(map(str, finding.dose_units)) + " |"
        yield "|---|" + "--:|" * len(finding.dose_units)
        yield "| left | " + " | ".join(map(str, finding.survivors)) + " |"
    if finding.opened_at:
        yield ""
        yield f"{answers.opened(finding)}{f' (told by {finding.traced_by})' if finding.traced_by else ''}:"
        yield from _fenced("\n".join(finding.opened_at[:MAX_STACK]))


def _fenced(text: str) -> Iterator[str]:
    """A block of code; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence, text.rstrip("\n"), fence)


def _escaped(text: str) -> str:
    """One line in which nothing is markup, a mention or HTML."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split())).replace("\\@", "&#64;").replace("\\<", "&lt;")


def _place(finding: Finding) -> dict[str, str]:
    for text in finding.opened_at:
        if (found := _PLACE.match(text)) is not None:
            return {"file": found["file"], "line": found["line"]}
    return {}


def _command(level: str, properties: dict[str, str], text: str) -> str:
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {told}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""dialog: sessions of a record as a dialogue that a person can read aloud: one line a thing said. Pure.

The format is that of this repository's own tests: `C:` a line sent, `C!` bytes sent (escapes, and ``{text*count}`` for
repetitions), `S:` the answer's code, `x` for any digit, `--` what else the client does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from reports.record import Conditions, PlannedSession, PlannedStep

MOST_PLAIN = 100  # characters of a line that is written as it is
LEAST_RUN = 8  # characters alike that are written as a repetition
MESSAGE_ID = "shrunk@sender.test"
_PLAIN = re.compile(rf"[ -~]{{0,{MOST_PLAIN}}}\r\n")
_RUN = re.compile(rf"(.)\1{{{LEAST_RUN - 1},}}", re.DOTALL)


def dialog(comments: Iterable[str], conditions: Conditions, sessions: Iterable[PlannedSession]) -> str:
    """The file's text. Sessions are made of steps, and end as they say."""
    lines = [f"# {comment}" for comment in (*comments, *_around(conditions))]
    for number, session in enumerate(sessions):
        if number:
            lines.append("-- reconnect")
        for step in session.steps:
            lines += _said(step)
        lines += {"quit": ["C: QUIT", "S: 2xx"], "fin": [], "rst": ["-- reset"], "silence": ["S: silence", "-- reset"]}[
            session.end
        ]
    return "\n".join(lines) + "\n"


def _around(conditions: Conditions) -> Iterator[str]:
    if conditions.refuses:
        gate = "; it greets nobody before the mail is there" if conditions.hold_backlog else ""
        yield f"The remote MX: {conditions.refuses}{gate}."
    if conditions.needs:
        yield f"The server needs {', '.join(conditions.needs)}."
    if conditions.operations:
        yield f"An operator meanwhile: {', '.join(conditions.operations)}."


def _said(step: PlannedStep) -> Iterator[str]:
    text = step.send.replace("{id}", MESSAGE_ID)
    size = step.piece_bytes or max(1, len(text))
    for start in range(0, max(1, len(text)), size):
        if step.pause_s:
            yield f"-- wait {step.pause_s:g}"
        yield from _sent(text[start : start + size])
    if step.expect:
        yield f"S: {step.expect if len(step.expect) == 1 else f'[{step.expect}]'}xx"
    if step.tls:
        yield "-- tls"


def _sent(text: str) -> Iterator[str]:
    """Line by line; lines alike as one."""
    for line, alike in groupby(text.splitlines(keepends=True)):
        count = sum(1 for _ in alike)
        if _PLAIN.fullmatch(line) and count < 3:
            yield from [f"C: {line[:-2]}".rstrip() if line == "\r\n" else f"C: {line[:-2]}"] * count
        elif count == 1:
            yield f"C! {_raw(line)}"
        else:
            yield f"C! {{{_raw(line)}*{count}}}"


def _raw(text: str) -> str:
    """``{s*62}\\r\\n``"""
    written, at = [], 0
    for run in _RUN.finditer(text):
        written += [_escaped(text[at : run.start()]), f"{{{_escaped(run[1])}*{len(run[0])}}}"]
        at = run.end()
    return "".join([*written, _escaped(text[at:])])


def _escaped(text: str) -> str:
    named = {"\r": "\\r", "\n": "\\n", "\t": "\\t", "\\": "\\\\", "{": "\\x7b", "}": "\\x7d", "*": "\\x2a"}
    return "".join(named.get(one, one if " " <= one <= "~" else f"\\x{ord(one):02x}") for one in text)

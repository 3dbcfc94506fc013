"""reproduction: a stand-alone script out of a record, that shows one finding again on any server.

Owns: which findings a script can show, the dialogue it holds, and its text. Pure. Never: opens files, runs anything.

The script counts from outside, so what only the server itself knows (its counters, tasks, lost mail) it cannot show;
nor memory, which is too noisy for three doses: `seatbelt run` escalates until it is sure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import jinja2

from reports.record import Conditions, Finding, PlannedMessage, PlannedSession, RunRecord

KEPT = 20  # of what leaks, in each dose
MOST_SESSIONS = 500  # of a dose
MOST_MESSAGES = 2  # of a session; more would only make the script longer
MOST_DIALOGUES = 12
WORDS = {"mail": "MAIL", "rcpt": "RCPT", "data": "DATA", "end": "END"}
LINKS = {"pipe": "pipe:", "eventpoll": "anon_inode:[eventpoll]", "eventfd": "anon_inode:[eventfd]"}
_REFUSAL = re.compile(r"(mail|rcpt|data|end)(?:@([\w.-]+))?=([45]\d\d)")

Steps = dict[str, tuple[bytes, str]]


class Irreproducible(Exception):
    """No script can show this; says why, and what can."""


def script(record: RunRecord, finding: Finding, name: str) -> str:
    """The text of the script, to be saved as `name`. Raises Irreproducible."""
    if not record.dialogue and not record.conditions.operations:
        raise Irreproducible("the record has no dialogue: it was written by an older Seatbelt; run it again")
    if record.conditions.operations or any(step.tls for each in record.dialogue for step in each.steps):
        raise Irreproducible(f"{record.scenario} needs more than a mail client (TLS, an operator): use `seatbelt run`")
    noun, counting = _counted(finding)
    refuses = _refuses(record.conditions)
    steps: Steps = {}
    sessions, units = _sessions(record.dialogue, steps)
    rate = finding.rate * units
    if rate <= 0 or KEPT / rate > MOST_SESSIONS:
        raise Irreproducible(f"{finding.label}: too rare for a script to be sure; use `seatbelt run --profile soak`")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    title = (finding.message or finding.label).replace("\\", "/").replace('"', "'")
    return environment.get_template("repro.py.jinja").render(
        title=title if title.endswith(".") else f"{title}.",
        scenario=record.scenario,
        target=" with ".join([record.target.name, *record.target.defects]),
        name=name,
        route="It must relay to 127.0.0.1 port N, where this script is the remote MX." if refuses else "",
        rate=f"{rate:.4g}",
        noun=noun,
        sessions=math.ceil(KEPT / rate),
        steps=[(word, _literal(send), expect) for word, (send, expect) in steps.items()],
        dialogue=sessions,
        refuses=repr(refuses).replace("'", '"') if refuses else "",
        counting=counting,
    )


def _counted(finding: Finding) -> tuple[str, str]:
    """What is counted, and the statements that return how many, given `processes`."""
    if finding.kind == "zombie":
        return "zombies", "return sum(process.status() == psutil.STATUS_ZOMBIE for process in processes)"
    if finding.resource == "process" and finding.kind == "child":
        return "processes", "return len(processes)"
    if finding.resource == "thread":
        return "threads", "return sum(process.num_threads() for process in processes)"
    if finding.resource == "socket":
        link, noun = "socket:", "sockets"
    elif finding.resource == "descriptor":
        link, noun = LINKS.get(finding.kind, "/"), f"descriptors ({finding.kind})"
    else:
        raise Irreproducible(f"{finding.resource}: a script cannot be sure of it from outside; use `seatbelt run`")
    links = (
        '[os.readlink(f"/proc/{each.pid}/fd/{fd}") for each in processes for fd in os.listdir(f"/proc/{each.pid}/fd")]'
    )
    return noun, f'links = {links}\n    return sum(link.startswith("{link}") for link in links)'


def _refuses(conditions: Conditions) -> dict[str, tuple[str, str]]:
    refuses = {}
    for word in conditions.refuses.replace(",", " ").split():
        found = _REFUSAL.fullmatch(word)
        if found is None:
            raise Irreproducible(f"the remote MX's {word} is more than a short script can do; use `seatbelt run`")
        refuses[WORDS[found[1]]] = (found[2] or "", found[3])
    return refuses


def _sessions(dialogue: Sequence[PlannedSession], steps: Steps) -> tuple[list[str], float]:
    """Each as words, and the units that one is worth in the mean."""
    told: dict[str, float] = {}
    for session in dialogue:
        if session.steps:
            words = [_named(steps, step.send.encode("latin-1"), step.expect) for step in session.steps if step.send]
            units = float(session.units)
        else:
            kept = session.messages[:MOST_MESSAGES]
            whole = sum(bool(message.recipients) for message in session.messages)
            units = session.units * sum(bool(message.recipients) for message in kept) / max(1, whole)
            words = [_named(steps, b"EHLO repro.test\r\n", "2")]
            words += [_named(steps, *step) for message in kept for step in _transaction(message)]
        told.setdefault(" ".join([*words, session.end]), units)
        if session.messages or len(told) == MOST_DIALOGUES:
            break
    return list(told), sum(told.values()) / len(told)


def _transaction(message: PlannedMessage) -> Iterator[tuple[bytes, str]]:
    yield f"MAIL FROM:<{message.sender}>\r\n".encode(), "2"
    for recipient in message.recipients:
        yield f"RCPT TO:<{recipient}>\r\n".encode(), "2"
    for recipient in message.refused:
        yield f"RCPT TO:<{recipient}>\r\n".encode(), "5"
    if not message.recipients:
        yield b"RSET\r\n", "2"
        return
    yield b"DATA\r\n", "3"
    line = b"s" * 62 + b"\r\n"
    header = f"From: {message.sender}\r\nSubject: reproduction\r\n\r\n".encode()
    yield header + line * max(1, message.size_bytes // len(line)), ""
    yield b".\r\n", "2"


def _named(steps: Steps, send: bytes, expect: str) -> str:
    """The word for a step, the same for the same."""
    for word, step in steps.items():
        if step == (send, expect):
            return word
    verb = re.match(rb"[A-Z]{4}", send)
    stem = verb[0].decode() if verb else "end" if send == b".\r\n" else "text"
    word = stem
    for number in range(2, len(steps) + 3):
        if word not in steps:
            break
        word = f"{stem}{number}"
    steps[word] = send, expect
    return word


def _literal(data: bytes) -> str:
    """As Python, with a repeated last line as a product."""
    lines = data.splitlines(keepends=True)
    alike = next((at for at, line in enumerate(reversed(lines)) if line != lines[-1]), len(lines))
    if alike < 3:
        return _quoted(data)
    head = b"".join(lines[:-alike])
    line = lines[-1]
    short = f'b"{chr(line[0])}" * {len(line) - 2} + b"\\r\\n"' if len(set(line)) == 3 else _quoted(line)
    return f"{_quoted(head)} + ({short}) * {alike}" if head else f"({short}) * {alike}"


def _quoted(data: bytes) -> str:
    return 'b"' + repr(b"'" + data)[3:-1].replace('"', '\\"') + '"'

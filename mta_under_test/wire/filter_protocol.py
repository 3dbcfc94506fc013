"""The lines that smtpd and its filter programs exchange: smtpd-filters(7). Text in, text out; no I/O.

    config|ready                                        what the program should know, ended by this
    register|filter|smtp-in|connect                     what it wants to hear of, ended by register|ready
    report|0.7|TIME|smtp-in|EVENT|SESSION|…             what happened; no answer
    filter|0.7|TIME|smtp-in|PHASE|SESSION|TOKEN|…       a question, answered by
    filter-result|SESSION|TOKEN|DECISION[|ARGUMENT]     and for the lines of a message by
    filter-dataline|SESSION|TOKEN|LINE

Only the last field of a line may hold a `|`; none holds the end of a line.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

VERSION = "0.7"
PHASES = ("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "data-line", "commit")
EVENTS = (
    "link-connect",
    "link-greeting",
    "link-identify",
    "link-tls",
    "link-auth",
    "link-disconnect",
    "tx-reset",
    "tx-begin",
    "tx-mail",
    "tx-rcpt",
    "tx-data",
    "tx-commit",
    "tx-rollback",
    "protocol-client",
    "protocol-server",
    "filter-report",
    "filter-response",
    "timeout",
)
DECISIONS = ("proceed", "junk", "reject", "disconnect", "rewrite", "report")
MAX_LINE_BYTES = 2 << 20  # a line of a message may have half of it

_WITH_ARGUMENT = ("reject", "disconnect", "rewrite", "report")
_LINE_END = re.compile("[\r\n]")


class FilterProtocolError(Exception):
    """A program said what it cannot say; the text quotes it."""


class Registered(NamedTuple):
    stream: Literal["report", "filter"]
    name: str  # an event, a phase, or * for all


class Ready(NamedTuple):
    """The program has registered for all that it wants."""


class Result(NamedTuple):
    session: str
    token: str
    decision: str
    argument: str


class DataLine(NamedTuple):
    session: str
    token: str
    line: bytes


Said = Registered | Ready | Result | DataLine


def handshake(timeout_s: int, admd: str = "") -> bytes:
    lines = ["smtpd-version|7.4.0", f"protocol|{VERSION}", f"smtp-session-timeout|{timeout_s}"]
    if admd:
        lines.append(f"admd|{_field(admd)}")
    lines += ["subsystem|smtp-in", "ready"]
    return "".join(f"config|{line}\n" for line in lines).encode()


def report(event: str, session: str, now: float, *fields: str) -> bytes:
    assert event in EVENTS
    return _line("report", VERSION, f"{now:.6f}", "smtp-in", event, session, *fields)


def request(phase: str, session: str, token: str, now: float, *fields: str) -> bytes:
    assert phase in PHASES
    return _line("filter", VERSION, f"{now:.6f}", "smtp-in", phase, session, token, *fields)


def data_line(session: str, token: str, now: float, line: bytes) -> bytes:
    """`line` without its end, dots stuffed; `.` alone ends the message."""
    return request("data-line", session, token, now, "")[:-1] + line.replace(b"\n", b" ") + b"\n"


def parse(line: bytes) -> Said:
    """What a program says in a line, given without its end. Raises FilterProtocolError."""
    kind, _, rest = line.partition(b"|")
    if kind == b"filter-dataline":
        fields = rest.split(b"|", 2)
        if len(fields) == 3:
            return DataLine(_text(fields[0]), _text(fields[1]), fields[2])
    elif kind == b"filter-result":
        words = _text(rest).split("|", 3)
        if len(words) >= 3 and words[2] in DECISIONS and (len(words) == 4) == (words[2] in _WITH_ARGUMENT):
            return Result(words[0], words[1], words[2], words[3] if len(words) == 4 else "")
    elif kind == b"register":
        return _registered(_text(rest))
    raise FilterProtocolError(f"cannot be understood: {line[:200]!r}")


def _registered(text: str) -> Registered | Ready:
    match text.split("|"):
        case ["ready"]:
            return Ready()
        case ["report", "smtp-in", name] if name in EVENTS or name in ("*", "tx-envelope"):
            return Registered("report", name)
        case ["filter", "smtp-in", name] if name in PHASES or name == "*":
            return Registered("filter", name)
    raise FilterProtocolError(f"cannot register {text[:200]!r}")


def _text(field: bytes) -> str:
    return field.decode(errors="replace")


def _line(*fields: str) -> bytes:
    whole = [*map(_field, fields[:-1]), _LINE_END.sub(" ", fields[-1])]
    return ("|".join(whole) + "\n").encode(errors="replace")


def _field(text: str) -> str:
    return _LINE_END.sub(" ", text).replace("|", "_")

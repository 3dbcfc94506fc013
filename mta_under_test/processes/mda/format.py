"""Format specifiers of smtpd.conf(5) in maildir paths and commands: `%{user.username}`, `%{rcpt.domain[0]:lowercase}`.

Pure. A command is split into arguments before anything is filled in, and no shell ever reads it, so what stands in an
address can end no argument. What could still change a meaning is replaced by ":", unless `raw` was asked for: the
characters that OpenSMTPD replaces (MAILADDR_ESCAPE), a slash, a dot that begins a path's component, and a hyphen that
begins an argument.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import msgspec

from mta_under_test.wire.address import split_address

_ESCAPED = re.compile(r"[!#$%&'*/?`{|}~\x00-\x1f\x7f]")
_PIECE = re.compile(r"%%|%\{([^}]*)\}")
_TOKEN = re.compile(r"([a-z.]+)(?:\[(-?\d{1,4})?(:)?(-?\d{1,4})?\])?(?::([a-z|]+))?", re.IGNORECASE)
MDA = "%{mda}"


class FormatError(Exception):
    """A specifier that cannot be filled in."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One local delivery, as delivery tells parent of it."""

    action: str
    sender: str
    rcpt: str
    dest: str
    user: str
    uid: int
    gid: int
    directory: str
    exec: str = ""  # `/file` or `|command` instead of the action's method
    subaddress: str = ""
    timeout_s: float = 600.0


def fill(text: str, job: Job, delimiter: str, mda: str = "") -> str:
    """`text` with its specifiers filled in, and the home directory for a leading `~/`. Raises FormatError."""
    if text.startswith("~/"):
        return f"{job.directory}/{_fill(text[2:], job, delimiter, mda, in_path=True)}"
    return _fill(text, job, delimiter, mda, in_path=text.startswith("/"))


def arguments(command: str, job: Job, delimiter: str, mda: Sequence[str] = ()) -> list[str]:
    """A command as a list. `%{mda}` as an argument of its own is the whole list `mda`. Raises FormatError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise FormatError(f"{command!r}: {error}") from error
    filled: list[str] = []
    for word in words:
        if word == MDA:
            filled += mda
        else:
            filled.append(fill(word, job, delimiter, shlex.join(mda)))
    if not filled:
        raise FormatError("the command is empty")
    if any("\0" in word for word in filled):
        raise FormatError("a NUL in the command")
    return filled


def _fill(text: str, job: Job, delimiter: str, mda: str, *, in_path: bool) -> str:
    def piece(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        at_start = found.start() == 0 or text[found.start() - 1] == "/"
        return _value(found[1], job, delimiter, mda, at_start=at_start, in_path=in_path)

    if "%{" in _PIECE.sub("", text):
        raise FormatError(f"{text!r}: a specifier has no end")
    return _PIECE.sub(piece, text)


def _value(token: str, job: Job, delimiter: str, mda: str, *, at_start: bool, in_path: bool) -> str:
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        raise FormatError(f"%{{{token}}} is no specifier")
    name, begin, colon, end, modifiers = parts.groups()
    value, safe = _fact(name.lower(), job, mda)
    raw = safe
    for modifier in (modifiers or "").lower().split("|") if modifiers else ():
        match modifier:
            case "lowercase":
                value = value.lower()
            case "uppercase":
                value = value.upper()
            case "strip":
                value = re.sub(f"{re.escape(delimiter)}[^@]*", "", value, count=1)
            case "raw":
                raw = True
            case _:
                raise FormatError(f"%{{{token}}}: unknown modifier {modifier!r}")
    if not raw:
        value = _ESCAPED.sub(":", value)
    if "[" in token:
        value = _slice(value, token, begin, colon, end)
    if at_start and not raw and value.startswith("." if in_path else "-"):
        value = ":" + value[1:]
    return value


def _slice(value: str, token: str, begin: str | None, colon: str | None, end: str | None) -> str:
    """`[2]`, `[2:]`, `[:2]` (its end included), `[-2:]`, `[0:-2]` (all but two), as mda_variables.c counts."""
    if begin is None and colon is None:
        raise FormatError(f"%{{{token}}}: empty brackets")
    if not value:
        return ""
    first = int(begin or 0)
    last = first if colon is None else int(end) if end else len(value) - 1
    if end and int(end) < 0:
        last = len(value) - 1 + int(end)
    elif last < 0:
        last += len(value)
    if first < 0:
        first += len(value)
    if not 0 <= first < len(value) or last < first:
        raise FormatError(f"%{{{token}}}: {value!r} has no such part")
    return value[first : last + 1]


def _fact(name: str, job: Job, mda: str) -> tuple[str, bool]:
    """The value, and whether it is ours rather than a stranger's."""
    match name:
        case "user.username":
            return job.user, False
        case "user.directory":
            return job.directory, True
        case "mda":
            return mda, True
        case "mbox.from":
            return job.sender or "MAILER-DAEMON", False
        case "sender" | "rcpt" | "dest":
            return str(getattr(job, name)), False
    whole, _, part = name.partition(".")
    if whole in ("sender", "rcpt", "dest") and part in ("user", "domain"):
        user, domain = split_address(str(getattr(job, whole)))
        return (user if part == "user" else domain), False
    raise FormatError(f"%{{{name}}} is no specifier")

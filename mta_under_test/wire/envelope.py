"""The envelope: sender, one recipient and delivery state of one copy of a message, as text.

`key: value` lines, the same on disk and between processes, with the keys of OpenSMTPD's envelope.c. The text is
printable ASCII whatever the values hold: a backslash, a control character or anything beyond ASCII in a value is
written as a Python escape (`\\n`, `\\xe9`, `\\u20ac`), so that no remote server's reply can forge a line. Empty values
and zeros are left out. Nothing here reads a file; the envelope's id is not in the text, it is the file's name.
"""

from __future__ import annotations

import operator
import re
from typing import Any, Literal, get_args

import msgspec

VERSION = 1

Type = Literal["mta", "mda", "bounce"]
Return = Literal["", "FULL", "HDRS"]
BounceType = Literal["", "failed", "delayed", "delivered"]
FLAGS = ("authenticated", "bounce", "internal", "smtputf8")


class EnvelopeError(Exception):
    """Text that is no envelope, or an envelope that cannot be written; says where and why."""


class Envelope(msgspec.Struct, kw_only=True, gc=False):
    """One recipient of one message. Times are seconds since 1970; `ttl` is seconds, and it expires at ctime + ttl.

    There is one of them for each recipient that is owed, so it is small, and the collector need not look at it.
    """

    rcpt: str  # as the client gave it
    dest: str  # after expansion; the same until then
    sender: str = ""  # "" is the null sender
    type: Type = "mta"  # who delivers it
    dispatcher: str = ""  # the action's name; "" until a rule chose one
    tag: str = ""  # of the listener
    smtpname: str = ""  # what our server called itself in the session
    helo: str = ""
    hostname: str = ""  # the client's
    username: str = ""  # who the client proved to be
    sockaddr: str = ""  # the client's address; "" for mail made on this machine
    errorline: str = ""  # the last failure
    ctime: int
    last_try: int = 0
    last_bounce: int = 0
    ttl: int
    retry: int = 0  # tries that failed
    flags: frozenset[str] = frozenset()  # of FLAGS
    dsn_notify: int = 0  # reports that the sender asked for (RFC 3461): bits of wire.command.NOTIFY
    dsn_ret: Return = ""  # how much of the message they return
    dsn_envid: str = ""  # the sender's name for the transaction, in xtext
    dsn_orcpt: str = ""  # the recipient as the sender first named it: type;xtext
    esc_class: int = 0  # enhanced status code of the last failure (RFC 3463): class, and subject.detail as one number
    esc_code: int = 0
    bounce_type: BounceType = ""
    bounce_delay: int = 0
    bounce_ttl: int = 0
    mda_user: str = ""  # who receives it; "" for a file or a program that an alias names, which has no user
    mda_exec: str = ""  # `/file` or `|command` of an alias or a .forward, in the place of the action's method
    mda_subaddress: str = ""  # `tag` of user+tag


# In the order in which they are written. `dest` is last, and no envelope is without it: so a text that was cut short,
# even at the end of a line, is known for what it is.
_KEYS = (
    "dispatcher",
    "tag",
    "type",
    "smtpname",
    "helo",
    "hostname",
    "errorline",
    "username",
    "sockaddr",
    "ctime",
    "last-try",
    "last-bounce",
    "ttl",
    "retry",
    "flags",
    "dsn-notify",
    "dsn-ret",
    "dsn-envid",
    "dsn-orcpt",
    "esc-class",
    "esc-code",
    "bounce-type",
    "bounce-delay",
    "bounce-ttl",
    "mda-user",
    "mda-exec",
    "mda-subaddress",
    "sender",
    "rcpt",
    "dest",
)
_NAMES = {key: key.replace("-", "_") for key in _KEYS}
_VALUES = operator.attrgetter(*_NAMES.values())  # all at once
_NUMBERS = {"ctime", "last-try", "last-bounce", "ttl", "retry", "dsn-notify", "esc-class", "esc-code"}
_NUMBERS |= {"bounce-delay", "bounce-ttl"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "type": get_args(Type),
    "bounce-type": get_args(BounceType),
    "dsn-ret": get_args(Return),
}
_REQUIRED = ("type", "ctime", "ttl", "rcpt", "dest")
_MAX_NUMBER = (1 << 63) - 1  # time_t
_TEXTS = frozenset(_KEYS) - _NUMBERS - {*_CHOICES, "flags"}

_PLAIN = re.compile(r"[ -\[\]-~]*")  # printable ASCII without the backslash
_ESCAPED = re.compile(
    r"(?:[ -\[\]-~]|\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U(?:000[0-9a-f]|0010)[0-9a-f]{4}))*", re.ASCII
)
_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def encode(envelope: Envelope) -> bytes:
    """The envelope as text. Raises EnvelopeError for a value that no reader could take back."""
    lines = [f"version: {VERSION}"]
    for key, value in zip(_KEYS, _VALUES(envelope), strict=True):
        # The one path that nearly all values take.
        if value and key in _TEXTS and _PLAIN.fullmatch(value):
            lines.append(f"{key}: {value}")
        elif value or key in _REQUIRED:
            lines.append(f"{key}: {_written(key, value)}")
    return ("\n".join(lines) + "\n").encode("ascii")


def _written(key: str, value: Any) -> str:
    if key == "flags":
        if not value.issubset(FLAGS):
            raise EnvelopeError(f"unknown flag in {sorted(value)}; there is {', '.join(FLAGS)}")
        return " ".join(sorted(value))
    if key in _NUMBERS:
        if not 0 <= value <= _MAX_NUMBER:
            raise EnvelopeError(f"{key} is {value}; it can be 0 to 2^63 - 1")
        return str(value)
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise EnvelopeError(f"{key} is {value!r}; it can be {_listed(_CHOICES[key])}")
    elif not value:
        raise EnvelopeError(f"{key} is empty")
    text: str = value
    return text if _PLAIN.fullmatch(text) else text.encode("unicode_escape").decode("ascii")


def decode(text: bytes) -> Envelope:
    """The envelope in `text`. Raises EnvelopeError naming the line, or what is missing."""
    try:
        lines = text.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        at = text.count(b"\n", 0, error.start) + 1
        raise EnvelopeError(f"line {at}: byte {text[error.start]:#04x} is not ASCII") from error
    if lines.pop():
        raise EnvelopeError(f"line {len(lines) + 1}: has no end")
    values: dict[str, Any] = {}
    try:
        for line in lines:
            key, _, value = line.partition(": ")
            # The one path that nearly all lines take; whatever is not that plain is looked at closely.
            if key in _TEXTS and key not in values and value and _PLAIN.fullmatch(value):
                values[key] = value
            else:
                _read(line, values)
    except EnvelopeError as error:
        raise EnvelopeError(f"line {len(values) + 1}: {error}") from None
    if "version" not in values:
        raise EnvelopeError("no version")
    for key in _REQUIRED:
        if key not in values:
            raise EnvelopeError(f"no {key}")
    del values["version"]
    return Envelope(**{_NAMES[key]: value for key, value in values.items()})


def _read(line: str, values: dict[str, Any]) -> None:
    key, colon, value = line.partition(": ")
    if not colon:
        raise EnvelopeError(f"{_quoted(line)} is not `key: value`")
    if key in values:
        raise EnvelopeError(f"{key} given twice")
    if key == "version":
        if value != str(VERSION):
            raise EnvelopeError(f"version {_quoted(value)}; this server reads version {VERSION}")
        values[key] = VERSION
    elif key not in _NAMES:
        raise EnvelopeError(f"unknown key {_quoted(key)}")
    elif not value:
        raise EnvelopeError(f"{key} is empty")
    elif key in _NUMBERS:
        values[key] = _number(key, value)
    elif key == "flags":
        values[key] = _flags(value)
    elif key in _CHOICES and value not in _CHOICES[key]:
        raise EnvelopeError(f"{key} {_quoted(value)} is not {_listed(_CHOICES[key])}")
    elif _PLAIN.fullmatch(value):
        values[key] = value
    elif _ESCAPED.fullmatch(value):
        values[key] = value.encode("ascii").decode("unicode_escape")
    else:
        raise EnvelopeError(f"{key} has a bad escape or a control character")


def _number(key: str, value: str) -> int:
    number = int(value) if value == "0" or _NUMBER.fullmatch(value) else -1
    if not 0 <= number <= _MAX_NUMBER:
        raise EnvelopeError(f"{key} {_quoted(value)} is not a number from 0 to 2^63 - 1")
    return number


def _flags(value: str) -> frozenset[str]:
    flags = value.split(" ")
    for flag in flags:
        if flag not in FLAGS:
            raise EnvelopeError(f"unknown flag {_quoted(flag)}; there is {', '.join(FLAGS)}")
    return frozenset(flags)


def _listed(choices: tuple[str, ...]) -> str:
    return " or ".join(choice for choice in choices if choice)


def _quoted(text: str) -> str:
    """Fit for a log line, however long or strange it is."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


# ---- ids


def msgid_of(evpid: int) -> int:
    """The message that an envelope belongs to: the upper 32 bits of its id."""
    return evpid >> 32


def evpid_text(evpid: int) -> str:
    return f"{evpid:016x}"


def msgid_text(msgid: int) -> str:
    return f"{msgid:08x}"

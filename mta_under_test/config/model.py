"""What a configuration says, as types. Nothing here reads a file or decides anything.

Times are seconds, sizes bytes. Tables are named, also those that were written in place (`<dynamic:1>`, as OpenSMTPD
calls them); every name that stands in a Config has been checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec


class ConfigError(Exception):
    """What is wrong with a configuration: one line for each mistake, `file:line:column: what`."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


class Listener(msgspec.Struct, frozen=True):
    address: str  # of one interface; a name that has several makes several listeners
    port: int = 25  # 0: the kernel picks a free one (not in OpenSMTPD)
    tag: str = ""
    hostname: str = ""  # "" is the server's
    mask_src: bool = False


class TableSpec(msgspec.Struct, frozen=True):
    name: str
    entries: Mapping[str, str | None] = msgspec.field(default_factory=dict)  # of a static table; a list has no values
    path: Path | None = None  # of a file table


RelayScheme = Literal["smtp", "smtp+notls", "smtp+tls", "smtps", "lmtp"]


class RelayHost(msgspec.Struct, frozen=True):
    host: str
    port: int = 25
    scheme: RelayScheme = "smtp"
    label: str = ""  # of credentials


class Action(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    ttl_s: int | None = None  # None: the queue's


class RelayAction(Action, frozen=True, kw_only=True):
    host: RelayHost | None = None  # None: the recipient domain's mail exchangers
    helo: str = ""  # "" is the server's name
    src: str = ""  # address to connect from; "" is the kernel's choice


class LocalAction(Action, frozen=True, kw_only=True):
    user: str = ""  # deliver as this one, whoever the recipient
    alias: str = ""  # names of tables
    virtual: str = ""
    userbase: str = ""


class MboxAction(LocalAction, frozen=True, kw_only=True):
    pass


class MaildirAction(LocalAction, frozen=True, kw_only=True):
    path: str = "~/Maildir"  # may hold format specifiers
    junk: bool = False  # spam goes into the Junk folder


class LmtpAction(LocalAction, frozen=True, kw_only=True):
    destination: str  # host:port, or the path of a socket
    rcpt_to: bool = False  # name recipients by address, not by user


class MdaAction(LocalAction, frozen=True, kw_only=True):
    command: str


class ForwardOnlyAction(LocalAction, frozen=True, kw_only=True):
    pass


class ExpandOnlyAction(LocalAction, frozen=True, kw_only=True):
    pass


class Criterion(msgspec.Struct, frozen=True):
    """One thing that a rule asks of an envelope."""

    fact: Literal["from", "for", "tag", "helo", "mail-from", "rcpt-to", "auth"]
    value: Literal["any", "local", "socket", "yes", "table"] = "table"
    table: str = ""
    regex: bool = False  # the table holds regular expressions
    negated: bool = False


class Match(msgspec.Struct, frozen=True):
    """A rule: when all its criteria hold, `action` is the action's name, None to reject."""

    criteria: tuple[Criterion, ...]
    action: str | None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    hostname: str  # of this machine
    listeners: tuple[Listener, ...]
    tables: Mapping[str, TableSpec] = msgspec.field(default_factory=dict)
    actions: Mapping[str, Action] = msgspec.field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    queue_ttl_s: int = 345600
    bounce_warn_s: tuple[int, ...] = (14400,)
    max_message_bytes: int = 35 * 1024 * 1024
    max_mails: int = 100  # in a session
    max_rcpt: int = 1000  # in a message

"""What senders asked for beyond delivery, passed on where the remote server offers it: DSN (RFC 3461), SMTPUTF8.

A message that needs UTF-8 is not sent to a server that does not take it (RFC 6531 §3.2): 550 5.6.7, and the sender
learns of it. It needs UTF-8 when the sender allowed it and its addresses or its header use it.
"""

from __future__ import annotations

import os
from collections.abc import Container
from typing import NamedTuple

from mta_under_test.wire.command import notify_words
from mta_under_test.wire.envelope import Envelope

HEADER_BYTES = 1 << 16
NO_UTF8 = "550 5.6.7 The remote server takes no addresses or headers beyond ASCII (RFC 6531)"


class Asked(NamedTuple):
    """Of one envelope."""

    allows_utf8: bool
    ret: str
    envid: str
    notify: int
    orcpt: str


def asked_by(envelope: Envelope) -> Asked | None:
    """None when the sender asked for nothing, as nearly all do."""
    utf8 = "smtputf8" in envelope.flags
    if not (utf8 or envelope.dsn_notify or envelope.dsn_ret or envelope.dsn_envid or envelope.dsn_orcpt):
        return None
    return Asked(utf8, envelope.dsn_ret, envelope.dsn_envid, envelope.dsn_notify, envelope.dsn_orcpt)


class Wishes:
    """Of one message. `recipients`: by evpid, the reports asked for and the original recipient."""

    __slots__ = ("allows_utf8", "envid", "passed_on", "recipients", "ret")

    def __init__(self, asked: Asked) -> None:
        self.allows_utf8 = asked.allows_utf8
        self.ret = asked.ret
        self.envid = asked.envid
        self.passed_on = False  # the server that has the message knows of the reports asked for
        self.recipients: dict[int, tuple[int, str]] = {}

    def add(self, evpid: int, asked: Asked) -> None:
        if asked.notify or asked.orcpt:
            self.recipients[evpid] = (asked.notify, asked.orcpt)


def of_mail(wishes: Wishes | None, offered: Container[str]) -> dict[str, str]:
    """MAIL's parameters."""
    if wishes is None or "DSN" not in offered:
        return {}
    return {name: value for name, value in (("RET", wishes.ret), ("ENVID", wishes.envid)) if value}


def of_recipient(wishes: Wishes | None, evpid: int, offered: Container[str]) -> dict[str, str]:
    """RCPT's parameters."""
    if wishes is None or evpid not in wishes.recipients or "DSN" not in offered:
        return {}
    notify, orcpt = wishes.recipients[evpid]
    return {name: value for name, value in (("NOTIFY", notify_words(notify)), ("ORCPT", orcpt)) if value}


def needs_utf8(wishes: Wishes | None, sender: str, message: int) -> bool:
    """Whether the message cannot go where there is no SMTPUTF8, whoever its recipients; the file position stays."""
    if not sender.isascii():
        return True
    if wishes is None or not wishes.allows_utf8:
        return False
    header, _, _ = os.pread(message, HEADER_BYTES, 0).partition(b"\r\n\r\n")
    return not header.isascii()

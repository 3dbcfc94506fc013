"""Delivery status notifications (RFC 3464) in a multipart/report (RFC 6522): of failure, delay, success.

Text in, text out. A report is `opening`, then what it returns of the message (its header, or all of it when the sender
asked for that: RET=FULL, RFC 3461 §4.3), then `closing`; so a long message need not be held to be returned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mta_under_test.wire.date import header_date

HEADER_BYTES = 1 << 16  # of the original header, at the most
DIAGNOSTIC_BYTES = 900  # of a status line: a header line has at most 998 (RFC 5322 §2.1.1)

SUCCESS, FAILURE, DELAY, NEVER = 1, 2, 4, 8  # NOTIFY of RFC 3461 §4.1, as bits of an envelope's dsn-notify

Kind = Literal["failed", "delayed", "delivered"]

_SUBJECTS: dict[Kind, str] = {"failed": "error", "delayed": "delayed", "delivered": "success"}
_SAID: dict[Kind, tuple[str, str]] = {
    "failed": ("The message could not be delivered to:", "It will not be tried again."),
    "delayed": ("The message has not been delivered yet to:", "It will be tried again; there is nothing to be done."),
    "delivered": ("The message was delivered, as you asked to be told, to:", ""),
}
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_UNSAFE = re.compile(r"[^ -~]")


class Recipient(NamedTuple):
    """What became of one. `action` is a word of RFC 3464 §2.3.3; `original` is ORCPT's, `type;xtext`."""

    address: str
    status_line: str  # what the remote server, or this one, said: "550 5.1.1 No such user"
    action: Literal["failed", "delayed", "delivered", "relayed"]
    original: str = ""
    remote: str = ""  # the server that said it; "" for this one
    retry_until: int = 0  # seconds since 1970; 0: no more tries


def wanted(kind: Kind, notify: int) -> bool:
    """Whether the sender wants to be told (RFC 3461 §4.1); without NOTIFY, of failures and delays."""
    asked = notify or FAILURE | DELAY
    return bool(asked & {"failed": FAILURE, "delayed": DELAY, "delivered": SUCCESS}[kind])


def status_of(status_line: str) -> str:
    """The enhanced status code (RFC 3463) of a reply line; a bare code gives its class: 550 is 5.0.0."""
    words = status_line.split()
    if len(words) > 1 and words[1].count(".") == 2 and words[1].replace(".", "").isdigit():
        return words[1]
    return f"{words[0][0]}.0.0" if words and words[0][:1] in ("2", "4", "5") else "5.0.0"


def header_of(message: bytes) -> bytes:
    """The header of a message, without the empty line that ends it; cut at `HEADER_BYTES`, at a line's end."""
    head, _, _ = message[:HEADER_BYTES].partition(b"\r\n\r\n")
    return head if len(head) < HEADER_BYTES else head[: head.rfind(b"\r\n")]


def opening(
    kind: Kind,
    *,
    hostname: str,
    sender: str,
    recipients: Sequence[Recipient],
    report_id: str,
    arrival: int,
    envelope_id: str = "",
    whole: bool = False,
) -> bytes:
    """A report to `sender`, up to what it returns: the `whole` message or its header. Lines end with CRLF.

    `report_id` makes Message-ID and boundary unique, `arrival` is when we took the message (seconds since 1970),
    `envelope_id` the sender's ENVID in xtext.
    """
    boundary = _boundary(report_id, hostname)
    first, last = _SAID[kind]
    said = "\r\n".join(f"    {one.address}: {_printable(one.status_line)}" for one in recipients)
    envid = f"Original-Envelope-Id: {_decoded(envelope_id)}\r\n" if envelope_id else ""
    return (
        f"Subject: Delivery status notification: {_SUBJECTS[kind]}\r\n"
        f"From: Mailer Daemon <MAILER-DAEMON@{hostname}>\r\n"
        f"To: {sender}\r\n"
        f"Date: {header_date()}\r\n"
        f"Message-ID: <{report_id}@{hostname}>\r\n"
        f"Auto-Submitted: auto-replied\r\n"
        f"MIME-Version: 1.0\r\n"
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{boundary}"\r\n'
        f"\r\n"
        f"--{boundary}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: 8bit\r\n"
        f"\r\n"
        f"{first}\r\n"
        f"\r\n"
        f"{said}\r\n"
        f"\r\n"
        f"{last}{' ' if last else ''}{'The message' if whole else 'Its header'} follows.\r\n"
        f"\r\n"
        f"--{boundary}\r\n"
        f"Content-Type: message/delivery-status\r\n"
        f"\r\n"
        f"{envid}"
        f"Reporting-MTA: dns; {hostname}\r\n"
        f"Arrival-Date: {header_date(arrival)}\r\n"
        f"\r\n"
        f"{''.join(_fields(one) for one in recipients)}"
        f"--{boundary}\r\n"
        f"Content-Type: {'message/rfc822' if whole else 'text/rfc822-headers'}\r\n"
        f"Content-Transfer-Encoding: 8bit\r\n"
        f"\r\n"
    ).encode()


def closing(report_id: str, hostname: str) -> bytes:
    return f"\r\n\r\n--{_boundary(report_id, hostname)}--\r\n".encode()


def _boundary(report_id: str, hostname: str) -> str:
    return f"={report_id}/{hostname}="[:70]  # RFC 2046 §5.1.1


def _fields(one: Recipient) -> str:
    """The fields of one recipient, and the empty line behind them (RFC 3464 §2.3)."""
    kind, _, original = one.original.partition(";")
    diagnosed = _printable(one.status_line)
    lines = (
        f"Original-Recipient: {kind}; {_decoded(original)}" if original else "",
        f"Final-Recipient: rfc822; {one.address}",
        f"Action: {one.action}",
        f"Status: {status_of(one.status_line)}",
        f"Remote-MTA: dns; {one.remote}" if one.remote else "",
        f"Diagnostic-Code: smtp; {diagnosed}" if diagnosed else "",
        f"Will-Retry-Until: {header_date(one.retry_until)}" if one.retry_until else "",
    )
    return "".join(f"{line}\r\n" for line in lines if line) + "\r\n"


def _printable(text: str) -> str:
    """No remote server's words make a line of ours."""
    return _UNSAFE.sub("?", text)[:DIAGNOSTIC_BYTES]


def _decoded(xtext: str) -> str:
    """xtext (RFC 3461 §4) as what it stands for."""
    return _printable(_XTEXT.sub(lambda found: chr(int(found[1], 16)), xtext))

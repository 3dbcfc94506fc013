"""The bounce: a delivery status notification as RFC 3464 frames it, in a multipart/report of RFC 6522.

Text in, text out. The returned part is the original message's header alone (RFC 3462's text/rfc822-headers), so that a
bounce never carries back a body that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mta_under_test.wire.date import header_date

HEADER_BYTES = 1 << 16  # of the original header, at the most


class Failure(NamedTuple):
    recipient: str
    status_line: str  # what the remote server, or this one, said: "550 5.1.1 No such user"


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


def bounce(*, hostname: str, sender: str, failures: Sequence[Failure], original_header: bytes, bounce_id: str) -> bytes:
    """A whole message to `sender`, lines ended by CRLF. `bounce_id` makes Message-ID and boundary unique."""
    boundary = f"={bounce_id}/{hostname}="
    said = "\r\n".join(f"    {failure.recipient}: {failure.status_line}" for failure in failures)
    statuses = "\r\n\r\n".join(
        f"Final-Recipient: rfc822; {failure.recipient}\r\n"
        f"Action: failed\r\n"
        f"Status: {status_of(failure.status_line)}\r\n"
        f"Diagnostic-Code: smtp; {failure.status_line}"
        for failure in failures
    )
    head = (
        f"Subject: Delivery status notification: error\r\n"
        f"From: Mailer Daemon <MAILER-DAEMON@{hostname}>\r\n"
        f"To: {sender}\r\n"
        f"Date: {header_date()}\r\n"
        f"Message-ID: <{bounce_id}@{hostname}>\r\n"
        f"Auto-Submitted: auto-replied\r\n"
        f"MIME-Version: 1.0\r\n"
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{boundary}"\r\n'
        f"\r\n"
        f"--{boundary}\r\n"
        f"Content-Type: text/plain; charset=us-ascii\r\n"
        f"\r\n"
        f"The message could not be delivered to:\r\n"
        f"\r\n"
        f"{said}\r\n"
        f"\r\n"
        f"It will not be tried again. Its header follows.\r\n"
        f"\r\n"
        f"--{boundary}\r\n"
        f"Content-Type: message/delivery-status\r\n"
        f"\r\n"
        f"Reporting-MTA: dns; {hostname}\r\n"
        f"\r\n"
        f"{statuses}\r\n"
        f"\r\n"
        f"--{boundary}\r\n"
        f"Content-Type: text/rfc822-headers\r\n"
        f"\r\n"
    )
    return head.encode() + original_header + f"\r\n\r\n--{boundary}--\r\n".encode()

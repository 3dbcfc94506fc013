"""The Received field that a server puts above a message it takes: RFC 5321 §4.4, with the words of RFC 3848 and 6531.

Text in, text out. What it names is what the session knew; nothing here looks anything up.
"""

from __future__ import annotations

import re

from mta_under_test.wire.date import header_date


def protocol(*, extended: bool, utf8: bool = False, secure: bool = False, authenticated: bool = False) -> str:
    """What stands after `with`: SMTP, ESMTP, ESMTPSA … (RFC 3848), UTF8SMTP, UTF8SMTPSA … (RFC 6531 §4.3)."""
    if not extended:
        return "SMTP"
    return f"{'UTF8SMTP' if utf8 else 'ESMTP'}{'S' if secure else ''}{'A' if authenticated else ''}"


def literal(address: str) -> str:
    """An IP address as an address literal (RFC 5321 §4.1.3); "" is mail that no network brought."""
    if not address:
        return "[local]"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def received(
    *,
    helo: str,
    rdns: str,
    address: str,
    hostname: str,
    protocol: str,
    message_id: str,
    recipient: str = "",
    tls: str = "",
    username: str = "",
    hides_source: bool = False,
) -> bytes:
    """The field, with its end. `recipient` only when there is a single one: others are not to learn of each other."""
    name = f"{rdns} " if rdns else ""
    source = "" if hides_source else f"from {helo} ({name}{literal(address)})\r\n\t"
    only_one = f"\r\n\tfor <{recipient}>" if recipient else ""
    # Comments may stand between the parts (RFC 5321 §4.4, CFWS); the user's name is quoted against its own brackets.
    how = protocol + (f" ({tls})" if tls else "")
    whose = re.sub(r"[^A-Za-z0-9@._+=-]", "?", username)
    how += f" (auth={whose})" if username else ""
    return (
        f"Received: {source}by {hostname} (Seatbelt) with {how} id {message_id}{only_one};\r\n\t{header_date()}\r\n"
    ).encode()

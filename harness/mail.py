"""Nothing accepted is ever lost: what became of every message that the target accepted, by Message-ID."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from reports.record import MailFate

_MESSAGE_ID = re.compile(rb"^message-id:\s*<([^>\r\n]+)>", re.IGNORECASE | re.MULTILINE)
_HEADER_BYTES = 1 << 16


def in_spool(spool: Path) -> set[str]:
    """Message-IDs of the committed messages in a spool of OpenSMTPD's layout, `queue/HH/MSGID/message`."""
    found = set()
    for path in spool.glob("queue/*/*/message"):
        try:
            with path.open("rb") as message:
                header = message.read(_HEADER_BYTES).partition(b"\r\n\r\n")[0]
        except FileNotFoundError:
            continue  # delivered since it was listed
        if matched := _MESSAGE_ID.search(header):
            found.add(matched[1].decode(errors="replace"))
    return found


def fates(
    accepted: Collection[str], delivered: Collection[str], bounced: Collection[str], queued: Collection[str]
) -> dict[str, MailFate]:
    """The best that is known of each accepted message: some recipients may have got it and others bounced."""

    def fate(message_id: str) -> MailFate:
        if message_id in delivered:
            return "delivered"
        if message_id in bounced:
            return "bounced"
        return "queued" if message_id in queued else "lost"

    return {message_id: fate(message_id) for message_id in sorted(accepted)}

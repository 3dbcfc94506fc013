"""Nothing accepted is ever lost: what became of every message that the target accepted, by Message-ID."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from reports.record import MailFate

_MESSAGE_ID = re.compile(rb"^message-id:\s*<([^>\r\n]+)>", re.IGNORECASE | re.MULTILINE)
_ANYWHERE = re.compile(rb"message-id:\s*<([^>\s]+)>", re.IGNORECASE)
_REPORT = re.compile(rb"^content-type:\s*multipart/report", re.IGNORECASE | re.MULTILINE)
_READ_BYTES = 1 << 17


def in_spool(spool: Path) -> set[str]:
    """Message-IDs that a spool of OpenSMTPD's layout (`queue/HH/MSGID/message`) still answers for.

    A bounce that waits there answers for the message whose header it returns. So does a journal in front of the queue,
    for whatever it holds: what is in it was promised, and has no file yet.
    """
    found: set[str] = set()
    for path in spool.glob("journal/*"):
        try:
            found.update(name.decode(errors="replace") for name in _MESSAGE_ID.findall(path.read_bytes()))
        except FileNotFoundError:
            continue  # settled since it was listed
    for path in spool.glob("queue/*/*/message"):
        try:
            with path.open("rb") as file:
                message = file.read(_READ_BYTES)
        except FileNotFoundError:
            continue  # delivered since it was listed
        header = message.partition(b"\r\n\r\n")[0]
        ids = _MESSAGE_ID.findall(message if _REPORT.search(header) else header)
        found.update(name.decode(errors="replace") for name in ids)
    return found


def in_files(paths: Iterable[Path]) -> set[str]:
    """Message-IDs anywhere near the beginning of each file, whatever it is beside: for queues of a foreign format.

    So a bounce that waits answers for the message that it returns.
    """
    found: set[str] = set()
    for path in paths:
        try:
            with path.open("rb") as file:
                beginning = file.read(_READ_BYTES)
        except FileNotFoundError:
            continue  # delivered since it was listed
        found.update(name.decode(errors="replace") for name in _ANYWHERE.findall(beginning))
    return found


def in_maildirs(root: Path) -> set[str]:
    """Message-IDs that were delivered into maildirs anywhere below `root`."""
    found: set[str] = set()
    for path in root.glob("**/new/*"):
        with path.open("rb") as file:
            header = file.read(_READ_BYTES).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
        found.update(name.decode(errors="replace") for name in _MESSAGE_ID.findall(header))
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

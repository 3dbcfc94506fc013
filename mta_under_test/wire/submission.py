"""What `sendmail` makes of what it reads: sender, recipients, and a message fit to be sent (RFC 5322, RFC 6409 §8).

Text in, text out. Also the form of a file in offline/: the sender on the first line, the recipients on the second,
by blanks, then an empty line and the message.
"""

from __future__ import annotations

import email.parser
import email.policy
import email.utils
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from mta_under_test.wire.date import header_date


class SubmissionError(Exception):
    """What was read is no message, or names nobody to send it to."""


class Submission(NamedTuple):
    sender: str
    recipients: tuple[str, ...]
    text: bytes  # lines end with CRLF


def compose(
    raw: bytes,
    *,
    sender: str,
    hostname: str,
    recipients: Sequence[str] = (),
    from_header: bool = False,
    full_name: str = "",
    dot_ends: bool = True,
) -> Submission:
    """`from_header`: recipients are taken from To, Cc and Bcc too (-t). `dot_ends`: a line of one dot is the end.

    Bcc is taken out; From, Date and Message-ID are added where they are missing. Raises SubmissionError.
    """
    lines = raw.replace(b"\r\n", b"\n").split(b"\n")
    if dot_ends and b"." in lines:
        lines = [*lines[: lines.index(b".")], b""]
    head, body = _parted(lines)
    fields = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(b"\n".join(head) + b"\n\n")
    found = list(recipients)
    if from_header:
        named = [str(value) for name in ("to", "cc", "bcc") for value in fields.get_all(name, [])]
        found += [address for _, address in email.utils.getaddresses(named) if address]
    found = [one if "@" in one else f"{one}@{hostname}" for one in dict.fromkeys(found)]
    if not found:
        raise SubmissionError("no recipients")
    sender = sender if "@" in sender or not sender else f"{sender}@{hostname}"
    for address in (sender, *found):
        if not address.isascii():
            raise SubmissionError(f"an address that is not ASCII: {address!a}")
        if not address.isprintable() or " " in address:  # it would begin another one, in offline/ and in the session
            raise SubmissionError(f"an address with a blank or a control character: {address!a}")
    if not _is_text(full_name) or not full_name.isprintable():
        raise SubmissionError(f"a full name that is not UTF-8, or with a control character: {full_name!a}")
    added = []
    if "from" not in fields:
        added.append(f"From: {email.utils.formataddr((full_name, sender or f'MAILER-DAEMON@{hostname}'))}")
    if "date" not in fields:
        added.append(f"Date: {header_date()}")
    if "message-id" not in fields:
        added.append(f"Message-ID: <{secrets.token_hex(12)}@{hostname}>")
    kept = [line for field in _fields(head) if not field[0].lower().startswith(b"bcc:") for line in field]
    text = b"\r\n".join((*kept, *(line.encode() for line in added), b"", *body))
    return Submission(sender, tuple(found), text if text.endswith(b"\r\n") else text + b"\r\n")


def _is_text(argument: str) -> bool:
    """Whether a command's argument was UTF-8; Python has kept bytes that are none as surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parted(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Header lines and body lines. Text that does not begin with a field is all body."""
    for at, line in enumerate(lines):
        if not line:
            return lines[:at], lines[at + 1 :]
        name, colon, _ = line.partition(b":")
        if not (line[:1] in b" \t" and at) and not (colon and name.isascii() and b" " not in name):
            return lines[:at], lines[at:]
    return lines, []


def _fields(head: list[bytes]) -> list[list[bytes]]:
    """Each field with its folded lines."""
    fields: list[list[bytes]] = []
    for line in head:
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1].append(line)
        else:
            fields.append([line])
    return fields


def offline_text(submission: Submission) -> bytes:
    return f"{submission.sender}\n{' '.join(submission.recipients)}\n\n".encode() + submission.text


def from_offline(data: bytes) -> Submission:
    """Raises SubmissionError for a file that `sendmail` did not write, or not to its end."""
    sender, _, rest = data.partition(b"\n")
    recipients, _, rest = rest.partition(b"\n")
    if not recipients or not rest.startswith(b"\n"):
        raise SubmissionError("not a file that sendmail left")
    try:
        return Submission(sender.decode("ascii"), tuple(recipients.decode("ascii").split(" ")), rest[1:])
    except UnicodeDecodeError as error:
        raise SubmissionError(f"an address that is not ASCII: {error.reason}") from error

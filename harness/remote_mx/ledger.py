"""The remote MX's books: sessions, transactions and their fate, which Message-ID reached whom, which one bounced.

Pure: told what happened, asked for a report. Never sees a socket, never decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Fate = Literal["accepted", "refused", "abandoned"]

KEPT_BYTES = 1 << 18  # of a message's beginning: enough for its header, and for what a bounce returns

_MESSAGE_ID = re.compile(rb"^message-id:\s*<([^>\r\n]+)>", re.IGNORECASE | re.MULTILINE)
_RETURNED = re.compile(
    rb"^content-type:\s*(?:message/rfc822|text/rfc822-headers|message/global)", re.IGNORECASE | re.MULTILINE
)
_ACTION = re.compile(rb"^action:\s*(\w+)", re.IGNORECASE | re.MULTILINE)  # RFC 3464 §2.3.3


class ListenerReport(msgspec.Struct):
    """Totals of one listener since it was started."""

    sessions: int = 0  # connections, greeted or not
    open_sessions: int = 0
    dropped_sessions: int = 0  # those that a policy cut off
    transactions: int = 0  # MAIL commands
    most_transactions_in_a_session: int = 0
    accepted: int = 0  # messages answered 2xx at the end of the data
    refused_messages: int = 0  # MAIL, every RCPT, DATA or the end of the data answered 4xx or 5xx
    refused_recipients: int = 0


class LedgerReport(msgspec.Struct):
    """Message-IDs are without their angle brackets."""

    listeners: dict[str, ListenerReport] = msgspec.field(default_factory=dict)
    delivered: dict[str, list[str]] = msgspec.field(default_factory=dict)  # Message-ID -> recipients, repeats kept
    bounced: set[str] = msgspec.field(default_factory=set)  # Message-IDs that a bounce returned, accepted or refused
    duplicated: set[str] = msgspec.field(default_factory=set)  # Message-IDs that reached a recipient more than once
    without_id: int = 0  # accepted messages that cannot be told apart


@dataclass
class Transaction:
    """MAIL to the end of data, RSET, or the session's end."""

    sender: str  # "" is the null sender
    accepted: list[str] = field(default_factory=list)  # recipients
    refused: list[str] = field(default_factory=list)  # recipients
    refusal: str = ""  # the last one, for a log
    size_bytes: int = 0
    kept: bytearray = field(default_factory=bytearray)  # the message's beginning
    whole_refused: bool = False  # at MAIL, DATA or the end of the data
    is_delivered: bool = False

    def body(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        self.kept += chunk[: KEPT_BYTES - len(self.kept)]

    @property
    def fate(self) -> Fate:
        if self.is_delivered:
            return "accepted"
        return "refused" if self.whole_refused or (self.refused and not self.accepted) else "abandoned"

    @property
    def message_id(self) -> str:
        return _message_id(header_of(self.kept))


class Ledger:
    """All listeners' books."""

    def __init__(self) -> None:
        self._report = LedgerReport()

    def listener(self, name: str) -> ListenerReport:
        """The running totals of a listener: counted up by its sessions' accounts."""
        return self._report.listeners.setdefault(name, ListenerReport())

    def account(self, name: str) -> Account:
        return Account(self, self.listener(name))

    def deliver(self, transaction: Transaction) -> None:
        """An accepted message reaches its recipients; a bounce tells of the message that it returns."""
        report, message_id = self._report, transaction.message_id
        if message_id:
            recipients = report.delivered.setdefault(message_id, [])
            recipients += transaction.accepted
            if len(set(recipients)) < len(recipients):
                report.duplicated.add(message_id)
        else:
            report.without_id += 1
        self._note_bounce(transaction)

    def turn_away(self, transaction: Transaction) -> None:
        """A message is refused for good. A bounce among them has told its story, and nobody owes it another chance."""
        self._note_bounce(transaction)

    def _note_bounce(self, transaction: Transaction) -> None:
        if not transaction.sender and (returned := returned_message_id(bytes(transaction.kept))):
            self._report.bounced.add(returned)

    def report(self) -> LedgerReport:
        """The books as they are now; the next delivery changes them."""
        return self._report


class Account:
    """One session's entries, from its connection to its end."""

    def __init__(self, ledger: Ledger, totals: ListenerReport) -> None:
        self.transaction: Transaction | None = None
        self.transactions = 0
        self._ledger = ledger
        self._totals = totals
        totals.sessions += 1
        totals.open_sessions += 1

    def begin(self, sender: str) -> None:
        assert self.transaction is None
        self.transaction = Transaction(sender)
        self.transactions += 1
        self._totals.transactions += 1
        self._totals.most_transactions_in_a_session = max(
            self._totals.most_transactions_in_a_session, self.transactions
        )

    def accept_recipient(self, address: str) -> None:
        self._current.accepted.append(address)

    def refuse_recipient(self, address: str, refusal: str) -> None:
        self._current.refused.append(address)
        self._current.refusal = refusal
        self._totals.refused_recipients += 1

    def refuse_whole(self, refusal: str, *, returned: bool = False) -> None:
        """`returned`: the whole message was seen and refused for good; if it was a bounce, that was its last chance."""
        self._current.whole_refused = True
        self._current.refusal = refusal
        if returned:
            self._ledger.turn_away(self._current)

    def deliver(self) -> None:
        self._current.is_delivered = True
        self._ledger.deliver(self._current)

    def end(self) -> Transaction | None:
        """The transaction in hand, if there is one, is over: counted by its fate, and given back."""
        over, self.transaction = self.transaction, None
        if over is not None:
            self._totals.accepted += over.fate == "accepted"
            self._totals.refused_messages += over.fate == "refused"
        return over

    def close(self, *, dropped: bool) -> None:
        assert self.transaction is None
        self._totals.open_sessions -= 1
        self._totals.dropped_sessions += dropped

    @property
    def _current(self) -> Transaction:
        assert self.transaction is not None
        return self.transaction


def header_of(message: bytes | bytearray) -> bytes:
    """Up to the empty line, or everything where there is none."""
    return b"" if message.startswith(b"\r\n") else bytes(message.partition(b"\r\n\r\n")[0])


def returned_message_id(bounce: bytes) -> str:
    """The Message-ID of the message that a bounce returns; "" for a mere delay report, or when nothing is returned.

    Read from the returned part of a multipart/report (RFC 6522), or from the body's first Message-ID where an old mail
    server writes no report.
    """
    body = bounce[len(header_of(bounce)) :]
    actions = {action.lower() for action in _ACTION.findall(body)}
    if actions and b"failed" not in actions:
        return ""
    part = _RETURNED.search(body)
    return _message_id(body[part.end() :] if part else body)


def _message_id(text: bytes) -> str:
    found = _MESSAGE_ID.search(text)
    return found[1].decode(errors="replace") if found else ""

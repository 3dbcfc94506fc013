"""An inbound session's side of filters: what it asks them, what it tells them, and a message on its way through them.

Owns: whether the session or the transaction is junk, and whether the client is to be hung up on.
Never: decides; lookup does (`lookup.filters`). A session without filters asks and tells nobody.
"""

from __future__ import annotations

import logging
from typing import Protocol

import msgspec

from mta_under_test.config import ProcFilter
from mta_under_test.config.filtering import FilterFacts, Verdict, members
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.smtp.auth import Authentication
from mta_under_test.processes.smtp.transaction import Transaction
from mta_under_test.processes.stream import Stream
from mta_under_test.wire import server
from mta_under_test.wire.address import AddressError, parse_mailbox
from mta_under_test.wire.reply import Reply

DATA_BYTES = 12_000  # of a message in one question: a frame holds 16,384
FIELD_BYTES = 4096

logger = logging.getLogger("smtpd")

_OF_SESSION = ("connect", "helo", "ehlo", "auth")  # phases whose junk is the whole session's


class FilteredSession(Protocol):
    """What filters are told of a session."""

    hostname: str
    hello: str
    source: str
    source_port: int
    rdns: str
    fcrdns: bool
    auth: Authentication
    transaction: Transaction | None


class SessionFilters:
    def __init__(self, process: Process, session: FilteredSession, session_id: int, name: str) -> None:
        """`name`: of the listener's filter, "" for none."""
        self.hangs_up = False
        self.has_line_programs = False  # said with the answer to the data phase
        self._process = process
        self._session = session
        self._id = session_id
        self._name = name
        chain = members(process.config, name)
        self._reports = any(isinstance(one, ProcFilter) for one in chain)
        self._phases = {one.phase for one in chain if not isinstance(one, ProcFilter)}
        self._session_is_junk = False
        self._transaction_is_junk = False
        self._streaming = False
        self._msgid = ""
        self._size_bytes = 0

    # ---- questions

    async def ask(self, phase: str, value: str = "") -> tuple[Reply | None, str]:
        """A refusal or None, and `value` (the phase's parameter) as it is to be from here on."""
        if not self._reports and phase not in self._phases:
            return None, value
        question = b"\0".join((phase.encode(), self._name.encode(), msgspec.json.encode(self._facts(phase, value))))
        answer = await self._process.ask("lookup", Kind.FILTER, self._id, text=question)
        if phase == "data":
            self.has_line_programs = bool(answer.integers[1])
        verdict = msgspec.json.decode(answer.text, type=Verdict)
        if verdict.junk:
            if phase in _OF_SESSION:
                self._session_is_junk = True
            else:
                self._transaction_is_junk = True
        match verdict.outcome:
            case "rewrite":
                return _rewritten(phase, verdict.argument, value)
            case "reject" | "disconnect":
                self.hangs_up = verdict.outcome == "disconnect"
                self._process.stats[f"smtp.filter.{verdict.outcome}"] += 1
                return refusal(verdict.argument), value
        return None, value

    def _facts(self, phase: str, value: str) -> FilterFacts:
        session, transaction = self._session, self._session.transaction
        sender = "" if transaction is None else transaction.sender
        return FilterFacts(
            src=session.source,
            rdns=session.rdns,
            fcrdns=session.fcrdns,
            helo=value if phase in ("helo", "ehlo") else session.hello,
            username=value if phase == "auth" else session.auth.username,
            sender=value if phase == "mail-from" else sender,
            recipient=value if phase == "rcpt-to" else "",
        )

    @property
    def header(self) -> bytes:
        """What stands above everything in a message that is junk."""
        return b"X-Spam: Yes\r\n" if self._session_is_junk or self._transaction_is_junk else b""

    # ---- a message's lines

    async def lines(self, chunk: bytes) -> bytes:
        """A piece of the message as the programs make it; it may come later. Raises Refusal."""
        self._streaming = True
        made = [(await self._exchange(chunk[at : at + DATA_BYTES], 0))[0] for at in range(0, len(chunk), DATA_BYTES)]
        return b"".join(made)

    async def last_lines(self) -> bytes:
        """The rest of it. Raises Refusal."""
        made, is_over = await self._exchange(b"", 1)
        pieces = [made]
        while not is_over:
            made, is_over = await self._exchange(b"", 1)
            pieces.append(made)
        self._streaming = False
        return b"".join(pieces)

    async def _exchange(self, chunk: bytes, is_last: int) -> tuple[bytes, bool]:
        text = self._name.encode() + b"\0" + chunk
        answer = await self._process.ask("lookup", Kind.FILTER_DATA, self._id, is_last, text=text)
        return answer.text, bool(answer.integers[1])

    def transaction_over(self) -> None:
        """Nothing of the transaction is wanted any more, however it ended."""
        self._transaction_is_junk = False
        self.has_line_programs = False
        if self._streaming:
            self._streaming = False
            self._process.tell("lookup", Kind.FILTER_OVER, self._id)

    # ---- reports

    def report(self, event: str, *fields: str) -> None:
        if self._reports:
            text = "\0".join((self._name, event, *(field.replace("\0", " ")[:FIELD_BYTES] for field in fields)))
            self._process.tell("lookup", Kind.FILTER_REPORT, self._id, text=text.encode(errors="replace"))

    def connected(self, stream: Stream) -> None:
        if not self._reports:
            return
        session = self._session
        confirmed = "pass" if session.fcrdns else "fail"
        here = stream.local
        self.report(
            "link-connect",
            session.rdns,
            confirmed,
            _endpoint(session.source, session.source_port),
            _endpoint(str(here[0]), int(here[1])),
        )

    def said(self, event: server.Event, reply: Reply) -> None:
        """A command and its answer, as reports."""
        if not self._reports:
            return
        result = "ok" if reply.positive else "tempfail" if reply.temporary else "permfail"
        match event:
            case server.Connected() if reply.positive:
                self.report("link-greeting", self._session.hostname)
            case server.Hello(name=name, extended=extended):
                self.report("protocol-client", f"{'EHLO' if extended else 'HELO'} {name}")
                if reply.positive:
                    self.report("link-identify", "EHLO" if extended else "HELO", name)
            case server.Mail(sender=sender):
                address = "" if sender is None else str(sender)
                self.report("protocol-client", f"MAIL FROM:<{address}>")
                if reply.positive:
                    assert self._session.transaction is not None
                    self._msgid = f"{self._session.transaction.msgid:08x}"
                    self._size_bytes = 0
                    self.report("tx-begin", self._msgid)
                self.report("tx-mail", self._msgid, result, address)
            case server.Recipient(mailbox=mailbox):
                self.report("protocol-client", f"RCPT TO:<{mailbox}>")
                self.report("tx-rcpt", self._msgid, result, str(mailbox))
            case server.Data():
                self.report("protocol-client", "DATA")
                self.report("tx-data", self._msgid, result)
            case server.EndOfData() if reply.positive:
                self.report("tx-commit", self._msgid, str(self._size_bytes))
            case server.EndOfData() | server.Refused(ends_data=True):
                self.report("tx-rollback", self._msgid)
            case server.Reset():
                self.report("protocol-client", "RSET")
                self.report("tx-reset", self._msgid)
            case server.Refused(line=line):
                self.report("protocol-client", line.decode(errors="replace"))
            case server.Noop() | server.Verify() | server.Expand() | server.Help() | server.Quit():
                self.report("protocol-client", type(event).__name__.upper())
        self.report("protocol-server", str(reply))

    def received(self, chunk: bytes) -> None:
        self._size_bytes += len(chunk)


def refusal(text: str) -> Reply:
    """A filter's words as a reply: `550 go away`, `421 4.7.0 later`; words without a code are a 550."""
    code, _, rest = text.partition(" ")
    if len(code) != 3 or not code.isdigit() or code[0] not in "45":
        return Reply(550, text or "Refused", "5.7.1")
    enhanced, _, words = rest.partition(" ")
    try:
        return Reply(int(code), words, enhanced) if enhanced[:2] == f"{code[0]}." else Reply(int(code), rest)
    except ValueError:
        return Reply(int(code), rest)


def _rewritten(phase: str, new: str, old: str) -> tuple[Reply | None, str]:
    """A filter's value in the place of the client's, if it can be one."""
    if phase not in ("mail-from", "rcpt-to"):
        return None, new
    address = new.removeprefix("<").removesuffix(">")
    try:
        if address or phase == "rcpt-to":
            parse_mailbox(address)
    except AddressError as error:
        logger.warning("a filter rewrote <%s> to %r: %s", old, new, error)
        return Reply(451, "Temporary failure: a filter made no address of it", "4.3.5"), old
    return None, address


def _endpoint(address: str, port: int) -> str:
    if not address:
        return "unix:local"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


async def ask_or_refuse(filters: SessionFilters, phase: str, value: str = "") -> tuple[Reply | None, str]:
    """`ask`, where lookup's own refusal is a temporary one."""
    try:
        return await filters.ask(phase, value)
    except Refusal as error:
        return Reply(451, f"Temporary failure: {error}", "4.3.0"), value

"""One inbound SMTP session: the server machine's events answered with the help of lookup and queue.

Owns: the connection, and the transaction in hand (`Transaction`), which lets go of the message's descriptor and of
the uncommitted message on every way out: end of data, RSET, a new MAIL, refusal, time-out, peer gone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from typing import Protocol, cast

from mta_under_test.config import Listener
from mta_under_test.config.filtering import needs_names
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.smtp.admission import Admission
from mta_under_test.processes.smtp.auth import Authentication
from mta_under_test.processes.smtp.filters import SessionFilters, ask_or_refuse
from mta_under_test.processes.smtp.transaction import MessageIds, Transaction
from mta_under_test.processes.stream import Stream, StreamTimeout, TlsFailure
from mta_under_test.wire import proxy, server
from mta_under_test.wire.command import notify_bits
from mta_under_test.wire.envelope import Envelope, Return, encode
from mta_under_test.wire.masquerade import Masquerade
from mta_under_test.wire.received import literal, protocol, received
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import ALL_EXTENSIONS, Limits, ServerMachine

SESSION_TIMEOUT_S = 300.0  # of silence: SMTPD_SESSION_TIMEOUT
PROXY_TIMEOUT_S = 10.0  # for the header of a proxy, which is a neighbour
SESSION_TOTAL_S = 7200.0  # from the greeting to the end, however busy: no client trickles bytes for ever
HELP = "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY EXPN HELP"

_WITHOUT_DSN = tuple(name for name in ALL_EXTENSIONS if name != "DSN")
_FLAGS: dict[tuple[bool, bool], frozenset[str]] = {  # of an envelope: in UTF-8, from somebody we know
    (False, False): frozenset(),
    (True, False): frozenset({"smtputf8"}),
    (False, True): frozenset({"authenticated"}),
    (True, True): frozenset({"smtputf8", "authenticated"}),
}

logger = logging.getLogger("smtpd")


class SessionKeeper(Protocol):
    """What a session needs of smtp, beside what it has as every process does."""

    limits: Limits
    admission: Admission
    message_ids: MessageIds
    rules_ask_for_names: bool

    def tls_context(self, listener: Listener) -> ssl.SSLContext:
        """For a listener that speaks TLS."""

    def session_over(self, session: Session) -> None:
        """The session's connection is closed."""


class Session:
    def __init__(self, process: Process, smtp: SessionKeeper, listener: Listener, session_id: int) -> None:
        """`process` and `smtp` are the same one: what every process can do, and what only smtp can."""
        self.id = session_id
        self.process = process
        self.smtp = smtp
        self.listener = listener
        self.hostname = listener.hostname or process.config.hostname
        self.stream = Stream(SESSION_TIMEOUT_S, process.trace_io)
        self.auth = Authentication(process, listener.auth_table)
        self.machine = ServerMachine(smtp.limits, extensions=_extensions(listener, secure=listener.tls == "no"))
        self.machine.needs_tls = listener.tls == "required"
        self.machine.needs_auth = listener.auth == "required"
        self.transaction: Transaction | None = None
        self.hello = ""
        self.extended = False
        self.source = ""  # the client's address; "" when it is on this machine and came by no network
        self.source_port = 0
        self.rdns = ""  # the address's name, where filters or rules want to know it
        self.fcrdns = False  # … and the name leads back
        self.filters = SessionFilters(process, self, session_id, listener.filter)
        self._ends_at_s = asyncio.get_running_loop().time() + SESSION_TOTAL_S

    async def run(self, connection: socket.socket, source: tuple[str, int]) -> None:
        """`source`: address and port of the client, as accept(2) gave them; it may be gone by now."""
        self.stream.peer = source
        try:
            # With TLS from the first byte: nothing may be read before the handshake.
            context = self.smtp.tls_context(self.listener) if self.listener.tls == "implicit" else None
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self.stream, connection, ssl=context)
        except OSError as error:
            if self.listener.tls == "implicit":
                self.process.stats["smtp.tls-failed"] += 1
                self.trace(f"no TLS: {error}")
            connection.close()
            self.smtp.session_over(self)
            return
        try:
            await self._identify()
            if self.stream.tls:
                self._is_secure()
            if not self.smtp.admission.enter_from(self.source):
                self.process.stats["smtp.turned-away"] += 1
                self.stream.write(Reply(421, f"{self.hostname} Too many connections from you", "4.7.0").encode())
                return
            try:
                await self._greet_and_serve()
            finally:
                self.smtp.admission.leave_from(self.source)
        except proxy.ProxyError as error:
            logger.warning("%s: %s", self.stream.peer[0], error)
        except TlsFailure as failure:
            self.process.stats["smtp.tls-failed"] += 1
            self.trace(f"no TLS: {failure}")
        except StreamTimeout:
            self.stream.write(Reply(421, f"{self.hostname} session timed out", "4.4.2").encode())
            self.filters.report("timeout")
        finally:
            self._forget_transaction()
            self.stream.close()
            self.process.scope("session %d", self.id).check("its connection", held=self.stream.is_open)
            self.smtp.session_over(self)
            self.trace("over")

    async def _identify(self) -> None:
        """Who is there: the peer, or whom a proxy speaks for. Raises ProxyError, StreamTimeout."""
        self.source, self.source_port = self.stream.peer
        if not self.listener.proxy_v2:
            return
        self.stream.timeout_s = PROXY_TIMEOUT_S
        data = b""
        while (header := proxy.parse(data)) is None:
            more = await self.stream.receive()
            if not more:
                raise proxy.ProxyError("the connection ended before its PROXY header did")
            data += more
        if rest := data[header.size_bytes :]:
            self.machine.receive(rest)
        if header.source is not None:
            self.source, self.source_port = header.source

    async def _secure(self) -> None:
        """Raises TlsFailure."""
        await self.stream.start_tls(self.smtp.tls_context(self.listener), server_side=True)
        self._is_secure()

    def _is_secure(self) -> None:
        self.process.stats["smtp.tls"] += 1
        self.filters.report("link-tls", self.stream.tls)
        self.trace(f"TLS: {self.stream.tls}")
        self.machine.extensions = _extensions(self.listener, secure=True)

    async def _greet_and_serve(self) -> None:
        self.trace(f"connected from {self.source or 'this machine'}")
        if self.listener.hostnames:
            question = f"{self.listener.hostnames}\0{self.stream.local[0]}"
            answer = await self.process.ask("lookup", Kind.SERVER_NAME, text=question.encode())
            self.hostname = answer.text.decode() or self.hostname
        if self.source and (self.smtp.rules_ask_for_names or needs_names(self.process.config, self.listener.filter)):
            answer = await self.process.ask("lookup", Kind.CLIENT_NAME, text=self.source.encode())
            self.rdns, self.fcrdns = answer.text.decode(), bool(answer.integers[1])
        self.filters.connected(self.stream)
        try:
            await self._serve()
        finally:
            self.filters.report("link-disconnect")

    def trace(self, line: str) -> None:
        if "smtp" in self.process.tracing:
            self.process.trace("smtp", f"{self.id:016x} {line}")

    async def _serve(self) -> None:
        while True:
            while (event := self.machine.next_event()) is None:
                self.machine.receive(await self._receive())
            match event:
                # Patterns name their attributes: positional ones look up `__match_args__` by a fresh string each time,
                # which CPython 3.11 keeps in its method cache (see wire.date).
                case server.Body(chunk=chunk):
                    await self._write(chunk)
                    continue
                case server.Closed():
                    return
            reply = await self._answer(event)
            if "smtp" in self.process.tracing:
                self.trace(f"{type(event).__name__} -> {reply}")
            self.filters.said(event, reply)
            self.stream.write(self.machine.reply(reply))
            await self.stream.drain()
            if isinstance(event, server.StartTls) and reply.positive:
                await self._secure()
                self.machine.secured(self.machine.extensions)
                self.hello = ""
            if self.machine.state is server.State.CLOSED or self.filters.hangs_up:
                return

    async def _receive(self) -> bytes:
        """Bytes, for as long as neither the silence nor the whole session has lasted too long. Raises StreamTimeout."""
        left_s = self._ends_at_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise StreamTimeout
        self.stream.timeout_s = min(SESSION_TIMEOUT_S, left_s)
        return await self.stream.receive()

    async def _answer(self, event: server.Event) -> Reply:
        match event:
            case server.Connected():
                refused, _ = await ask_or_refuse(self.filters, "connect")
                return refused or Reply(220, f"{self.hostname} ESMTP Seatbelt")
            case server.Hello():
                return await self._hello(event)
            case server.Mail():
                return await self._mail(event)
            case server.Recipient():
                return await self._recipient(event)
            case server.Data():
                return await self._data()
            case server.EndOfChunk(size_bytes=size):
                return Reply(250, f"{size} bytes received", "2.0.0")
            case server.EndOfData():
                return await self._end_of_data()
            case server.Reset():
                self._forget_transaction()
                return Reply(250, "Reset state", "2.0.0")
            case server.Noop():
                return Reply(250, "Ok", "2.0.0")
            case server.Verify():
                return Reply(252, "Cannot VRFY; try RCPT to attempt delivery", "2.0.0")
            case server.Expand():
                return Reply(502, "Lists are not expanded", "5.7.0")
            case server.Help():
                return Reply(214, ("This is Seatbelt's smtpd", HELP), "2.0.0")
            case server.StartTls():
                self._forget_transaction()
                return Reply(220, "Ready to start TLS", "2.0.0")
            case server.Auth():
                return await self._authenticated(await self.auth.begin(event))
            case server.AuthResponse():
                return await self._authenticated(await self.auth.go_on(event))
            case server.Quit():
                return Reply(221, "Bye", "2.0.0")
            case server.Refused(reply=reply):
                self.process.stats["smtp.refused-command"] += 1
                if self.machine.state not in (server.State.TRANSACTION, server.State.CHUNKED):
                    self._forget_transaction()
                return reply
        raise AssertionError(f"{event!r} takes no reply")

    async def _hello(self, event: server.Hello) -> Reply:
        self._forget_transaction()
        refused, name = await ask_or_refuse(self.filters, "ehlo" if event.extended else "helo", event.name)
        if refused is not None:
            return refused
        self.hello, self.extended = name, event.extended
        if event.extended:
            return self.machine.ehlo_reply(self.hostname, name)
        return Reply(250, f"{self.hostname} Hello {name} {literal(self.source)}, pleased to meet you")

    async def _authenticated(self, reply: Reply) -> Reply:
        """The answer to AUTH, when filters have been asked about a login that is good."""
        if reply.code == 334:
            return reply
        if reply.positive:
            refused, _ = await ask_or_refuse(self.filters, "auth", self.auth.username)
            if refused is not None:
                self.auth.username = ""
                return refused
        self.filters.report("link-auth", self.auth.username, "pass" if reply.positive else "fail")
        return reply

    async def _write(self, chunk: bytes) -> None:
        """A piece of the message, through the programs that change its lines."""
        transaction = self.transaction
        assert transaction is not None
        self.filters.received(chunk)
        if transaction.masquerade is not None:
            chunk = transaction.masquerade.feed(chunk)
        if self.filters.has_line_programs and not transaction.failed:
            try:
                chunk = await self.filters.lines(chunk)
            except Refusal as refusal:
                transaction.failed = str(refusal)
        await transaction.write(chunk)

    async def _mail(self, event: server.Mail) -> Reply:
        self._forget_transaction()
        sender = "" if event.sender is None else str(event.sender)
        refused, sender = await ask_or_refuse(self.filters, "mail-from", sender)
        if refused is not None:
            return refused
        if self.listener.senders and self.auth.username:
            question = "\0".join((self.listener.senders, self.auth.username, sender))
            try:
                await self.process.ask("lookup", Kind.SENDER_OF, text=question.encode())
            except Refusal as refusal:
                return _refused(str(refusal))
        try:
            msgid = await self.smtp.message_ids.take()
        except Refusal as refusal:
            return Reply(451, f"Temporary failure: {refusal}", "4.3.0")
        self.transaction = Transaction(self.process, self.smtp.message_ids, sender, msgid)
        self.transaction.parameters = event.parameters
        if self.listener.masquerade and self.auth.username:
            self.transaction.masquerade = Masquerade(sender)
        return Reply(250, "Ok", "2.0.0")

    async def _recipient(self, event: server.Recipient) -> Reply:
        transaction = self.transaction
        assert transaction is not None
        recipient = str(event.mailbox)
        refused, recipient = await ask_or_refuse(self.filters, "rcpt-to", recipient)
        if refused is not None:
            self.process.stats["smtp.refused-recipient"] += 1
            return refused
        asked = transaction.parameters
        envelope = Envelope(
            dsn_notify=notify_bits(event.parameters.get("NOTIFY", "")),
            dsn_ret=cast(Return, asked.get("RET", "").upper()),
            dsn_envid=asked.get("ENVID", ""),
            dsn_orcpt=event.parameters.get("ORCPT", ""),
            flags=_FLAGS["SMTPUTF8" in asked, bool(self.auth.username)],
            username=self.auth.username,
            tag=self.listener.tag,
            smtpname=self.hostname,
            helo=self.hello,
            hostname=self.rdns or self.source,
            sockaddr=self.source,
            sender=transaction.sender,
            rcpt=recipient,
            dest=recipient,
            ctime=int(time.time()),
            ttl=self.process.config.queue_ttl_s,
        )
        try:
            secure = int(bool(self.stream.tls))
            await self.process.ask("lookup", Kind.EXPAND, transaction.msgid, secure, text=encode(envelope))
        except Refusal as refusal:
            self.process.stats["smtp.refused-recipient"] += 1
            return _refused(str(refusal))
        transaction.first_recipient = transaction.first_recipient or recipient
        return Reply(250, "Recipient ok", "2.1.5")

    async def _data(self) -> Reply:
        transaction = self.transaction
        assert transaction is not None
        refused, _ = await ask_or_refuse(self.filters, "data")
        if refused is not None:
            return refused
        await transaction.write(self.filters.header + self._received_header(transaction))
        return Reply(354, 'Enter mail, end with "." on a line by itself')

    async def _end_of_data(self) -> Reply:
        transaction = self.transaction
        assert transaction is not None
        refused, _ = await ask_or_refuse(self.filters, "commit")
        if refused is not None:
            self._forget_transaction()
            return refused
        if transaction.masquerade is not None and (rest := transaction.masquerade.rest()):
            await transaction.write(rest)
        if self.filters.has_line_programs and not transaction.failed:
            try:
                await transaction.write(await self.filters.last_lines())
            except Refusal as refusal:
                transaction.failed = str(refusal)
        transaction.end()
        msgid = transaction.msgid
        try:
            if transaction.failed:
                logger.warning("message %08x: cannot write: %s", msgid, transaction.failed)
                return Reply(452, "Cannot store the message now", "4.3.1")
            await transaction.commit()
        except Refusal as refusal:
            return Reply(451, f"Temporary failure: {refusal}", "4.3.0")
        finally:
            self._forget_transaction()
        self.process.stats["smtp.message"] += 1
        return Reply(250, f"{msgid:08x} Message accepted for delivery", "2.0.0")

    def _forget_transaction(self) -> None:
        self.filters.transaction_over()
        if self.transaction is not None:
            self.transaction.close()
            self.transaction.held.end()
            self.transaction = None

    def _received_header(self, transaction: Transaction) -> bytes:
        return received(
            helo=self.hello,
            rdns=self.rdns,
            address=self.source,
            hostname=self.hostname,
            protocol=protocol(
                extended=self.extended,
                utf8="SMTPUTF8" in transaction.parameters,
                secure=bool(self.stream.tls),
                authenticated=bool(self.auth.username),
            ),
            tls=self.stream.tls,
            username=self.auth.username if self.listener.received_auth else "",
            message_id=f"{transaction.msgid:08x}",
            recipient=transaction.first_recipient if self.machine.recipients == 1 else "",
            hides_source=self.listener.mask_src,
        )


def _extensions(listener: Listener, *, secure: bool) -> tuple[str, ...]:
    """What EHLO offers: STARTTLS until it is spoken, AUTH from then on."""
    plain = _WITHOUT_DSN if listener.no_dsn else ALL_EXTENSIONS
    if not secure:
        return (*plain, "STARTTLS")
    return (*plain, "AUTH") if listener.auth != "no" else plain


def _refused(reason: str) -> Reply:
    """Lookup's refusal: `code enhanced text`."""
    code, enhanced, text = reason.split(" ", 2)
    return Reply(int(code), text, enhanced)

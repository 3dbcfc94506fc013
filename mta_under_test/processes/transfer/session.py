"""One outbound SMTP or LMTP session: greeting, then transaction after transaction while its relay has tasks.

Owns: the connection, and `message`, the descriptor of the message in hand. It is a plain integer: wrapped in a file
object, Python's reference counts would close it behind our back and hide the very bug that this product began with
(OpenSMTPD af8b6a75 and 594cb438, January 2013: refused recipients, session reused, file never closed).
Whatever ends a transaction calls `release_message`: RSET, the flush of a task; the body's end and the session's end
call `close_message` themselves.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from typing import Protocol

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.stream import Stream, StreamTimeout
from mta_under_test.processes.transfer import secure, wishes
from mta_under_test.processes.transfer.routes import Connector, Relay, Route, Task
from mta_under_test.wire.client import ClientMachine, LocalError, RemoteError
from mta_under_test.wire.reply import Reply

SESSION_TIMEOUT_S = 300.0
MAX_HOPS = 100  # Received fields; checked when relaying, as February 2013 did
HEADER_BYTES = 1 << 16  # that the hops are counted in
READ_BYTES = 1 << 16
RELEASE_S = 1  # that a session waits for envelopes which scheduler was asked to release
LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # this process's trouble, no host's
SOURCE_ERRORS = (errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EADDRINUSE)

logger = logging.getLogger("smtpd")


class SessionError(Exception):
    """The session cannot go on; the text is a status line for the recipients in hand."""


class SessionKeeper(secure.TlsContexts, Protocol):
    """What a session needs of transfer, beside what it has as every process does."""

    def session_ready(self, session: Session) -> None:
        """The session is past the greeting: its route works."""

    def session_over(self, session: Session) -> None:
        """The session's connection is closed."""

    def next_task(self, relay: Relay) -> Task | None:
        """The relay's next task; it is running from here on."""

    def task_over(self) -> None:
        """It does not run any more."""

    def untake(self, relay: Relay, task: Task) -> None:
        """The session that was given the task is gone: somebody else does it."""

    def result(self, evpid: int, kind: Kind, status_line: str, remote: str = "") -> None:
        """What became of one recipient, and which server said so, if it was one."""

    def results(self, task: Task, kind: Kind, status_line: str, remote: str = "") -> None:
        """The same for every recipient of the task that has no result yet."""

    def heard(self, task: Task, kind: Kind, status_line: str) -> None:
        """What the task's destination said."""


class Session:
    def __init__(
        self,
        process: Process,
        transfer: SessionKeeper,
        relay: Relay,
        connector: Connector,
        route: Route,
        mx_name: str,
    ) -> None:
        """`process` and `transfer` are the same one: what every process can do, and what only transfer can."""
        self.process = process
        self.transfer = transfer
        self.relay = relay
        self.connector = connector
        self.route = route
        self.mx_name = mx_name  # the host's name, as the destination's MX record or the configuration has it
        self.stream = Stream(SESSION_TIMEOUT_S, process.trace_io)
        self.machine = ClientMachine()
        self.declines_tls = False  # a handshake with this host has just failed
        self.lmtp = relay.key.scheme == "lmtp"
        self.message: int | None = None
        self._scope = process.scope("session with %s", mx_name)
        self._held = self._scope  # the transaction's, once there is one
        self.accepted = 0  # messages; refusals did not count in February 2013, so a refusing peer saw unbounded reuse
        self.refused = 0
        self.is_ready = False  # the dialogue got past the greeting
        self.source_failed = False  # it is our own address that does not work
        self.local_failure = False  # no connection could even be tried
        self.error = ""
        self._given: Task | None = None  # while the session was idle

    @property
    def server_name(self) -> str:
        """By which the host's certificate is checked."""
        return self.mx_name or self.route.host.address

    async def run(self) -> None:
        try:
            try:
                await self._open()
            except secure.NoTls:
                self.stream.abort()
                self.stream = Stream(SESSION_TIMEOUT_S, self.process.trace_io)
                self.machine = ClientMachine()
                self.declines_tls = True
                await self._open()
            self.is_ready = True
            self.transfer.session_ready(self)
            while (task := await self._next_task()) is not None:
                try:
                    with self.process.scope("transaction %08x with %s", task.msgid, self.mx_name) as self._held:
                        await self._transact(task)
                finally:
                    self.transfer.task_over()
            await self.command(self.machine.quit())
        except SessionError as failure:
            self.error = str(failure)
            self.trace(self.error)
        except LocalError as mistake:
            self.error = f"451 4.3.5 {mistake}"
            self.source_failed = bool(self.route.source.address)
        finally:
            self.close_message()
            self.stream.close()
            self._scope.check("its connection", held=self.stream.is_open)
            self._scope.check("a place among the idle", held=self in self.relay.idle_sessions)
            self.transfer.session_over(self)

    # ---- tasks

    def give(self, task: Task) -> None:
        """Something to do for a session that is idle."""
        self._given = task
        self.stream.interrupt()

    def nothing_comes(self) -> None:
        """The envelopes that an idle session may be waiting for are not there."""
        if not self.relay.limits.session_keepalive:
            self.stream.interrupt()

    async def _next_task(self) -> Task | None:
        """The relay's next task, which may be a while in coming; None when this session has done enough."""
        limits = self.relay.limits
        if self.accepted >= limits.session_mail_max:
            return None
        if 0 < limits.max_failures_per_session <= self.refused:
            return None
        pause_s = limits.session_transaction_delay
        if pause_s and self.accepted + self.refused and not await self.stream.idle(pause_s):
            return None
        if (task := self.transfer.next_task(self.relay)) is not None:
            return task
        patience_s = max(limits.session_keepalive, RELEASE_S if self.relay.awaits_released else 0)
        if not patience_s:
            return None
        self.relay.idle_sessions.append(self)
        try:
            is_there = await self.stream.idle(patience_s)
        finally:
            if self in self.relay.idle_sessions:
                self.relay.idle_sessions.remove(self)
        task, self._given = self._given, None
        if task is not None and not is_there:
            self.transfer.untake(self.relay, task)
            return None
        return task

    def trace(self, line: str) -> None:
        if "transfer" in self.process.tracing:
            self.process.trace("transfer", f"{self.route.host.address} {line}")

    # ---- the message in hand

    def close_message(self) -> None:
        if self.message is not None:
            os.close(self.message)
            self._held.gave("message", self.message)
            self.message = None

    def release_message(self) -> None:
        """The transaction is over, whether its message was read or not."""
        self.close_message()

    # ---- the dialogue

    async def _open(self) -> None:
        """Raises NoTls when it may be tried again without TLS."""
        await self._connect()
        try:
            await secure.first(self)
            await self._greet()
            if not self.declines_tls and await secure.second(self):
                await self._hello()
            await secure.authenticate(self)
        except secure.Unsafe as error:
            raise SessionError(str(error)) from error

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        address = self.route.source.address
        source = (address, 0) if address else None
        try:
            async with asyncio.timeout(SESSION_TIMEOUT_S):
                await loop.create_connection(
                    lambda: self.stream, self.route.host.address, self.relay.key.port, local_addr=source
                )
        except TimeoutError as error:
            raise SessionError("451 4.4.1 Connection timed out") from error
        except OSError as error:
            self.source_failed = bool(address) and error.errno in SOURCE_ERRORS
            self.local_failure = error.errno in LOCAL_ERRORS
            raise SessionError(f"451 4.4.1 Cannot connect: {os.strerror(error.errno or 0)}") from error

    async def _greet(self) -> None:
        greeting = await self._reply()
        if not greeting.positive:
            raise SessionError(str(greeting))
        await self._hello()

    async def _hello(self) -> None:
        name = await self._helo_name()
        if self.lmtp:
            reply = await self.command(self.machine.lhlo(name))
        else:
            reply = await self.command(self.machine.ehlo(name))
            if reply.permanent:
                reply = await self.command(self.machine.helo(name))
        if not reply.positive:
            raise SessionError(str(reply))

    async def _helo_name(self) -> str:
        """What we call ourselves: `helo`, or by our address from the table of `helo-src`, or the server's name."""
        action = self.relay.action
        if not action.helo_src:
            return action.helo or self.process.config.hostname
        address = self.stream.local[0]
        try:
            answer = await self.process.ask("lookup", Kind.TABLE_VALUE, text=f"{action.helo_src} {address}".encode())
        except Refusal as refusal:
            raise SessionError(f"451 4.3.5 Could not retrieve helo name: {refusal}") from refusal
        if not answer.integers[1]:
            self.source_failed = True
            raise SessionError(f"451 4.3.5 No helo name for {address} in table <{action.helo_src}>")
        return answer.text.decode()

    async def _transact(self, task: Task) -> None:
        try:
            await self._deliver(task)
        except LocalError as error:
            self._flush(task, Kind.DELIVERY_PERM, f"554 5.6.0 {error}")
            raise SessionError(f"451 4.3.5 {error}") from error
        except (SessionError, Refusal) as error:
            line = str(error) if isinstance(error, SessionError) else f"451 4.3.0 Cannot read the message: {error}"
            self._flush(task, Kind.DELIVERY_TEMP, line)
            if isinstance(error, SessionError):
                raise

    async def _deliver(self, task: Task) -> None:
        """One transaction. Raises SessionError when the session is of no more use, Refusal without a message."""
        transfer = self.transfer
        answer = await self.process.ask("queue", Kind.MESSAGE_FD, task.msgid)
        self.message = answer.take_descriptor()
        if self.message is None:
            raise Refusal("out of descriptors")
        self._held.took("message", self.message)
        if hops(self.message) >= MAX_HOPS:
            self._flush(task, Kind.DELIVERY_LOOP, "554 5.4.6 Routing loop detected")
            return
        size = os.fstat(self.message).st_size if "SIZE" in self.machine.extensions else None
        offered = self.machine.extensions
        utf8 = "SMTPUTF8" in offered and task.wishes is not None and task.wishes.allows_utf8
        if not utf8 and self._refuses_utf8(task):
            return
        if task.wishes is not None:
            task.wishes.passed_on = "DSN" in offered
        dsn = wishes.of_mail(task.wishes, offered)
        self._send(self.machine.mail(task.sender, size=size, dsn=dsn, utf8=utf8), more="PIPELINING" in offered)
        evpids = list(task.recipients)
        if "PIPELINING" in offered:
            # In one write (RFC 2920): each round trip that is saved saves a tenth of what a message costs here.
            for evpid in evpids:
                self._send_recipient(task, evpid, more=evpid != evpids[-1])
        reply = await self._answer()
        if not reply.positive:
            await self._refused(task, reply, unread=len(evpids) if "PIPELINING" in offered else 0)
            return
        for evpid in evpids:
            if "PIPELINING" not in offered:
                self._send_recipient(task, evpid)
            reply = await self._answer()
            if not reply.positive:
                transfer.heard(task, failure(reply), str(reply))
                del task.recipients[evpid]
                transfer.result(evpid, failure(reply), str(reply), self.route.host.address)
        if not task.recipients:
            await self._reset(task)
            return
        reply = await self.command(self.machine.data())
        if reply.code != 354:
            await self._refused(task, reply)
            return
        await self._send_body(self.message)
        self.close_message()
        self.stream.write(self.machine.end_of_data(len(task.recipients) if self.lmtp else 1))
        if self.lmtp:
            await self._lmtp_results(task)
            return
        reply = await self._answer()
        if reply.positive:
            self.accepted += 1
        else:
            self.refused += 1
        self._flush(task, Kind.DELIVERY_OK if reply.positive else failure(reply), str(reply), self.route.host.address)

    def _send_recipient(self, task: Task, evpid: int, *, more: bool = False) -> None:
        dsn = wishes.of_recipient(task.wishes, evpid, self.machine.extensions)
        self._send(self.machine.rcpt(task.recipients[evpid], dsn=dsn), more=more)

    async def _lmtp_results(self, task: Task) -> None:
        """One reply for each recipient that was accepted, in their order (RFC 2033 §4.2)."""
        accepted = False
        for evpid in list(task.recipients):
            reply = await self._answer()
            accepted |= reply.positive
            kind = Kind.DELIVERY_OK if reply.positive else failure(reply)
            self.transfer.heard(task, kind, str(reply))
            del task.recipients[evpid]
            self.transfer.result(evpid, kind, str(reply), self.route.host.address)
        self.accepted += accepted
        self.refused += not accepted
        self._flush(task, Kind.DELIVERY_OK, "")

    def _refuses_utf8(self, task: Task) -> bool:
        """Recipients that cannot be named to this server fail, and all of them when the message cannot go there."""
        assert self.message is not None
        if wishes.needs_utf8(task.wishes, task.sender, self.message):
            self._flush(task, Kind.DELIVERY_PERM, wishes.NO_UTF8)
            return True
        for evpid, address in list(task.recipients.items()):
            if not address.isascii():
                del task.recipients[evpid]
                self.transfer.result(evpid, Kind.DELIVERY_PERM, wishes.NO_UTF8)
        if not task.recipients:
            self.release_message()
        return not task.recipients

    async def _refused(self, task: Task, reply: Reply, unread: int = 0) -> None:
        """MAIL or DATA was refused, and with it every recipient; those named meanwhile have replies of their own."""
        self.transfer.results(task, failure(reply), str(reply), self.route.host.address)
        for _ in range(unread):
            await self._answer()
        await self._reset(task)

    async def _reset(self, task: Task) -> None:
        self.release_message()
        self.refused += 1
        await self.command(self.machine.rset())
        self._flush(task, Kind.DELIVERY_TEMP, "451 4.3.0 Transaction reset")

    def _flush(self, task: Task, kind: Kind, status_line: str, remote: str = "") -> None:
        """The one way in which every task ends: each recipient without a result gets this one."""
        self.release_message()
        self.transfer.results(task, kind, status_line, remote)

    async def _send_body(self, message: int) -> None:
        while chunk := os.read(message, READ_BYTES):
            self.stream.write(self.machine.body(chunk), more=True)
            try:
                await self.stream.drain()
            except StreamTimeout as error:
                raise SessionError("451 4.4.2 Timed out while sending the message") from error

    async def command(self, command: bytes) -> Reply:
        """Raises SessionError when there is no answer, or when it is 421."""
        self._send(command)
        return await self._answer()

    def _send(self, command: bytes, *, more: bool = False) -> None:
        self.stream.write(command, more=more)
        if "transfer" in self.process.tracing:
            self.trace(f"<- {command[:512].decode(errors='replace').rstrip()}")

    async def _answer(self) -> Reply:
        reply = await self._reply()
        if reply.code == 421:
            raise SessionError(str(reply))
        return reply

    async def _reply(self) -> Reply:
        try:
            while (answered := self.machine.next_reply()) is None:
                if self.machine.closed:
                    raise SessionError("451 4.4.2 Connection closed unexpectedly")
                self.machine.receive(await self.stream.receive())
        except StreamTimeout as error:
            raise SessionError("451 4.4.2 Timed out while waiting for the remote server") from error
        except RemoteError as error:
            raise SessionError(f"451 4.5.0 The remote server does not speak SMTP: {error}") from error
        reply = answered[1]
        if "transfer" in self.process.tracing:
            self.trace(f"-> {reply}")
        return reply


def failure(reply: Reply) -> Kind:
    return Kind.DELIVERY_PERM if reply.permanent else Kind.DELIVERY_TEMP


def hops(message: int) -> int:
    """How many servers a message has been through (RFC 5321 §6.3); the file position stays."""
    header, _, _ = os.pread(message, HEADER_BYTES, 0).partition(b"\r\n\r\n")
    return (b"\r\n" + header.lower()).count(b"\r\nreceived:")

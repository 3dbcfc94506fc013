"""One outbound SMTP session: greeting, then transaction after transaction for as long as its relay has tasks.

Owns: the connection, and `message`, the descriptor of the message in hand. It is a plain integer: wrapped in a file
object, Python's reference counts would close it behind our back and hide the very bug that this product began with
(OpenSMTPD af8b6a75 and 594cb438, January 2013: refused recipients, session reused, file never closed).
Whatever ends a transaction calls `release_message`: RSET, the flush of a task; the body's end and the session's end
call `close_message` themselves.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Refusal
from mta_under_test.processes.stream import Stream, StreamTimeout
from mta_under_test.processes.transfer_routes import Relay, Route, Task
from mta_under_test.wire.client import ClientMachine, RemoteError
from mta_under_test.wire.reply import Reply

if TYPE_CHECKING:
    from mta_under_test.processes.transfer import Transfer

SESSION_TIMEOUT_S = 300.0
MAX_MAILS = 100  # accepted ones; refusals did not count in February 2013, so a refusing peer saw unbounded reuse
MAX_HOPS = 100  # Received fields; checked when relaying, as February 2013 did
HEADER_BYTES = 1 << 16  # that the hops are counted in
READ_BYTES = 1 << 16

logger = logging.getLogger("smtpd")


class SessionError(Exception):
    """The session cannot go on; the text is a status line for the recipients in hand."""


class Session:
    def __init__(self, transfer: Transfer, relay: Relay, route: Route) -> None:
        self.transfer = transfer
        self.relay = relay
        self.route = route
        self.stream = Stream(SESSION_TIMEOUT_S)
        self.machine = ClientMachine()
        self.message: int | None = None
        self.accepted = 0

    async def run(self) -> None:
        ready, error = False, ""
        try:
            await self._connect()
            await self._greet()
            ready = True
            self.transfer.session_ready(self.relay, self.route)
            while self.relay.tasks and self.accepted < MAX_MAILS:
                await self._transact(self.relay.tasks.popleft())
            await self._command(self.machine.quit())
        except SessionError as failure:
            error = str(failure)
            self.trace(error)
        finally:
            self.close_message()
            self.stream.close()
            self.transfer.session_over(self.relay, self.route, was_ready=ready, error=error)

    def trace(self, line: str) -> None:
        if "transfer" in self.transfer.tracing:
            self.transfer.trace("transfer", f"{self.route.host.address} {line}")

    # ---- the message in hand

    def close_message(self) -> None:
        if self.message is not None:
            os.close(self.message)
            self.message = None

    def release_message(self) -> None:
        """The transaction is over, whether its message was read or not."""
        self.close_message()

    # ---- the dialogue

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        source = (self.route.source, 0) if self.route.source else None
        try:
            async with asyncio.timeout(SESSION_TIMEOUT_S):
                await loop.create_connection(
                    lambda: self.stream, self.route.host.address, self.relay.key.port, local_addr=source
                )
        except TimeoutError as error:
            raise SessionError("451 4.4.1 Connection timed out") from error
        except OSError as error:
            raise SessionError(f"451 4.4.1 Cannot connect: {os.strerror(error.errno or 0)}") from error

    async def _greet(self) -> None:
        greeting = await self._reply()
        if not greeting.positive:
            raise SessionError(str(greeting))
        name = self.relay.key.helo
        reply = await self._command(self.machine.ehlo(name))
        if reply.permanent:
            reply = await self._command(self.machine.helo(name))
        if not reply.positive:
            raise SessionError(str(reply))

    async def _transact(self, task: Task) -> None:
        try:
            await self._deliver(task)
        except (SessionError, Refusal) as error:
            line = str(error) if isinstance(error, SessionError) else f"451 4.3.0 Cannot read the message: {error}"
            self._flush(task, Kind.DELIVERY_TEMP, line)
            if isinstance(error, SessionError):
                raise

    async def _deliver(self, task: Task) -> None:
        """One transaction. Raises SessionError when the session is of no more use, Refusal without a message."""
        transfer = self.transfer
        answer = await transfer.ask("queue", Kind.MESSAGE_FD, task.msgid)
        self.message = answer.take_descriptor()
        if self.message is None:
            raise Refusal("out of descriptors")
        if hops(self.message) >= MAX_HOPS:
            self._flush(task, Kind.DELIVERY_LOOP, "554 5.4.6 Routing loop detected")
            return
        size = os.fstat(self.message).st_size if "SIZE" in self.machine.extensions else None
        reply = await self._command(self.machine.mail(task.sender, size=size))
        if not reply.positive:
            await self._refused(task, reply)
            return
        for evpid, address in list(task.recipients.items()):
            reply = await self._command(self.machine.rcpt(address))
            if not reply.positive:
                del task.recipients[evpid]
                transfer.result(evpid, failure(reply), str(reply), self.route.host.address)
        if not task.recipients:
            await self._reset(task)
            return
        reply = await self._command(self.machine.data())
        if reply.code != 354:
            await self._refused(task, reply)
            return
        await self._send_body(self.message)
        self.close_message()
        reply = await self._command(self.machine.end_of_data())
        if reply.positive:
            self.accepted += 1
        self.release_message()
        kind = Kind.DELIVERY_OK if reply.positive else failure(reply)
        transfer.results(task, kind, str(reply), self.route.host.address)

    async def _refused(self, task: Task, reply: Reply) -> None:
        """MAIL or DATA was refused, and with it every recipient."""
        self.transfer.results(task, failure(reply), str(reply), self.route.host.address)
        await self._reset(task)

    async def _reset(self, task: Task) -> None:
        self.release_message()
        await self._command(self.machine.rset())
        self._flush(task, Kind.DELIVERY_TEMP, "451 4.3.0 Transaction reset")

    def _flush(self, task: Task, kind: Kind, status_line: str) -> None:
        """The one way in which every task ends: each recipient without a result gets this one."""
        self.release_message()
        self.transfer.results(task, kind, status_line)

    async def _send_body(self, message: int) -> None:
        while chunk := os.read(message, READ_BYTES):
            self.stream.write(self.machine.body(chunk))
            try:
                await self.stream.drain()
            except StreamTimeout as error:
                raise SessionError("451 4.4.2 Timed out while sending the message") from error

    async def _command(self, command: bytes) -> Reply:
        self.stream.write(command)
        if "transfer" in self.transfer.tracing:
            self.trace(f"<- {command[:512].decode(errors='replace').rstrip()}")
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
        self.trace(f"-> {reply}")
        return reply


def failure(reply: Reply) -> Kind:
    return Kind.DELIVERY_PERM if reply.permanent else Kind.DELIVERY_TEMP


def hops(message: int) -> int:
    """How many servers a message has been through (RFC 5321 §6.3); the file position stays."""
    header, _, _ = os.pread(message, HEADER_BYTES, 0).partition(b"\r\n\r\n")
    return (b"\r\n" + header.lower()).count(b"\r\nreceived:")

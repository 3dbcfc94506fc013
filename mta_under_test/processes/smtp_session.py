"""One inbound SMTP session: the server machine's events answered with the help of lookup and queue.

Owns: the connection, and the transaction in hand (`Transaction`), which lets go of the message's descriptor and of
the uncommitted message on every way out: end of data, RSET, a new MAIL, refusal, time-out, peer gone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING

from mta_under_test.config import Listener
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Refusal
from mta_under_test.processes.stream import Stream, StreamTimeout
from mta_under_test.processes.transaction import Transaction
from mta_under_test.wire import server
from mta_under_test.wire.date import header_date
from mta_under_test.wire.envelope import Envelope, encode
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import ServerMachine

if TYPE_CHECKING:
    from mta_under_test.processes.smtp import Smtp

SESSION_TIMEOUT_S = 300.0  # SMTPD_SESSION_TIMEOUT

logger = logging.getLogger("smtpd")


class Session:
    def __init__(self, smtp: Smtp, listener: Listener, session_id: int) -> None:
        self.id = session_id
        self.smtp = smtp
        self.listener = listener
        self.hostname = listener.hostname or smtp.config.hostname
        self.stream = Stream(SESSION_TIMEOUT_S, smtp.trace_io)
        self.machine = ServerMachine(smtp.limits)
        self.transaction: Transaction | None = None
        self.hello = ""
        self.extended = False

    async def run(self, connection: socket.socket, source: tuple[str, int]) -> None:
        """`source`: address and port of the client, as accept(2) gave them; it may be gone by now."""
        self.stream.peer = source
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self.stream, connection)
        except OSError:
            connection.close()
            self.smtp.session_over(self)
            return
        self.trace(f"connected from {self.stream.peer[0]}")
        try:
            await self._serve()
        except StreamTimeout:
            self.stream.write(Reply(421, f"{self.hostname} session timed out", "4.4.2").encode())
        finally:
            self._forget_transaction()
            self.stream.close()
            self.smtp.session_over(self)
            self.trace("over")

    def trace(self, line: str) -> None:
        if "smtp" in self.smtp.tracing:
            self.smtp.trace("smtp", f"{self.id:016x} {line}")

    async def _serve(self) -> None:
        while True:
            while (event := self.machine.next_event()) is None:
                self.machine.receive(await self.stream.receive())
            match event:
                # Patterns name their attributes: positional ones look up `__match_args__` by a fresh string each time,
                # which CPython 3.11 keeps in its method cache (see wire.date).
                case server.Body(chunk=chunk):
                    assert self.transaction is not None
                    await self.transaction.write(chunk)
                    continue
                case server.Closed():
                    return
            reply = await self._answer(event)
            if "smtp" in self.smtp.tracing:
                self.trace(f"{type(event).__name__} -> {reply}")
            self.stream.write(self.machine.reply(reply))
            await self.stream.drain()
            if self.machine.state is server.State.CLOSED:
                return

    async def _answer(self, event: server.Event) -> Reply:
        match event:
            case server.Connected():
                return Reply(220, f"{self.hostname} ESMTP Seatbelt")
            case server.Hello(name=name, extended=extended):
                self._forget_transaction()
                self.hello, self.extended = name, extended
                if extended:
                    return self.machine.ehlo_reply(self.hostname, name)
                return Reply(250, f"{self.hostname} Hello {name} [{self.stream.peer[0]}], pleased to meet you")
            case server.Mail():
                return await self._mail(event)
            case server.Recipient():
                return await self._recipient(event)
            case server.Data():
                return await self._data()
            case server.EndOfData():
                return await self._end_of_data()
            case server.Reset():
                self._forget_transaction()
                return Reply(250, "Reset state", "2.0.0")
            case server.Noop():
                return Reply(250, "Ok", "2.0.0")
            case server.Verify():
                return Reply(252, "Cannot VRFY; try RCPT to attempt delivery", "2.0.0")
            case server.Help():
                return Reply(
                    214, ("This is Seatbelt's smtpd", "EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP"), "2.0.0"
                )
            case server.Quit():
                return Reply(221, "Bye", "2.0.0")
            case server.Refused(reply=reply):
                self.smtp.stats["smtp.refused-command"] += 1
                if self.machine.state is not server.State.TRANSACTION:
                    self._forget_transaction()
                return reply
        raise AssertionError(f"{event!r} takes no reply")

    async def _mail(self, event: server.Mail) -> Reply:
        self._forget_transaction()
        try:
            msgid = await self.smtp.message_ids.take()
        except Refusal as refusal:
            return Reply(451, f"Temporary failure: {refusal}", "4.3.0")
        sender = "" if event.sender is None else str(event.sender)
        self.transaction = Transaction(self.smtp, sender, msgid)
        return Reply(250, "Ok", "2.0.0")

    async def _recipient(self, event: server.Recipient) -> Reply:
        transaction = self.transaction
        assert transaction is not None
        recipient = str(event.mailbox)
        envelope = Envelope(
            tag=self.listener.tag,
            smtpname=self.hostname,
            helo=self.hello,
            hostname=self.stream.peer[0],
            sockaddr=self.stream.peer[0],
            sender=transaction.sender,
            rcpt=recipient,
            dest=recipient,
            ctime=int(time.time()),
            ttl=self.smtp.config.queue_ttl_s,
        )
        try:
            await self.smtp.ask("lookup", Kind.EXPAND, transaction.msgid, text=encode(envelope))
        except Refusal as refusal:
            self.smtp.stats["smtp.refused-recipient"] += 1
            return _refused(str(refusal))
        transaction.first_recipient = transaction.first_recipient or recipient
        return Reply(250, "Recipient ok", "2.1.5")

    async def _data(self) -> Reply:
        transaction = self.transaction
        assert transaction is not None
        await transaction.write(self._received_header(transaction))
        return Reply(354, 'Enter mail, end with "." on a line by itself')

    async def _end_of_data(self) -> Reply:
        transaction = self.transaction
        assert transaction is not None
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
        self.smtp.stats["smtp.message"] += 1
        return Reply(250, f"{msgid:08x} Message accepted for delivery", "2.0.0")

    def _forget_transaction(self) -> None:
        if self.transaction is not None:
            self.transaction.close()
            self.transaction = None

    def _received_header(self, transaction: Transaction) -> bytes:
        protocol = "ESMTP" if self.extended else "SMTP"
        source = "" if self.listener.mask_src else f"from {self.hello} ({self.stream.peer[0]})\r\n\t"
        only_one = f"\r\n\tfor <{transaction.first_recipient}>" if self.machine.recipients == 1 else ""
        return (
            f"Received: {source}by {self.hostname} (Seatbelt) with {protocol} id {transaction.msgid:08x}{only_one};\r\n"
            f"\t{header_date()}\r\n"
        ).encode()


def _refused(reason: str) -> Reply:
    """Lookup's refusal: `code enhanced text`."""
    code, enhanced, text = reason.split(" ", 2)
    return Reply(int(code), text, enhanced)

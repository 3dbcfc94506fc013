"""The mail user: holds one SMTP session as planned and says what every command was answered.

Owns: one aiosmtplib client, and with it one connection, closed on every exit. Never: retries, or knows of locust.
Each command is given explicitly: aiosmtplib's `sendmail` would say RSET by itself after a refusal, and a dialogue that
is to be exact must not depend on that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache, partial
from typing import cast

from aiosmtplib import SMTP, SMTPException, SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import SMTPProtocol

from harness.load import dialogue
from harness.load.tally import CLOSING, Exchange, Outcome, Ticket, says_goodbye, unexpected
from harness.scenario import SENDER_DOMAIN, Message

LOCAL_HOSTNAME = f"load.{SENDER_DOMAIN}"  # given, or aiosmtplib asks the resolver for this machine's name
LINE_BYTES = 64  # of the body, CRLF included


class _Broken(Exception):
    """The session cannot go on; the exchange in hand has said why."""


async def hold(address: tuple[str, int], ticket: Ticket) -> Outcome:
    """Hold the session of `ticket` with the server at `address` (host, port).

    Never raises for what a server or a network does: that is in the outcome. Returns when the connection is closed.
    """
    host, port = address
    outcome = Outcome()
    left_s = ticket.deadline - time.monotonic()
    if left_s <= 0:
        outcome.exchanges.append(Exchange("CONNECT", time.time(), 0.0, "not begun when the session's time was over"))
        return outcome
    if ticket.plan.steps:
        try:
            await dialogue.hold(address, ticket, outcome)
        except TimeoutError:
            assert outcome.exchanges[-1].error, "a session that ends early says why"
        return outcome
    # No time-out of aiosmtplib's: it uses asyncio.wait_for, which before Python 3.12 forgets a cancellation that comes
    # together with the answer; the session would then wait for ever, and its socket stay open.
    client = SMTP(hostname=host, port=port, local_hostname=LOCAL_HOSTNAME, start_tls=False, timeout=None)
    conversation = _Dialogue(client, outcome)
    try:
        async with asyncio.timeout(left_s):
            await conversation.whole(ticket)
    except (_Broken, TimeoutError):
        assert outcome.exchanges[-1].error, "a session that ends early says why"
    finally:
        client.close()
        if conversation.transport is not None:
            # A transport that is only closed first sends what is buffered, for ever if the server does not read.
            conversation.transport.abort()
        # The loop closes the descriptor in its next turn. Whoever counts descriptors after us must not find it.
        await asyncio.sleep(0)
    return outcome


class _Ear(asyncio.Protocol):
    """Between a transport and aiosmtplib's protocol, which drops what it is told unasked: a 421, above all."""

    def __init__(self, protocol: SMTPProtocol) -> None:
        self._protocol = protocol
        self._heard = b""

    def data_received(self, data: bytes) -> None:
        self._heard = data
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    @property
    def heard_a_goodbye(self) -> bool:
        return says_goodbye(self._heard)


class _Dialogue:
    def __init__(self, client: SMTP, outcome: Outcome) -> None:
        self._client = client
        self._outcome = outcome
        self._protocol: SMTPProtocol | None = None
        self._ear: _Ear | None = None
        self.transport: asyncio.WriteTransport | None = None

    async def whole(self, ticket: Ticket) -> None:
        await self._must("CONNECT", self._client.connect)
        self._outcome.greeted = True
        self._protocol = self._client.protocol
        self.transport = cast(asyncio.WriteTransport, self._client.transport)
        assert self._protocol is not None, "it has connected"
        self._ear = _Ear(self._protocol)
        self.transport.set_protocol(self._ear)
        await self._must("EHLO", self._client.ehlo)
        for number, message in enumerate(ticket.plan.messages):
            await self._transaction(message, f"{ticket.name}.{number}@{SENDER_DOMAIN}")
        self._outcome.finished = True
        await self._must("QUIT", self._client.quit)

    async def _transaction(self, message: Message, message_id: str) -> None:
        self._outcome.messages += 1
        if not await self._command("MAIL", f"FROM:<{message.sender}>"):
            return
        taken = 0
        for recipient in message.recipients:
            taken += await self._command("RCPT", f"TO:<{recipient}>")
        for recipient in message.refused:
            await self._command("RCPT", f"TO:<{recipient}>", expected=5)
        if taken and await self._ask("DATA", partial(self._client.data, compose(message, message_id))):
            self._outcome.accepted.append(message_id)
        else:
            await self._command("RSET")

    def _command(self, verb: str, argument: str = "", expected: int = 2) -> Awaitable[bool]:
        # Not aiosmtplib's mail() and rcpt(): they parse each address as a header's, and that takes a third of all time.
        # Nor its execute_command(), which looks for control characters and locks out other commands: `Message` has no
        # such address, here is never more than one command at a time, and the two take a fifteenth of all time.
        return self._ask(verb, _line(verb, argument), expected)

    async def _must(self, name: str, command: Callable[[], Awaitable[SMTPResponse]]) -> None:
        if not await self._ask(name, command):
            raise _Broken

    async def _ask(self, name: str, command: bytes | Callable[[], Awaitable[SMTPResponse]], expected: int = 2) -> bool:
        """Is the answer to a line, or to what aiosmtplib says for it, one whose first digit is the `expected` one?

        Raises _Broken when the session is over.
        """
        began, clock = time.time(), time.perf_counter()
        code, text, error = 0, "", ""
        try:
            if isinstance(command, bytes):
                assert self._protocol is not None, "without a connection EHLO has failed"
                self._protocol.write(command)
                code, text = await self._protocol.read_response()
            else:
                code, text = await command()
        except SMTPResponseException as refused:  # how all but a plain command give an answer that is no success
            code, text = refused.code, refused.message
        except (SMTPException, OSError) as broken:
            error = str(broken) or type(broken).__name__
            is_gone = isinstance(broken, SMTPServerDisconnected | ConnectionError)
            if is_gone and self._ear is not None and not self._ear.heard_a_goodbye:
                self._outcome.closed()
        except asyncio.CancelledError:
            text = "cut off: not answered when the session's time was over"
            self._outcome.exchanges.append(Exchange(name, began, time.perf_counter() - clock, text))
            raise
        as_expected = code // 100 == expected
        self._outcome.answered |= as_expected
        if not as_expected and not error:
            asked = command.decode("ascii").strip() if isinstance(command, bytes) else ""
            error = unexpected(f"{code} {text}".replace("\n", " "), str(expected), asked)
        self._outcome.exchanges.append(Exchange(name, began, time.perf_counter() - clock, error))
        if code < 200 or code == CLOSING:
            raise _Broken
        if name == "RCPT" and code // 100 == 5:
            self._outcome.refused_recipients += 1
        return as_expected


@lru_cache(maxsize=1024)  # senders and recipients come again and again
def _line(verb: str, argument: str) -> bytes:
    return f"{verb} {argument}".rstrip().encode("ascii") + b"\r\n"


def compose(message: Message, message_id: str) -> bytes:
    """The message as it is sent: the header that RFC 5322 §3.6 asks for, and a body of exactly `size_bytes`."""
    recipients = ",\r\n ".join((*message.recipients, *message.refused))
    header = (
        f"Date: {formatdate()}\r\n"
        f"From: {message.sender}\r\n"
        f"To: {recipients}\r\n"
        f"Subject: {message_id}\r\n"
        f"Message-ID: <{message_id}>\r\n"
        "\r\n"
    )
    return header.encode("ascii") + _body(message.size_bytes)


@lru_cache(maxsize=64)
def _body(size_bytes: int) -> bytes:
    lines, rest = divmod(size_bytes, LINE_BYTES)
    if not lines:
        return b"s" * (size_bytes - 2) + b"\r\n"
    # The first line takes the odd bytes, so that no line is cut inside its CRLF.
    return b"s" * rest + (b"s" * (LINE_BYTES - 2) + b"\r\n") * lines

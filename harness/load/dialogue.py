"""The raw client: says what it is told to, byte by byte, and leaves as no well-behaved client would.

Owns: one socket, closed on every exit, by FIN, by RST, or late. Never: corrects what it is told to say.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Awaitable
from contextlib import suppress

from harness.load.tally import Exchange, Outcome, Ticket, says_goodbye, unexpected
from harness.scenario import SENDER_DOMAIN, Step

ANSWER_BYTES = 1 << 16  # of one answer; a server that says more is not answering
SILENCE_S = 0.25  # long enough for the server to have nothing else to do than wait for this client
_LINGER = struct.pack("ii", 1, 0)  # close() sends RST (socket(7), SO_LINGER)


class _Over(Exception):
    """The session cannot go on; the exchange in hand has said why."""


async def hold(address: tuple[str, int], ticket: Ticket, outcome: Outcome) -> None:
    """Do the steps of `ticket` with the server at `address`. Never raises for what a server or a network does.

    Raises TimeoutError when the ticket's time is over.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        async with asyncio.timeout(max(0.0, ticket.deadline - time.monotonic())):
            client = _Client(sock, ticket.name, outcome)
            try:
                await client.connect(address)
                for step in ticket.plan.steps:
                    await client.do(step)
                outcome.finished = True
                await client.leave(ticket.plan.end)
            except _Over:
                assert outcome.exchanges[-1].error, "a session that ends early says why"


class _Client:
    def __init__(self, sock: socket.socket, name: str, outcome: Outcome) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._outcome = outcome
        self._received = bytearray()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None

    async def connect(self, address: tuple[str, int]) -> None:
        await self._timed("CONNECT", self._connected(address))
        self._outcome.greeted = True  # somebody accepted the connection

    async def _connected(self, address: tuple[str, int]) -> str:
        await self._loop.sock_connect(self._socket, address)
        return ""

    async def do(self, step: Step) -> None:
        verb = step.send[:4].decode("ascii", "replace").strip().upper() or "GREETING"
        if verb == "MAIL":
            self._outcome.messages += 1
        await self._timed(verb if verb.isalpha() else "DATA", self._done(step))

    async def _done(self, step: Step) -> str:
        message_id = f"{self._name}.{len(self._outcome.accepted)}@{SENDER_DOMAIN}"
        data = step.send.replace(b"{id}", message_id.encode("ascii"))
        size = step.piece_bytes or max(1, len(data))
        for start in range(0, max(1, len(data)), size):
            if step.pause_s:
                await asyncio.sleep(step.pause_s)
            await self._send(data[start : start + size])
        if not step.expect:
            return ""
        answer = await self._answer()
        if step.tls and answer[:1] == "2":
            await self._handshake()
        if answer[:1] not in step.expect:
            # Text of a message, and commands that were sent together, are no command to be told.
            asked = step.send[:200].decode("ascii", "replace").strip() if step.send.count(b"\n") == 1 else ""
            return unexpected(answer.strip()[:200], "xx or ".join(step.expect), asked)
        self._outcome.answered = True
        if step.accepts and answer[:1] == "2":
            self._outcome.accepted.append(message_id)
        if step.send[:4].upper() == b"RCPT" and answer[:1] == "5":
            self._outcome.refused_recipients += 1
        return ""

    async def leave(self, end: str) -> None:
        if end == "quit":
            await self.do(Step(b"QUIT\r\n"))
        elif end == "rst":
            self._reset()
        elif end == "silence":
            await self._be_silent()
            self._reset()

    def _reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)

    async def _be_silent(self) -> None:
        """Say nothing, until the server ends the session or a while has passed."""
        try:
            async with asyncio.timeout(SILENCE_S):
                while await self._receive():
                    pass
        except (TimeoutError, OSError):
            return

    # ---- bytes, with TLS or without

    async def _handshake(self) -> None:
        """TLS from here on, whatever the certificate. Raises OSError, of which ssl.SSLError is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._tls = context.wrap_bio(self._in, self._out)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
                continue
            await self._flush()
            return

    async def _send(self, data: bytes) -> None:
        if self._tls is None:
            await self._loop.sock_sendall(self._socket, data)
            return
        self._tls.write(data)
        await self._flush()

    async def _receive(self) -> bytes:
        """Some bytes; none at the end."""
        if self._tls is None:
            return await self._loop.sock_recv(self._socket, ANSWER_BYTES)
        while True:
            try:
                return self._tls.read(ANSWER_BYTES)
            except ssl.SSLWantReadError:
                if not await self._fill():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    async def _flush(self) -> None:
        await self._loop.sock_sendall(self._socket, self._out.read())

    async def _fill(self) -> bool:
        data = await self._loop.sock_recv(self._socket, ANSWER_BYTES)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        return bool(data)

    async def _answer(self) -> str:
        """One reply, all its lines (RFC 5321 §4.2). Raises OSError when there is none."""
        while True:
            lines = bytes(self._received).split(b"\r\n")
            for number, line in enumerate(lines[:-1]):
                if line[3:4] != b"-":
                    del self._received[: sum(len(one) + 2 for one in lines[: number + 1])]
                    return line.decode("ascii", "replace")
            if len(self._received) > ANSWER_BYTES:
                raise OSError("the answer has no end")
            data = await self._receive()
            if not data:
                raise ConnectionAbortedError("the server closed the connection")
            self._received += data

    def _was_said_goodbye(self) -> bool:
        """Whether 421 is among what was not read: who is still sending learns of the end by a reset."""
        with suppress(OSError):  # nothing more: BlockingIOError, ConnectionResetError, ssl.SSLError
            while data := self._socket.recv(ANSWER_BYTES):
                if self._tls is None:
                    self._received += data
                else:
                    self._in.write(data)
                    self._received += self._tls.read(ANSWER_BYTES)
        return says_goodbye(bytes(self._received))

    async def _timed(self, name: str, work: Awaitable[str]) -> None:
        began, clock = time.time(), time.perf_counter()
        error = "cut off: not answered when the session's time was over"
        try:
            error = await work
        except OSError as broken:
            error = str(broken) or type(broken).__name__
            if isinstance(broken, ConnectionError) and not self._was_said_goodbye():
                self._outcome.closed()
            raise _Over from broken
        finally:
            self._outcome.exchanges.append(Exchange(name, began, time.perf_counter() - clock, error))
        if error:
            raise _Over

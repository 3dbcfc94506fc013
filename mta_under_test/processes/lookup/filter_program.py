"""lookup's end of one filter program: lines out, lines in, and who waits for which answer.

Owns: the socket, what the program registered for, the questions that have no answer yet.
Never: decides anything, starts or ends the program (parent does).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import cast

from mta_under_test.wire import filter_protocol
from mta_under_test.wire.filter_protocol import DataLine, FilterProtocolError, Ready, Registered, Result

ANSWER_TIMEOUT_S = 300.0

logger = logging.getLogger("smtpd")


class FilterTimeout(Exception):
    """A program has not answered for too long."""


class Program(asyncio.Protocol):
    """`broken` is called with a reason when the program ends, or says what cannot be understood."""

    def __init__(self, name: str, greeting: bytes, broken: Callable[[str], None]) -> None:
        self.name = name
        self.events: set[str] = set()
        self.phases: set[str] = set()
        self._greeting = greeting
        self._broken = broken
        self._ready = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._tokens = itertools.count(1)
        self._answers: dict[tuple[str, str], asyncio.Future[Result]] = {}
        self._lines: dict[tuple[str, str], Callable[[bytes], None]] = {}

    # ---- for the engine

    async def registered(self) -> None:
        """Wait until the program has said what it wants. Raises FilterTimeout."""
        if not self._ready.is_set():
            await self._within(self._ready.wait())

    async def ask(self, phase: str, session: str, *fields: str) -> Result:
        """Raises FilterTimeout."""
        token = f"{next(self._tokens):016x}"
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._answers[session, token] = answer
        try:
            self._write(filter_protocol.request(phase, session, token, time.time(), *fields))
            await self._within(answer)
            return answer.result()
        finally:
            del self._answers[session, token]

    def report(self, event: str, session: str, *fields: str) -> None:
        if event in self.events or "*" in self.events:
            self._write(filter_protocol.report(event, session, time.time(), *fields))

    def wants(self, phase: str) -> bool:
        return phase in self.phases or "*" in self.phases

    def open_lines(self, session: str, take: Callable[[bytes], None]) -> str:
        """Begin a message: `take` gets every line that the program makes of it. Gives the token for `line`."""
        token = f"{next(self._tokens):016x}"
        self._lines[session, token] = take
        return token

    def line(self, session: str, token: str, line: bytes) -> None:
        self._write(filter_protocol.data_line(session, token, time.time(), line))

    def close_lines(self, session: str, token: str) -> None:
        self._lines.pop((session, token), None)

    async def drain(self) -> None:
        """Wait while the program is slow to read. Raises FilterTimeout."""
        if not self._writable.is_set():
            await self._within(self._writable.wait())

    def close(self) -> None:
        self._broken = _nobody_minds
        if self._transport is not None:
            self._transport.close()

    async def _within(self, waiting: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await waiting
        except TimeoutError as error:
            raise FilterTimeout(f"filter {self.name} does not answer") from error

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    # ---- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write(self._greeting)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        try:
            if len(rest) > filter_protocol.MAX_LINE_BYTES:
                raise FilterProtocolError("a line without end")
            for line in lines:
                self._take(line)
        except FilterProtocolError as error:
            self._broken(f"filter {self.name}: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._broken(f"filter {self.name} has ended")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _take(self, line: bytes) -> None:
        said = filter_protocol.parse(line)
        match said:
            case Registered(stream=stream, name=name):
                if self._ready.is_set():
                    raise FilterProtocolError(f"registers for {name} after it was ready")
                (self.events if stream == "report" else self.phases).add(name)
            case Ready():
                self._ready.set()
            case DataLine(session=session, token=token, line=text):
                # Of a message that was given up in the meantime, nobody takes them.
                if (take := self._lines.get((session, token))) is not None:
                    take(text)
            case Result(session=session, token=token):
                answer = self._answers.get((session, token))
                if answer is not None and not answer.done():
                    answer.set_result(said)


class Complaints(asyncio.Protocol):
    """What a program writes to its standard error, in the log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._buffer = self._buffer[-4096:]
        for line in lines:
            logger.warning("filter %s: %s", self._name, line[:1024].decode(errors="backslashreplace"))


def _nobody_minds(reason: str) -> None:
    logger.debug("%s", reason)

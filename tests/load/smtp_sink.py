"""A mail server for tests: answers per domain, remembers what it took, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import re
import threading
from types import TracebackType
from typing import Self

from harness.scenario import UNROUTED_DOMAIN

REFUSED = f"@{UNROUTED_DOMAIN}>"


class SmtpSink:
    """Listens on 127.0.0.1 in a thread of its own. Counts are read when the client has been answered."""

    def __init__(
        self,
        *,
        lenient: bool = False,
        stall_at: str = "",
        drop_at: str = "",
        leave_at: tuple[str, str] = ("", ""),
        greeting: str = "220 sink",
    ) -> None:
        self.lenient = lenient  # takes every recipient
        self.stall_at = stall_at  # a command's verb, or "body": not answered any more
        self.drop_at = drop_at  # … : the connection is reset
        self.leave_at = leave_at  # a command's verb, and the answer that it gets before the connection is closed
        self.greeting = greeting
        self.sessions = 0
        self.messages: list[bytes] = []  # as received, dots undone
        self.recipients: list[str] = []  # taken
        self.dialogues: list[list[str]] = []  # the verbs of each session

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def message_ids(self) -> list[str]:
        return [found[1].decode() for body in self.messages if (found := re.search(rb"Message-ID: <(.+?)>\r\n", body))]

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._session, "127.0.0.1", 0, limit=1 << 25)
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        current = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not current:
                task.cancel()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        verbs: list[str] = []
        self.dialogues.append(verbs)
        try:
            writer.write(f"{self.greeting}\r\n".encode())
            while line := await reader.readline():
                verb = line[:4].decode().strip().upper()
                verbs.append(verb)
                if not await self._misbehave(verb, writer):
                    return
                if verb == self.leave_at[0]:
                    writer.write(f"{self.leave_at[1]}\r\n".encode())
                    return
                writer.write(f"{await self._answer(verb, line.decode(), reader, writer)}\r\n".encode())
                if verb == "QUIT":
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            verbs.append("LOST")
        finally:
            writer.close()

    async def _misbehave(self, point: str, writer: asyncio.StreamWriter) -> bool:
        if self.drop_at == point:
            writer.transport.abort()
            return False
        if self.stall_at == point:
            await self._stop.wait()
            return False
        return True

    async def _answer(self, verb: str, line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        if verb == "RCPT":
            if REFUSED in line and not self.lenient:
                return "550 5.1.1 not here"
            self.recipients.append(line.strip().removeprefix("RCPT TO:<").removesuffix(">"))
        if verb == "DATA":
            writer.write(b"354 go on\r\n")
            if self.stall_at == "body":
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await self._stop.wait()
            body = await reader.readuntil(b"\r\n.\r\n")
            self.messages.append(body[:-3].replace(b"\r\n..", b"\r\n."))
        return {"QUIT": "221 bye", "EHLO": "250-sink\r\n250 SIZE"}.get(verb, "250 fine")

"""The two pipes of a delivery program: the message goes in, what it says comes out.

Owns: the ends that are ours. Never: waits for a program that neither reads nor writes (parent's timer ends it).
"""

from __future__ import annotations

import asyncio
import os

from mta_under_test.processes.mda.agents import header
from mta_under_test.processes.owner import NO_SCOPE, Scope

OUTPUT_BYTES = 1 << 16  # of a program's output are read; then the pipe is closed to it
_READ_BYTES = 1 << 16


class Input:
    """The message on its way into a program."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        read_end, self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(read_end, True)
        self._read_end: int | None = read_end
        self._open = True

    def take_read_end(self) -> int:
        assert self._read_end is not None
        taken, self._read_end = self._read_end, None
        return taken

    async def feed(self, message: int, sender: str, dest: str) -> None:
        """Headers and message, lines ending LF, then the end. Raises OSError (EPIPE) when nobody reads it any more.

        A program that was given half of a message because we died sees the same end as one that was given all: its
        success counts only when we live to report it.
        """
        await self._write(header(sender, dest))
        offset, held = 0, b""
        while data := os.pread(message, _READ_BYTES, offset):
            offset += len(data)
            data = held + data
            held = b"\r" if data.endswith(b"\r") else b""  # it may begin a line end
            await self._write(data[: len(data) - len(held)].replace(b"\r\n", b"\n"))
        await self._write(held)
        self.close()

    def close(self) -> None:
        if self._read_end is not None:
            os.close(self.take_read_end())
        if self._open:
            self._open = False
            os.close(self._pipe)

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._pipe, view) :]
            except BlockingIOError:
                writable = self._loop.create_future()
                self._loop.add_writer(self._pipe, _wake, writable)
                try:
                    await writable
                finally:
                    self._loop.remove_writer(self._pipe)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Output:
    """Collects what a program writes, up to a limit; its last line is the reason of a failure."""

    def __init__(self, scope: Scope = NO_SCOPE) -> None:
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_end, True)
        self._write_end: int | None = write_end
        self._text = bytearray()
        self._open = True
        self._loop.add_reader(self._read_end, self._readable)
        scope.took("the pipe of its output", self._read_end)

    def take_write_end(self) -> int:
        assert self._write_end is not None
        taken, self._write_end = self._write_end, None
        return taken

    def read_rest(self) -> None:
        """What is in the pipe already; the program's own children may hold it open for ever."""
        while self._open and self._readable():
            pass

    def last_line(self) -> str:
        lines = self._text.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        if self._write_end is not None:
            os.close(self.take_write_end())
        if self._open:
            self._open = False
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._scope.gave("the pipe of its output", self._read_end)

    def _readable(self) -> bool:
        try:
            data = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return False
        self._text += data
        if not data or len(self._text) > OUTPUT_BYTES:
            self.close()
            return False
        return True

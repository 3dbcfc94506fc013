"""One TCP connection, for a protocol machine to be driven by a coroutine: bytes in, bytes out, and when it is over.

While the coroutine is busy elsewhere (asking another process, say) nothing more is read, so a peer that pipelines a
million commands fills its own socket buffer and not our memory.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from mta_under_test.tls import describe

_WRITE_HIGH_BYTES = 1 << 18
_HELD_BYTES = 1 << 15  # above this a system call more does not matter
HANDSHAKE_TIMEOUT_S = 60.0


class StreamTimeout(Exception):
    """The peer was silent, or did not take what we sent, for longer than the session may wait."""


class TlsFailure(Exception):
    """There is no TLS with this peer; the connection is of no more use."""


class Stream(asyncio.Protocol):
    """`receive` waits for bytes (b"" is end of file); `write` never waits, `drain` does. Both are for one coroutine."""

    def __init__(self, timeout_s: float, trace: Callable[[str, str, int], None] | None = None) -> None:
        """`trace` is told of all that comes and goes: the peer, what it is, and how many bytes."""
        self.timeout_s = timeout_s
        self._trace = trace
        self.peer: tuple[str, int] = ("", 0)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._arrived: list[bytes] = []
        self._held = b""  # to be written with what comes next
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._full = False
        self._paused = False
        self._securing = False
        self.tls = ""  # protocol, cipher and bits, once TLS is spoken
        # One timer for the whole connection, looked at when it goes off: a wait is begun and ended many times for each
        # message, and a timer of its own would cost more than the rest of it.
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: asyncio.Future[None] | None = None
        self._since = 0.0

    @property
    def is_open(self) -> bool:
        """Neither side has closed it; or its timer runs, though it is closed."""
        return self._timer is not None or (self._transport is not None and not self._transport.is_closing())

    @property
    def local(self) -> tuple[str, int]:
        """Our end's address, while there is a connection. Asked of the kernel, since few sessions want to know."""
        name = None if self._transport is None else self._transport.get_extra_info("sockname")
        return (name or ("", 0))[:2]

    # ---- for the coroutine

    async def receive(self) -> bytes:
        """All bytes that have arrived; b"" once the peer has ended. Raises StreamTimeout."""
        if not self._arrived and not self._ended:
            self._read_on()
            self._reader = self._loop.create_future()
            try:
                await self._within(self._reader)
            finally:
                self._reader = None
        data = self._arrived[0] if len(self._arrived) == 1 else b"".join(self._arrived)
        self._arrived.clear()
        return data

    async def idle(self, seconds: float) -> bool:
        """Wait until `interrupt`, but not longer. False when the peer ended or spoke, which nobody asked it to."""
        if not self._arrived and not self._ended:
            self._read_on()
            self._reader = self._loop.create_future()
            timer = self._loop.call_later(seconds, _wake, self._reader)
            try:
                await self._reader
            finally:
                timer.cancel()
                self._reader = None
        return not self._arrived and not self._ended

    def interrupt(self) -> None:
        """End `idle`."""
        if self._reader is not None:
            _wake(self._reader)

    def write(self, data: bytes, *, more: bool = False) -> None:
        """`more`: another write follows before anything is waited for, and takes this along, in one system call."""
        if self._held:
            data, self._held = self._held + data, b""
        if more and len(data) < _HELD_BYTES:
            self._held = data
        elif self._transport is not None and not self._transport.is_closing():
            if self._trace is not None:
                self._trace(self.peer[0], "out", len(data))
            self._transport.write(data)

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool = False, server_name: str | None = None
    ) -> None:
        """The handshake, over what is written by now. What came before it is thrown away. Raises TlsFailure."""
        self._arrived.clear()
        transport = self._transport
        if transport is None or transport.is_closing() or self._ended:
            raise TlsFailure("the connection is closed")
        self._paused = False
        self._securing = True
        try:
            secured = await self._loop.start_tls(
                transport,
                self,
                context,
                server_side=server_side,
                server_hostname=server_name,
                ssl_handshake_timeout=min(self.timeout_s, HANDSHAKE_TIMEOUT_S),
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self._ended = True
            raise TlsFailure(getattr(error, "reason", None) or str(error) or type(error).__name__) from None
        finally:
            self._securing = False
        if secured is None:
            raise TlsFailure("the connection was lost in the handshake")
        self._transport = secured
        secured.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self.tls = describe(secured.get_extra_info("ssl_object"))

    async def drain(self) -> None:
        """Wait while the peer is slow to take what was written. Raises StreamTimeout."""
        if self._full and self._transport is not None:
            self._writable = self._loop.create_future()
            try:
                await self._within(self._writable)
            finally:
                self._writable = None

    def close(self) -> None:
        """Send what is written, then close."""
        self._forget_timer()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what was not sent is dropped."""
        self._forget_timer()
        if self._transport is not None:
            self._transport.abort()

    def _read_on(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    async def _within(self, future: asyncio.Future[None]) -> None:
        self._awaited = future
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._look)
        try:
            await future
        finally:
            self._awaited = None

    def _look(self) -> None:
        """Is what is waited for overdue? If not, look again when it would be."""
        self._timer = None
        if self._awaited is not None:
            left_s = self._since + self.timeout_s - self._loop.time()
            if left_s > 0:
                self._timer = self._loop.call_later(left_s, self._look)
            elif not self._awaited.done():
                self._awaited.set_exception(StreamTimeout())

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        if not self.peer[0]:  # accept(2) has not told
            # A peer that has reset the connection by now has no name any more (getpeername(2), ENOTCONN).
            self.peer = (transport.get_extra_info("peername") or self.peer)[:2]
        if (secured := transport.get_extra_info("ssl_object")) is not None:
            self.tls = describe(secured)

    def data_received(self, data: bytes) -> None:
        if self._trace is not None:
            self._trace(self.peer[0], "in", len(data))
        self._arrived.append(data)
        # What comes in one packet with the end of the handshake is ours before its transport is: the one that we would
        # pause is below it, and nobody would let that go on.
        if self._reader is not None:
            _wake(self._reader)
        elif not self._paused and not self._securing and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        # True: the transport stays, so that what was pipelined before the end is still answered. The coroutine closes
        # it when it reads the end; a server that waits for the *client* to close keeps the half (aiosmtpd #15).
        self._ended = True
        if self._reader is not None:
            _wake(self._reader)
        return not self.tls  # TLS knows no half of a connection

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._transport = None
        self._forget_timer()
        if self._trace is not None:
            self._trace(self.peer[0], "closed", 0)
        for future in (self._reader, self._writable):
            if future is not None:
                _wake(future)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._writable is not None:
            _wake(self._writable)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

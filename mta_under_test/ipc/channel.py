"""A channel: one end of a socketpair between two processes, carrying imsg frames and descriptors.

Owns: the socket, what waits to be written, and every descriptor that is on its way: one handed to `send` belongs to
the channel until the kernel has it, one that arrived belongs to the `Message` until a handler takes it, and what no
handler takes is closed (OpenSMTPD learnt that in 2023, a7a448c5). Never blocks.

A descriptor rides on the first byte of its frame. The kernel ends a read at bytes that carry descriptors, so they
arrive in the order of the frames that announce them; pairing is first come, first served (unix(7), imsg_init(3)).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterator

from mta_under_test.ipc.messages import KINDS, Kind, PayloadError, pack, unpack
from mta_under_test.wire import imsg

HIGH_MARK_BYTES = 10 << 20  # over this, new work is no longer read (OpenSMTPD e5872ffa, 24 January 2013)
LOW_MARK_BYTES = 1 << 20  # … until what waits has shrunk to this
READ_BYTES = 1 << 16
FRAMES_A_WRITE = 64
_DESCRIPTORS_A_READ = 8
_KINDS = max(Kind) + 1
_CONTROL_BYTES = socket.CMSG_SPACE(4 * _DESCRIPTORS_A_READ)


class Message:
    """A frame that arrived: its kind, integers, text, and perhaps a descriptor."""

    __slots__ = ("_descriptor", "integers", "kind", "size_bytes", "text")

    def __init__(self, kind: Kind, integers: tuple[int, ...], text: bytes, descriptor: int | None, size: int) -> None:
        self.kind = kind
        self.integers = integers
        self.text = text
        self.size_bytes = size
        self._descriptor = descriptor

    def take_descriptor(self) -> int | None:
        """The passed descriptor; whoever takes it closes it. None when there is none (any more)."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def close(self) -> None:
        """Close the descriptor if nobody took it."""
        if (descriptor := self.take_descriptor()) is not None:
            os.close(descriptor)


class Traffic:
    """Frames and bytes by kind, in one direction of one channel, and the most bytes that ever waited.

    Arrays hold numbers, not objects: counting makes none, however far it goes.
    """

    __slots__ = ("bytes", "messages", "most_waiting_bytes")

    def __init__(self) -> None:
        self.messages = array("Q", bytes(8 * _KINDS))
        self.bytes = array("Q", bytes(8 * _KINDS))
        self.most_waiting_bytes = 0

    def count(self, kind: Kind, size: int) -> None:
        self.messages[kind] += 1
        self.bytes[kind] += size

    def by_kind(self) -> Iterator[tuple[Kind, int, int]]:
        """(kind, frames, bytes) of every kind that there was."""
        return ((Kind(number), count, self.bytes[number]) for number, count in enumerate(self.messages) if count)


class Channel:
    """`receive(channel, message)` is called for every frame, `closed(channel, reason)` once, when the peer has gone
    (no reason) or talks nonsense. `congestion(channel, over)` tells when what waits passes the high and low marks."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        receive: Callable[[Channel, Message], None],
        closed: Callable[[Channel, str], None],
        congestion: Callable[[Channel, bool], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.peer = peer
        self.sent = Traffic()
        self.received = Traffic()
        self.waiting_bytes = 0
        self.congested = False
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._closed = closed
        self._congestion = congestion
        self._decoder = imsg.Decoder()
        self._arrived: deque[int] = deque()
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self._writing = False
        self._flushing = False
        self._reading = False
        self._open = True
        self._pid = os.getpid()
        self.resume_reading()

    def __repr__(self) -> str:
        return f"<channel to {self.peer}, {self.waiting_bytes} bytes waiting>"

    def send(self, kind: Kind, *integers: int, text: bytes = b"", descriptor: int | None = None) -> None:
        """Queue a frame. `descriptor` is the channel's from here on, and closed once it has been passed."""
        if not self._open:
            if descriptor is not None:
                os.close(descriptor)
            return
        frame = imsg.frame(kind, pack(integers, text), 0, self._pid, descriptor is not None)
        self.sent.count(kind, len(frame))
        self._waiting.append((frame, descriptor))
        self.waiting_bytes += len(frame)
        if not self._writing and not self._flushing:
            # Not now: what else is sent before the loop comes round goes with it, in one system call.
            self._flushing = True
            self._loop.call_soon(self._flush_soon)
        if self.waiting_bytes > self.sent.most_waiting_bytes:
            self.sent.most_waiting_bytes = self.waiting_bytes
        self._judge_congestion()

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def resume_reading(self) -> None:
        if self._open and not self._reading:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Let go of the socket and of every descriptor on its way. May be called twice."""
        if not self._open:
            return
        self.pause_reading()
        if self._writing:
            self._loop.remove_writer(self._socket.fileno())
        elif self._flushing:
            self._flush(wait=False)
        self._open = False
        for _, descriptor in self._waiting:
            if descriptor is not None:
                os.close(descriptor)
        self._waiting.clear()
        self.waiting_bytes = 0
        while self._arrived:
            os.close(self._arrived.popleft())
        self._socket.close()

    def _readable(self) -> None:
        try:
            data, control, _, _ = self._socket.recvmsg(READ_BYTES, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionError:
            data, control = b"", []
        for level, kind, packed in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(packed) // 4 * 4
                self._arrived.extend(memoryview(packed[:whole]).cast("i"))
        if not data:
            self._end()
            return
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
        except (imsg.ImsgError, PayloadError) as error:
            self._end(str(error))
        else:
            # Descriptors that no frame announces are hoarded by nobody (OpenSMTPD 71960f60, Qualys 2015).
            if len(self._arrived) > _DESCRIPTORS_A_READ:
                self._end(f"{len(self._arrived)} descriptors that no message announced")

    def _dispatch(self, frame: imsg.Imsg) -> None:
        descriptor = self._arrived.popleft() if frame.has_descriptor and self._arrived else None
        size = imsg.HEADER.size + len(frame.payload)
        try:
            kind = KINDS[frame.type]
            integers, text = unpack(frame.payload)
        except (KeyError, PayloadError) as error:
            if descriptor is not None:
                os.close(descriptor)
            raise PayloadError(f"no such message: {error}" if isinstance(error, KeyError) else str(error)) from error
        self.received.count(kind, size)
        message = Message(kind, integers, text, descriptor, size)
        try:
            self._receive(self, message)
        finally:
            message.close()

    def _end(self, reason: str = "") -> None:
        self.close()
        self._closed(self, reason)

    def _flush_soon(self) -> None:
        self._flushing = False
        if self._open and not self._writing:
            self._flush()
            self._judge_congestion()

    def _flush(self, *, wait: bool = True) -> None:
        """Write what the socket takes; ask to be called again for the rest."""
        while self._waiting:
            frames, descriptor = self._next_frames()
            rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _packed(descriptor))]
            try:
                written = self._socket.sendmsg(frames, rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except ConnectionError:
                # The peer is gone. Its end of file is on the way to _readable, which ends the channel.
                written = sum(map(len, frames))
            self.waiting_bytes -= written
            if descriptor is not None:
                os.close(descriptor)
            self._written(frames, written)
        if wait and bool(self._waiting) != self._writing:
            self._writing = bool(self._waiting)
            if self._writing:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _next_frames(self) -> tuple[list[bytes], int | None]:
        """What one sendmsg may carry: a frame with its descriptor or without, and those behind it that have none."""
        frame, descriptor = self._waiting[0]
        frames = [frame]
        for frame, other in itertools.islice(self._waiting, 1, FRAMES_A_WRITE):
            if other is not None:
                break
            frames.append(frame)
        return frames, descriptor

    def _written(self, frames: list[bytes], written: int) -> None:
        for frame in frames:
            if written < len(frame):
                if written > 0 or self._waiting[0][1] is not None:
                    self._waiting[0] = (frame[written:], None)
                return
            written -= len(frame)
            self._waiting.popleft()

    def _writable(self) -> None:
        self._flush()
        self._judge_congestion()

    def _judge_congestion(self) -> None:
        over = self.waiting_bytes > (LOW_MARK_BYTES if self.congested else HIGH_MARK_BYTES)
        if over != self.congested:
            self.congested = over
            if self._congestion is not None:
                self._congestion(self, over)


def _packed(descriptor: int) -> bytes:
    return struct.pack("=i", descriptor)

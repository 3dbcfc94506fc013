"""A blocking client of the control socket: what `smtpctl` and the test harness speak to a running smtpd with."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from mta_under_test.ipc.messages import Kind, PayloadError, pack, unpack
from mta_under_test.wire import imsg

_READ_BYTES = 1 << 16


class ControlError(Exception):
    """No daemon there, somebody else, no permission, no answer in time, or the daemon's refusal in its own words."""


class Answer(NamedTuple):
    kind: Kind
    integers: tuple[int, ...]
    text: bytes
    descriptor: int | None


class ControlClient:
    """One connection. Not for threads. Every wait is bounded by `timeout_s`, except `stream`'s."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._path = path
        self._decoder = imsg.Decoder()
        self._requests = 0
        self._pending: list[Answer] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise ControlError(f"{path}: {error.strerror or error}; is smtpd running?") from error

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for answer in self._pending:
            if answer.descriptor is not None:
                os.close(answer.descriptor)
        self._pending.clear()
        self._socket.close()

    def ask(self, kind: Kind, *integers: int, text: str = "") -> Answer:
        """Send a request and wait for its answer. Raises ControlError, also when the daemon refuses.

        A descriptor in the answer is the caller's.
        """
        self._requests += 1
        request = self._requests
        self.tell(kind, request, *integers, text=text)
        while True:
            answer = self._next()
            if answer.kind in (Kind.OK, Kind.FAIL) and answer.integers[:1] == (request,):
                if answer.kind is Kind.FAIL:
                    raise ControlError(answer.text.decode(errors="replace"))
                return answer._replace(integers=answer.integers[1:])
            if answer.descriptor is not None:
                os.close(answer.descriptor)

    def tell(self, kind: Kind, *integers: int, text: str = "") -> None:
        """Send without waiting for an answer. Raises ControlError."""
        frame = imsg.Imsg(kind, pack(integers, text.encode()), 0, os.getpid())
        try:
            self._socket.sendall(imsg.encode(frame))
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error

    def smtp_session(self) -> socket.socket:
        """A new SMTP session with the daemon, as this machine's own client. Raises ControlError."""
        descriptor = self.ask(Kind.SMTP_SESSION).descriptor
        if descriptor is None:
            raise ControlError(f"{self._path}: smtpd gave no session")
        return socket.socket(fileno=descriptor)

    def stats(self) -> dict[str, int]:
        """Every counter of every process (`smtpctl show stats`)."""
        text = self.ask(Kind.STATS).text.decode()
        return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}

    def gauges(self) -> dict[str, str]:
        """Which of the counters say how many there are now, each with the role of the process that counts it."""
        lines = self.ask(Kind.STATS, text="gauges").text.decode().splitlines()
        return {name: role for name, _, role in (line.partition(" ") for line in lines)}

    def traffic(self) -> list[tuple[str, str, str, int, int]]:
        """(sender, receiver, kind, messages, bytes) of all that processes have sent each other so far."""
        lines = self.ask(Kind.STATS, text="imsg").text.decode().splitlines()
        words = [line.split(" ") for line in lines]
        return [(sender, receiver, kind, int(count), int(size)) for sender, receiver, kind, count, size in words]

    def stream(self) -> Iterator[Answer]:
        """Everything that arrives, until the daemon ends or closes the stream."""
        self._socket.settimeout(None)
        while True:
            try:
                answer = self._next()
            except ControlError:
                return
            yield answer

    def _next(self) -> Answer:
        while not self._pending:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 8, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError as error:
                raise ControlError(f"{self._path}: no answer within {self._socket.gettimeout()} s") from error
            except OSError as error:
                raise ControlError(f"{self._path}: {error.strerror or error}") from error
            if not data:
                raise ControlError(f"{self._path}: smtpd closed the connection")
            try:
                for frame in self._decoder.feed(data):
                    kind, (integers, text) = Kind(frame.type), unpack(frame.payload)
                    descriptor = descriptors.pop(0) if frame.has_descriptor and descriptors else None
                    self._pending.append(Answer(kind, integers, text, descriptor))
            except (imsg.ImsgError, PayloadError, ValueError) as error:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise ControlError(f"{self._path}: whoever answers is no smtpd: {error}") from error
        return self._pending.pop(0)

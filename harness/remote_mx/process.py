"""The remote MX as a process of its own, for a controller that is plain blocking Python.

A child runs `python -m harness.remote_mx --stdio`; JSON lines go down its standard input and come up its standard
output. It ends when its input does, so that it never outlives its controller. Every wait is bounded.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Literal, Self

import msgspec

from harness.remote_mx.ledger import LedgerReport, ListenerReport
from harness.remote_mx.policy import Policy, PolicyError

__all__ = ["LedgerReport", "ListenerReport", "RemoteMX", "RemoteMXError"]

TIMEOUT_S = 10.0  # for an answer; start takes a fraction of a second
_READ_BYTES = 1 << 16
_ERROR_LINES = 5  # of what a dead child said last


class RemoteMXError(Exception):
    """The remote MX cannot be started, is dead or does not answer; the text says why."""


class Request(msgspec.Struct, omit_defaults=True):
    number: int  # comes back in the answer: one that was given up on cannot be taken for another
    do: Literal["listen", "shut_gate", "open_gate", "set_policy", "ledger", "open_sessions"]
    name: str = ""  # of a listener
    policy: str = ""
    host: str = ""
    port: int = 0


class Answer(msgspec.Struct, omit_defaults=True):
    number: int
    error: str = ""
    port: int = 0
    sessions: int = 0
    ledger: LedgerReport | None = None


class RemoteMX:
    """Listeners by name, each with its policy; a context manager, or `start` and `stop`."""

    def __init__(
        self,
        policies: Mapping[str, str],
        *,
        host: str = "127.0.0.1",
        hosts: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        hostname: str = "remote-mx.test",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`hosts`, `ports`: by listener; `host` and any free port where nothing is said."""
        self.ports: dict[str, int] = {}
        self._policies = dict(policies)
        self._host = host
        self._hosts = dict(hosts or {})
        self._wanted_ports = dict(ports or {})
        self._hostname = hostname
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._unread = bytearray()
        self._number = 0

    @property
    def pid(self) -> int:
        return self._running.pid

    def start(self) -> None:
        """Returns when every listener accepts connections. Raises RemoteMXError, and leaves nothing behind."""
        assert self._child is None
        for name, policy in self._policies.items():
            _check(name, policy)
        self._stderr = tempfile.TemporaryFile()
        self._unread.clear()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "harness.remote_mx", "--stdio", "--hostname", self._hostname],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C in the terminal is for the controller, which then stops us
            )
            for name, policy in self._policies.items():
                port = self._wanted_ports.get(name, 0)
                where = self._hosts.get(name, self._host)
                self.ports[name] = self._ask("listen", name=name, policy=policy, host=where, port=port).port
        except OSError as error:
            self.stop()
            raise RemoteMXError(f"cannot start the remote MX: {error.strerror}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the child; may be called twice, and when it is dead already."""
        child, self._child = self._child, None
        if child is not None:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            try:
                child.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None
        self.ports.clear()

    def shut_gate(self, name: str) -> None:
        """Withhold the greeting from those who connect from now on."""
        self._ask("shut_gate", name=name)

    def open_gate(self, name: str) -> None:
        """Greet everybody who waits."""
        self._ask("open_gate", name=name)

    def set_policy(self, name: str, policy: str) -> None:
        """From the next command on, in open sessions as well."""
        _check(name, policy)
        self._ask("set_policy", name=name, policy=policy)

    def ledger(self) -> LedgerReport:
        """The books since the start."""
        report = self._ask("ledger").ledger
        assert report is not None
        return report

    def open_sessions(self) -> int:
        """Of all listeners, those that wait at a gate included."""
        return self._ask("open_sessions").sessions

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ---- the conversation

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RemoteMXError("the remote MX is not running")
        return self._child

    def _ask(
        self,
        do: Literal["listen", "shut_gate", "open_gate", "set_policy", "ledger", "open_sessions"],
        *,
        name: str = "",
        policy: str = "",
        host: str = "",
        port: int = 0,
    ) -> Answer:
        child = self._running
        assert child.stdin is not None
        self._number += 1
        request = Request(self._number, do, name, policy, host, port)
        try:
            child.stdin.write(msgspec.json.encode(request) + b"\n")
        except BrokenPipeError as error:
            raise self._dead() from error
        deadline = time.monotonic() + self._timeout_s
        while (answer := self._answer(deadline)).number != request.number:
            continue  # of a request whose answer nobody waited for: Ctrl-C came in between
        if answer.error:
            raise RemoteMXError(answer.error)
        return answer

    def _answer(self, deadline: float) -> Answer:
        child = self._running
        assert child.stdout is not None
        readable = select.poll()
        readable.register(child.stdout, select.POLLIN)
        while (end := self._unread.find(b"\n")) < 0:
            if not readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise RemoteMXError(f"the remote MX did not answer within {self._timeout_s:g} s")
            data = os.read(child.stdout.fileno(), _READ_BYTES)
            if not data:
                raise self._dead()
            self._unread += data
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return msgspec.json.decode(line, type=Answer)

    def _dead(self) -> RemoteMXError:
        """How the child ended, and what it said last."""
        try:
            status = self._running.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            return RemoteMXError("the remote MX closed its standard output")
        assert self._stderr is not None
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()[-_ERROR_LINES:]
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return RemoteMXError("; ".join([f"the remote MX ended with {how}", *said]))


def _check(name: str, policy: str) -> None:
    try:
        Policy.parse(policy)
    except PolicyError as error:
        raise RemoteMXError(f"policy of the listener {name!r}: {error}") from error

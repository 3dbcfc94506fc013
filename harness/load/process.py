"""The load as the experiment sees it: a process of its own that gives exact doses on demand.

Owns: the child process and its pipes. Never: imports locust, gevent or asyncio; the controller stays plain Python.
Every wait is bounded, and a child that is dead or silent is a LoadError with the last that it wrote on standard error.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from harness.load.orders import Answer, Failed, GiveDose, Order, Ready, Start, decode_answer, line
from harness.load.tally import Tally

READY_TIMEOUT_S = 30.0
ANSWER_GRACE_S = 15.0  # more than the child's own, which is to speak first
STOP_TIMEOUT_S = 15.0
STDERR_TAIL_BYTES = 4096
STDERR_TAIL_LINES = 5


class LoadError(Exception):
    """The load's process cannot be started, is dead, does not answer, or could not do what it was told."""


class LoadProcess:
    """`scenario` is a name or the path of a .py file. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, scenario: str, users: int, seed: int) -> None:
        self._scenario = scenario
        self._users = users
        self._seed = seed
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None
        self._received = bytearray()
        self._answer_owed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Start the process; it imports while the caller starts the rest. Returns at once, `ready` waits."""
        if self._child is not None:
            raise LoadError("the load has been started already")
        self._received.clear()
        self._answer_owed = False
        self._stderr = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "harness.load", "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            # Ctrl-C in a terminal must not reach it, not even before it has learnt to ignore it.
            process_group=0,
        )

    def ready(self, host: str, port: int) -> None:
        """Aim the users at `host` and `port`, and wait until all are there. Raises LoadError."""
        answer = self._ask(Start(self._scenario, host, port, self._users, self._seed), READY_TIMEOUT_S)
        if not isinstance(answer, Ready):
            raise LoadError(f"the load's process answered {type(answer).__name__} to the start")

    def dose(self, number: int, units: int, *, first: int = 0, timeout_s: float) -> Tally:
        """Give `units` units of dose `number`, from unit `first` on; return when the last of their sessions is over.

        Sessions that are not over after `timeout_s` are cut off: the tally counts them as unfinished, and the dose was
        not exact. What a dead mail server does is in the tally, as failures. Raises LoadError.
        """
        answer = self._ask(GiveDose(number, units, first, timeout_s), timeout_s + ANSWER_GRACE_S)
        if not isinstance(answer, Tally):
            raise LoadError(f"the load's process answered {type(answer).__name__} to a dose")
        return answer

    def stop(self) -> None:
        """End the process, by force if it does not end by itself. May be called twice, and after it died."""
        if self._child is None or self._stderr is None:
            return
        child, self._child = self._child, None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        finally:
            child.stdout.close()
            self._stderr.close()

    # ---- one order, one answer

    def _ask(self, order: Order, timeout_s: float) -> Answer:
        child = self._running()
        assert child.stdin is not None
        if self._answer_owed:  # it may come yet, and would be taken for the answer to this order
            raise LoadError(f"the load's process never answered an earlier order{self._last_words()}")
        try:
            child.stdin.write(line(order))
            self._answer_owed = True
        except BrokenPipeError:
            raise self._dead() from None
        text = self._read_line(time.monotonic() + timeout_s, timeout_s)
        self._answer_owed = False
        try:
            answer: Answer = decode_answer(text)
        except msgspec.MsgspecError as error:
            raise LoadError(f"the load's process answered {bytes(text[:80])!r}: {error}") from error
        if isinstance(answer, Failed):
            raise LoadError(answer.text)
        return answer

    def _read_line(self, deadline: float, timeout_s: float) -> bytes:
        child = self._running()
        assert child.stdout is not None
        poll = select.poll()
        poll.register(child.stdout, select.POLLIN)
        while (end := self._received.find(b"\n")) < 0:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise LoadError(f"the load's process did not answer within {timeout_s:.0f} s{self._last_words()}")
            if not poll.poll(left_s * 1000):
                continue
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                self._answer_owed = False
                raise self._dead()
            self._received += chunk
        found = bytes(self._received[:end])
        del self._received[: end + 1]
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise LoadError("the load has not been started")
        return self._child

    def _dead(self) -> LoadError:
        child = self._running()
        try:
            status = child.wait(1.0)
        except subprocess.TimeoutExpired:
            return LoadError(f"the load's process closed its pipes{self._last_words()}")
        how = f"with status {status}" if status >= 0 else f"by signal {-status}"
        return LoadError(f"the load's process ended {how}{self._last_words()}")

    def _last_words(self) -> str:
        assert self._stderr is not None
        # Read without seeking: the child writes at the same file position.
        descriptor = self._stderr.fileno()
        tail = os.pread(descriptor, STDERR_TAIL_BYTES, max(0, os.fstat(descriptor).st_size - STDERR_TAIL_BYTES))
        lines = tail.decode(errors="replace").splitlines()[-STDERR_TAIL_LINES:]
        return ": " + " | ".join(lines) if lines else ""

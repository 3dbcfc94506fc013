"""The load in a process of its own, a child of the controller, that gives exact doses on demand.

Owns: the child process and its pipes. A child that is dead or silent is a LoadError with the last that it wrote on
standard error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import BinaryIO, Self

from harness.load.conversation import Conversation, LoadError
from harness.load.orders import FleetOrder, WebOrder

__all__ = ["LoadError", "LoadProcess"]

FLEET_TIMEOUT_S = 150.0  # to be ready when workers must come first; more than the child's own patience
STOP_TIMEOUT_S = 15.0
STDERR_TAIL_BYTES = 4096
STDERR_TAIL_LINES = 5


class LoadProcess(Conversation):
    """Use as a context manager, or call `start` and `stop`."""

    def __init__(
        self, scenario: str, users: int, seed: int, *, fleet: FleetOrder | None = None, web: WebOrder | None = None
    ) -> None:
        super().__init__(scenario, users, seed, fleet=fleet, web=web)
        if fleet is not None:
            self.ready_timeout_s = FLEET_TIMEOUT_S
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None

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

    @property
    def is_idle(self) -> bool:
        """It runs, and owes no answer."""
        return self._child is not None and self._child.poll() is None and not self._answer_owed

    def start(self) -> None:
        """Start the process; it imports while the caller starts the rest. Returns at once, `ready` waits."""
        if self._child is not None:
            raise LoadError("the load has been started already")
        self._received.clear()
        self._answer_owed = self._started = False
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

    # ---- the child

    def _pipes(self) -> tuple[int, int]:
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        return child.stdin.fileno(), child.stdout.fileno()

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

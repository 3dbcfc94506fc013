"""The controller beside locust: `seatbelt run`, as a child whose load we are.

Owns: the child, its two pipes and the board that it writes. Never: probes or judges; that is the child's whole work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import gevent  # type: ignore[import-untyped]
from gevent import subprocess
from gevent.fileobject import FileObject  # type: ignore[import-untyped]

from harness.load.serving import Load, serve

LEAVE_TIMEOUT_S = 120.0  # to drain, judge and write the record


class Controller:
    """`ended` is called with the exit status, in a greenlet of ours, when the verdict is known."""

    def __init__(self, scenario: str, options: Sequence[str], load: Load, ended: Callable[[int], None]) -> None:
        """Starts it. Raises OSError."""
        self._scratch = tempfile.TemporaryDirectory(prefix="seatbelt-")
        self.board = Path(self._scratch.name) / "live.json"
        self.last_words = ""
        orders, its_orders = os.pipe()
        its_answers, answers = os.pipe()
        command = [sys.executable, "-m", "harness.cli", "run", scenario, *options]
        ours = [f"--load-pipes={its_orders},{its_answers}", f"--board={self.board}"]
        try:
            # A session of its own: Ctrl-C in the terminal is for locust, which passes it on.
            self._child = subprocess.Popen(
                [*command, *ours],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(its_orders, its_answers),
                start_new_session=True,
            )
        finally:
            os.close(its_orders)
            os.close(its_answers)
        gevent.spawn(self._relay_words)
        gevent.spawn(self._serve, orders, answers, load, ended)

    @property
    def is_over(self) -> bool:
        return self._child.poll() is not None

    @property
    def status(self) -> int:
        """Its exit status, when it is over; of who was killed by a signal as a shell has it."""
        code: int = self._child.returncode
        return code if code >= 0 else 128 - code

    def interrupt(self) -> None:
        """It judges what is known, writes the record and ends."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self._child.terminate()

    def wait(self) -> None:
        """Until the verdict; a controller that does not come to one is killed."""
        try:
            self._child.wait(LEAVE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def forget(self) -> None:
        """The board goes too."""
        self._scratch.cleanup()

    def _serve(self, orders: int, answers: int, load: Load, ended: Callable[[int], None]) -> None:
        with FileObject(orders, "rb") as ordered, FileObject(answers, "wb") as answered:
            serve(ordered, answered, load)
        self._child.wait()
        ended(self.status)

    def _relay_words(self) -> None:
        """Its standard error is ours, and the last line is for the page too."""
        for line in self._child.stderr:
            text = line.decode(errors="replace")
            self.last_words = text.strip() or self.last_words
            sys.stderr.write(text)
            sys.stderr.flush()
        self._child.stderr.close()

"""The controller beside locust: `seatbelt run`, as a child whose load we are.

Owns: the child, its two pipes and the board that it writes. Never: probes or judges; that is the child's whole work.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import gevent  # type: ignore[import-untyped]
from gevent import subprocess
from gevent.event import Event  # type: ignore[import-untyped]
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
        self.status = 0  # when it is over
        self._over = Event()
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
        return bool(self._over.is_set())

    def interrupt(self) -> None:
        """It judges what is known, writes the record and ends."""
        if not self.is_over:
            self._child.terminate()

    def wait(self) -> None:
        """Until the verdict; a controller that does not come to one is killed."""
        if not self._over.wait(LEAVE_TIMEOUT_S):
            self._child.kill()
            self._over.wait()

    def forget(self) -> None:
        """The board goes too."""
        self._scratch.cleanup()

    def _serve(self, orders: int, answers: int, load: Load, ended: Callable[[int], None]) -> None:
        try:
            with FileObject(orders, "rb") as ordered, FileObject(answers, "wb") as answered:
                serve(ordered, answered, load)
        finally:  # Ctrl-C is raised in whatever greenlet runs, and may be this one
            self.status = _told_by(self._child.wait())
            self._over.set()
        ended(self.status)

    def _relay_words(self) -> None:
        """Its standard error is ours, and the last line is for the page too."""
        for line in self._child.stderr:
            text = line.decode(errors="replace")
            self.last_words = text.strip() or self.last_words
            sys.stderr.write(text)
            sys.stderr.flush()
        self._child.stderr.close()


def _told_by(code: int) -> int:
    """An exit status, also of who was killed by a signal: as a shell has it."""
    return code if code >= 0 else 128 - code

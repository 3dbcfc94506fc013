"""What all servers have in common that we did not write and start ourselves: a process, a room, a port.

Owns: the daemon and its room, a directory that every user may pass, from `start` to `stop`. Never: knows how a server
is set up, or when it rests: that is each one's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.interruption import Held
from harness.targets import TargetError
from harness.targets.daemon import START_TIMEOUT_S, Daemon, free_port
from harness.targets.room import make_room
from reports.record import Incident

ASK_TIMEOUT_S = 20.0
# What is freed at the heap's top is given back at once (mallopt(3)): glibc moves the limit as it goes, by which a
# process that keeps nothing swings by 250 kB.
TUNABLES = "glibc.malloc.trim_threshold=4096"


class Foreign(ABC):
    """`ports` are the remote MX's: `refusing`, and `home`, where the senders' bounces go."""

    name: str
    defects: Sequence[str] = ()
    spool: Path | None = None  # of a layout of its own
    agent_directory: Path | None = None
    mailboxes: Path | None = None
    start_timeout_s = START_TIMEOUT_S

    def __init__(self, directory: Path, ports: Mapping[str, int], *, port: int = 0, nofile: int | None = None) -> None:
        self.directory = directory
        self._port = port or free_port()
        self._ports = {"port": self._port, **ports}
        self._nofile = nofile
        self._started: Daemon | None = None
        self._made: Path | None = None
        self._stopping = False

    @property
    def root_pid(self) -> int:
        return self._daemon.pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def start(self) -> None:
        self._made = make_room()
        try:
            argv = self._furnish(self._made)
            environment = self._environment()
            with Held():
                self._started = Daemon(argv, environment, self._output, nofile=self._nofile, room=self._made)
            self._started.await_greeting(self.address, self.start_timeout_s)
            self._greeted()
        except BaseException as error:
            self.stop()
            if isinstance(error, TargetError):
                raise TargetError(f"{self.name}: {error}{self._hint()}") from error
            raise

    def stop(self) -> None:
        self._stopping = True
        if self._started is not None:
            self._started.stop()
        if self._made is not None:
            self._leave(self._made)
            shutil.rmtree(self._made, ignore_errors=True)

    def deaths(self) -> list[Incident]:
        """Processes that ended though nobody asked them to, as the server tells; and the first one."""
        if self._started is None or self._stopping:
            return []
        found = self._told_deaths()
        return [*found, self._death(self._started, how)] if (how := self._started.ended()) else found

    # ---- for the server itself

    @property
    def _daemon(self) -> Daemon:
        """Raises TargetError."""
        if self._started is None:
            raise TargetError("the target has not been started")
        return self._started

    @property
    def _room(self) -> Path:
        """Raises TargetError."""
        if self._made is None:
            raise TargetError("the target has not been started")
        return self._made

    # ---- what each server says for itself

    @property
    @abstractmethod
    def _output(self) -> Path:
        """Where what it prints goes."""

    @abstractmethod
    def _furnish(self, room: Path) -> list[str]:
        """Make everything that it insists on; the command that starts it there. Raises TargetError, OSError."""

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, "GLIBC_TUNABLES": TUNABLES}

    def _greeted(self) -> None:
        """It has started. Raises TargetError."""
        return

    def _hint(self) -> str:
        """What may help one that does not start, to be added to an error."""
        return ""

    def _leave(self, room: Path) -> None:
        """It has ended, and its room goes now."""
        return

    def _told_deaths(self) -> list[Incident]:
        """Of processes below the first one."""
        return []

    @abstractmethod
    def _death(self, daemon: Daemon, how: str) -> Incident:
        """Of the first process, that `how`."""


def done(
    command: Sequence[str], what: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command that is run to its end. `what` it is, for the error: raises TargetError when it cannot be run."""
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{what}: {error}") from error


def asked(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> str:
    """What a tool of the server's prints. Raises TargetError when it cannot be run, or fails."""
    finished = done(command, what, environment)
    if finished.returncode:
        raise TargetError(f"{what}: {(finished.stderr or finished.stdout).strip()}")
    return finished.stdout

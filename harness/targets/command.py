"""Any server as a target, unchanged: a program that we start, and judge from outside.

Owns: the server's processes, the port that it shall listen on. Never: knows more of it than its `Server` tells.

It rests when it is still (`stillness`) and the remote MX has seen all mail that it accepted; or, when some mail is not
seen and for a while nothing changes in that, with what is missing as its backlog. If it is written in Python, the agent
is loaded into it, so that memory is judged by its objects.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import agent
from harness.targets import Rest, TargetError
from harness.targets.daemon import Daemon, free_port
from harness.targets.server import Server, filled
from harness.targets.stillness import Stillness
from reports.record import Incident

PATIENCE_S = 2.0  # without any change, before mail that the remote MX has not seen is taken as put off
ASK_S = 0.2  # between two questions that cost more than a look


class Command:
    """`ports` are the remote MX's: `refusing`, and `home`, where the senders' bounces go."""

    defects: Sequence[str] = ()
    spool: Path | None = None
    mailboxes: Path | None = None

    def __init__(
        self,
        directory: Path,
        ports: dict[str, int],
        *,
        server: Server,
        port: int = 0,
        nofile: int | None = None,
        traced: bool = False,
    ) -> None:
        self.name, self.version = server.name, server.version
        self.directory = directory
        self.agent_directory = directory / "agent"
        self.log_path = directory / "server.log"
        self._server = server
        self._port = port or free_port()
        self._nofile = nofile
        self._traced = traced
        self._values = {
            "port": self._port,
            "relay_port": ports["refusing"],
            "home_port": ports["home"],
            "dir": directory,
            "python": sys.executable,
        }
        self._daemon: Daemon | None = None
        self._stillness: Stillness | None = None
        self._unseen: Callable[[], int] = lambda: 0
        self._waiting = 0
        self._asked = self._changed = 0.0
        self._stopping = False

    @property
    def root_pid(self) -> int:
        return self._running.pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def start(self) -> None:
        _check_free(self.address)
        self.agent_directory.mkdir(parents=True, exist_ok=True)
        self.agent_directory.chmod(0o1777)  # started by root, the server's processes may become another user
        argv = [filled(word, self._values) for word in self._server.start]
        self._daemon = Daemon(argv, self._environment(), self.log_path, nofile=self._nofile)
        try:
            self._daemon.await_greeting(self.address)
        except BaseException as error:
            self.stop()
            if isinstance(error, TargetError):
                raise TargetError(f"{self.name}: {error}") from error
            raise
        self._stillness = Stillness(self._daemon.pid, [self._port])

    def _environment(self) -> dict[str, str]:
        """Ours, with what the server's says, and with the agent for every Python in it."""
        own = {name: filled(text, self._values) for name, text in self._server.environment.items()}
        return agent.environment(self.agent_directory, {**os.environ, **own}, traced=self._traced)

    def stop(self) -> None:
        self._stopping = True
        if self._daemon is not None:
            self._daemon.stop()

    def follow(self, unseen: Callable[[], int]) -> None:
        """`unseen` tells how many accepted messages have been neither delivered nor bounced so far."""
        self._unseen = unseen

    def rest(self) -> Rest:
        if self._stillness is None:
            raise TargetError("the target has not been started")
        now = time.monotonic()
        if busy := self._stillness.busy():
            self._changed = now
            return Rest(busy)
        if not self._server.relays:
            return Rest()
        if now >= self._asked + ASK_S:
            waiting = self._unseen()
            self._asked = time.monotonic()
            if waiting != self._waiting:
                self._waiting, self._changed = waiting, now
        is_moving = self._waiting and now < self._changed + PATIENCE_S
        return Rest({"messages that nobody has seen": self._waiting} if is_moving else {}, self._waiting)

    def owed(self) -> None:
        """Nobody here can look into its queue."""

    def hurry(self) -> None:
        raise TargetError(f"{self.name}: nobody here can make it try its queue again; choose another scenario")

    def operate(self, operation: str) -> None:
        raise TargetError(f"{self.name}: nobody here can {operation!r}; choose a scenario without operations")

    def deaths(self) -> list[Incident]:
        """The first process's, with its status and the last lines of its log."""
        if self._daemon is None or self._stopping or not (how := self._daemon.ended()):
            return []
        text = f"{self.name} {how}{self._daemon.last_words()}"
        return [Incident(kind="died", text=text, role=self.name, pid=self._daemon.pid)]

    @property
    def _running(self) -> Daemon:
        if self._daemon is None:
            raise TargetError("the target has not been started")
        return self._daemon


def _check_free(address: tuple[str, int]) -> None:
    """Else whoever is there would greet in the server's place. Raises TargetError."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            hint = "; choose another --port" if error.errno == errno.EADDRINUSE else ""
            raise TargetError(f"{address[0]}:{address[1]}: {error.strerror}{hint}") from error

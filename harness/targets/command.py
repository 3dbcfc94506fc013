"""Any server as a target, unchanged: a program that we start, and judge from outside.

Owns: the server's processes, the port that it shall listen on. Never: knows more of it than its `Server` tells.

It rests when it is still (`stillness`) and its queue is empty, or, where nobody can look into that, the remote MX has
seen all mail that it accepted. When for a while nothing changes in what is missing, that is its backlog. If it is
written in Python, the agent is loaded into it, so that memory is judged by its objects; else the meter, so that it is
judged by malloc's bytes.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import agent, mail
from harness.agent import native
from harness.isolation import is_isolated
from harness.probes.processes import roles_by_pattern
from harness.targets import Rest, TargetError
from harness.targets.daemon import Daemon, free_port
from harness.targets.debian import Unavailable, library_path, unpack
from harness.targets.foreign import Foreign, done
from harness.targets.server import COMMAND, Server, filled
from harness.targets.stillness import Stillness
from reports.record import Incident

ASK_S = 0.2  # between two questions that cost more than a look


class Command(Foreign):
    def __init__(
        self,
        directory: Path,
        ports: dict[str, int],
        *,
        server: Server,
        tree: Path | None = None,
        port: int = 0,
        nofile: int | None = None,
        preload: bool = True,
        traced: bool = False,
    ) -> None:
        """`tree`: where its packages are (`unpacked`)."""
        super().__init__(directory, ports, port=port, nofile=nofile)
        self.name = server.name
        self.start_timeout_s = server.start_timeout_s
        self._agents = self.agent_directory = directory / "agent"
        self._server = server
        self._preload = preload
        self._traced = traced
        self._values: dict[str, object] = {
            "port": self._port,
            "relay_port": ports["refusing"],
            "home_port": ports["home"],
            "dir": directory,
            "python": sys.executable,
            "here": server.here,
            **{f"{name}_port": free_port() for name in server.ports},
        }
        self._libraries = {}
        if tree is not None:
            self._values["debian"] = tree
            self._libraries = {"LD_LIBRARY_PATH": library_path(tree)}
        self.role_of = roles_by_pattern(server.roles.items())
        self.version = shlex.join(server.start) if server.name == COMMAND else ""
        self._stillness: Stillness | None = None
        self._unseen: Callable[[], int] = lambda: 0
        self._waiting = 0
        self._asked = self._changed = 0.0

    @property
    def _output(self) -> Path:
        return self.directory / "server.log"

    def start(self) -> None:
        _check_free(self.address)
        super().start()

    def _furnish(self, room: Path) -> list[str]:
        self._values["state"] = room
        for directory in (room, self._agents):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o1777)  # started by root, the server's processes may become another user
        self._prepare()
        return [self._filled(word) for word in self._server.start]

    def _environment(self) -> dict[str, str]:
        environment = self._tools(traced=self._traced)
        if not self._preload:
            return environment
        return native.environment(self._agents, environment, traced=self._traced)  # into the server, not into its tools

    def _greeted(self) -> None:
        self._values["pid"] = self.root_pid
        self._stillness = Stillness(self.root_pid, [self._port], still_s=self._server.still_s)

    def _hint(self) -> str:
        """What may help one that does not start."""
        hints = [f"to install it: {self._server.install}"] if self._server.install else []
        if self._started is not None and is_isolated():  # else it never ran
            hints.append("its network is its own; --no-isolate, if it needs the host's")
        return f" ({'; '.join(hints)})" if hints else ""

    def _prepare(self) -> None:
        """What the description wants done before the start. Raises TargetError."""
        server = self._server
        if server.version:
            self.version = self._ask("version", server.version).partition("\n")[0]
        if server.mailboxes:
            self.mailboxes = Path(self._filled(server.mailboxes))
        for name, text in server.files.items():
            path = self.directory / self._filled(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._filled(text))
            except OSError as error:
                raise TargetError(f"files: {path}: {error.strerror}") from error

    def _tools(self, *, traced: bool = False) -> dict[str, str]:
        """Ours, with what the server's says, and with the agent for every Python in it."""
        own = {name: self._filled(text) for name, text in self._server.environment.items()}
        return agent.environment(self._agents, {**os.environ, **self._libraries, **own}, traced=traced)

    def _filled(self, text: str) -> str:
        return filled(text, self._values)

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
        if now >= self._asked + ASK_S:
            waiting = self._owing()
            self._asked = time.monotonic()
            if waiting != self._waiting:
                self._waiting, self._changed = waiting, now
        is_moving = self._waiting and now < self._changed + self._server.patience_s
        return Rest({"messages not passed on": self._waiting} if is_moving else {}, self._waiting)

    def _owing(self) -> int:
        """How much mail it has not passed on: by its own word, else by what has arrived elsewhere."""
        queue = self._server.queue
        if queue.command:
            told = self._ask("queue.command", queue.command)
            return sum(re.search(queue.line, line) is not None for line in told.splitlines())
        if queue.directory:
            return sum(1 for _ in self._queued())
        return self._unseen() if self._server.is_relay or self.mailboxes else 0

    def owed(self) -> set[str] | None:
        """Message-IDs in its queue; None when nobody here can look into it."""
        if not self._server.queue.directory:
            return None
        return mail.in_files(self._queued())

    def _queued(self) -> Iterator[Path]:
        """Files of its queue's directory; any of them, and of the directories in it, may go while we look."""
        for directory, _, names in os.walk(self._filled(self._server.queue.directory)):
            yield from filter(Path.is_file, (Path(directory, name) for name in names))

    def hurry(self) -> None:
        if not self._server.hurry:
            raise TargetError(f"{self.name}: nobody here can make it try its queue again; choose another scenario")
        self._ask("hurry", self._server.hurry)

    def operate(self, operation: str) -> None:
        if operation not in self._server.operations:
            raise TargetError(f"{self.name}: nobody here can {operation!r}; choose a scenario without operations")
        self._ask(f"operations.{operation}", self._server.operations[operation])

    def _death(self, daemon: Daemon, how: str) -> Incident:
        """The first process's, with its status and the last lines of its log."""
        text = f"{self.name} {how}{daemon.last_words()}"
        return Incident(kind="died", text=text, role=self.name, pid=daemon.pid)

    def _ask(self, key: str, words: Sequence[str]) -> str:
        """What one of its commands prints. Raises TargetError when it cannot be run, or fails."""
        finished = done([self._filled(word) for word in words], key, self._tools())
        if finished.returncode:
            said = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-1:]
            why = "; ".join([f"status {finished.returncode}", *said])
            raise TargetError(f"{key}: {shlex.join(words)}: {why}")
        return finished.stdout.strip()


def unpacked(server: Server) -> Path | None:
    """Where its packages are; None when it names none. Raises TargetError."""
    try:
        return unpack(*server.debian) if server.debian else None
    except Unavailable as error:
        raise TargetError(f"{server.name}: {error}") from error


def _check_free(address: tuple[str, int]) -> None:
    """Else whoever is there would greet in the server's place. Raises TargetError."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            hint = "; choose another --port" if error.errno == errno.EADDRINUSE else ""
            raise TargetError(f"{address[0]}:{address[1]}: {error.strerror}{hint}") from error

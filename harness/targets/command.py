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
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import agent, mail
from harness.agent import native
from harness.isolation import is_isolated
from harness.probes.processes import roles_by_pattern
from harness.targets import Rest, TargetError
from harness.targets.daemon import Daemon, free_port, make_room
from harness.targets.debian import Unavailable, library_path, unpack
from harness.targets.server import COMMAND, Server, filled
from harness.targets.stillness import Stillness
from reports.record import Incident

ASK_S = 0.2  # between two questions that cost more than a look
ASK_TIMEOUT_S = 20.0


class Command:
    """`ports` are the remote MX's: `refusing`, and `home`, where the senders' bounces go."""

    defects: Sequence[str] = ()
    spool: Path | None = None

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
        self.name = server.name
        self.directory = directory
        self.agent_directory = directory / "agent"
        self.log_path = directory / "server.log"
        self._server = server
        self._port = port or free_port()
        self._nofile = nofile
        self._preload = preload
        self._traced = traced
        self._state: Path | None = None
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
        self.mailboxes: Path | None = None
        self.role_of = roles_by_pattern(server.roles.items())
        self.version = shlex.join(server.start) if server.name == COMMAND else ""
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
        self._state = self._values["state"] = make_room()
        self._state.chmod(0o1777)
        self.agent_directory.mkdir(parents=True, exist_ok=True)
        self.agent_directory.chmod(0o1777)  # started by root, the server's processes may become another user
        try:
            self._prepare()
            argv = [self._filled(word) for word in self._server.start]
            environment = self._environment(traced=self._traced)
            if self._preload:  # into the server, and not into its tools
                environment = native.environment(self.agent_directory, environment, traced=self._traced)
            self._daemon = Daemon(argv, environment, self.log_path, nofile=self._nofile, room=self._state)
            self._daemon.await_greeting(self.address, self._server.start_timeout_s)
        except BaseException as error:
            self.stop()
            if isinstance(error, TargetError):
                raise TargetError(f"{self.name}: {error}{self._hint()}") from error
            raise
        self._values["pid"] = self._daemon.pid
        self._stillness = Stillness(self._daemon.pid, [self._port], still_s=self._server.still_s)

    def _hint(self) -> str:
        """What may help one that does not start."""
        hints = [f"to install it: {self._server.install}"] if self._server.install else []
        hints += ["its network is its own; --no-isolate, if it needs the host's"] if is_isolated() else []
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

    def _environment(self, *, traced: bool = False) -> dict[str, str]:
        """Ours, with what the server's says, and with the agent for every Python in it."""
        own = {name: self._filled(text) for name, text in self._server.environment.items()}
        return agent.environment(self.agent_directory, {**os.environ, **self._libraries, **own}, traced=traced)

    def _filled(self, text: str) -> str:
        return filled(text, self._values)

    def stop(self) -> None:
        self._stopping = True
        if self._daemon is not None:
            self._daemon.stop()
        if self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)

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

    def _ask(self, key: str, words: Sequence[str]) -> str:
        """What one of its commands prints. Raises TargetError when it cannot be run, or fails."""
        command = [self._filled(word) for word in words]
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TargetError(f"{key}: {error}") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            why = "; ".join([f"status {done.returncode}", *said])
            raise TargetError(f"{key}: {shlex.join(words)}: {why}")
        return done.stdout.strip()


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

"""The embedded MTA as a target: `mta_under_test`, with or without defects re-opened."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil

from harness import agent
from harness.interruption import Held
from harness.remote_dns import DnsServer
from harness.targets import Rest, TargetError, smtpctl
from harness.targets.facilities import facilities
from harness.targets.operator import OPERATIONS
from harness.targets.room import make_room
from mta_under_test.ipc.client import ControlClient, ControlError
from mta_under_test.ipc.messages import Kind
from reports.record import Incident, Traffic

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
BUSY = (  # counters that are 0 when nothing moves
    "smtp.session",
    "scheduler.envelope.inflight",
    "scheduler.envelope.due",
    "queue.bounce",
    "queue.journal",
    "mta.session",
    "mta.task",
    "mta.relay",
)
_PR_SET_PDEATHSIG = 1

CONFIGURATION = """\
# Written for this run by Seatbelt.
{head}listen on {host} port {port}{listen}
{rules}action "outbound" relay host smtp://127.0.0.1:{refusing}
action "home" relay host smtp://127.0.0.1:{home}
match from any for domain {{ "refused.test", "accepted.test" }} action "outbound"
match from any for domain "sender.test" action "home"
"""


class Embedded:
    """`ports` are the remote MX's: `refusing`, and `home`, where the senders' bounces go."""

    name = "embedded"

    def __init__(
        self,
        directory: Path,
        ports: dict[str, int],
        *,
        version: str,
        defects: Sequence[str] = (),
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        nofile: int | None = None,
        needs: Sequence[str] = (),
        traced: bool = False,
    ) -> None:
        self.version = version
        self.directory = directory
        self.spool = directory / "spool"
        self.agent_directory = directory / "agent"
        self.log_path = directory / "smtpd.log"
        self.mailboxes: Path | None = None
        self._host = host
        self._ports = {"port": port, **ports}
        self._needs = tuple(needs)
        self._closing = ExitStack()  # what the server needs beside itself
        self.defects = list(defects)
        self._seed = seed
        self._nofile = nofile
        self._traced = traced
        self._process: subprocess.Popen[bytes] | None = None
        self._control: ControlClient | None = None
        self._gauges: dict[str, str] = {}  # always the same, so that they are asked for once
        self._family: list[psutil.Process] = []
        self._port = 0
        self._stopping = False

    @property
    def root_pid(self) -> int:
        if self._process is None:
            raise TargetError("the target has not been started")
        return self._process.pid

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    def start(self) -> None:
        for directory in (self.spool, self.agent_directory):
            directory.mkdir(parents=True, exist_ok=True)
        self.agent_directory.chmod(0o1777)  # started by root, the server's processes become another user
        room = make_room()
        self._closing.callback(shutil.rmtree, room, ignore_errors=True)
        self._socket_path = room / "smtpd.sock"
        configuration_path = self.directory / "smtpd.conf"
        made = facilities(self._needs, self.directory, room)
        self.mailboxes = made.mailboxes
        words = {"head": made.head, "listen": made.listen, "rules": made.rules}
        configuration_path.write_text(CONFIGURATION.format(host=self._host, **self._ports, **words))
        by_name = []
        if made.zone:
            server = self._closing.enter_context(DnsServer(made.zone))
            by_name = ["--resolv-conf", str(server.resolv_conf(self.directory))]
            by_name += ["--mx-port", str(self._ports["refusing"])]
        paths = {"-f": configuration_path, "--spool": self.spool, "--socket": self._socket_path}
        smtpd = ["-d", *(word for option, path in paths.items() for word in (option, str(path))), *by_name]
        if self.defects:
            command = ["-m", "mta_under_test.defects", *self.defects, "--seed", str(self._seed), "--", *smtpd]
        else:
            command = ["-m", "mta_under_test.smtpd", *smtpd]
        try:
            with Held(), self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=agent.environment(self.agent_directory, traced=self._traced),
                    start_new_session=True,  # a Ctrl-C in the terminal is for the harness, which then stops the target
                    preexec_fn=partial(self._before_exec, os.getpid()),
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _before_exec(self, harness: int) -> None:
        # A harness that is killed leaves no server behind (PR_SET_PDEATHSIG(2const)), nor one that was killed just now.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != harness:
            os._exit(1)
        if self._nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._nofile, self._nofile))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        listening = re.compile(rf"listening on {re.escape(self._host)} port (\d+)")
        while not (found := listening.search(self._log())):
            self._still_starting(deadline)
        self._port = int(found[1])
        while True:
            try:
                with smtplib.SMTP(*self.address, local_hostname="seatbelt.test", timeout=START_TIMEOUT_S):
                    break
            except OSError:
                self._still_starting(deadline)
        try:
            self._control = ControlClient(self._socket_path)
        except ControlError as error:
            raise TargetError(f"{error}\n{self._log()}".strip()) from error
        self._family = [psutil.Process(self.root_pid), *psutil.Process(self.root_pid).children(recursive=True)]

    def _still_starting(self, deadline: float) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise TargetError(self._log().strip() or f"smtpd ended with status {self._process.returncode}")
        if time.monotonic() > deadline:
            raise TargetError(f"smtpd did not greet within {START_TIMEOUT_S:.0f} s; see {self.log_path}")
        time.sleep(0.01)

    def stop(self) -> None:
        self._stopping = True
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._end(self._process)
        self._closing.close()

    def _end(self, parent: subprocess.Popen[bytes]) -> None:
        if parent.poll() is None:
            if not self._family:  # it has not greeted yet
                self._family = psutil.Process(parent.pid).children(recursive=True)
            parent.terminate()
            try:
                parent.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                parent.kill()
                parent.wait()
        _, alive = psutil.wait_procs(self._family, timeout=STOP_TIMEOUT_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)

    def rest(self) -> Rest:
        if self._control is None:
            raise TargetError("the target is not running")
        try:
            counters = self._control.stats()
            if not self._gauges:
                self._gauges = self._control.gauges()
        except ControlError as error:
            raise TargetError(str(error)) from error
        return smtpctl.rest(counters, BUSY, self._gauges)

    def counters(self) -> dict[str, int]:
        """What it says of itself, as `smtpctl show stats` prints it. Raises TargetError."""
        return self.rest().counters

    def smtpctl(self, *words: str) -> str:
        """What `smtpctl WORDS` prints. Raises TargetError with what it says when it fails."""
        command = [sys.executable, "-m", "mta_under_test.smtpctl", "--socket", str(self._socket_path), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_TIMEOUT_S, check=False)
        if done.returncode:
            raise TargetError(done.stderr.strip() or f"smtpctl ended with status {done.returncode}")
        return done.stdout

    def traffic(self) -> list[Traffic]:
        if self._control is None:
            raise TargetError("the target is not running")
        try:
            return [Traffic(*told) for told in self._control.traffic()]
        except ControlError as error:
            raise TargetError(str(error)) from error

    def hurry(self) -> None:
        if self._control is None:
            raise TargetError("the target is not running")
        try:
            self._control.ask(Kind.RESUME_ROUTE, 0)  # first: what is scheduled would meet a route that is shut
            self._control.ask(Kind.SCHEDULE, 0)
        except ControlError as error:
            raise TargetError(str(error)) from error

    def operate(self, operation: str) -> None:
        if operation not in OPERATIONS:
            raise TargetError(f"no operation called {operation!r}; there is: {', '.join(OPERATIONS)}")
        try:
            OPERATIONS[operation](self._socket_path)
        except (ControlError, OSError) as error:
            raise TargetError(f"{operation}: {error}") from error

    def deaths(self) -> list[Incident]:
        if self._process is None or self._stopping or self._process.poll() is None:
            return []
        found = re.search(r"fatal: lost process (\w+) \(pid (\d+)\): (.*)", self._log())
        if found:
            role, pid, how = found.groups()
            return [Incident(kind="died", text=f"{role} died: {how}", role=role, pid=int(pid))]
        how = f"smtpd ended with status {self._process.returncode}"
        return [Incident(kind="died", text=how, role="parent", pid=self._process.pid)]

    def _log(self) -> str:
        return self.log_path.read_text(errors="replace")

"""Debian's Postfix as a target: unpacked, not installed, with configuration, queue and log of its own.

Owns: the processes below `master`. Needs root: master(8) gives its services to another user.

Postfix is told to do what a test needs and a host on the Internet would not: no limits for a single client, no pause
after an error, one outbound session at a time that is used again (scache(8)), and workers that stay, because a worker
that ends after its hundredth client (`max_use`) takes along what it failed to let go of.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from harness import mail
from harness.targets import Rest, TargetError
from harness.targets.debian import Unavailable, unpack
from harness.targets.guard import Guard
from harness.targets.postfix_tree import QUEUES, environment, files, furnish, master
from reports.record import Incident

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
# What is freed at the heap's top is given back at once (mallopt(3)): glibc moves the limit as it goes, by which a
# process that keeps nothing swings by 250 kB.
TUNABLES = "glibc.malloc.trim_threshold=4096"
CLIENTS = 2  # outbound processes a transport; without a limit each burst begins some more, which all stay
MOVING = ("maildrop", "incoming", "active")  # queues in which a message is on its way
_DIED = re.compile(rb"warning: process (?:\S*/)?(\S+) pid (\d+) (killed by signal \d+|exit status \d+)")  # master(8)

SETTINGS = """\
notify_classes =
smtpd_recipient_restrictions = check_recipient_access inline:{{ nowhere.invalid=REJECT }}, permit
access_map_reject_code = 550
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
transport_maps = inline:{{
    {{ refused.test = smtp:[127.0.0.1]:{refusing} }},
    {{ accepted.test = smtp:[127.0.0.1]:{refusing} }},
    {{ sender.test = relay:[127.0.0.1]:{home} }} }}
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 10000
smtpd_hard_error_limit = 10000
smtpd_junk_command_limit = 10000
smtpd_client_connection_count_limit = 0
smtpd_client_event_limit_exceptions = 127.0.0.0/8
in_flow_delay = 0
max_idle = 3600s
max_use = 1000000
smtp_destination_concurrency_limit = 1
initial_destination_concurrency = 1
smtp_connection_cache_destinations = [127.0.0.1]:{refusing}
smtp_connection_cache_time_limit = 1s
smtp_connection_reuse_time_limit = 600s
"""


class Postfix:
    """`ports` are the remote MX's: `refusing`, and `home`, where the senders' bounces go."""

    name = "postfix"
    defects: Sequence[str] = ()
    spool: Path | None = None  # of a layout of its own
    agent_directory: Path | None = None
    mailboxes: Path | None = None

    def __init__(
        self,
        directory: Path,
        ports: dict[str, int],
        *,
        tree: Path,
        port: int = 0,
        nofile: int | None = None,
        traced: bool = False,
    ) -> None:
        self.directory = directory
        self._tree = tree
        self._ports = ports
        self._port = port or _free_port()
        self._nofile = nofile
        self._environment = {**environment(tree, directory), "GLIBC_TUNABLES": TUNABLES}
        self._master: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._state: Path | None = None
        self._stopping = False
        self._read = 0  # of the log
        self._deaths: list[Incident] = []
        self.version = self._ask("postconf", "-h", "-d", "mail_version")

    @property
    def root_pid(self) -> int:
        if self._master is None:
            raise TargetError("the target has not been started")
        return self._master.pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def log_path(self) -> Path:
        return self.directory / "maillog"

    def start(self) -> None:
        # Not in the run's directory: that may be where Postfix's user cannot go.
        self._state = Path(tempfile.mkdtemp(prefix="seatbelt-"))
        self._state.chmod(0o711)
        furnish(self._tree, self.directory, self._state, self._port, SETTINGS.format(**self._ports), clients=CLIENTS)
        with (self.directory / "master.log").open("wb") as log:
            self._master = subprocess.Popen(
                master(self._tree, self.directory),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._limit if self._nofile is not None else None,
            )
        self._guard = Guard(self._master.pid)
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while not self._greets():
                if self._master.poll() is not None or time.monotonic() > deadline:
                    raise TargetError(f"postfix does not start: {self._last_words()}")
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise

    def _limit(self) -> None:
        assert self._nofile is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._nofile, self._nofile))

    def _greets(self) -> bool:
        try:
            with smtplib.SMTP(*self.address, local_hostname="seatbelt.test", timeout=START_TIMEOUT_S):
                return True
        except OSError:
            return False

    def _last_words(self) -> str:
        for path in (self.log_path, self.directory / "master.log"):
            if path.exists() and (lines := path.read_text(errors="replace").strip().splitlines()):
                return lines[-1]
        return "it says nothing"

    def stop(self) -> None:
        self._stopping = True
        if self._master is not None:
            family: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(self._master.pid).children(recursive=True)
            if self._master.poll() is None:
                self._master.terminate()
                try:
                    self._master.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    self._master.kill()
                    self._master.wait()
            _end(family)
        if self._guard is not None:
            self._guard.dismiss()
        if self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)

    def rest(self) -> Rest:
        spool = self._spool()
        busy = {f"{name} queue": number for name in MOVING if (number := len(files(spool / name)))}
        return Rest(busy, len(files(spool / "deferred")))

    def owed(self) -> set[str]:
        """Message-IDs that are in any of the queues."""
        spool = self._spool()
        return mail.in_files(files(*(spool / name for name in QUEUES)))

    def _spool(self) -> Path:
        if self._state is None:
            raise TargetError("the target has not been started")
        return self._state / "spool"

    def hurry(self) -> None:
        self._ask("postqueue", "-f")

    def operate(self, operation: str) -> None:
        raise TargetError(f"postfix: nobody here can {operation!r}; choose a scenario without operations")

    def deaths(self) -> list[Incident]:
        """Services that ended by a signal or with an error, as master(8) tells its log; and master itself."""
        if self._master is None or self._stopping:
            return []
        self._deaths += self._died_since()
        if self._master.poll() is not None:
            text = f"master ended with status {self._master.returncode}: {self._last_words()}"
            return [*self._deaths, Incident(kind="died", text=text, role="master", pid=self._master.pid)]
        return list(self._deaths)

    def _died_since(self) -> list[Incident]:
        """What the log has of it since the last look."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._read)
                new = log.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for role, pid, how in _DIED.findall(whole):
            who = role.decode()
            found.append(Incident(kind="died", text=f"{who} died: {how.decode()}", role=who, pid=int(pid)))
        return found

    def _ask(self, tool: str, *arguments: str) -> str:
        command = [str(self._tree / "usr/sbin" / tool), *arguments]
        try:
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TargetError(f"{tool}: {error}") from error
        if done.returncode:
            raise TargetError(f"{tool}: {done.stderr.strip()}")
        return done.stdout.strip()


def tree() -> Path:
    """The unpacked package. Raises TargetError."""
    if os.geteuid() != 0:
        raise TargetError("postfix: master(8) gives its services to another user, which needs root")
    try:
        return unpack("postfix")
    except Unavailable as error:
        raise TargetError(f"postfix: {error}") from error


def _end(family: Sequence[psutil.Process]) -> None:
    """Services that did not end with master(8)."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

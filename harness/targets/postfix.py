"""Debian's Postfix as a target: unpacked, not installed, with configuration, queue and log of its own.

Owns: the processes below `master`. Needs root: master(8) gives its services to another user.

Postfix is told to do what a test needs and a host on the Internet would not: no limits for a single client, no pause
after an error, one outbound session at a time that is used again (scache(8)), and workers that stay, because a worker
that ends after its hundredth client (`max_use`) takes along what it failed to let go of.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness import mail
from harness.agent import native
from harness.targets import Rest, TargetError
from harness.targets.daemon import Daemon, Tail, free_port, last_words, make_room
from harness.targets.debian import Unavailable, unpack
from harness.targets.postfix_tree import QUEUES, Programs, environment, files, furnish, master
from reports.record import Incident

ASK_TIMEOUT_S = 20.0
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
    mailboxes: Path | None = None

    def __init__(
        self,
        directory: Path,
        ports: dict[str, int],
        *,
        programs: Programs,
        port: int = 0,
        nofile: int | None = None,
        preload: bool = True,
        traced: bool = False,
    ) -> None:
        self.directory = directory
        self._programs = programs
        self._ports = ports
        self._port = port or free_port()
        self._nofile = nofile
        self.agent_directory = directory / "agent"
        self._preload = preload
        self._traced = traced
        self._environment = {**environment(programs, directory), "GLIBC_TUNABLES": TUNABLES}
        self._daemon: Daemon | None = None
        self._room: Path | None = None
        self._log = Tail(self.log_path)
        self._stopping = False
        self._deaths: list[Incident] = []
        self.version = self._ask("postconf", "-h", "-d", "mail_version")

    @property
    def root_pid(self) -> int:
        return self._running().pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def log_path(self) -> Path:
        return self.directory / "maillog"

    def start(self) -> None:
        self._room = make_room()
        try:
            settings = SETTINGS.format(**self._ports)
            furnish(self._programs, self.directory, self._room, self._port, settings, clients=CLIENTS)
            argv = master(self._programs, self.directory)
            output = self.directory / "master.log"
            self._daemon = Daemon(argv, self._preloading(), output, nofile=self._nofile, room=self._room)
            self._daemon.await_greeting(self.address)
        except BaseException as error:
            self.stop()
            if isinstance(error, TargetError):
                raise TargetError(f"postfix: {error}{last_words(self.log_path)}") from error
            raise

    def _preloading(self) -> dict[str, str]:
        """The environment of master(8), which hands it on to its services; the tools do without."""
        self.agent_directory.mkdir(exist_ok=True)
        if not self._preload:
            return self._environment
        return native.environment(self.agent_directory, self._environment, traced=self._traced)

    def _running(self) -> Daemon:
        if self._daemon is None:
            raise TargetError("the target has not been started")
        return self._daemon

    def stop(self) -> None:
        self._stopping = True
        if self._daemon is not None:
            self._daemon.stop()
        if self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)

    def rest(self) -> Rest:
        spool = self._spool()
        busy = {f"{name} queue": number for name in MOVING if (number := len(files(spool / name)))}
        return Rest(busy, len(files(spool / "deferred")))

    def owed(self) -> set[str]:
        """Message-IDs that are in any of the queues."""
        spool = self._spool()
        return mail.in_files(files(*(spool / name for name in QUEUES)))

    def _spool(self) -> Path:
        if self._room is None:
            raise TargetError("the target has not been started")
        return self._room / "spool"

    def hurry(self) -> None:
        self._ask("postqueue", "-f")

    def operate(self, operation: str) -> None:
        raise TargetError(f"postfix: nobody here can {operation!r}; choose a scenario without operations")

    def deaths(self) -> list[Incident]:
        """Services that ended by a signal or with an error, as master(8) tells its log; and master itself."""
        if self._daemon is None or self._stopping:
            return []
        for role, pid, how in _DIED.findall(self._log.lines()):
            who = role.decode()
            self._deaths.append(Incident(kind="died", text=f"{who} died: {how.decode()}", role=who, pid=int(pid)))
        if how := self._daemon.ended():
            text = f"master {how}{last_words(self.log_path)}"
            return [*self._deaths, Incident(kind="died", text=text, role="master", pid=self._daemon.pid)]
        return list(self._deaths)

    def _ask(self, tool: str, *arguments: str) -> str:
        command = [str(self._programs.tools / tool), *arguments]
        try:
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TargetError(f"{tool}: {error}") from error
        if done.returncode:
            raise TargetError(f"{tool}: {done.stderr.strip()}")
        return done.stdout.strip()


def programs(binary: Path | None) -> Programs:
    """Those beside the master(8) `binary`; without one, Debian's, unpacked. Raises TargetError."""
    if os.geteuid() != 0:
        raise TargetError("postfix: master(8) gives its services to another user, which needs root")
    if binary is not None:
        return Programs.beside(binary)
    try:
        return Programs.unpacked(unpack("postfix"))
    except Unavailable as error:
        raise TargetError(f"postfix: {error}") from error

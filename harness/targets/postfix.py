"""Debian's Postfix as a target: unpacked, not installed, with configuration, queue and log of its own.

Owns: main.cf, master.cf, the queue's directories, the processes below `master`. Needs root: master(8) gives its services
to another user. Postfix is told to do what a test needs and a host on the Internet would not: no limits for a single
client, no pause after an error, one outbound session at a time that is used again (scache(8)), workers that stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from harness.targets import Rest, TargetError
from harness.targets.debian import Unavailable, library_path, unpack
from reports.record import Incident

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
OWNER = "daemon"  # it wants an owner of its mail that owns nothing else of it; any that every Debian has will do
GROUP = "mail"
MOVING = ("maildrop", "incoming", "active")  # queues in which a message is on its way (qmgr(8))
ROOMS = (*MOVING, "bounce", "corrupt", "defer", "deferred", "flush", "hold", "private", "saved", "trace", "public", "pid")
_PR_SET_PDEATHSIG = 1

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
relay unix - - n - - smtp
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
error unix - - n - - error
retry unix - - n - - error
"""
MAIN = """\
# Written for this run by Seatbelt.
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
daemon_directory = {tree}/usr/lib/postfix/sbin
command_directory = {tree}/usr/sbin
shlib_directory = {tree}/usr/lib/postfix
meta_directory = {directory}/etc
mail_owner = {owner}
setgid_group = {group}
import_environment = LD_LIBRARY_PATH MAIL_CONFIG
export_environment = LD_LIBRARY_PATH MAIL_CONFIG
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = postfix.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
notify_classes =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
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

    def __init__(self, directory: Path, ports: dict[str, int], *, port: int = 0, traced: bool = False) -> None:
        if os.geteuid() != 0:
            raise TargetError("postfix: master(8) gives its services to another user, which needs root")
        try:
            self._tree = unpack("postfix")
        except Unavailable as error:
            raise TargetError(f"postfix: {error}") from error
        self.directory = directory
        self._ports = ports
        self._port = port or _free_port()
        self._environment = {
            **os.environ,
            "LD_LIBRARY_PATH": f"{self._tree}/usr/lib/postfix:{library_path(self._tree)}",
            "MAIL_CONFIG": str(directory / "etc"),
        }
        self._master: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self.version = self._ask("postconf", "-h", "-d", "mail_version")

    @property
    def root_pid(self) -> int:
        if self._master is None:
            raise TargetError("the target has not been started")
        return self._master.pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def start(self) -> None:
        self._furnish()
        with (self.directory / "master.log").open("wb") as log:
            self._master = subprocess.Popen(
                [self._tree / "usr/lib/postfix/sbin/master", "-c", self.directory / "etc", "-d"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # A harness that is killed leaves no server behind (PR_SET_PDEATHSIG(2const)).
                preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._greets():
            if self._master.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise TargetError(f"postfix does not start: {self._last_words()}")
            time.sleep(0.05)

    def _furnish(self) -> None:
        etc, spool, data = (self.directory / name for name in ("etc", "spool", "data"))
        for directory in (etc, spool, data):
            directory.mkdir(parents=True)
        words = {"directory": self.directory, "tree": self._tree, "owner": OWNER, "group": GROUP, "port": self._port}
        (etc / "master.cf").write_text(MASTER.format(**words))
        (etc / "main.cf").write_text(MAIN.format(**words, **self._ports))
        (etc / "dynamicmaps.cf").touch()
        for name in ROOMS:
            (spool / name).mkdir()
            shutil.chown(spool / name, "root" if name == "pid" else OWNER)
        shutil.chown(data, OWNER)
        for name, mode in (("maildrop", 0o730), ("public", 0o710)):
            shutil.chown(spool / name, group=GROUP)
            (spool / name).chmod(mode)
        self._let_through()

    def _let_through(self) -> None:
        """Postfix's user must reach the queue: every directory above it must let it pass."""
        for above in (self.directory, *self.directory.parents):
            if not above.stat().st_mode & 0o001:
                try:
                    above.chmod(above.stat().st_mode | 0o011)
                except PermissionError as error:
                    raise TargetError(f"postfix: user {OWNER} cannot pass {above}; choose another --runs") from error

    def _greets(self) -> bool:
        try:
            with smtplib.SMTP(*self.address, local_hostname="seatbelt.test", timeout=START_TIMEOUT_S):
                return True
        except OSError:
            return False

    def _last_words(self) -> str:
        for path in (self.directory / "maillog", self.directory / "master.log"):
            if path.exists() and (lines := path.read_text(errors="replace").strip().splitlines()):
                return lines[-1]
        return "it says nothing"

    def stop(self) -> None:
        self._stopping = True
        if self._master is None:
            return
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
        for process in family:  # master(8) leaves its services to notice by themselves
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)

    def rest(self) -> Rest:
        spool = self.directory / "spool"
        busy = {f"{name} queue": number for name in MOVING if (number := _files(spool / name))}
        return Rest(busy, _files(spool / "deferred"))

    def hurry(self) -> None:
        self._ask("postqueue", "-f")

    def operate(self, operation: str) -> None:
        raise TargetError(f"postfix: nobody here can {operation!r}; choose a scenario without operations")

    def deaths(self) -> list[Incident]:
        if self._master is None or self._stopping or self._master.poll() is None:
            return []
        text = f"master ended with status {self._master.returncode}: {self._last_words()}"
        return [Incident(kind="died", text=text, role="master", pid=self._master.pid)]

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


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _files(directory: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(directory))

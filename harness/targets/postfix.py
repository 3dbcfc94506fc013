"""Debian's Postfix as a target: unpacked, not installed, with configuration, queue and log of its own.

Owns: the processes below `master`. Needs root: master(8) gives its services to another user.

Postfix is told to do what a test needs and a host on the Internet would not: no limits for a single client, no pause
after an error, one outbound session at a time that is used again (scache(8)), and workers that stay, because a worker
that ends after its hundredth client (`max_use`) takes along what it failed to let go of.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness import mail
from harness.agent import native
from harness.targets import Rest, TargetError
from harness.targets.daemon import Daemon, Tail, last_words
from harness.targets.debian import Unavailable, unpack
from harness.targets.foreign import TUNABLES, Foreign, asked
from harness.targets.postfix_tree import QUEUES, Programs, environment, files, furnish, master
from reports.record import Incident

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


class Postfix(Foreign):
    name = "postfix"

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
        super().__init__(directory, ports, port=port, nofile=nofile)
        self._programs = programs
        self._agents = self.agent_directory = directory / "agent"
        self._preload = preload
        self._traced = traced
        self._tools = {**environment(programs, directory), "GLIBC_TUNABLES": TUNABLES}
        self._log_path = directory / "maillog"
        self._log = Tail(self._log_path)
        self._ended_services: list[Incident] = []
        self.version = self._ask("postconf", "-h", "-d", "mail_version")

    @property
    def _output(self) -> Path:
        return self.directory / "master.log"

    def _furnish(self, room: Path) -> list[str]:
        furnish(self._programs, self.directory, room, self._port, SETTINGS.format(**self._ports), clients=CLIENTS)
        return master(self._programs, self.directory)

    def _environment(self) -> dict[str, str]:
        """Of master(8), which hands it on to its services; the tools do without the preloading."""
        self._agents.mkdir(exist_ok=True)
        return native.environment(self._agents, self._tools, traced=self._traced) if self._preload else self._tools

    def _hint(self) -> str:
        return last_words(self._log_path)

    def rest(self) -> Rest:
        spool = self._room / "spool"
        busy = {f"{name} queue": number for name in MOVING if (number := len(files(spool / name)))}
        return Rest(busy, len(files(spool / "deferred")))

    def owed(self) -> set[str]:
        """Message-IDs that are in any of the queues."""
        spool = self._room / "spool"
        return mail.in_files(files(*(spool / name for name in QUEUES)))

    def hurry(self) -> None:
        self._ask("postqueue", "-f")

    def operate(self, operation: str) -> None:
        raise TargetError(f"postfix: nobody here can {operation!r}; choose a scenario without operations")

    def _told_deaths(self) -> list[Incident]:
        """Services that ended by a signal or with an error, as master(8) tells its log."""
        for role, pid, how in _DIED.findall(self._log.lines()):
            who = role.decode()
            incident = Incident(kind="died", text=f"{who} died: {how.decode()}", role=who, pid=int(pid))
            self._ended_services.append(incident)
        return list(self._ended_services)

    def _death(self, daemon: Daemon, how: str) -> Incident:
        text = f"master {how}{last_words(self._log_path)}"
        return Incident(kind="died", text=text, role="master", pid=daemon.pid)

    def _ask(self, tool: str, *arguments: str) -> str:
        return asked([str(self._programs.tools / tool), *arguments], tool, self._tools).strip()


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

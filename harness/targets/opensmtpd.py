"""Debian's OpenSMTPD as a target: unpacked, not installed, with configuration, queue, socket and users of its own.

Owns: the processes below the parent, and the places that it insists on (`harness/targets/places.py`). Needs root.

OpenSMTPD is told to keep one outbound session a relay, which takes any number of messages and waits for more: a second
session within ten seconds of the first would be kept waiting for them (DELAY_CHECK_SOURCE_SLOW in its mta.c).

Whether it rests is asked of its own smtpctl(8), when nothing seems to move, and not again at once: each question is a
connection, of which its control process keeps 32 bytes for good (docs/targets.md).
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from harness.targets import Rest, TargetError, operator, places, smtpctl
from harness.targets.daemon import Daemon, last_words
from harness.targets.debian import Unavailable, unpack
from harness.targets.foreign import Foreign, asked
from harness.targets.places import Places, Program
from harness.targets.stillness import Stillness
from reports.record import Incident

ASK_AGAIN_S = 0.5
HOME = "/var/lib/opensmtpd/empty"  # where processes are chrooted
USERS, QUEUE_USERS = ("opensmtpd", "_smtpd"), ("opensmtpq", "_smtpq")  # Debian's names, and the project's
BUSY = ("smtp.session", "mta.task", "scheduler.envelope.inflight", "bounce.message", "bounce.session")
GAUGES = {  # what there is now, and the process that counts it
    "smtp.session": "pony express",
    "mta.session": "pony express",
    "mta.task": "pony express",
    "mta.envelope": "pony express",
}
OPERATIONS = {  # words for smtpctl(8)
    "trace": ("trace", "smtp"),
    "untrace": ("untrace", "smtp"),
    "profile": ("profile", "imsg"),
    "show stats": ("show", "stats"),
    "show hosts": ("show", "hosts"),
    "show queue": ("show", "queue"),
}
RUDE = ("vanish", "half a request")  # a client that is gone; its frames are the embedded target's, which get an answer
SOCKET = "run/smtpd.sock"

CONFIGURATION = """\
# Written for this run by Seatbelt.
listen on 127.0.0.1 port {port} hostname opensmtpd.test
smtp limit max-mails 1000000 max-rcpt 1000
scheduler limit max-inflight 1000000 max-evp-batch-size 10000 max-msg-batch-size 10000
mta limit task-hiwat 1000000 max-conn-per-relay 1 session-keepalive {keepalive} \\
    session-mail-max 1000000 max-failures-per-session 1000000
action "outbound" relay host smtp://127.0.0.1:{refusing}
action "home" relay host smtp://127.0.0.1:{home}
match from any for domain {{ "refused.test" "accepted.test" }} action "outbound"
match from any for domain "sender.test" action "home"
"""


class OpenSMTPD(Foreign):
    name = "opensmtpd"
    patience = 10  # MAX_TRYBEFOREDISABLE in its mta_session.c
    keepalive_s = 86400

    def __init__(
        self,
        directory: Path,
        ports: dict[str, int],
        *,
        program: Program,
        port: int = 0,
        nofile: int | None = None,
        traced: bool = False,
    ) -> None:
        super().__init__(directory, ports, port=port, nofile=nofile)
        self._program = program
        self._stillness: Stillness | None = None
        self._told: Rest | None = None  # by smtpctl, since something moved
        self._asked = 0.0
        self.version = version(program)

    @property
    def _output(self) -> Path:
        return self.directory / "smtpd.log"

    def _furnish(self, room: Path) -> list[str]:
        """Everything that it insists on; the command that starts it there."""
        own = Places(room)
        smtpd = own.program(self._program)
        self._smtpctl = smtpd.with_name("smtpctl")
        self._group = places.number(*QUEUE_USERS, at=1)
        numbers = dict.fromkeys(USERS, places.number(*USERS)) | dict.fromkeys(QUEUE_USERS, self._group)
        own.users(numbers, HOME)
        own.file("resolv.conf", places.RESOLVER, "/etc/resolv.conf")
        for name, theirs, below in (
            ("run", "/run", ""),
            ("spool", "/var/spool", "smtpd"),
            ("lib", "/var/lib", "opensmtpd/empty"),
        ):
            (room / name / below).mkdir(parents=True)
            own.bind(room / name, theirs)
        self.spool = room / "spool/smtpd"
        for path in (self.spool, room / "lib/opensmtpd", room / "lib/opensmtpd/empty"):
            path.chmod(0o711)
        configuration = self.directory / "smtpd.conf"
        configuration.write_text(CONFIGURATION.format(keepalive=self.keepalive_s, **self._ports))
        return own.command([str(smtpd), "-d", "-f", str(configuration)])

    def _greeted(self) -> None:
        self._stillness = Stillness(self.root_pid, [self._port])

    def rest(self) -> Rest:
        if self._stillness is None:
            raise TargetError("the target has not been started")
        if busy := self._stillness.busy():
            self._told = None
            return Rest(busy)
        if self._told is None or (self._told.busy and time.monotonic() >= self._asked + ASK_AGAIN_S):
            self._told = smtpctl.rest(smtpctl.counters(self._ask("show", "stats")), BUSY, GAUGES)
            self._asked = time.monotonic()
        return self._told

    def hurry(self) -> None:
        for route in smtpctl.routes(self._ask("show", "routes")):
            self._ask("resume", "route", route)  # first: what is scheduled would meet a route that is shut
        self._ask("schedule", "all")
        self._told = None

    def operate(self, operation: str) -> None:
        if operation in OPERATIONS:
            self._ask(*OPERATIONS[operation])
        elif operation in RUDE:
            operator.OPERATIONS[operation](self._room / SOCKET)
        else:
            known = ", ".join([*OPERATIONS, *RUDE])
            raise TargetError(f"opensmtpd: nobody here can {operation!r}; there is: {known}")

    def _death(self, daemon: Daemon, how: str) -> Incident:
        """The parent's: it ends when any of its processes does."""
        role, text = culprit(daemon.log.read_text(errors="replace"))
        text = text or f"smtpd {how}{last_words(daemon.log)}"
        return Incident(kind="died", text=text, role=role or "smtpd", pid=daemon.pid)

    def _ask(self, *words: str) -> str:
        """Of smtpctl(8), which wants to be setgid to the queue's group. Raises TargetError."""
        command = places.inside(self.root_pid, [str(self._smtpctl), *words], group=self._group)
        return asked(command, f"smtpctl {' '.join(words)}")


def culprit(log: str) -> tuple[str, str]:
    """The process that gave up, and what it said; empty where one was killed: others then tell of closed sockets."""
    found = re.search(r"^(\S+): exiting: (.+)$", log, re.MULTILINE)
    return (found[1], f"{found[1]} died: {found[2]}") if found else ("", "")


def program(binary: Path | None) -> Program:
    """The smtpd(8) `binary`, with smtpctl(8) beside it; without one, Debian's, unpacked. Raises TargetError."""
    places.check("opensmtpd")
    if binary is not None:
        if not binary.resolve().with_name("smtpctl").exists():
            raise TargetError(f"opensmtpd: {binary} has no smtpctl beside it; --binary takes OpenSMTPD's smtpd")
        return Program(binary.resolve())
    try:
        tree = unpack("opensmtpd")
    except Unavailable as error:
        raise TargetError(f"opensmtpd: {error}") from error
    return Program(tree / "usr/sbin/smtpd", tree)


def version(program: Program) -> str:
    """As `6.8.0p2`. Raises TargetError."""
    said = program.ask("-h")
    if not (found := re.search(r"version: OpenSMTPD (\S+)", said)):
        raise TargetError(f"opensmtpd: {program.path} does not say its version: {said.strip()[:200]}")
    return found[1]

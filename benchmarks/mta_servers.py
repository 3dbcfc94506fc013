"""The mail servers that benchmarks/mta.py compares: how each is had, started on loopback, held, drained and stopped.

Debian's are unpacked into a cache (`apt-get download`, `dpkg -x`), not installed. Those that look for their users and
their queue in fixed places (OpenSMTPD, Exim) run in a mount namespace of their own, where these places are the
benchmark's directory; that needs root. Whatever cannot be had or started raises Unavailable, which says why.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from harness.targets import TargetError, places, postfix_tree
from harness.targets.daemon import free_port
from harness.targets.debian import Unavailable as NoPackage
from harness.targets.debian import cache_directory, unpack
from harness.targets.places import Places, Program
from mta_under_test.ipc.client import ControlClient, ControlError
from mta_under_test.ipc.messages import Kind

START_S = 20.0


class Unavailable(Exception):
    """This server cannot be measured here; one line says why."""


def debian(package: str) -> Path:
    """The unpacked package. Raises Unavailable."""
    try:
        return unpack(package)
    except NoPackage as error:
        raise Unavailable(str(error)) from error


def postfix_tool(name: str) -> tuple[Path, dict[str, str]]:
    """smtp-source or smtp-sink, and the environment that it needs."""
    root = debian("postfix")
    return root / "usr/sbin" / name, {**os.environ, "LD_LIBRARY_PATH": os.fspath(root / "usr/lib/postfix")}


class Server(ABC):
    """One, running from `start` to `stop`. With `hold` it accepts mail and does not try to deliver it."""

    name: str

    def __init__(self, directory: Path, sink: int, *, hold: bool) -> None:
        self.directory = directory
        self.sink = sink
        self.hold = hold
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises Unavailable."""
        self.directory.mkdir(parents=True)
        self.directory.chmod(0o755)
        self.configure()
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self._greets():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Unavailable(f"does not start: {self.last_words()}")
            time.sleep(0.05)
        self.started()

    def last_words(self) -> str:
        lines = (self.directory / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:160] if lines else "it says nothing"

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as sock:
                return sock.recv(100).startswith(b"220")
        except OSError:
            return False

    def stop(self) -> None:
        """The server and whatever it started: its session."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in _session(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process = None

    # ---- what each server says for itself

    @abstractmethod
    def configure(self) -> None:
        """Write what it reads, in `directory`. Raises Unavailable."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What starts it. Raises Unavailable."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def started(self) -> None:
        """It has greeted."""
        return

    @abstractmethod
    def queued(self) -> int:
        """Messages that it still has. Raises Unavailable."""


def _session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # gone meanwhile
            if int(fields[3]) == leader:
                found.append(int(entry.name))
    return found


def _files(*directories: Path) -> int:
    count = 0
    for directory in directories:
        for _, _, names in os.walk(directory):
            count += len(names)
    return count


class Ours(Server):
    name = "Seatbelt's smtpd"

    def configure(self) -> None:
        (self.directory / "smtpd.conf").write_text(
            f"smtp limit max-mails 1000000\n"
            f"listen on 127.0.0.1 port {self.port}\n"
            f'action "out" relay host smtp://127.0.0.1:{self.sink}\n'
            f'match from any for any action "out"\n'
        )

    def command(self) -> Sequence[str | Path]:
        arguments = ["-d", "-f", self.directory / "smtpd.conf", "--spool", self.directory / "spool"]
        return [sys.executable, "-m", "mta_under_test.smtpd", *arguments, "--socket", self.directory / "s"]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).resolve().parents[1])}

    def started(self) -> None:
        if self.hold:
            with ControlClient(self.directory / "s") as control:
                control.ask(Kind.PAUSE, text="mta")

    def queued(self) -> int:
        try:
            with ControlClient(self.directory / "s") as control:
                return control.stats()["scheduler.envelope"]
        except ControlError as error:
            raise Unavailable(str(error)) from error


class Postfix(Server):
    name = "Postfix"

    def programs(self) -> postfix_tree.Programs:
        return postfix_tree.Programs.unpacked(debian("postfix"))

    def configure(self) -> None:
        settings = f"relayhost = [127.0.0.1]:{self.sink}\n"
        if self.hold:
            settings += "smtpd_recipient_restrictions = check_client_access static:hold, permit\n"
        postfix_tree.furnish(self.programs(), self.directory, self.directory, self.port, settings)

    def command(self) -> Sequence[str | Path]:
        if os.geteuid() != 0:
            raise Unavailable("needs root")
        return postfix_tree.master(self.programs(), self.directory)

    def environment(self) -> dict[str, str]:
        return postfix_tree.environment(self.programs(), self.directory)

    def queued(self) -> int:
        spool = self.directory / "spool"
        return _files(*(spool / name for name in ("maildrop", "incoming", "active", "deferred")))


class Contained(Server):
    """In places of its own: its users, and whatever it insists on in /run, /var/spool and /var/lib.

    So is /etc/resolv.conf: a look-up of 127.0.0.1 that waits for a name server is not what is measured.
    """

    users: tuple[str, ...]
    package: str
    path: str  # of its program, in the package

    def configure(self) -> None:
        try:
            places.check(self.name)
        except TargetError as error:
            raise Unavailable(str(error)) from error
        own = self.places = Places(self.directory)
        tree = debian(self.package)
        self.program = own.program(Program(tree / self.path, tree))
        self.numbers = {name: places.number(name, at=at) for at, name in enumerate(self.users)}
        own.users(self.numbers, "/var/lib/empty")
        own.file("resolv.conf", places.RESOLVER, "/etc/resolv.conf")
        for room in ("run", "spool", "lib", "lib/empty"):
            (self.directory / room).mkdir()
            (self.directory / room).chmod(0o711)
        self.furnish()
        for ours, theirs in (("run", "/run"), ("spool", "/var/spool"), ("lib", "/var/lib")):
            own.bind(self.directory / ours, theirs)

    def command(self) -> Sequence[str | Path]:
        return self.places.command([str(self.program), *self.arguments()])

    @abstractmethod
    def furnish(self) -> None:
        """Write its configuration, and make the directories that it insists on."""

    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """Of its program."""


class OpenSMTPD(Contained):
    name = "OpenSMTPD (Debian)"
    users = ("opensmtpd", "opensmtpq")
    package = "opensmtpd"
    path = "usr/sbin/smtpd"

    def furnish(self) -> None:
        (self.directory / "spool/smtpd").mkdir()
        (self.directory / "spool/smtpd").chmod(0o711)
        (self.directory / "lib/opensmtpd/empty").mkdir(parents=True)
        for path in ("lib/opensmtpd", "lib/opensmtpd/empty"):
            (self.directory / path).chmod(0o711)
        (self.directory / "smtpd.conf").write_text(
            f"smtp limit max-mails 1000000\n"
            f"listen on 127.0.0.1 port {self.port}\n"
            f'action "out" relay host smtp://127.0.0.1:{self.sink}\n'
            f'match from any for any action "out"\n'
        )

    def arguments(self) -> Sequence[str]:
        return ["-d", *(["-P", "mta"] if self.hold else []), "-f", str(self.directory / "smtpd.conf")]

    def queued(self) -> int:
        return _files(*(self.directory / "spool/smtpd" / name for name in ("queue", "incoming")))


class Exim(Contained):
    name = "Exim (Debian, light)"
    users = ("Debian-exim",)
    package = "exim4-daemon-light"
    path = "usr/sbin/exim4"

    def furnish(self) -> None:
        for path in ("spool/exim4", "spool/exim4/log"):
            (self.directory / path).mkdir()
            os.chown(self.directory / path, *(2 * list(self.numbers.values())))
        (self.directory / "exim.conf").write_text(
            f"exim_path = {self.program}\n"
            "spool_directory = /var/spool/exim4\nlog_file_path = /var/spool/exim4/log/%slog\n"
            "primary_hostname = bench.test\nacl_smtp_rcpt = accept\nacl_smtp_data = accept\n"
            "smtp_accept_max = 100\nsmtp_accept_queue_per_connection = 0\nhost_lookup =\nrfc1413_query_timeout = 0s\n"
            "tls_advertise_hosts =\nprdr_enable = false\nkeep_environment =\n"
            f"queue_only = {'true' if self.hold else 'false'}\n"
            "begin routers\nout:\n  driver = manualroute\n  transport = out\n  route_list = * 127.0.0.1 byname\n"
            "  self = send\n"
            f"begin transports\nout:\n  driver = smtp\n  port = {self.sink}\n  allow_localhost = true\n"
            "begin retry\n* * F,1h,1s\n"
        )

    def arguments(self) -> Sequence[str]:
        queue = [] if self.hold else ["-q5s"]
        return ["-C", str(self.directory / "exim.conf"), "-bdf", *queue, "-oX", f"<; [127.0.0.1]:{self.port}"]

    def queued(self) -> int:
        return _files(self.directory / "spool/exim4/input")


class Aiosmtpd(Server):
    """As one would write it in an afternoon: each message to a file, fsync of file and directory, then 250."""

    name = "aiosmtpd + fsync"

    def configure(self) -> None:
        (self.directory / "spool").mkdir()
        packages = cache_directory() / "aiosmtpd"
        if not packages.exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, "aiosmtpd"]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                raise Unavailable("pip install aiosmtpd fails")

    def command(self) -> Sequence[str | Path]:
        script = Path(__file__).with_name("aiosmtpd_server.py")
        sink = [] if self.hold else ["--sink", str(self.sink)]
        return [sys.executable, script, "--port", str(self.port), "--spool", self.directory / "spool", *sink]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.fspath(cache_directory() / "aiosmtpd")}

    def queued(self) -> int:
        return _files(self.directory / "spool")


SERVERS: tuple[type[Server], ...] = (Ours, Postfix, OpenSMTPD, Exim, Aiosmtpd)

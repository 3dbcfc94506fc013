"""The daemon of a test: started in a directory of its own, on ports that the kernel picks, and stopped by its PID."""

from __future__ import annotations

import contextlib
import io
import os
import re
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from mta_under_test import smtpctl
from mta_under_test.ipc.client import ControlClient, ControlError
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.parent.parent import ROLES

WAIT_S = 20.0


def until(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for something that must come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.01)


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _is_named(process: psutil.Process) -> bool:
    try:
        return (process.cmdline() or [""])[0].startswith("smtpd: ")
    except psutil.Error:
        return False  # a delivery that is over by now


class Smtpd:
    """The daemon, its log, its control socket, and clients for it."""

    def __init__(
        self, directory: Path, configuration: str, *arguments: str, change: str = "", defects: Sequence[str] = ()
    ) -> None:
        """`change`: statements that set constants of `delivery` and `mda` before the daemon starts."""
        self.directory = directory
        self._start = ["-m", "mta_under_test.smtpd"]
        if change:
            imports = (
                "import sys; from mta_under_test import smtpd; "
                "from mta_under_test.processes.delivery import delivery; from mta_under_test.processes.mda import mda"
            )
            self._start = ["-c", f"{imports}; {change}; sys.exit(smtpd.main())"]
        if defects:
            self._start = ["-m", "mta_under_test.defects", *defects, "--"]
        self.defects = tuple(defects)
        self.spool = directory / "spool"
        self.socket = directory / "smtpd.sock"
        self.log_path = directory / "log"
        (directory / "smtpd.conf").write_text(configuration)
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            began = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, *self._start, "-d", "-f", self.directory / "smtpd.conf"]
                + ["--owners", "--spool", self.spool, "--socket", self.socket, *self._arguments],
                stdout=log,
                stderr=log,
            )
        until(lambda: " ready" in self.log()[began:] or self.process.poll() is not None, "smtpd is ready")
        assert self.process.poll() is None, self.log()
        self.ports = [int(port) for port in re.findall(r"listening on \S+ port (\d+)", self.log()[began:])]
        self.family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children()]
        # Filters' programs are of the family, but have names of their own.
        until(lambda: sum(map(_is_named, self.family)) > len(ROLES), "every process has its name")

    def log(self) -> str:
        return self.log_path.read_text()

    def smtp(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.ports[0], local_hostname="client.test", timeout=WAIT_S)

    def control(self) -> ControlClient:
        return ControlClient(self.socket)

    def stats(self) -> dict[str, int]:
        with self.control() as client:
            return client.stats()

    def pid_of(self, role: str) -> int:
        found: list[int] = []

        def titled() -> list[int]:  # a process names itself a moment after it was born
            found[:] = (process.pid for process in self.family if process.cmdline()[0] == f"smtpd: {role}")
            return found

        until(titled, f"a process smtpd: {role}")
        return found[0]

    def descriptors(self, role: str) -> list[str]:
        links = []
        for entry in os.scandir(f"/proc/{self.pid_of(role)}/fd"):
            try:
                links.append(os.readlink(entry.path))
            except FileNotFoundError:
                continue
        return links

    def send(self, *recipients: str, sender: str = "a@sender.test", text: str = "Subject: hi\r\n\r\nhello\r\n") -> None:
        with self.smtp() as client:
            client.sendmail(sender, list(recipients), text)

    def at_rest(self) -> bool:
        stats = self.stats()
        return not any(
            stats[name]
            for name in ("smtp.session", "scheduler.envelope.inflight", "scheduler.envelope.due", "mta.relay")
        )

    def spool_is_empty(self) -> bool:
        """But for an emptied journal."""
        return not [path for path in self.spool.rglob("*") if path.is_file() and path.stat().st_size]

    def smtpctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """In this process: a Python of its own takes longer than what it does. Its tests start it as a program."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = smtpctl.main(["--socket", str(self.socket), *words])
        return subprocess.CompletedProcess(words, status, _written(out), _written(err))

    def try_again(self) -> None:
        """The one envelope in the queue, once the daemon knows of it and it is not on its way."""
        until(lambda: self.smtpctl("schedule", "all").stdout == "1 envelope scheduled\n", "an envelope to try again")

    def forgotten(self) -> list[str]:
        """What sessions and transactions failed to let go of."""
        return [line for line in self.log().splitlines() if " owner: " in line]

    def stop(self) -> int:
        try:
            with self.control() as client:
                client.ask(Kind.SHUTDOWN)
        except ControlError:
            self.process.terminate()
        status = self.process.wait(WAIT_S)
        _, alive = psutil.wait_procs(self.family, timeout=WAIT_S)
        for process in alive:
            process.kill()
        assert not alive, "a process outlived the daemon"
        assert self.defects or not self.forgotten(), self.forgotten()
        return status


CONFIGURATION = """
listen on 127.0.0.1 port 0
action "outbound" relay host smtp://127.0.0.1:{refusing}
action "home" relay host smtp://127.0.0.1:{home}
match from any for domain {{ "refused.test", "accepted.test" }} action "outbound"
match from any for domain "sender.test" action "home"
"""

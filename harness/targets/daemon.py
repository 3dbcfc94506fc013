"""A server that we start ourselves, whatever it is: its processes, its log, how it ended.

Owns: the session that the first process leads (setsid(2)), and whatever came out of it. Never: knows what the server
does, beyond that it greets.

A process belongs to it that descends from the first one, is in its session, or has inherited `RUN_VARIABLE` with the
path of this log: so also a child that has left the session, and whose parent has died.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import smtplib
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from harness.targets import TargetError
from harness.targets.guard import Guard

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
LAST_LINES = 3
_TAIL_BYTES = 4096
RUN_VARIABLE = "SEATBELT_LOG"


class Daemon:
    """From its making until `stop`. Its standard output and error go to the file `log`."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        nofile: int | None = None,
        room: Path | None = None,
    ) -> None:
        """`nofile` limits its descriptors (RLIMIT_NOFILE); `room` is a directory that goes too if we are killed.

        Raises TargetError when the program cannot be run.
        """
        self.log = log

        def limit() -> None:
            assert nofile is not None
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**environment, RUN_VARIABLE: str(log)},
                    start_new_session=True,  # a Ctrl-C in the terminal is for the harness, which then stops the target
                    preexec_fn=limit if nofile is not None else None,
                )
        except OSError as error:
            raise TargetError(f"cannot run {argv[0]!r}: {error.strerror}; is it installed, and on PATH?") from error
        self._guard = Guard(self.pid, room)

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_greeting(self, address: tuple[str, int], timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises TargetError when it ends, or does not greet in time."""
        deadline = time.monotonic() + timeout_s
        while not _greets(address, timeout_s):
            if how := self.ended():
                raise TargetError(f"{how} before it greeted{self.last_words()}")
            if time.monotonic() > deadline:
                where = ":".join(map(str, address))
                raise TargetError(f"no greeting at {where} within {timeout_s:g} s{self.last_words()}")
            time.sleep(POLL_S)

    def ended(self) -> str:
        """How the first process ended: `ended with status 1`, `killed by SIGSEGV`; empty while it lives.

        It is not reaped before `stop`: so long its pid, which names the session, is not given to anybody else.
        """
        if self._process.returncode is not None:
            return "stopped"
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return ""
        if found.si_code == os.CLD_EXITED:
            return f"ended with status {found.si_status}"
        try:
            return f"killed by {signal.Signals(found.si_status).name}"
        except ValueError:
            return f"killed by signal {found.si_status}"  # a real-time one, which has no name

    def last_words(self) -> str:
        """`: line | line`, the last that it wrote; empty when it wrote nothing."""
        return last_words(self.log)

    def stop(self) -> None:
        """End every process of it: the first one first, as it knows best. May be called twice."""
        if self._process.returncode is not None:
            return
        others = self._others()  # before the first one ends: after that, nobody descends from it
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        os.kill(self.pid, signal.SIGKILL)
        end([*others, *self._others()])
        self._process.wait()
        self._guard.dismiss()

    def _others(self) -> list[psutil.Process]:
        """Every process of it but the first."""
        found: set[psutil.Process] = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(psutil.Process(self.pid).children(recursive=True))
        mark = f"{RUN_VARIABLE}={self.log}".encode()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.pid or mark in _environment(process.pid):
                    found.add(process)
        return [process for process in found if process.pid != self.pid]


def last_words(path: Path) -> str:
    """`: line | line`, the last of a log; empty when there are none."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {' | '.join(lines[-LAST_LINES:])}" if lines else ""


class Tail:
    """What is new in a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def lines(self) -> bytes:
        """Whole ones; none while there is no such file."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._read)
                new = log.read()
        except FileNotFoundError:
            return b""
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole


def end(family: Sequence[psutil.Process]) -> None:
    """By SIGTERM, and those that remain by SIGKILL."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


def free_port() -> int:
    """Of 127.0.0.1, free at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _greets(address: tuple[str, int], timeout_s: float) -> bool:
    try:
        with smtplib.SMTP(*address, local_hostname="seatbelt.test", timeout=timeout_s):
            return True
    except OSError:
        return False


def _environment(pid: int) -> list[bytes]:
    """What the process was started with (proc_pid_environ(5)). Raises OSError for one that is not ours to see."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

"""strace(1) as a tracer: attached from outside, with a stack for every call that makes a descriptor or a process.

For what the tracker cannot be loaded into: programs that are linked statically or are set-user-id, and machines without
a compiler. Each of those calls stops its process and costs it some 0.5 ms. What was open before it was attached is not
known; and a program without tables for unwinding (`.eh_frame_hdr`, which `gcc -static` leaves out, and `-static-pie`
does not) shows its innermost function only.

Owns: the strace process, and reading what it writes: one file a thread (-ff), each line with its time (-ttt) and
how long it took (-T).
Never: traces what nobody asked it to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.probes.processes import read_file
from harness.tracing import Trace
from harness.tracing.history import Event, Frames, History, Kind
from harness.tracing.symbols import Frame, Symbols
from reports.record import Process

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
OPENING = "open openat openat2 creat socket accept accept4 dup dup2 dup3 fcntl memfd_create pidfd_open"
WATCHING = "epoll_create epoll_create1 eventfd eventfd2 timerfd_create signalfd signalfd4 inotify_init inotify_init1"
PAIRS = frozenset({"pipe", "pipe2", "socketpair"})
MESSAGES: dict[str, Kind] = {"recvmsg": "received", "sendmsg": "passed"}
FORKS = frozenset({"clone", "clone3", "fork", "vfork"})
CALLS = frozenset({*OPENING.split(), *WATCHING.split(), *PAIRS, *MESSAGES, *FORKS})

# 1700000000.000000 openat(AT_FDCWD</tmp>, "x", O_RDONLY) = 4</tmp/x> <0.000012>
_CALL = re.compile(
    r"(?P<time>[\d.]+) (?P<name>\w+)\((?P<arguments>.*)\) += "
    r"(?P<result>\d+)(?:<(?P<what>.*)>)?(?:\(deleted\))?(?: .*)? <(?P<spent>[\d.]+)>"
)
_FRAME = re.compile(r" > (/[^(]*)\(.*\) \[0x([0-9a-f]+)\]")  # the place in the file
_DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")
_PAIR = re.compile(r"\[\d+<[^>]*>, \d+<[^>]*>\]")  # another thread may have closed it: then it is a bare number
_RIGHTS = re.compile(r"cmsg_type=SCM_RIGHTS, cmsg_data=\[([^{}]*)\]")


class Strace:
    name = "strace -k"

    def __init__(self, directory: Path, root: Path = Path("/")) -> None:
        """`directory` gets its files, and must be there; `root` is where the target's paths begin."""
        self._directory = directory
        self._symbols = Symbols(root)
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: dict[int, int] = {}  # by id: pid
        self._attached: set[int] = set()

    @staticmethod
    def missing() -> str:
        """Why it cannot be used here; empty when it can."""
        return "" if shutil.which("strace") else "install strace"

    def attach(self, pids: Sequence[int]) -> None:
        """To them and to what they will fork; returns when they are traced, or when it is not permitted."""
        for pid in pids:
            self._threads |= {int(thread): pid for thread in _tasks(pid)}
        calls = ",".join(f"?{name}" for name in sorted(CALLS))  # not every architecture has each of them
        command = ["strace", "-k", "-f", "-ff", "-y", "-ttt", "-T", "-qqq", "-e", f"trace={calls}", "-e", "signal=none"]
        command += ["-o", str(self._directory / "strace"), *(word for pid in pids for word in ("-p", str(pid)))]
        with (self._directory / "strace.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            self._attached = {pid for pid in pids if _is_traced(pid, self._process.pid)}
            if self._attached == set(pids):
                return
            time.sleep(POLL_S)

    def detach(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()  # it lets go of them
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def reached(self, pids: Iterable[int]) -> set[int]:
        known = {event.pid for event in self._events()} | self._attached
        return known & set(pids)

    def traces(self, processes: Sequence[Process]) -> dict[int, Trace]:
        """Of what strace has written by now."""
        events = list(self._events())
        known = {event.pid for event in events} | self._attached
        return History(events).traces([process for process in processes if process.pid in known], self._symbols)

    def _events(self) -> list[Event]:
        """Of all threads, in the order of time."""
        calls = sorted(
            (call for path in self._directory.glob("strace.*") if path.suffix != ".log" for call in _calls(path)),
            key=lambda call: call.time,
        )
        owners = dict(self._threads)
        return [event for call in calls for event in _told(call, owners)]


class Call:
    """One system call that succeeded, and the stack that it came from."""

    def __init__(self, thread: int, match: re.Match[str]) -> None:
        self.thread = thread
        self.name, self.arguments = match["name"], match["arguments"]
        # What it makes is there when it ends, which may be long after it began; what it hands on, before that.
        hands_on = self.name in FORKS or self.name == "sendmsg"
        self.time = float(match["time"]) + (0.0 if hands_on else float(match["spent"]))
        self.result, self.what = int(match["result"]), match["what"] or ""
        self.frames: Frames = ()


def _calls(path: Path) -> Iterator[Call]:
    call: Call | None = None
    thread = int(path.suffix[1:])
    for line in path.read_text(errors="replace").splitlines():
        if (frame := _FRAME.fullmatch(line)) is not None:
            if call is not None:
                call.frames += (Frame(frame[1], int(frame[2], 16)),)
        elif not line.startswith(" >"):
            if call is not None:
                yield call
            match = _CALL.fullmatch(line)
            call = Call(thread, match) if match is not None and match["name"] in CALLS else None
    if call is not None:
        yield call


def _told(call: Call, owners: dict[int, int]) -> Iterator[Event]:
    """`owners` has the pid of each thread; new threads are added."""
    pid = owners.setdefault(call.thread, call.thread)
    if call.name in FORKS:
        is_thread = "CLONE_THREAD" in call.arguments
        owners[call.result] = pid if is_thread else call.result
        yield Event("thread" if is_thread else "child", pid, call.result, None, call.frames)
        if not is_thread:
            yield Event("forked", call.result, pid)
    elif call.name in MESSAGES:
        for rights in _RIGHTS.findall(call.arguments):
            yield from (
                Event(MESSAGES[call.name], pid, int(number), what, call.frames)
                for number, what in _DESCRIPTOR.findall(rights)
            )
    elif call.name in PAIRS:
        for pair in _PAIR.findall(call.arguments):
            for number, what in _DESCRIPTOR.findall(pair):
                yield Event("opened", pid, int(number), what, call.frames)
    elif call.what and (call.name != "fcntl" or "F_DUPFD" in call.arguments):
        yield Event("opened", pid, call.result, call.what.removesuffix(" (deleted)"), call.frames)


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []  # ended


def _is_traced(pid: int, by: int) -> bool:
    return f"TracerPid:\t{by}\n".encode() in (read_file(f"/proc/{pid}/status") or b"")

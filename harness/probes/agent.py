"""agent: asks the agents inside a target's Python processes. The conversation is described in `harness.agent`.

Owns: the requests, and when to give up. Never: signals a process that has not announced itself, whose pid was used
again since, or that does not catch the signal (a real-time signal ends a process without a handler).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from harness.agent import SIGNAL
from harness.probes.processes import read_file, stat
from reports.record import AgentReading

TIMEOUT_S = 5.0
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.01
_SIGNAL_AGAIN_S = 0.05  # then twice as long, and so on


class Answers(NamedTuple):
    readings: dict[int, AgentReading]
    silent: list[int]  # announced, asked, and gave no answer in time; from now on they are not asked


class _Answer(msgspec.Struct):
    request: int
    blocks: int
    objects: int
    tasks: int
    timers: int
    heap: int = 0


def ask(
    directory: Path,
    pids: Iterable[int],
    timeout_s: float = TIMEOUT_S,
    *,
    allocations: Iterable[int] | None = None,
) -> Answers:
    """Have every agent among `pids` collect and count: all are signalled first, then awaited together.

    Who does not answer is signalled again: CPython only notes a signal that comes just before a system call, and then
    blocks in the call as if there had been none (PEP 475 does not cover this).

    `allocations`: the traced ones that tell what they allocated; None for all. It is most of what tracing costs.
    Processes without an agent are in neither list. Two harnesses must not share a directory. Raises OSError when
    `directory` cannot be written.
    """
    request = time.monotonic_ns()
    partial = directory / "request.tmp"
    only = "" if allocations is None else " ".join(["", "only", *map(str, allocations)])
    partial.write_text(f"{request}{only}")
    partial.rename(directory / "request")
    waiting = [pid for pid in pids if _signal(directory, pid)]
    readings: dict[int, AgentReading] = {}
    began = time.monotonic()
    pause_s, again_s = _FIRST_PAUSE_S, _SIGNAL_AGAIN_S
    while True:
        for pid in waiting:
            if (reading := _reading(directory, pid, request)) is not None:
                readings[pid] = reading
        waiting = [pid for pid in waiting if pid not in readings and _lives(pid)]
        waited_s = time.monotonic() - began
        if not waiting or waited_s > timeout_s:
            break
        if waited_s > again_s:
            again_s *= 2
            for pid in waiting:
                _signal(directory, pid)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
    for pid in waiting:
        (directory / f"{pid}.ready").rename(directory / f"{pid}.silent")
    return Answers(readings, waiting)


def _signal(directory: Path, pid: int) -> bool:
    """Whether it was right and possible to ask this process."""
    try:
        announced = int((directory / f"{pid}.ready").read_text())
        handle = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        # The descriptor pins the process, so that what is checked and what is signalled are the same.
        found = stat(pid)
        if found is None or found.started != announced or not _catches(pid):
            return False
        signal.pidfd_send_signal(handle, SIGNAL)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def _catches(pid: int) -> bool:
    """Whether the process has a handler for the signal: a program that it became by execve(2) has none."""
    for line in (read_file(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"SigCgt:"):
            return bool(int(line.split()[1], 16) >> (SIGNAL - 1) & 1)
    return False


def _reading(directory: Path, pid: int, request: int) -> AgentReading | None:
    try:
        answer = msgspec.json.decode((directory / f"{pid}.json").read_bytes(), type=_Answer)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    if answer.request != request:
        return None
    return AgentReading(answer.blocks, answer.objects, answer.tasks, answer.timers, answer.heap)


def _lives(pid: int) -> bool:
    found = stat(pid)
    return found is not None and found.state != "Z"

"""A memory cgroup of its own for a target that we started, so that the kernel tells what it holds for it.

Processes are moved into it after they have started, and their children are born in it. What was charged before stays
where it was: what is judged is growth. Nothing is limited.

Owns: the cgroup, from its making to `close`. Never: reads it (`harness.probes.kernel` does).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from harness.probes import kernel, processes

EMPTY_S = 2.0  # for which it is waited until the last process has left
PREFIX = "seatbelt-"  # of a cgroup's name; then the harness's pid, and a number
_numbers = itertools.count(1)


class Cgroup:
    """Where it cannot be had (no right, no controller), `adopt` does nothing: kernel memory is then not told."""

    def __init__(self) -> None:
        self._directory: Path | None = None

    def adopt(self, pids: Iterable[int]) -> None:
        """Those that descend from this process: a server that ran before us is not ours to move."""
        for pid in filter(_is_ours, pids):
            if self._directory is None:
                self._directory = _made(kernel.directory_of(pid))
            if self._directory is None:
                return
            with suppress(OSError):  # gone since
                (self._directory / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """After its processes have ended. May be called twice."""
        deadline = time.monotonic() + EMPTY_S
        while self._directory is not None:
            try:
                self._directory.rmdir()
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
            self._directory = None


def _is_ours(pid: int) -> bool:
    now = processes.stat(pid)
    while now is not None and now.ppid not in (0, os.getpid()):
        now = processes.stat(now.ppid)
    return now is not None and now.ppid != 0


def _sweep(root: Path) -> None:
    """Remove what harnesses that were killed have left behind. One that is still in use refuses (cgroups(7))."""
    for left in root.glob(f"{PREFIX}*-*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and processes.stat(int(pid)) is None:
            with suppress(OSError):
                left.rmdir()


def _made(parent: Path | None) -> Path | None:
    """A new one beside the parent's other children; under its root, since a v2 group with processes has no children."""
    if parent is None:
        return None
    root = next((place for place in (parent, *parent.parents) if os.path.ismount(place)), None)
    if root is None:
        return None
    _sweep(root)
    directory = root / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        directory.mkdir()
    except OSError:
        return None
    return directory

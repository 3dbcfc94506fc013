"""kernel: memory that the kernel holds on behalf of a group of processes, by their cgroup.

A descriptor that is kept costs its process no page: the socket, the pipe and the open file are the kernel's, and are
charged to the memory cgroup (v2: memory.stat, Documentation/admin-guide/cgroup-v2.rst; v1: memory.kmem.*). A cgroup
tells of all that is in it, so one that we are in ourselves says nothing of a target.

Never: makes a cgroup, moves a process (`harness.targets.cgroup` does).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from harness.probes.processes import read_file
from reports.record import KernelMemory


def read(pid: int) -> KernelMemory | None:
    """Of the cgroup that `pid` is in; None where nobody counts, or where it is ours too."""
    directory = directory_of(pid)
    if directory is None or directory == directory_of("self"):
        return None
    stat = {name: int(value) for name, _, value in (line.partition(" ") for line in _lines(directory / "memory.stat"))}
    if "kernel" in stat:  # v2, Linux 5.18
        return KernelMemory(
            total=stat["kernel"] + stat["sock"], sockets=stat["sock"], unreclaimable=stat["slab_unreclaimable"]
        )
    total = _lines(directory / "memory.kmem.usage_in_bytes")
    sockets = _lines(directory / "memory.kmem.tcp.usage_in_bytes")
    return KernelMemory(total=int(total[0]), sockets=int(sockets[0]) if sockets else 0) if total else None


def directory_of(pid: int | str) -> Path | None:
    """Of the memory cgroup that a process is in; None where there is none, or the process is gone (cgroups(7))."""
    mounts = _mounts()
    for line in _lines(f"/proc/{pid}/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):  # none in v2
            if controller in mounts:
                return mounts[controller] / path.lstrip("/")
    return None


@cache  # ours, and for as long as we live: a target in a mount namespace of its own is looked at from here too
def _mounts() -> dict[str, Path]:
    """Where memory is counted: v1's hierarchy as `memory`; v2's, if it has the controller, as ``."""
    found: dict[str, Path] = {}
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        place = Path(before.split(" ")[4])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and "memory" in options.split(","):
            found["memory"] = place
        elif kind == "cgroup2" and "memory" in " ".join(_lines(place / "cgroup.controllers")).split():
            found[""] = place
    return found


def _lines(path: Path | str) -> list[str]:
    """What a mount point is called may be no UTF-8, and have any character but a line's end."""
    text = (read_file(str(path)) or b"").decode("utf-8", "surrogateescape")
    return [line for line in text.split("\n") if line]

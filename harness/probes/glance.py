"""glance: how many descriptors and sockets, and how much memory, each process has now; for a person who looks on.

Owns: nothing. Never: asks what a descriptor is beyond whether it is a socket. Some 2 µs a descriptor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from harness.probes import processes
from harness.probes.processes import Roles, default_role

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Glance(NamedTuple):
    pid: int
    role: str
    descriptors: int
    sockets: int
    rss: int  # bytes resident


def glance(pids: Iterable[int], roles: Roles = default_role) -> list[Glance]:
    """Those that are there and ours to see. A process that ends meanwhile is missing; never an error."""
    found = []
    for pid in pids:
        process = processes.read(pid, roles)
        if process is None or process.state == "Z":
            continue
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        statm = (processes.read_file(f"/proc/{pid}/statm") or b"").split()
        resident = int(statm[1]) * _PAGE_BYTES if len(statm) > 1 else 0
        found.append(Glance(pid, process.role, len(names), sum(_is_socket(pid, name) for name in names), resident))
    return found


def _is_socket(pid: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    except OSError:
        return False  # closed since

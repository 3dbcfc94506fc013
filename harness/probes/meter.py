"""meter: the bytes that malloc(3) has given out in processes with the meter preloaded (`harness.agent.native`).

Owns: reading its slots. Never: asks the process anything. What a program allocates by mmap(2), or with an allocator of
its own, is not in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from harness.agent.native import HEAP, SLOT
from harness.probes.processes import stat

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def read(directory: Path, pids: Iterable[int]) -> dict[int, int]:
    """Bytes by pid, of those processes that have a meter; empty where nobody has. Raises OSError."""
    try:
        slots = (directory / HEAP).read_bytes()
    except FileNotFoundError:
        return {}
    wanted = set(pids)
    newest: dict[int, tuple[int, int, int]] = {}  # a program that became another (execve(2)) may have left a slot
    for pid, *reading in SLOT.iter_unpack(slots):
        if pid in wanted:
            newest[pid] = max(newest.get(pid, (0, 0, 0)), tuple(reading))
    found = {}
    for pid, (taken_ns, held_bytes, made) in newest.items():
        process = stat(pid)
        # Who never allocates by malloc(3) has an allocator of its own; an older slot was another process's of that pid.
        if made and process is not None and process.started * _NS_PER_TICK <= taken_ns:
            found[pid] = held_bytes
    return found

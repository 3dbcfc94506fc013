"""snapshot: everything that a process tree holds, at rest.

Owns: the order in which things are read, and the notes on what could not be. Never: decides whether it is at rest.

The agents are asked first, because the collection that they do may still let go of descriptors.
"""

from __future__ import annotations

import logging
import os
import pwd
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from harness.probes import agent, descriptors, files, kernel, memory, meter, processes
from harness.probes.processes import Roles, default_role, tree
from harness.probes.sockets import SocketTables
from harness.probes.walk import Seen
from reports.record import AgentReading, Memory, Process, Snapshot

__all__ = ["inspect", "quiet", "take_snapshot", "tree"]

logger = logging.getLogger(__name__)

Fingerprint = tuple[tuple[int, int, int], ...]  # pid, descriptors, threads; a process each


def take_snapshot(
    root_pid: int,
    *,
    roles: Roles = default_role,
    spool: Path | None = None,
    agent_dir: Path | None = None,
    allocations: Iterable[int] | None = None,
    counters: Mapping[str, int] | None = None,
    backlog: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Snapshot:
    """The whole tree below `root_pid`, parents before children; `counters` and `backlog` are what the daemon says;
    `allocations` is for `agent.ask`.

    Raises OSError when `agent_dir` cannot be written. What is not permitted is noted in `Snapshot.unreadable`; an agent
    that does not answer leaves its process without an AgentReading, and one warning in the log.
    """
    taken = clock()
    readings: Mapping[int, AgentReading] = {}
    if agent_dir is not None:
        readings, silent = agent.ask(agent_dir, tree(root_pid), allocations=allocations)
        for pid in silent:
            logger.warning("the agent of pid %d gave no answer: its memory can only be judged from outside", pid)
    found, unreadable = inspect(tree(root_pid), roles, positions=False)
    heaps = meter.read(agent_dir, (process.pid for process in found)) if agent_dir is not None else {}
    for process in found:
        process.agent = readings.get(process.pid)
        process.memory = msgspec.structs.replace(process.memory, heap=heaps.get(process.pid))
    listing = files.read(spool) if spool is not None else files.Listing([], [])
    return Snapshot(
        taken=taken,
        processes=found,
        files=listing.names,
        counters=dict(counters or {}),
        backlog=backlog,
        kernel=kernel.read(root_pid),
        envelopes=files.envelopes(listing.names) if spool is not None and not listing.problems else None,
        unreadable=unreadable + listing.problems,
    )


def inspect(
    pids: Iterable[int], roles: Roles = default_role, *, positions: bool = True
) -> tuple[list[Process], list[str]]:
    """The processes that were still there, with all they hold, and what could not be seen: a sentence each.

    Without `positions` nobody asks for flags and positions of descriptors, as in `descriptors.read`.
    """
    found: list[Process] = []
    unreadable: list[str] = []
    tables = SocketTables()
    present = [process for pid in pids if (process := processes.read(pid, roles)) is not None]
    alive = [process.pid for process in present if process.state != "Z"]
    seen = {} if positions else dict(descriptors.first_sight(alive))
    for process in present:
        refused = ""
        if process.state != "Z":
            first = seen.pop(process.pid, None)
            try:
                process.descriptors = descriptors.read(process.pid, tables, positions=positions, seen=first)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                refused = _remedy(process.pid, error)
            process.memory = memory.read(process.pid, first.rollup if isinstance(first, Seen) else None)
        if not _still(process):
            continue
        found.append(process)
        if refused and process.state != "Z":  # a zombie is root's, and holds nothing
            unreadable.append(f"descriptors of {process.role} (pid {process.pid}): {refused}")
    return found, unreadable


def quiet(pids: Iterable[int]) -> Fingerprint:
    """Cheap, and different whenever a process or thread came or went, or the number of descriptors changed.

    Some 10 µs a process: the sizes of two directories in ``/proc/PID``.
    """
    fingerprint = []
    for pid in pids:
        try:
            threads = os.stat(f"/proc/{pid}/task").st_nlink - 2  # a directory for each, and . and ..
            fingerprint.append((pid, descriptors.count(pid), threads))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            fingerprint.append((pid, 0, 0))
    return tuple(fingerprint)


def _still(process: Process) -> bool:
    """Whether it is there yet and the same. One that became a zombie meanwhile holds nothing any more."""
    now = processes.stat(process.pid)
    if now is None or now.started != process.started:
        return False
    process.state = now.state
    if now.state == "Z":
        process.descriptors, process.memory = [], Memory()
    return True


def _remedy(pid: int, error: OSError) -> str:
    if not isinstance(error, PermissionError):
        return error.strerror or str(error)
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return "not permitted, and it ended meanwhile"
    if owner in (0, os.geteuid()):
        return "not permitted; run Seatbelt as root"
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    return f"not permitted; run Seatbelt as root or as user {name}"

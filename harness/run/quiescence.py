"""quiescence: letting the target finish, and knowing when it has.

Owns: when a target is at rest. Never: takes a snapshot, judges.

At rest, nothing is busy by the target's own word, the remote MX has no session open (unless the target keeps them
open), and several looks in a row are the same: gauges, backlog, descriptors, threads. A target may also be at rest and
say that it is not: a session that was never counted down is one for ever. So when nothing that it says has changed for
a while, the kernel and the disk are asked. With no connection open beyond those of the rest before, and no envelope
on disk, nothing is in flight, whatever the gauges say: they are stuck, and the rest tells which. Anything else that
lasts until the deadline is restlessness. A connection that the other end has closed (CLOSE_WAIT) is in nobody's flight
either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from harness.probes import files
from harness.probes import snapshot as probe
from harness.targets import KeepsSessions, Rest, Target
from reports.record import Process

POLL_S = 0.02  # between looks at a target that seems to be at rest; at a busy one every second time is enough
POLLS = 3  # in a row that must look the same
SHORTEST_S = 0.002  # between two looks, where one is enough: what takes long is looked at less often
PART = 8  # … of the time that it has taken so far
HURRY_S = 0.25  # between two of a busy target's: it may be waiting for a route that it thinks is bad
WORK = 100  # units, for which a target may take as long again: one that forks for each message is slow, not restless
STUCK_S = 2.0  # without any change, before a busy gauge is doubted
STUCK_AGAIN_S = 0.5  # … in a run where one was stuck before
OVER = frozenset({"LISTEN", "CLOSE_WAIT", "CLOSE", "LAST_ACK"})  # states of sockets that nothing is awaited of

Connection = tuple[int, int]  # pid, inode


class Listeners(Protocol):
    """The remote MX, as far as it matters here."""

    def open_sessions(self) -> int: ...


@dataclass(frozen=True)
class _Look:
    """Whatever should be the same from one look to the next."""

    busy: dict[str, int]
    backlog: int
    gauges: dict[str, int]
    processes: object = None  # the probe's fingerprint of them


class Quiescence:
    """Waits for `target` to come to rest. `check_alive` raises when a process died while we waited."""

    def __init__(
        self, target: Target, remote_mx: Listeners, *, hurry: bool, timeout_s: float, check_alive: Callable[[], None]
    ) -> None:
        self._target = target
        self._mx = remote_mx
        self._hurry = hurry
        self._hurried = 0.0
        self._timeout_s = timeout_s
        self._check_alive = check_alive
        self._patience_s = STUCK_S
        self._known: frozenset[Connection] = frozenset()

    def at_rest(self, processes: Iterable[Process]) -> None:
        """What is held at a rest is no sign of movement at the next."""
        self._known = connections(processes)

    def wait(self, polls: int = POLLS, *, work: int = 0) -> Rest:
        """Until nothing moves and `polls` looks in a row are the same. The last look is returned: still busy when the
        time is over; not busy but with stuck gauges when only they say so. After `work` units the time is longer.
        Raises TargetError, and what `check_alive` raises.
        """
        began = time.monotonic()
        timeout_s = self._timeout_s * (1 + work / WORK)
        before: _Look | None = None
        alike, since = 0, began
        while True:
            rest = self._look()
            now = _Look(
                rest.busy,
                rest.backlog,
                {name: rest.counters.get(name, 0) for name in rest.gauges},
                probe.quiet(self._pids()) if polls > 1 and not rest.busy else None,
            )
            if now != before:
                alike, since = 0, time.monotonic()
            alike += 1
            before = now
            if not rest.busy and alike >= polls:
                return rest
            if rest.busy and time.monotonic() >= since + self._patience_s:
                if not self._in_flight(rest):
                    self._patience_s = STUCK_AGAIN_S
                    return replace(rest, busy={}, stuck=tuple(name for name in rest.busy if name in rest.gauges))
                since = time.monotonic()
            if time.monotonic() > began + timeout_s:
                return rest if rest.busy else replace(rest, busy={"descriptors that keep changing": 1})
            self._check_alive()
            time.sleep(_pause(polls, time.monotonic() - began) if rest.busy else POLL_S)

    def _look(self) -> Rest:
        rest = self._target.rest()
        if self._hurry and (rest.busy or rest.backlog):
            if time.monotonic() >= self._hurried + HURRY_S or not rest.busy:
                self._target.hurry()
                self._hurried = time.monotonic()
            return rest if rest.busy else replace(rest, busy={"messages put off": rest.backlog})
        if not rest.busy and (sessions := self._sessions()):
            return replace(rest, busy={"sessions at the remote MX": sessions})
        return rest

    def _sessions(self) -> int:
        """At the remote MX, in which something may yet happen."""
        return 0 if isinstance(self._target, KeepsSessions) else self._mx.open_sessions()

    def _in_flight(self, rest: Rest) -> bool:
        """What the kernel and the disk say."""
        if self._sessions():
            return True
        spool = self._target.spool
        owed = rest.backlog if spool is None else files.envelopes(files.read(spool).names)
        return owed > 0 or not connections(probe.inspect(self._pids(), positions=False)[0]) <= self._known

    def _pids(self) -> Sequence[int]:
        return probe.tree(self._target.root_pid)


def _pause(polls: int, waited_s: float) -> float:
    """Until the next look at a busy target, in seconds. Looking is work for it, too."""
    return 2 * POLL_S if polls > 1 else min(2 * POLL_S, max(SHORTEST_S, waited_s / PART))


def connections(processes: Iterable[Process]) -> frozenset[Connection]:
    """Connections in which something may yet happen."""
    return frozenset(
        (process.pid, descriptor.inode)
        for process in processes
        for descriptor in process.descriptors
        if descriptor.kind in ("tcp", "udp") and descriptor.peer and descriptor.state not in OVER
    )

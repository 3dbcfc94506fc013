"""Whether a server rests that cannot be asked: nobody is connected, and for half a second nothing came or went."""

from __future__ import annotations

import time
from collections.abc import Collection

from harness.probes import processes
from harness.probes import snapshot as probe
from harness.probes.arrivals import Arrivals

STILL_S = 0.5


class Stillness:
    """Of the processes below `pid`, and of the clients at its `ports`. Each look costs some 10 µs a process."""

    def __init__(self, pid: int, ports: Collection[int], *, still_s: float = STILL_S) -> None:
        self._pid = pid
        self._still_s = still_s
        self._arrivals = Arrivals(pid, ports)
        self._seen: object = None
        self._moved = 0.0

    def busy(self) -> dict[str, int]:
        """What still moves, by name; empty at rest. Clients that came and went since the last look have moved it."""
        came = self._arrivals.look()
        now = (probe.quiet(processes.tree(self._pid)), self._arrivals.open)
        if came or now != self._seen:
            self._seen, self._moved = now, time.monotonic()
        if self._arrivals.open:
            return {"clients connected": self._arrivals.open}
        return {"moved just now": 1} if time.monotonic() < self._moved + self._still_s else {}

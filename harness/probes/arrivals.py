"""arrivals: how many connections came in at a server's ports, seen from outside.

Owns: the look at ``/proc/PID/net/tcp`` (proc_pid_net(5)), of the network namespace that the server lives in.

A connection is known by its two ends. It is listed while it is open and, on the side that closed it first, for a minute
after (TIME_WAIT), so a look every tenth of a second misses only those that are shorter and were closed by a client on
another host. What came while nobody looked is in the kernel's own count, which knows no ports (`accepted_ever`).
"""

from __future__ import annotations

from collections.abc import Collection

from harness.probes.processes import read_file

_LISTEN, _SYN_RECV, _NEW_SYN_RECV = b"0A", b"03", b"0C"
_NOT_YET = frozenset({_LISTEN, _SYN_RECV, _NEW_SYN_RECV})
_OVER = frozenset({b"06", b"07", b"08", b"09"})  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK: nobody is there any more

Ends = tuple[bytes, bytes]  # the server's, the client's


class Arrivals:
    """Of the ports, in the namespace of `pid`. What is open at the first look has not just come."""

    def __init__(self, pid: int, ports: Collection[int]) -> None:
        self._pid = pid
        self._ports = {b"%04X" % port for port in ports}
        self._known, self.open = self._listed()

    def look(self) -> int:
        """How many came since the look before; `open` then tells how many clients are there now."""
        found, self.open = self._listed()
        new = len(found - self._known)
        self._known = found
        return new

    def _listed(self) -> tuple[set[Ends], int]:
        """Every connection that is still listed, and how many of them have a client."""
        found: set[Ends] = set()
        there = 0
        for name in ("tcp", "tcp6"):
            for line in (read_file(f"/proc/{self._pid}/net/{name}") or b"").splitlines()[1:]:
                _, local, peer, state, *_ = line.split(maxsplit=4)
                if state in _NOT_YET:
                    continue
                if local.rpartition(b":")[2] in self._ports:
                    found.add((local, peer))
                    there += state not in _OVER
                elif state in _OVER and peer.rpartition(b":")[2] in self._ports:
                    found.add((peer, local))  # a client of this host, who closed first
        return found, there


def accepted_ever(pid: int) -> int:
    """Connections accepted on any port of the namespace since it began: PassiveOpens of ``/proc/PID/net/snmp``."""
    rows = [line.split() for line in (read_file(f"/proc/{pid}/net/snmp") or b"").splitlines() if line[:4] == b"Tcp:"]
    if len(rows) != 2:
        return 0
    return int(dict(zip(*rows, strict=True))[b"PassiveOpens"])

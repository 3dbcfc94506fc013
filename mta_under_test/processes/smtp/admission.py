"""smtp's door: how many sessions may be open, in all and from one source.

Owns: the counts, and a descriptor in reserve with which even a process without descriptors can say 421.
Never: waits. A client that is turned away is told so in one write, or not at all.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
from collections import Counter

MAX_PER_SOURCE = 100  # sessions from one address; this machine's own clients are its operator's business
SESSION_DESCRIPTORS = 2  # a session's connection, and its message
SPARE_DESCRIPTORS = 16  # for the event loop, and what libraries open in between
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Admission:
    """Counted from `enter` to `leave`."""

    def __init__(self, most: int, most_per_source: int = MAX_PER_SOURCE) -> None:
        self.most = most
        self._most_per_source = most_per_source
        self.sessions = 0
        self._by_source: Counter[str] = Counter()
        self._reserve: int | None = os.eventfd(0)  # a file could not be opened from an empty root

    @property
    def is_full(self) -> bool:
        return self.sessions >= self.most

    @property
    def has_reserve(self) -> bool:
        return self._reserve is not None

    def close(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def enter(self) -> None:
        self.sessions += 1

    def leave(self) -> None:
        self.sessions -= 1

    def enter_from(self, source: str) -> bool:
        """Count a session of this source; False when it has too many already."""
        if not is_counted(source):
            return True
        if self._by_source[source] >= self._most_per_source:
            return False
        self._by_source[source] += 1
        return True

    def leave_from(self, source: str) -> None:
        if is_counted(source):
            self._by_source[source] -= 1
            if not self._by_source[source]:
                del self._by_source[source]

    def accept_without_descriptors(self, listening: socket.socket) -> socket.socket | None:
        """Accept a connection with the descriptor in reserve; give it to `part_from`. None: there is no reserve."""
        if self._reserve is None:
            return None
        os.close(self._reserve)
        self._reserve = None
        try:
            return listening.accept()[0]
        except OSError:
            self._refill()
            return None

    def part_from(self, connection: socket.socket, farewell: bytes) -> None:
        turn_away(connection, farewell)
        self._refill()

    def _refill(self) -> None:
        try:
            self._reserve = os.eventfd(0)
        except OSError:
            self._reserve = None


def turn_away(connection: socket.socket, farewell: bytes) -> None:
    """Say why, if the socket takes it at once, and hang up."""
    connection.setblocking(False)
    try:
        connection.send(farewell)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # it has gone already, which is as well
    finally:
        connection.close()


def is_counted(source: str) -> bool:
    """This machine's own clients are not; nor is who has no address."""
    return bool(source) and not source.startswith("127.") and not ipaddress.ip_address(source).is_loopback


def most_sessions() -> int:
    """As many as RLIMIT_NOFILE lets this process serve, and at least one. To be asked before /proc is out of sight."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 16
    in_use = len(os.listdir("/proc/self/fd"))
    return max(1, (soft - in_use - SPARE_DESCRIPTORS) // SESSION_DESCRIPTORS)

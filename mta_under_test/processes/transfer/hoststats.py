"""transfer's memory of destinations: what each said last, and whose envelopes wait for it to work again.

Bounded in age (HOSTSTAT_AGE_S), in number (MAX_HOSTS; the one not heard of for longest goes first) and in envelopes a
destination (`mta max-deferred`). smtpd.conf(5) and mta_hoststat_* of OpenSMTPD's mta.c are the model. No I/O, no clock:
`now` is seconds since 1970.
"""

from __future__ import annotations

HOSTSTAT_AGE_S = 4 * 3600
MAX_HOSTS = 500
ERROR_CHARACTERS = 200


class HostStat:
    __slots__ = ("deferred", "error", "heard")

    def __init__(self) -> None:
        self.heard = 0
        self.error = ""
        self.deferred: dict[int, None] = {}  # evpids, oldest first


class HostStats:
    def __init__(self, max_deferred: int) -> None:
        self._max_deferred = max_deferred
        self._hosts: dict[str, HostStat] = {}  # least recently heard of first

    def __len__(self) -> int:
        return len(self._hosts)

    def heard(self, name: str, status_line: str, now: int) -> None:
        """A destination answered, or failed to."""
        stat = self._hosts.pop(name, None) or HostStat()
        stat.heard = now
        stat.error = status_line[:ERROR_CHARACTERS]
        self._hosts[name] = stat
        if len(self._hosts) > MAX_HOSTS:
            del self._hosts[next(iter(self._hosts))]

    def defer(self, name: str, evpid: int) -> None:
        """This envelope failed because its destination cannot be reached."""
        stat = self._hosts.get(name)
        if stat is not None and len(stat.deferred) < self._max_deferred:
            stat.deferred[evpid] = None

    def works(self, name: str) -> list[int]:
        """The destination took mail: the envelopes that may be tried at once, which are forgotten here."""
        stat = self._hosts.get(name)
        if stat is None or not stat.deferred:
            return []
        evpids = list(stat.deferred)
        stat.deferred.clear()
        return evpids

    def forget(self, now: int) -> int | None:
        """Drop what is too old. Returns when to come again."""
        while self._hosts:
            name, stat = next(iter(self._hosts.items()))
            if stat.heard + HOSTSTAT_AGE_S > now:
                return stat.heard + HOSTSTAT_AGE_S
            del self._hosts[name]
        return None

    def lines(self) -> list[str]:
        """`host|time|what it said last`, as `smtpctl show hoststats` prints them."""
        return [f"{name}|{stat.heard}|{stat.error}" for name, stat in self._hosts.items()]

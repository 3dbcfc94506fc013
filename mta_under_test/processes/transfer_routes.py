"""transfer's map of the outside: tasks, relays, hosts and routes, with the counts that say who still needs them.

A relay is a destination with its settings, and the tasks that wait for it. A host is one address of the destination,
a route is our source address and a host; relays share hosts and routes. Each is counted: who needs it takes a
reference, and the last one to let go takes it off the map. No I/O here.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections import deque
from typing import NamedTuple

MAX_HOST_ERRORS = 4  # a host with more of them is ignored while its relay lives (mta_session.c, February 2013)


class Task:
    """One message for one relay: what a transaction delivers."""

    __slots__ = ("msgid", "recipients", "sender")

    def __init__(self, msgid: int, sender: str) -> None:
        self.msgid = msgid
        self.sender = sender
        self.recipients: dict[int, str] = {}  # evpid -> address; one without a result yet


class RelayKey(NamedTuple):
    """What makes two envelopes go the same way."""

    destination: str  # `host NAME` for a smarthost, `mx DOMAIN` without one
    port: int
    helo: str
    source: str


class Counted:
    """Something on the map that is shared, and leaves the map with its last user."""

    __slots__ = ("references",)

    def __init__(self) -> None:
        self.references = 0


class Host(Counted):
    __slots__ = ("address", "errors")

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.errors = 0

    @property
    def bad(self) -> bool:
        return self.errors > MAX_HOST_ERRORS


class Route(Counted):
    __slots__ = ("host", "last_connect", "sessions", "source")

    def __init__(self, source: str, host: Host) -> None:
        super().__init__()
        self.source = source
        self.host = host
        self.sessions = 0
        self.last_connect = float("-inf")  # on the loop's clock


class Relay:
    __slots__ = ("connecting", "key", "last_error", "resolving", "routes", "sessions", "tasks", "timer")

    def __init__(self, key: RelayKey) -> None:
        self.key = key
        self.tasks: deque[Task] = deque()
        self.routes: list[Route] = []  # by preference; empty until resolved
        self.resolving = False
        self.connecting = 0  # sessions that have not got as far as a transaction
        self.sessions = 0
        self.last_error = ""
        self.timer: TimerHandle | None = None  # runs until the next connect is polite

    @property
    def idle(self) -> bool:
        return not (self.tasks or self.sessions or self.resolving)


class Map:
    """Every relay, host and route that somebody needs."""

    def __init__(self) -> None:
        self.relays: dict[RelayKey, Relay] = {}
        self.hosts: dict[str, Host] = {}
        self.routes: dict[tuple[str, str], Route] = {}

    def relay(self, key: RelayKey) -> Relay:
        relay = self.relays.get(key)
        if relay is None:
            relay = self.relays[key] = Relay(key)
        return relay

    def resolved(self, relay: Relay, addresses: list[str]) -> None:
        """The relay's destination has these addresses, best first."""
        assert not relay.routes
        for address in addresses:
            route = self._route(relay.key.source, address)
            route.references += 1
            relay.routes.append(route)

    def drop(self, relay: Relay) -> None:
        """The relay has nothing left to do: it leaves the map, and with it whatever only it needed."""
        assert relay.idle
        del self.relays[relay.key]
        for route in relay.routes:
            self._release_route(route)
        relay.routes.clear()

    def _route(self, source: str, address: str) -> Route:
        route = self.routes.get((source, address))
        if route is None:
            host = self.hosts.get(address)
            if host is None:
                host = self.hosts[address] = Host(address)
            host.references += 1
            route = self.routes[source, address] = Route(source, host)
        return route

    def _release_route(self, route: Route) -> None:
        route.references -= 1
        if route.references == 0:
            del self.routes[route.source, route.host.address]
            route.host.references -= 1
            if route.host.references == 0:
                del self.hosts[route.host.address]

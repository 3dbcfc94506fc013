"""transfer's map of the outside: who waits for which destination, and how it can be reached now.

Everything that is shared is counted: who needs it takes a reference, and the last one to let go takes it off the map.
A route that failed, or that must not be used again at once, stays until that has passed (`forget`). No I/O and no clock
here: `now` is seconds on any clock that only goes forward.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from mta_under_test.config import RelayLimits
from mta_under_test.processes.transfer.routes import (
    MX,
    Connector,
    Domain,
    DomainKey,
    Host,
    Relay,
    RelayKey,
    Route,
    Source,
)
from mta_under_test.wire.exchange import Exchange

MAX_KEPT_ROUTES = 1000  # that nobody needs and that are remembered for their penalties
ANOTHER_SESSION_S = 1.0  # after a relay's last session became ready (DELAY_CONNECT of February 2013)
PATIENCE_S = 5.0  # … or was begun, while it is not
RECHECK_S = 1.0  # a limit is reached: sessions of other relays count, and nobody tells when they end


class Choice(NamedTuple):
    """What a relay can do about its next connection: the first of these that is set."""

    exchange: MX | None = None  # connect there, over `connector`
    connector: Connector | None = None
    wait_until: float | None = None  # too early; or a limit is reached, and this is when to look again
    error: str = ""  # there is no way; why


class Map:
    """Every relay, domain, host, source, route and connector that somebody needs."""

    def __init__(self) -> None:
        self.relays: dict[RelayKey, Relay] = {}
        self.domains: dict[DomainKey, Domain] = {}
        self.hosts: dict[str, Host] = {}
        self.sources: dict[str, Source] = {}
        self.routes: dict[tuple[str, str], Route] = {}
        self._kept: dict[Route, None] = {}  # that nobody needs
        self._relay_ids = itertools.count(1)
        self._route_ids = itertools.count(1)

    @property
    def connectors(self) -> int:
        return sum(len(relay.connectors) for relay in self.relays.values())

    # ---- relays come, learn where to go, and leave

    def relay(self, key: RelayKey, limits: RelayLimits) -> Relay:
        relay = self.relays.get(key)
        if relay is None:
            domain = self.domains.get(key.domain)
            if domain is None:
                domain = self.domains[key.domain] = Domain(key.domain)
            domain.references += 1
            relay = self.relays[key] = Relay(next(self._relay_ids), key, domain, limits)
        relay.limits = limits
        return relay

    def resolved(self, domain: Domain, exchanges: Sequence[Exchange], now: float) -> None:
        """The domain's mail goes to these, best first."""
        assert domain.exchanges is None
        domain.exchanges = []
        domain.resolved_at = now
        for exchange in exchanges:
            host = self.hosts.get(exchange.address)
            if host is None:
                host = self.hosts[exchange.address] = Host(exchange.address, exchange.name)
            host.references += 1
            domain.exchanges.append(MX(exchange.preference, host, exchange.name))

    def sourced(self, relay: Relay, addresses: Sequence[str]) -> None:
        """The relay connects from these addresses."""
        assert not relay.connectors
        for address in dict.fromkeys(addresses):
            source = self.sources.get(address)
            if source is None:
                source = self.sources[address] = Source(address)
            source.references += 1
            relay.connectors.append(Connector(source))

    def drop(self, relay: Relay) -> None:
        """The relay has nothing left to do: it leaves the map, and with it whatever only it needed."""
        assert relay.idle
        del self.relays[relay.key]
        relay.is_dropped = True
        for connector in relay.connectors:
            self._release_source(connector.source)
        relay.connectors.clear()
        domain = relay.domain
        domain.references -= 1
        if domain.references == 0:
            del self.domains[domain.key]
            self.unresolved(domain)

    def unresolved(self, domain: Domain) -> None:
        """Forget where the domain's mail goes; sessions that are open go on."""
        for exchange in domain.exchanges or ():
            self._release_host(exchange.host)
        domain.exchanges = None

    # ---- the next connection

    def choose(self, relay: Relay, now: float) -> Choice:
        """How the relay can connect next. Nothing changes."""
        waits: list[float] = []
        errors: list[str] = []
        for connector in sorted(relay.connectors, key=lambda connector: connector.sessions):
            choice = self._choose_from(relay, connector, now)
            if choice.exchange is not None:
                return choice
            if choice.wait_until is not None:
                waits.append(choice.wait_until)
            else:
                errors.append(choice.error)
        if waits:
            return Choice(wait_until=min(waits))
        return Choice(error=errors[0] if errors else "451 4.4.0 Could not retrieve source address")

    def _choose_from(self, relay: Relay, connector: Connector, now: float) -> Choice:
        if connector.avoided_until > now:
            return Choice(error=relay.last_error or "451 4.4.0 No valid route to remote MX")
        limits, domain, source = relay.limits, relay.domain, connector.source
        pace_s = 0.0 if not relay.sessions else PATIENCE_S if relay.connecting else ANOTHER_SESSION_S
        ready_at = max(
            domain.last_connect + limits.conn_delay_domain,
            source.last_connect + limits.conn_delay_source,
            connector.last_connect + limits.conn_delay_connector,
            relay.last_connect + limits.conn_delay_relay,
            relay.last_progress + pace_s,
        )
        if ready_at > now:
            return Choice(wait_until=ready_at)
        if (
            domain.sessions >= limits.max_conn_per_domain
            or source.sessions >= limits.max_conn_per_source
            or connector.sessions >= limits.max_conn_per_connector
            or relay.sessions >= limits.max_conn_per_relay
        ):
            return Choice(wait_until=now + RECHECK_S)
        return self._choose_host(relay, connector, now)

    def _choose_host(self, relay: Relay, connector: Connector, now: float) -> Choice:
        """The best exchange that can be used: lowest preference, and among equals the fewest connections."""
        best: MX | None = None
        wait_until: float | None = None
        error = "451 4.4.4 No MX found for destination"
        for _, equals in itertools.groupby(relay.domain.exchanges or (), lambda exchange: exchange.preference):
            for exchange in equals:
                host = exchange.host
                if not _family_fits(host.address, connector.source.address, relay.limits.family):
                    error = "451 4.4.4 Address family mismatch on destination MXs"
                    continue
                ready_at = self._ready_at(relay, connector.source, host, now)
                if ready_at is None:
                    error = relay.last_error or "451 4.4.1 Network error on destination MXs"
                elif ready_at > now:
                    wait_until = ready_at if wait_until is None else min(wait_until, ready_at)
                elif best is None or self._sessions(connector, exchange) < self._sessions(connector, best):
                    best = exchange
            if best is not None:
                return Choice(best, connector)
            if wait_until is not None:
                break  # good hosts of this preference will be free soon: no reason to go to worse ones
        return Choice(wait_until=wait_until, error=error)

    def _ready_at(self, relay: Relay, source: Source, host: Host, now: float) -> float | None:
        """When the host can be connected to: `now`, later, or None when its route is disabled."""
        limits = relay.limits
        route = self.routes.get((source.address, host.address))
        ready_at = host.last_connect + limits.conn_delay_host
        if host.sessions >= limits.max_conn_per_host:
            ready_at = max(ready_at, now + RECHECK_S)
        if route is None:
            return max(now, ready_at)
        if route.disabled_until > now:
            return None
        if route.sessions and (not route.is_valid or route.sessions >= limits.max_conn_per_route):
            ready_at = max(ready_at, now + RECHECK_S)
        return max(
            now,
            ready_at,
            route.not_before,
            route.last_connect + limits.conn_delay_route,
            route.last_disconnect + limits.reconn_delay_route,
        )

    def _sessions(self, connector: Connector, exchange: MX) -> int:
        route = self.routes.get((connector.source.address, exchange.host.address))
        return route.sessions if route is not None else 0

    # ---- connections

    def connected(self, relay: Relay, connector: Connector, host: Host, now: float) -> Route:
        """A session begins. Returns its route."""
        route = self._route(connector.source, host)
        route.references += 1
        relay.sessions += 1
        relay.connecting += 1
        relay.last_connect = relay.last_progress = connector.last_connect = now
        connector.sessions += 1
        for endpoint in (relay.domain, route, route.source, route.host):
            endpoint.sessions += 1
            endpoint.last_connect = now
        return route

    def ready(self, relay: Relay, route: Route, now: float) -> None:
        """A session is past the greeting: its route works."""
        relay.connecting -= 1
        relay.last_progress = now
        route.worked()

    def disconnected(self, relay: Relay, connector: Connector, route: Route, now: float) -> None:
        """… and ends. Whether the route has failed was said before."""
        relay.sessions -= 1
        connector.sessions -= 1
        for endpoint in (relay.domain, route, route.source, route.host):
            endpoint.sessions -= 1
        route.last_disconnect = now
        limits = relay.limits
        route.keep_until = max(
            route.keep_until, route.last_connect + limits.conn_delay_route, now + limits.reconn_delay_route
        )
        route.references -= 1
        if route.references == 0:
            self._kept[route] = None
            if route.keep_until <= now:
                self._discard(route)
            elif len(self._kept) > MAX_KEPT_ROUTES:
                self._discard(next(iter(self._kept)))

    def forget(self, now: float) -> float | None:
        """Let go of routes that nobody needs and whose past matters no more. Returns when to come again."""
        for route in list(self._kept):
            if route.keep_until <= now:
                self._discard(route)
        return min((route.keep_until for route in self._kept), default=None)

    def enable(self, which: int, now: float) -> int:
        """Enable one disabled route, or all (0). Returns how many were."""
        disabled = [route for route in self.routes.values() if route.disabled_until > now and which in (0, route.id)]
        for route in disabled:
            route.enable()
        self.forget(now)
        return len(disabled)

    # ---- what is shared

    def _route(self, source: Source, host: Host) -> Route:
        route = self.routes.get((source.address, host.address))
        if route is None:
            source.references += 1
            host.references += 1
            route = Route(next(self._route_ids), source, host)
            self.routes[source.address, host.address] = route
        self._kept.pop(route, None)
        return route

    def _discard(self, route: Route) -> None:
        del self._kept[route]
        del self.routes[route.source.address, route.host.address]
        self._release_source(route.source)
        self._release_host(route.host)

    def _release_source(self, source: Source) -> None:
        source.references -= 1
        if source.references == 0:
            del self.sources[source.address]

    def _release_host(self, host: Host) -> None:
        host.references -= 1
        if host.references == 0:
            del self.hosts[host.address]


def _family_fits(address: str, source: str, family: str) -> bool:
    version = ipaddress.ip_address(address).version
    if source and ipaddress.ip_address(source).version != version:
        return False
    return not family or family == ("inet4" if version == 4 else "inet6")

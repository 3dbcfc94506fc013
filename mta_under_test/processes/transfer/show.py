"""What `smtpctl show hosts|relays|routes` prints of transfer's map, in the formats of OpenSMTPD's mta.c."""

from __future__ import annotations

from collections.abc import Iterator

from mta_under_test.processes.transfer.map import Map
from mta_under_test.processes.transfer.routes import NEVER, Relay, Source


def hosts(where: Map, now: float) -> Iterator[str]:
    for host in where.hosts.values():
        yield (
            f"{host.address} {host.name} refcount={host.references} nconn={host.sessions}"
            f" lastconn={_since(host.last_connect, now)}"
        )


def routes(where: Map, now: float) -> Iterator[str]:
    for route in where.routes.values():
        flags = (
            f"{'-' if route.is_valid else 'N'}"
            f"{'D' if route.disabled_until > now else '-'}"
            f"{'Q' if not route.references else '-'}"
            "-"
        )
        timeout = duration(route.disabled_until - now) if route.disabled_until > now else "-"
        yield (
            f"{route.id}. {route} {flags}"
            f" nconn={route.sessions} nerror={route.errors} penalty={route.errors} timeout={timeout}"
        )


def relays(where: Map, now: float) -> Iterator[str]:
    for relay in where.relays.values():
        timeout = duration(relay.timer.when() - now) if relay.timer is not None else "-"
        yield (
            f"{relay} refcount={len(relay.connectors) + relay.sessions} ntask={len(relay.tasks)}"
            f" nconn={relay.sessions} lastconn={_since(relay.last_connect, now)} timeout={timeout}"
            f" wait={_waits_for(relay)}{'ONHOLD' if relay.on_hold else ''}"
        )
        for connector in relay.connectors:
            flags = "ERROR_SOURCE" if connector.avoided_until > now else ""
            yield (
                f"  connector {source_text(connector.source)} refcount={connector.sessions} nconn={connector.sessions}"
                f" lastconn={_since(connector.last_connect, now)} timeout=- flags={flags}"
            )


def source_text(source: Source) -> str:
    return source.address or "[]"


def duration(seconds: float) -> str:
    """`1d2h3m4s`, as OpenSMTPD's duration_to_text()."""
    left = round(abs(seconds))
    if left == 0:
        return "0s"
    minutes, s = divmod(left, 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    text = "".join(f"{count}{unit}" for count, unit in ((d, "d"), (h, "h"), (m, "m"), (s, "s")) if count)
    return f"-{text}" if seconds < 0 else text


def _waits_for(relay: Relay) -> str:
    waits = {"MX": relay in relay.domain.waiting, "source": relay.sourcing, "connector": relay.timer is not None}
    return ",".join(name for name, waiting in waits.items() if waiting)


def _since(moment: float, now: float) -> str:
    return "-" if moment == NEVER else duration(now - moment)

"""This machine's addresses: what `listen on` may name, and who is local."""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Mapping

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@functools.cache
def interface_addresses() -> Mapping[str, tuple[Address, ...]]:
    """Addresses by interface, as they were at the first call; link-local ones are left out, since they need a zone."""
    # Loaded by the few who ask: most configurations name addresses.
    import psutil

    found: dict[str, tuple[Address, ...]] = {}
    for name, entries in psutil.net_if_addrs().items():
        addresses = (
            ipaddress.ip_address(entry.address.partition("%")[0])
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6)
        )
        found[name] = tuple(address for address in addresses if not address.is_link_local)
    return found


def local_addresses() -> frozenset[Address]:
    """Every address that is this machine's."""
    return frozenset(address for addresses in interface_addresses().values() for address in addresses)


def addresses_of(name: str, version: int | None) -> list[Address]:
    """Addresses of an interface, an address's text, or a host, in this order of trial; of IP `version`, None for both.

    Raises OSError (socket.gaierror) when the resolver does not know the host.
    """
    found: list[Address]
    try:
        found = [ipaddress.ip_address(name)]
    except ValueError:
        found = list(interface_addresses().get(name, ())) or _resolved(name)
    return [address for address in dict.fromkeys(found) if version in (None, address.version)]


def _resolved(host: str) -> list[Address]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name") from error
    return [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]

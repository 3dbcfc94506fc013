"""How a key is compared with a table's entries: one index a service, made once for a table's contents.

Owns: what `*.example.org`, `10.0.0.0/8` and `@example.org` mean. Never: reads anything.
An index raises ValueError, with the reason, for an entry that its service has no use for.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Protocol

SUBADDRESS = "+"  # user+tag@domain is also user@domain; `smtp sub-addr-delim` of smtpd.conf(5)


class Index(Protocol):
    def add(self, entry: str) -> None: ...

    def matches(self, key: str) -> bool: ...


class Strings:
    """Equal, upper and lower case aside, as everywhere in tables."""

    def __init__(self) -> None:
        self._entries: set[str] = set()

    def add(self, entry: str) -> None:
        self._entries.add(entry.lower())

    def matches(self, key: str) -> bool:
        return key.lower() in self._entries


class Domains:
    """Domains, where `*` stands for any text: `*.example.org` is every subdomain, `*` every domain.

    OpenSMTPD's hostname_match() never looks back, so that its `*.example.org` misses `a.b.example.org`. Ours does not.
    """

    def __init__(self) -> None:
        self._exact: set[str] = set()
        self._wild: list[re.Pattern[str]] = []

    def add(self, entry: str) -> None:
        if "@" in entry or any(character.isspace() for character in entry):
            raise ValueError(f"{entry!r} is not a domain")
        if "*" in entry:
            self._wild.append(re.compile(".*".join(map(re.escape, entry.lower().split("*"))), re.DOTALL))
        else:
            self._exact.add(entry.lower())

    def matches(self, key: str) -> bool:
        domain = key.lower()
        return domain in self._exact or any(pattern.fullmatch(domain) for pattern in self._wild)


class Addresses:
    """`user@domain`, `@domain`, `user`; `@` alone is everybody, the null sender too. Domains may have a `*`."""

    def __init__(self) -> None:
        self._domains_of: dict[str, Domains] = {}  # by user, "" for any user
        self._users: set[str] = set()
        self._everybody = False

    def add(self, entry: str) -> None:
        user, at, domain = entry.lower().rpartition("@")
        if not at:
            self._users.add(domain)
        elif not user and not domain:
            self._everybody = True
        elif not domain:
            raise ValueError(f"{entry!r} has no domain after the @")
        else:
            self._domains_of.setdefault(user, Domains()).add(domain)

    def matches(self, key: str) -> bool:
        if self._everybody:
            return True
        user, _, domain = key.lower().rpartition("@")
        plain = user.partition(SUBADDRESS)[0]
        for candidate in {user, plain} - {""}:
            if candidate in self._users:
                return True
            if candidate in self._domains_of and self._domains_of[candidate].matches(domain):
                return True
        return bool(domain) and "" in self._domains_of and self._domains_of[""].matches(domain)


class Networks:
    """Addresses and networks in CIDR notation. One look-up a prefix length, however many networks there are."""

    def __init__(self) -> None:
        self._networks: dict[tuple[int, int], set[int]] = {}  # (version, prefix length) -> network addresses

    def add(self, entry: str) -> None:
        network = network_of(entry)
        key = network.version, network.prefixlen
        self._networks.setdefault(key, set()).add(int(network.network_address) >> _host_bits(*key))

    def matches(self, key: str) -> bool:
        try:
            address = ipaddress.ip_address(key)
        except ValueError:
            return False  # a local socket has no address
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        number = int(address)
        return any(
            version == address.version and number >> _host_bits(version, prefix) in networks
            for (version, prefix), networks in self._networks.items()
        )


class Patterns:
    """Regular expressions, found anywhere in the key, upper and lower case aside.

    Python's dialect; what POSIX calls extended is nearly all of it a part of that.
    """

    def __init__(self) -> None:
        self._patterns: list[re.Pattern[str]] = []

    def add(self, entry: str) -> None:
        try:
            self._patterns.append(re.compile(entry, re.IGNORECASE))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{entry!r} is not a regular expression: {error}") from error

    def matches(self, key: str) -> bool:
        return any(pattern.search(key) for pattern in self._patterns)


def variants_of(service: str, key: str) -> list[str]:
    """The keys to ask a database for, which cannot compare as an index does: what would match, the closest first."""
    key = key.lower()
    if service == "domain":
        labels = key.split(".")
        return [key, *(f"*.{'.'.join(labels[start:])}" for start in range(1, len(labels))), "*"]
    if service == "mailaddr":
        user, at, domain = key.rpartition("@")
        plain = user.partition(SUBADDRESS)[0]
        found = [key, f"{plain}@{domain}", user, plain, f"@{domain}", "@"] if at else [key]
        return list(dict.fromkeys(variant for variant in found if variant))
    return [key]


def network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """`192.0.2.1`, `192.0.2.0/24`, `::1`, `[::1]`, `ipv6:::1`. Raises ValueError."""
    bare = text.strip("[]")
    try:
        return ipaddress.ip_network(bare[5:] if bare[:5].lower() == "ipv6:" else bare, strict=False)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither an address nor a network") from error


def _host_bits(version: int, prefix: int) -> int:
    return (32 if version == 4 else 128) - prefix

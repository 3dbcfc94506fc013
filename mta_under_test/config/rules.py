"""The rules at work: which action an envelope gets. First match wins; no match is a refusal.

Owns: the tables, opened. This is where configuration and tables meet: neither of the two rooms below knows the other.
Never: changes anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from mta_under_test.config.interfaces import Address, local_addresses
from mta_under_test.config.model import Action, Config, Criterion, TableSpec
from mta_under_test.tables import Entry, FileTable, PasswdTable, Service, Table, TableError

SERVICES = {
    "from": Service.NETADDR,
    "for": Service.DOMAIN,
    "tag": Service.STRING,
    "helo": Service.DOMAIN,
    "mail-from": Service.MAILADDR,
    "rcpt-to": Service.MAILADDR,
    "auth": Service.STRING,
    "rdns": Service.DOMAIN,
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What rules may ask about an envelope."""

    recipient: str
    source: Address | None = None  # None: made on this machine, no session
    username: str = ""  # "" is nobody: not authenticated
    tls: bool = False
    rdns: str = ""  # name that the source's address resolves to; "" when there is none
    tag: str = ""
    helo: str = ""
    sender: str = ""  # "" is the null sender


def open_table(spec: TableSpec, text: bytes | None = None) -> Table:
    """Open a table: with its file's `text`, or by reading it. Raises TableError for a bad line, or no file."""
    match spec.backend, spec.path:
        case "sqlite", Path() as path:
            # Loaded by those who have such a table: the module costs a megabyte in every process.
            from mta_under_test.tables.sqlite import SqliteTable

            return SqliteTable(spec.name, path, text)
        case "passwd", Path() as path:
            return PasswdTable(spec.name, path, text)
        case "static" | "file", Path() as path:
            return FileTable(spec.name, path, text)
        case "static", None:
            pass
        case backend, _:
            raise TableError(
                f"<{spec.name}>: tables of type {backend!r} are not supported; there is file, sqlite, passwd"
            )
    return Table(spec.name, (Entry(key, value) for key, value in spec.entries.items()))


class Ruleset:
    def __init__(self, config: Config, tables: Mapping[str, Table] | None = None) -> None:
        """With `tables` already open, or all of `config`'s opened now. Raises TableError."""
        self._config = config
        if tables is None:
            tables = {name: open_table(spec) for name, spec in config.tables.items()}
        self.tables = tables

    def close(self) -> None:
        """Another set of rules has taken this one's place."""
        for table in self.tables.values():
            table.close()

    @cached_property
    def _local(self) -> frozenset[Address]:
        return local_addresses()

    @cached_property
    def _local_names(self) -> frozenset[str]:
        names = {"localhost", self._config.hostname.lower()}
        return frozenset(names.union(_literal(address) for address in self._local))

    def match(self, facts: Facts) -> Action | None:
        """The action of the first rule whose criteria all hold; None to reject."""
        for rule in self._config.matches:
            if all(self._holds(criterion, facts) != criterion.negated for criterion in rule.criteria):
                return None if rule.action is None else self._config.actions[rule.action]
        return None

    def _holds(self, criterion: Criterion, facts: Facts) -> bool:
        match criterion.fact, criterion.value:
            case _, "any":
                return True
            case "from", "local":
                return facts.source is None or self._is_local(facts.source)
            case "from", "socket":
                return facts.source is None
            case "for", "local":
                return self._domain(facts.recipient).lower() in self._local_names
            case "auth", "yes":
                return bool(facts.username)
            case "tls", "yes":
                return facts.tls
            case "rdns", "yes":
                return bool(facts.rdns)
        table = self.tables[criterion.table]
        service = Service.REGEX if criterion.regex else SERVICES[criterion.fact]
        return table.contains(service, self._asked(criterion.fact, facts))

    def _is_local(self, source: Address) -> bool:
        if isinstance(source, ipaddress.IPv6Address):
            source = source.ipv4_mapped or source
        return source.is_loopback or source in self._local

    def _asked(self, fact: str, facts: Facts) -> str:
        match fact:
            case "from":
                return "local" if facts.source is None else str(facts.source)
            case "for":
                return self._domain(facts.recipient)
            case "mail-from":
                return self._address(facts.sender) if facts.sender else ""
            case "rcpt-to":
                return self._address(facts.recipient)
            case "tag":
                return facts.tag
            case "helo":
                return facts.helo
            case "auth":
                return facts.username
            case "rdns":
                return facts.rdns
        raise AssertionError(f"no table is asked about {fact}")

    def _domain(self, address: str) -> str:
        """Its domain; `postmaster` alone is this server's (RFC 5321 §4.1.1.3)."""
        _, at, domain = address.rpartition("@")
        return domain if at else self._config.hostname

    def _address(self, address: str) -> str:
        return address if "@" in address else f"{address}@{self._config.hostname}"


def _literal(address: Address) -> str:
    """As an address literal in a mailbox, lower case (RFC 5321 §4.1.3)."""
    return f"[{address}]" if address.version == 4 else f"[ipv6:{address}]"

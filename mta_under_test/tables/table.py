"""A table: named entries, each a key and perhaps a value, and the questions that can be asked of it.

A list has keys alone; a mapping has a value for each. Keys are compared without regard to case.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

from mta_under_test.tables import matching


class TableError(Exception):
    """A table cannot be read, or holds what it cannot be used for; says where."""


class Service(enum.Enum):
    """What a key is, and so how it is compared: the services of OpenSMTPD's tables that rules and actions use."""

    STRING = "string"
    ALIAS = "alias"
    DOMAIN = "domain"
    MAILADDR = "mailaddr"
    NETADDR = "netaddr"
    REGEX = "regex"
    # Of values only: nothing is matched with these.
    CREDENTIALS = "credentials"
    USERINFO = "userinfo"
    SOURCE = "source"
    ADDRNAME = "addrname"
    MAILADDRMAP = "mailaddrmap"


_INDEXES: dict[Service, type[matching.Index]] = {
    Service.STRING: matching.Strings,
    Service.ALIAS: matching.Strings,
    Service.DOMAIN: matching.Domains,
    Service.MAILADDR: matching.Addresses,
    Service.NETADDR: matching.Networks,
    Service.REGEX: matching.Patterns,
}


class Entry(NamedTuple):
    key: str
    value: str | None
    where: str = ""  # "file:line", for errors


class Table:
    """Entries held in memory: by itself, those that are written out in the configuration (`static`).

    Raises TableError when there are values for some keys only, or two for one key.
    """

    def __init__(self, name: str, entries: Iterable[Entry]) -> None:
        self.name = name
        self._fill(entries)

    def _fill(self, entries: Iterable[Entry]) -> None:
        found: dict[str, Entry] = {}
        for entry in entries:
            first = found.setdefault(entry.key.lower(), entry)
            if first.value != entry.value:
                raise TableError(f"{self._at(entry)}{entry.key!r} has two values")
        mapped = [entry for entry in found.values() if entry.value is not None]
        if mapped and len(mapped) < len(found):
            odd = next(entry for entry in found.values() if entry.value is None)
            raise TableError(f"{self._at(odd)}{odd.key!r} has no value, and other keys have one")
        self._entries = found
        self._indexes: dict[Service, matching.Index] = {}

    def _at(self, entry: Entry) -> str:
        return f"{entry.where}: " if entry.where else ""

    @property
    def is_mapping(self) -> bool:
        """Whether keys have values. A table without entries is both, a list and a mapping."""
        return all(entry.value is not None for entry in self._entries.values())

    @property
    def is_list(self) -> bool:
        return all(entry.value is None for entry in self._entries.values())

    def keys(self) -> list[str]:
        """Keys as they were written, in order."""
        return [entry.key for entry in self._entries.values()]

    def lookup(self, key: str) -> str | None:
        """The value of exactly this key."""
        entry = self._entries.get(key.lower())
        return None if entry is None else entry.value

    def value(self, service: Service, key: str) -> str | None:
        """What the table has for this key, where the value is what `service` says. Raises TableError."""
        return self.lookup(key)

    def reload(self, text: bytes | None = None) -> None:
        """Take `text` for the contents, or read them again where they came from.

        Raises TableError, and then the table answers as before. What stands in the configuration changes with it only.
        """
        raise TableError(f"<{self.name}> is written in the configuration; reload that")

    def close(self) -> None:
        """Let go of what answers need: a table that was replaced is closed."""

    def contains(self, service: Service, key: str) -> bool:
        """Whether an entry matches `key`, read as `service` says. Raises TableError as `check` does."""
        return self._index(service).matches(key)

    def check(self, service: Service) -> None:
        """Raises TableError for an entry that `service` has no use for."""
        self._index(service)

    def _index(self, service: Service) -> matching.Index:
        if service not in self._indexes:
            index = _INDEXES[service]()
            for entry in self._entries.values():
                try:
                    index.add(entry.key)
                except ValueError as error:
                    raise TableError(f"{self._at(entry)}{error}") from error
            self._indexes[service] = index
        return self._indexes[service]

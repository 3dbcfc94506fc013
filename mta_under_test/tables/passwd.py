"""A table in a file of passwd(5)'s form, table_passwd(5): `name:crypted:uid:gid:gecos:directory[:shell]`.

Answers who a user is (userinfo) and how a user proves it (credentials: `name:crypted`). `#` begins a comment line.
"""

from __future__ import annotations

from pathlib import Path

from mta_under_test.tables.file import read_table
from mta_under_test.tables.table import Entry, Service, Table, TableError
from mta_under_test.tables.userinfo import parse_userinfo

_FIELDS = 6


class PasswdTable(Table):
    """Made of `text`, or of the file, which `reload` reads again. Raises TableError naming file and line."""

    def __init__(self, name: str, path: Path, text: bytes | None = None) -> None:
        self.path = path
        self._crypted: dict[str, str] = {}
        super().__init__(name, ())
        self.reload(text)

    def reload(self, text: bytes | None = None) -> None:
        """Take `text`, or read the file again. Raises TableError, and then the table answers as before."""
        if text is None:
            text = read_table(self.path)
        entries, crypted = [], {}
        for number, line in enumerate(text.split(b"\n"), 1):
            where = f"{self.path}:{number}"
            if not line.strip() or line.startswith(b"#"):
                continue
            try:
                fields = line.decode().rstrip("\r").split(":")
            except UnicodeDecodeError as error:
                raise TableError(f"{where}: byte {line[error.start]:#04x} is not UTF-8") from error
            if len(fields) < _FIELDS or not fields[0]:
                raise TableError(f"{where}: not name:password:uid:gid:gecos:directory")
            name, secret, uid, gid, _, directory = fields[:_FIELDS]
            try:
                parse_userinfo(name, f"{uid}:{gid}:{directory}")
            except TableError as error:
                raise TableError(f"{where}: {error}") from error
            entries.append(Entry(name, f"{uid}:{gid}:{directory}", where))
            crypted[name.lower()] = secret
        self._fill(entries)
        self._crypted = crypted

    def value(self, service: Service, key: str) -> str | None:
        if service is Service.USERINFO:
            return self.lookup(key)
        if service is Service.CREDENTIALS:
            secret = self._crypted.get(key.lower())
            return None if not secret else f"{key}:{secret}"
        raise TableError(f"<{self.name}> holds users, it cannot be asked about {service.value}")

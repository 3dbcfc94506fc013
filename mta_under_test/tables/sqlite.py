"""A table in an SQLite database, table-sqlite(5): a text file names the database and a query for each service.

    dbpath             /etc/mail/smtpd.sqlite
    query_alias        SELECT value FROM aliases WHERE key = ?;
    query_domain       SELECT domain FROM domains WHERE domain = ?;
    query_userinfo     SELECT uid, gid, directory FROM users WHERE name = ?;
    query_credentials  SELECT name, password FROM users WHERE name = ?;
    query_netaddr, query_mailaddr, query_addrname, query_source, query_mailaddrmap

Owns: one connection, opened read-only at the first question and kept. A question takes a bounded time: longer ones
are broken off (TableError, which is a temporary failure to whoever asked), so that nobody behind it waits for long.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

from mta_under_test.tables.file import read_table
from mta_under_test.tables.matching import variants_of
from mta_under_test.tables.table import Service, Table, TableError

BUSY_TIMEOUT_S = 0.2  # a writer has the database
QUERY_TIMEOUT_S = 0.5
_STEPS = 1000  # of SQLite's virtual machine between two looks at the clock
_ROWS = 100  # of aliases that one key may have
_SERVICES = {
    "query_alias": Service.ALIAS,
    "query_credentials": Service.CREDENTIALS,
    "query_domain": Service.DOMAIN,
    "query_netaddr": Service.NETADDR,
    "query_source": Service.SOURCE,
    "query_userinfo": Service.USERINFO,
    "query_mailaddr": Service.MAILADDR,
    "query_mailaddrmap": Service.MAILADDRMAP,
    "query_addrname": Service.ADDRNAME,
}
_OPTIONS = ("fetch_source", "fetch_source_expire", "fetch_source_refresh")  # of fetches, which we have no use for


class SqliteTable(Table):
    """Raises TableError for a configuration that cannot be read, or a query that the database does not understand."""

    def __init__(self, name: str, path: Path, text: bytes | None = None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._deadline = 0.0
        super().__init__(name, ())
        self.reload(text)

    def reload(self, text: bytes | None = None) -> None:
        """Read the configuration again and open the database anew. Raises TableError; then all stays as it was."""
        database, queries = _read(self.path, read_table(self.path) if text is None else text)
        self._open(database, queries).close()  # a mistake is told now; but a connection must not be inherited by forks
        self.close()
        self._database, self._queries = database, queries

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def is_mapping(self) -> bool:
        return True

    @property
    def is_list(self) -> bool:
        return True

    def keys(self) -> list[str]:
        raise TableError(f"<{self.name}> is a database; its keys are not known")

    def check(self, service: Service) -> None:
        if service not in self._queries:
            raise TableError(f"{self.path}: no query_{service.value}, and <{self.name}> is asked about it")

    def lookup(self, key: str) -> str | None:
        return self.value(Service.ALIAS, key)

    def value(self, service: Service, key: str) -> str | None:
        """The row that the query finds, its columns joined as table(5) wants them; several aliases by commas."""
        rows = self._ask(service, key)
        if not rows:
            return None
        if service is Service.ALIAS:
            return ", ".join(str(row[0]) for row in rows)
        return ":".join(str(column) for column in rows[0])

    def contains(self, service: Service, key: str) -> bool:
        return any(self._ask(service, variant) for variant in variants_of(service.value, key))

    def _ask(self, service: Service, key: str) -> list[tuple[object, ...]]:
        self.check(service)
        if self._connection is None:
            self._connection = self._open(self._database, self._queries)
        query = self._queries[service]
        self._deadline = time.monotonic() + QUERY_TIMEOUT_S
        try:
            cursor = self._connection.execute(query, (key,) * query.count("?"))
            try:
                return cursor.fetchmany(_ROWS)
            finally:
                cursor.close()
        except sqlite3.Error as error:
            raise TableError(f"<{self.name}>: {error}") from error

    def _open(self, database: Path, queries: dict[Service, str]) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(database))}?mode=ro",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,  # no transaction is begun behind our back
                cached_statements=len(queries) + 2,
            )
        except sqlite3.Error as error:
            raise TableError(f"{self.path}: cannot open {database}: {error}") from error
        try:
            for query in queries.values():
                connection.execute(f"EXPLAIN {query}", ("",) * query.count("?")).close()
        except sqlite3.Error as error:
            connection.close()
            raise TableError(f"{self.path}: {database}: {error}") from error
        connection.set_progress_handler(self._too_long, _STEPS)
        return connection

    def _too_long(self) -> bool:
        return time.monotonic() > self._deadline


def _read(path: Path, text: bytes) -> tuple[Path, dict[Service, str]]:
    database: Path | None = None
    queries: dict[Service, str] = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if not name or name.startswith("#"):
            continue
        if not value:
            raise TableError(f"{path}:{number}: no value for {name!r}")
        if name == "dbpath":
            database = path.parent / value
        elif name in _SERVICES:
            queries[_SERVICES[name]] = value.rstrip(";")
        elif name not in _OPTIONS:
            raise TableError(f"{path}:{number}: unknown {name!r}; there is dbpath, {', '.join(_SERVICES)}")
    if database is None:
        raise TableError(f"{path}: no dbpath")
    return database, queries

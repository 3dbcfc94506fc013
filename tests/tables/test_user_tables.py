"""Tables in passwd files and in SQLite databases."""

from __future__ import annotations

import os
import pwd
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_under_test.config.model import TableSpec
from mta_under_test.config.rules import open_table
from mta_under_test.tables import Entry, PasswdTable, Service, Table, TableError, UserInfo, find_user, system_user
from mta_under_test.tables import sqlite as sqlite_table
from mta_under_test.tables.sqlite import SqliteTable

PASSWD = "# users\nbob:$6$salt$hash:1000:100:Bob:/home/bob:/bin/sh\neve::1001:100::/home/eve\n"


@pytest.fixture
def passwd(tmp_path: Path) -> PasswdTable:
    (tmp_path / "passwd").write_text(PASSWD)
    return PasswdTable("users", tmp_path / "passwd")


def test_passwd_tables_know_users_and_their_secrets(passwd: PasswdTable) -> None:
    assert find_user(passwd, "bob") == UserInfo("bob", 1000, 100, "/home/bob")
    assert find_user(passwd, "nobody") is None
    assert passwd.value(Service.CREDENTIALS, "bob") == "bob:$6$salt$hash"
    assert passwd.value(Service.CREDENTIALS, "eve") is None, "no password is not an empty one"
    with pytest.raises(TableError, match="cannot be asked about alias"):
        passwd.value(Service.ALIAS, "bob")


@pytest.mark.parametrize("line", ["bob:x:1000", ":x:1:1::/", "bob:x:one:1::/", "bob:x:-1:1::/", "bob:x:1:1::home"])
def test_a_bad_passwd_line_is_named_and_the_old_table_kept(passwd: PasswdTable, line: str) -> None:
    passwd.path.write_text(f"eve:x:1:1::/\n{line}\n")
    with pytest.raises(TableError, match="passwd:2: "):
        passwd.reload()
    assert find_user(passwd, "bob") is not None


def test_passwd_tables_are_read_again(passwd: PasswdTable) -> None:
    passwd.path.write_text("zoe:x:5:6::/z\n")
    passwd.reload()
    assert find_user(passwd, "zoe") == UserInfo("zoe", 5, 6, "/z")
    assert passwd.value(Service.CREDENTIALS, "bob") is None
    passwd.reload(b"ann:y:7:8::/a\n")
    assert passwd.value(Service.CREDENTIALS, "ann") == "ann:y"


@pytest.mark.parametrize("value", ["1000:1000", "x:1:/home", "1:1:home", "4294967295:1:/home", "1:1:/a\0b"])
def test_userinfo_that_is_none(value: str) -> None:
    with pytest.raises(TableError):
        find_user(Table("users", [Entry("bob", value)]), "bob")


def test_the_systems_users() -> None:
    me = pwd.getpwuid(os.getuid())
    assert system_user(me.pw_name) == UserInfo(me.pw_name, me.pw_uid, me.pw_gid, me.pw_dir)
    assert system_user("no-such-user-here") is None
    assert system_user("") is None
    assert system_user("a\0b") is None


# ---- SQLite

QUERIES = """\
# a comment
dbpath db.sqlite
query_alias SELECT value FROM aliases WHERE name = ?;
query_domain SELECT domain FROM domains WHERE domain = ?;
query_userinfo SELECT uid, gid, directory FROM users WHERE name = ?
query_credentials SELECT name, password FROM users WHERE name=?;
query_mailaddr SELECT address FROM senders WHERE address = ?
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "db.sqlite", isolation_level=None)
    connection.executescript(
        """CREATE TABLE aliases (name, value); CREATE TABLE domains (domain);
        CREATE TABLE users (name, uid, gid, directory, password); CREATE TABLE senders (address);
        INSERT INTO aliases VALUES ('root', 'bob'), ('list', 'bob'), ('list', 'eve@example.org');
        INSERT INTO domains VALUES ('example.org'), ('*.example.net');
        INSERT INTO users VALUES ('bob', 1000, 100, '/home/bob', '$6$x');
        INSERT INTO senders VALUES ('@example.org'), ('bob@example.net');"""
    )
    yield connection
    connection.close()


@pytest.fixture
def table(tmp_path: Path, database: sqlite3.Connection) -> Iterator[SqliteTable]:
    (tmp_path / "sqlite.conf").write_text(QUERIES)
    opened = open_table(TableSpec("db", path=tmp_path / "sqlite.conf", backend="sqlite"))
    assert isinstance(opened, SqliteTable)
    yield opened
    opened.close()


def test_sqlite_tables_answer_every_service_with_its_query(table: SqliteTable) -> None:
    assert table.value(Service.ALIAS, "root") == "bob"
    assert table.value(Service.ALIAS, "list") == "bob, eve@example.org"
    assert table.value(Service.ALIAS, "none") is None
    assert find_user(table, "bob") == UserInfo("bob", 1000, 100, "/home/bob")
    assert table.value(Service.CREDENTIALS, "bob") == "bob:$6$x"
    assert table.contains(Service.DOMAIN, "Example.org")
    assert table.contains(Service.DOMAIN, "a.b.example.net")
    assert not table.contains(Service.DOMAIN, "example.net")
    assert table.contains(Service.MAILADDR, "anybody@example.org")
    assert table.contains(Service.MAILADDR, "bob+tag@example.net")
    assert not table.contains(Service.MAILADDR, "eve@example.net")


def test_what_was_written_since_is_seen(table: SqliteTable, database: sqlite3.Connection) -> None:
    assert table.value(Service.ALIAS, "new") is None
    database.execute("INSERT INTO aliases VALUES ('new', 'bob')")
    assert table.value(Service.ALIAS, "new") == "bob"


def test_a_question_cannot_inject(table: SqliteTable) -> None:
    assert table.value(Service.ALIAS, "x' OR '1'='1") is None


def test_a_service_without_a_query_is_named(table: SqliteTable) -> None:
    with pytest.raises(TableError, match="no query_netaddr"):
        table.check(Service.NETADDR)


def test_a_slow_question_is_broken_off(table: SqliteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i = ? || 'x'"
    table.path.write_text(f"dbpath db.sqlite\nquery_alias {forever}\n")
    table.reload()
    monkeypatch.setattr(sqlite_table, "QUERY_TIMEOUT_S", 0.05)
    with pytest.raises(TableError, match="interrupted"):
        table.value(Service.ALIAS, "root")


def test_a_locked_database_is_a_failure_in_time(table: SqliteTable, database: sqlite3.Connection) -> None:
    database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TableError, match="locked"):
        table.value(Service.ALIAS, "root")
    database.execute("ROLLBACK")
    assert table.value(Service.ALIAS, "root") == "bob"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("query_alias SELECT 1", "no dbpath"),
        ("dbpath none.sqlite", "unable to open"),
        ("dbpath db.sqlite\nquery_alias SELEKT", "syntax error"),
        ("dbpath db.sqlite\nquery_alias SELECT value FROM nowhere WHERE x=?", "no such table"),
        ("dbpath db.sqlite\nquery_aliases SELECT 1", "2: unknown 'query_aliases'"),
        ("dbpath", "1: no value for 'dbpath'"),
    ],
)
def test_a_bad_configuration_says_why_and_the_old_one_answers(table: SqliteTable, text: str, reason: str) -> None:
    table.path.write_text(text)
    with pytest.raises(TableError, match=reason):
        table.reload()
    assert table.value(Service.ALIAS, "root") == "bob"


def test_sqlite_tables_hold_one_descriptor_however_often_they_are_read(table: SqliteTable) -> None:
    table.value(Service.ALIAS, "root")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        table.reload()
        table.value(Service.ALIAS, "root")
    assert len(os.listdir("/proc/self/fd")) == before

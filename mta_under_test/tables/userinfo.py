"""Users: who may receive mail here, with which uid and where. `userbase` tables, and the system's own users.

userinfo of table(5): `name uid:gid:directory`.
"""

from __future__ import annotations

import pwd
from typing import NamedTuple

from mta_under_test.tables.table import Service, Table, TableError

_MAX_ID = (1 << 32) - 2  # the one above it means "no change" to setresuid(2)


class UserInfo(NamedTuple):
    name: str
    uid: int
    gid: int
    directory: str


def parse_userinfo(name: str, text: str) -> UserInfo:
    """Raises TableError."""
    parts = text.split(":", 2)
    try:
        uid, gid = int(parts[0]), int(parts[1])
        directory = parts[2]
    except (ValueError, IndexError) as error:
        raise TableError(f"{text!r} of {name!r} is not uid:gid:directory") from error
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise TableError(f"{text!r} of {name!r}: ids are 0 to {_MAX_ID}")
    if not directory.startswith("/") or "\0" in directory:
        raise TableError(f"{text!r} of {name!r}: the directory must be a whole path")
    return UserInfo(name, uid, gid, directory)


def find_user(table: Table, name: str) -> UserInfo | None:
    """A user of a userbase. Raises TableError when the table cannot answer, or answers nonsense."""
    found = table.value(Service.USERINFO, name)
    return None if found is None else parse_userinfo(name, found)


def system_user(name: str) -> UserInfo | None:
    """getpwnam(3). Names that are no names are not asked about."""
    if not name or "\0" in name or ":" in name:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return UserInfo(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)

"""parent's opening of what only the privileged side may: a user's `.forward`, with the user's own rights.

The caller owns the descriptor. Nothing here waits: a `.forward` that is a pipe is opened without blocking, and refused.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".forward"
MAX_BYTES = 4096  # a file is shorter: forward.c


class Unsafe(Exception):
    """The file is not to be believed; the text says why."""


def open_forward(name: str, uid: int, gid: int, home: str) -> int | None:
    """A readable descriptor of ~/.forward, None when there is none. Raises Unsafe, and OSError for a lasting trouble.

    Must be called by a process of one thread: it becomes the user for a moment.
    """
    path = Path(home) / FILE
    with _as_user(name, uid, gid):
        try:
            if os.stat(home).st_mode & stat.S_ISVTX:
                raise Unsafe(f"{home} is sticky: its owner does not want mail now")
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        _check(os.fstat(descriptor), uid, path)
    except Unsafe:
        os.close(descriptor)
        raise
    return descriptor


def _check(found: os.stat_result, uid: int, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unsafe(f"{path} is no regular file")
    if found.st_uid != uid:
        raise Unsafe(f"{path} is owned by user {found.st_uid}, not {uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unsafe(f"{path} can be written by others")
    if found.st_size >= MAX_BYTES:
        raise Unsafe(f"{path} has {found.st_size} bytes; a .forward has less than {MAX_BYTES}")


@contextmanager
def _as_user(name: str, uid: int, gid: int) -> Iterator[None]:
    """Effective ids of the user's while inside; as an ordinary user's process, nothing changes."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    try:
        os.setgroups(groups_of(name, uid, gid))
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def groups_of(name: str, uid: int, gid: int) -> list[int]:
    """The groups of a system user; just `gid` for one of a table, who may only be called like a system user."""
    try:
        if pwd.getpwnam(name).pw_uid == uid:
            return os.getgrouplist(name, gid)
    except (KeyError, ValueError, OSError):
        pass  # no such user: one of a table
    return [gid]

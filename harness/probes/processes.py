"""processes: the tree below a root, who each process is, and what it is for.

Owns: identity (pid and start time), parenthood, state, title, role. Never: looks at what a process holds.

A process that ends while it is read is None, or missing from a list; never an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from reports.record import Process

Roles = Callable[[str], str]  # given a title, its role

_TITLED = re.compile(r"[\w.+/-]+: (?P<role>\S.*)", re.DOTALL)
_INTERPRETER = re.compile(r"(?:python|perl|ruby|node|sh|bash|dash)[\d.]*")
_STEADY = re.compile(r"[A-Za-z][A-Za-z _-]*[A-Za-z]")


class Stat(NamedTuple):
    """Fields of ``/proc/PID/stat``, proc_pid_stat(5)."""

    comm: str
    state: str
    ppid: int
    threads: int
    started: int  # clock ticks after boot


def tree(root_pid: int) -> list[int]:
    """The root and every process below it, parents before their children; empty when the root is gone."""
    if stat(root_pid) is None:
        return []
    found = [root_pid]
    for pid in found:  # which grows meanwhile
        found += [child for child in _children(pid) if child not in found]
    return found


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    data = read_file(f"/proc/{pid}/stat")
    if data is None:
        return None
    head, _, tail = data.rpartition(b")")
    fields = tail.split()
    comm = text(head.partition(b"(")[2])
    return Stat(comm, fields[0].decode(), int(fields[1]), int(fields[17]), int(fields[19]))


def read(pid: int, roles: Roles) -> Process | None:
    """Who the process is, without what it holds."""
    found = stat(pid)
    if found is None:
        return None
    arguments = _arguments(pid)
    title = " ".join(arguments) or found.comm  # zombies and kernel threads have no command line
    role = roles(title)
    return Process(
        pid=pid,
        started=found.started,
        role=(_script(found.comm, arguments) or found.comm) if role == title else role,
        ppid=found.ppid,
        title=title,
        state=found.state,
        threads=found.threads,
    )


def default_role(title: str) -> str:
    """What setproctitle(3) daemons write after their name: ``smtpd: transfer`` is ``transfer``.

    Only the words before the first bracket or digit, since the rest tells what the process does at the moment
    (``imap: idle [user 192.0.2.1]``). Any other title is handed back, and then the process's comm stands for it.
    """
    titled = _TITLED.fullmatch(title)
    if titled is None:
        return title
    steady = _STEADY.search(titled["role"])
    return steady[0] if steady else titled["role"]


def roles_by_pattern(patterns: Iterable[tuple[str, str]]) -> Roles:
    """Roles for a target whose titles say it otherwise: (regular expression searched in the title, role).

    The first that matches wins; where none does, `default_role`. A role may name groups: ``\\1``.
    Raises re.error for a pattern that is no regular expression.
    """
    compiled = [(re.compile(pattern), role) for pattern, role in patterns]

    def role_of(title: str) -> str:
        for pattern, role in compiled:
            if matched := pattern.search(title):
                return matched.expand(role)
        return default_role(title)

    return role_of


def read_file(path: str) -> bytes | None:
    """The whole of a small file in /proc; None when its process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        data = b""
        while chunk := os.read(descriptor, 16384):
            data += chunk
        return data
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


def text(name: bytes) -> str:
    """What the kernel tells as bytes, as a string that JSON can carry: what is not UTF-8 becomes ``\\xNN``."""
    return name.decode("utf-8", "backslashreplace")


def _arguments(pid: int) -> list[str]:
    """The command line; one word where the process has written a title over it."""
    data = (read_file(f"/proc/{pid}/cmdline") or b"").rstrip(b"\0 ")
    return [text(word) for word in data.split(b"\0")] if data else []


def _script(comm: str, arguments: Sequence[str]) -> str | None:
    """What an interpreter runs: ``python3 -X dev /opt/mail.py`` is ``mail.py``, ``python3 -m mail`` is ``mail``."""
    if not _INTERPRETER.fullmatch(comm):
        return None
    words = iter(arguments[1:])
    for word in words:
        if word in ("-c", "-e", "-"):
            return None
        if word == "-m":
            return next(words, None)
        if word in ("-X", "-W"):
            next(words, None)
        elif not word.startswith("-"):
            return word.rpartition("/")[2] or None
    return None


def _children(pid: int) -> list[int]:
    if not _kernel_lists_children():
        return _children_without_list(pid)
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found  # ended
    for thread in threads:
        found += map(int, (read_file(f"/proc/{pid}/task/{thread}/children") or b"").split())
    return found


@lru_cache(maxsize=1)
def _kernel_lists_children() -> bool:
    """Kernels without CONFIG_PROC_CHILDREN do not (proc_tid_children(5))."""
    return os.access(f"/proc/self/task/{os.getpid()}/children", os.R_OK)


def _children_without_list(pid: int) -> list[int]:
    import psutil  # late: rarely needed, and slow to import

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []

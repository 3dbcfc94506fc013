"""descriptors: everything that a process has open, classified.

Owns: the walk of ``/proc/PID/fd`` and ``fdinfo``, and what kind of thing each entry is. Never: judges.

One look at an entry is readlink (its name), stat (device and inode: the identity) and fdinfo (flags and position). What
is opened or closed during the walk may or may not be in it; at rest the walk is exact.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from harness.probes.processes import text
from harness.probes.sockets import SocketTables, Table
from reports.record import Descriptor

_DELETED = b" (deleted)"
_FDINFO_BYTES = 64  # its first two lines; the rest can be long (an epoll lists all that it watches)
_ANONYMOUS_KINDS = frozenset({"eventpoll", "eventfd", "timerfd", "signalfd", "inotify", "pidfd", "io_uring"})
_PROTOCOL_KINDS = {"TCP": "tcp", "TCPv6": "tcp", "MPTCP": "tcp", "MPTCPv6": "tcp", "UDP": "udp", "UDPv6": "udp"}


class _Entry(NamedTuple):
    fd: int
    link: bytes
    status: os.stat_result
    flags: int
    offset: int


def read(pid: int, tables: SocketTables | None = None) -> list[Descriptor]:
    """What `pid` has open, by number. `tables` may be shared among the processes of one snapshot.

    Raises ProcessLookupError or FileNotFoundError when the process is gone, PermissionError when it is not ours to see
    (ptrace(2), "ptrace access mode checking"). A process that reads itself is not shown the walk's own descriptors.
    """
    entries = sorted(_walk(pid))
    inodes = {entry.status.st_ino for entry in entries if stat.S_ISSOCK(entry.status.st_mode)}
    # Read after the walk: a table that is older than a socket does not have it.
    table = (tables or SocketTables()).of(pid, inodes) if inodes else {}
    return [_descriptor(pid, entry, table) for entry in entries]


def count(pid: int) -> int:
    """How many descriptors `pid` has open. The same errors as `read`, except on Linux 6.2 and later: anyone may ask.

    There the size of the directory is the number (proc_pid_fd(5)); before, it is 0 and the entries are counted.
    """
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _walk(pid: int) -> Iterator[_Entry]:
    with _directory(f"/proc/{pid}/fd") as links, _directory(f"/proc/{pid}/fdinfo") as infos:
        ours = {links, infos} if pid == os.getpid() else set()
        for name in os.listdir(links):
            fd = int(name)
            if fd in ours:
                continue
            try:
                link = os.readlink(name.encode(), dir_fd=links)
                status = os.stat(name, dir_fd=links)
                offset, flags = _fdinfo(name, infos)
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed since the listing
            yield _Entry(fd, link, status, flags, offset)


@contextmanager
def _directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fdinfo(name: str, infos: int) -> tuple[int, int]:
    """(position, flags): ``pos:\\t0\\nflags:\\t0100002\\n…``, proc_pid_fdinfo(5)."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=infos)
    try:
        position, flags, _ = os.read(descriptor, _FDINFO_BYTES).split(b"\n", 2)
    finally:
        os.close(descriptor)
    return int(position[4:]), int(flags[6:], 8)


def _descriptor(pid: int, entry: _Entry, table: Table) -> Descriptor:
    name, deleted = _name(pid, entry)
    target = text(name)
    kind, state, local, peer = _kind(entry.status.st_mode, target), "", "", ""
    if kind == "socket":
        if entry.status.st_ino in table:
            kind, state, local, peer, *_ = table[entry.status.st_ino]
        else:
            kind, state = _unlisted_socket(pid, entry.fd)
    return Descriptor(
        fd=entry.fd,
        kind=kind,
        target=target,
        device=entry.status.st_dev,
        inode=entry.status.st_ino,
        flags=entry.flags,
        offset=entry.offset,
        deleted=deleted,
        state=state,
        local=local,
        peer=peer,
    )


def _name(pid: int, entry: _Entry) -> tuple[bytes, bool]:
    """The link's text without the kernel's " (deleted)", and whether that was there.

    A living file may have such a name of its own. It differs from one that was unlinked under one of its several names
    in that it can be found by it, in the process's view of the file system.
    """
    if not entry.link.endswith(_DELETED):
        return entry.link, False
    if entry.status.st_nlink > 0:
        try:
            found = os.stat(b"/proc/%d/root%b" % (pid, entry.link))
        except OSError:
            found = None
        if found is not None and (found.st_dev, found.st_ino) == (entry.status.st_dev, entry.status.st_ino):
            return entry.link, False
    return entry.link.removesuffix(_DELETED), True


def _kind(mode: int, target: str) -> str:
    """A kind of `Descriptor`, or "socket", which the socket tables know more of."""
    if target.startswith(("anon_inode:", "pidfd:")):
        word = target.removeprefix("anon_inode:").strip("[]").partition(":")[0]
        return word if word in _ANONYMOUS_KINDS else "other"
    if target.startswith("/memfd:"):
        return "memfd"
    if stat.S_ISSOCK(mode) and target.startswith("socket:"):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "device"
    if stat.S_ISREG(mode) and target.startswith(("/", "(unreachable)")):
        return "file"
    return "other"


def _unlisted_socket(pid: int, fd: int) -> tuple[str, str]:
    """(kind, state) of a socket that is in no table: never bound, or its connection is over, or of another family."""
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0").decode()
    except OSError:
        return "other", ""  # closed by now
    if name.startswith("UNIX"):
        return "unix", "UNCONNECTED"
    kind = _PROTOCOL_KINDS.get(name, "other")
    return kind, "CLOSE" if name in ("TCP", "TCPv6") else ""

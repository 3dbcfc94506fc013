"""descriptors: everything that a process has open, classified.

Owns: the walk of ``/proc/PID/fd`` and ``fdinfo``, and what kind of thing each entry is. Never: judges.

One look at an entry is readlink, which names it; for sockets, pipes and the like the name tells the inode too, for all
else it takes stat; and where they are asked for, fdinfo for flags and position, which costs as much again. Of an epoll
and an inotify fdinfo is always read: what they watch is nowhere else to be seen. What is
opened or closed during the walk may or may not be in it; at rest the walk is exact.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from harness.probes.processes import text
from harness.probes.sockets import SocketTables, Table
from reports.record import Descriptor

_DELETED = " (deleted)"
_FDINFO_BYTES = 64  # its first two lines; the rest can be long (an epoll lists all that it watches)
_ANONYMOUS_KINDS = frozenset({"eventpoll", "eventfd", "timerfd", "signalfd", "inotify", "pidfd", "io_uring"})
_SHARED = frozenset(  # one inode for all of a kind, so that one look is enough for ever
    {
        "anon_inode:[eventpoll]",
        "anon_inode:[eventfd]",
        "anon_inode:[timerfd]",
        "anon_inode:[signalfd]",
        "anon_inode:inotify",
    }
)
_PROTOCOL_KINDS = {"TCP": "tcp", "TCPv6": "tcp", "MPTCP": "tcp", "MPTCPv6": "tcp", "UDP": "udp", "UDPv6": "udp"}


_WATCHERS = frozenset({"eventpoll", "inotify"})

_Looked = tuple[int, int, str, int]  # device, inode, kind (or "socket"), hard links
_Entry = tuple[int, str, int, int, str, int, int, int]  # number, link as os.fsdecode gives it, _Looked, flags, position


def read(pid: int, tables: SocketTables | None = None, *, positions: bool = True) -> list[Descriptor]:
    """What `pid` has open, by number. `tables` may be shared among the processes of one snapshot.

    Without `positions` flags and positions are left at 0, in less than half the time. Raises ProcessLookupError or
    FileNotFoundError when the process is gone, PermissionError when it is not ours to see (ptrace(2), "ptrace access
    mode checking"). A process that reads itself is not shown the walk's own descriptors.
    """
    entries, watched = _walk(pid, positions)
    inodes = {inode for _, _, _, inode, kind, *_ in entries if kind == "socket"}
    # Read after the walk: a table that is older than a socket does not have it.
    table = (tables or SocketTables()).of(pid, inodes) if inodes else {}
    found = [_descriptor(pid, entry, table) for entry in entries]
    return _with_watches(found, watched) if watched else found


def count(pid: int) -> int:
    """How many descriptors `pid` has open. The same errors as `read`, except on Linux 6.2 and later: anyone may ask.

    There the size of the directory is the number (proc_pid_fd(5)); before, it is 0 and the entries are counted.
    """
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _walk(pid: int, positions: bool) -> tuple[list[_Entry], dict[int, bytes]]:
    """Every entry, and by number the fdinfo of those that watch others."""
    found: list[_Entry] = []
    watched: dict[int, bytes] = {}
    with _directory(f"/proc/{pid}/fd") as links, _directory(f"/proc/{pid}/fdinfo") as infos:
        ours = {str(links), str(infos)} if pid == os.getpid() else set()
        for name in os.listdir(links):
            if name in ours:
                continue
            try:
                link = os.readlink(name, dir_fd=links)
                looked = _by_name(link) or _by_stat(name, link, links)
                offset, flags = _fdinfo(name, infos) if positions else (0, 0)
                if looked[2] in _WATCHERS:
                    watched[int(name)] = _whole_fdinfo(name, infos)
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed since the listing
            found.append((int(name), link, *looked, flags, offset))
    found.sort()
    return found, watched


_devices: dict[str, int] = {}  # of sockets and of pipes: one each, as long as the machine runs
_shared: dict[str, _Looked] = {}


def _by_name(link: str) -> _Looked | None:
    """``socket:[123]`` and its like, which no path can be called; None for what needs a look."""
    if link[0] == "/":
        return None
    family, _, number = link.partition(":[")
    if family in _devices:
        return _devices[family], int(number[:-1]), family, 1
    return _shared.get(link)


def _by_stat(name: str, link: str, links: int) -> _Looked:
    status = os.stat(name, dir_fd=links)
    looked = status.st_dev, status.st_ino, _kind(status.st_mode, link), status.st_nlink
    if link in _SHARED:
        _shared[link] = looked
    elif link.startswith(("socket:[", "pipe:[")):
        _devices[link.partition(":")[0]] = status.st_dev
    return looked


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


def _whole_fdinfo(name: str, infos: int) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=infos), "rb") as file:
        return file.read()


def _with_watches(found: list[Descriptor], watched: dict[int, bytes]) -> list[Descriptor]:
    """``tfd: 5 events: 19 data: 5  pos:0 ino:d3a9 sdev:9`` for each that an epoll watches, ``inotify wd:1 ino:…``."""
    inodes = {each.fd: each.inode for each in found}
    told = []
    for each in found:
        watches = stale = 0
        for line in watched.get(each.fd, b"").splitlines():
            if line.startswith(b"inotify"):
                watches += 1
            elif line.startswith(b"tfd:"):
                watches += 1
                _, _, inode = line.partition(b" ino:")
                # Kernels before 4.13 do not tell the inode: what they watch is taken to be open.
                stale += inode != b"" and inodes.get(int(line.split()[1])) != int(inode.split()[0], 16)
        told.append(msgspec.structs.replace(each, watches=watches, stale_watches=stale) if watches else each)
    return told


def _descriptor(pid: int, entry: _Entry, table: Table) -> Descriptor:
    fd, link, device, inode, kind, names, flags, offset = entry
    deleted = link.endswith(_DELETED) and (names == 0 or _is_deleted(pid, link, device, inode))
    if deleted:
        link = link.removesuffix(_DELETED)
    target = link if link.isascii() else text(os.fsencode(link))
    if kind != "socket":
        return Descriptor(fd, kind, target, device, inode, flags, offset, deleted)
    if inode in table:
        kind, state, local, peer, *_ = table[inode]
        return Descriptor(fd, kind, target, device, inode, flags, offset, False, state, local, peer)
    kind, state = _unlisted_socket(pid, fd)
    return Descriptor(fd, kind, target, device, inode, flags, offset, False, state)


def _is_deleted(pid: int, link: str, device: int, inode: int) -> bool:
    """Whether " (deleted)" at the end of the link is the kernel's word, and not of the file's own name.

    A living file may have such a name of its own. It differs from one that was unlinked under one of its several names
    in that it can be found by it, in the process's view of the file system.
    """
    try:
        found = os.stat(b"/proc/%d/root%b" % (pid, os.fsencode(link)))
    except OSError:
        return True
    return (found.st_dev, found.st_ino) != (device, inode)


def _kind(mode: int, target: str) -> str:
    """A kind of `Descriptor`, or "socket", which the socket tables know more of."""
    if stat.S_ISREG(mode) and target.startswith("/") and not target.startswith("/memfd:"):
        return "file"
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
    if stat.S_ISREG(mode) and target.startswith("(unreachable)"):
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

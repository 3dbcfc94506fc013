"""descriptors: everything that a process has open, classified.

Owns: the walk of ``/proc/PID/fd`` and ``fdinfo``, and what kind of thing each entry is. Never: judges.

One look at an entry is readlink, which names it; for sockets and pipes the name tells the inode too, for all else it
takes stat; and where they are asked for, fdinfo for flags and position, which costs as much again. Of an epoll and an
inotify fdinfo is always read: what they watch is nowhere else to be seen. Where nobody asks for positions `first_sight`
does the walk of all processes at once, in C, and `read` only what it leaves. What is opened or closed during the walk
may or may not be in it; at rest the walk is exact.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from operator import attrgetter

import msgspec

from harness.probes.processes import read_file, text
from harness.probes.sockets import SocketTables, Table
from harness.probes.walk import Seen, walk
from reports.record import Descriptor

_DELETED = " (deleted)"
_TOO_LONG = "(a path longer than 4095 bytes)"  # which no link tells
_FDINFO_BYTES = 64  # its first two lines; the rest can be long (an epoll lists all that it watches)
_ANONYMOUS_KINDS = frozenset({"eventpoll", "eventfd", "timerfd", "signalfd", "inotify", "pidfd", "io_uring"})
_PROTOCOL_KINDS = {"TCP": "tcp", "TCPv6": "tcp", "MPTCP": "tcp", "MPTCPv6": "tcp", "UDP": "udp", "UDPv6": "udp"}

_SOCKET, _PIPE = "socket:[", "pipe:["  # and the inode: what no path can be called, and all that there is to know
_WATCHERS = ("eventpoll", "inotify")
_number = attrgetter("fd")
# A file whose file system does not answer: another user's, of a server that is gone (FUSE, NFS's ESTALE).
_UNTOLD = os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, 0, 0, 0, 0))

_Entry = tuple[int, str, os.stat_result | None, int, int]  # number, link, status, flags, position
_Socket = tuple[int, int, int, int]  # number, inode, flags, position


def first_sight(pids: Sequence[int]) -> Mapping[int, Seen | OSError]:
    """What `read` may be given of these, without positions; empty where there is no compiler."""
    return walk(pids, _device_of_pipes(), _device_of_sockets())


def read(
    pid: int,
    tables: SocketTables | None = None,
    *,
    positions: bool = True,
    seen: Seen | OSError | None = None,
) -> list[Descriptor]:
    """What `pid` has open, by number. `tables` may be shared among the processes of one snapshot.

    Without `positions`, or with what was `seen` at first sight, flags and positions are left at 0, in a third of the
    time and less. Raises ProcessLookupError or FileNotFoundError when the process is gone, PermissionError when it is
    not ours to see (ptrace(2), "ptrace access mode checking"). A process that reads itself is not shown the walk's own
    descriptors.
    """
    if isinstance(seen, OSError):
        raise seen
    found: list[Descriptor] = []
    sockets: list[_Socket] = []
    again: list[str] | None = None
    if seen is not None:
        found, positions = list(seen.told), False
        sockets = [(fd, inode, 0, 0) for fd, inode in seen.unlisted]
        again = [str(fd) for fd in seen.again]
    for entry in _walk(pid, positions, again):
        fd, link, _, flags, offset = entry
        if link.startswith(_SOCKET):
            sockets.append((fd, int(link[len(_SOCKET) : -1]), flags, offset))
        else:
            found.append(_descriptor(pid, entry))
    watched = {each.fd: _whole_fdinfo(pid, each.fd) for each in found if each.kind in _WATCHERS}
    if sockets:
        # Read after the walk: a table that is older than a socket does not have it.
        table = (tables or SocketTables()).of(pid, {inode for _, inode, _, _ in sockets})
        found += [_socket(pid, each, table) for each in sockets]
    found.sort(key=_number)
    return _with_watches(found, watched) if watched else found


def count(pid: int) -> int:
    """How many descriptors `pid` has open. The same errors as `read`, except on Linux 6.2 and later: anyone may ask.

    There the size of the directory is the number (proc_pid_fd(5)); before, it is 0 and the entries are counted.
    """
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _walk(pid: int, positions: bool, names: Sequence[str] | None = None) -> list[_Entry]:
    """What the kernel tells of every entry, or of those that are named, as it tells it.

    Nothing else is done between the system calls.
    """
    found: list[_Entry] = []
    if names == []:
        return found
    flags = offset = 0
    with _directory(f"/proc/{pid}/fd") as links:
        for name in os.listdir(links) if names is None else names:
            try:
                link = _link(links, name)
                status = None if link.startswith((_SOCKET, _PIPE)) else _status(links, name)
                if positions:
                    flags, offset = _fdinfo(pid, name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed since the listing
            found.append((int(name), link, status, flags, offset))
        if pid == os.getpid():
            found = [entry for entry in found if entry[0] != links]
    return found


def _link(links: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=links)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _TOO_LONG


def _status(links: int, name: str) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=links)
    except (FileNotFoundError, ProcessLookupError):
        raise
    except OSError:
        return _UNTOLD


@cache  # one for all of them, as long as the machine runs
def _device_of_sockets() -> int:
    with socket.socket(socket.AF_UNIX) as one:
        return os.fstat(one.fileno()).st_dev


@cache
def _device_of_pipes() -> int:
    ends = os.pipe()
    try:
        return os.fstat(ends[0]).st_dev
    finally:
        for end in ends:
            os.close(end)


@contextmanager
def _directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fdinfo(pid: int, name: str) -> tuple[int, int]:
    """(flags, position): ``pos:\\t0\\nflags:\\t0100002\\n…``, proc_pid_fdinfo(5)."""
    descriptor = os.open(f"/proc/{pid}/fdinfo/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        position, flags, _ = os.read(descriptor, _FDINFO_BYTES).split(b"\n", 2)
    finally:
        os.close(descriptor)
    return int(flags[6:], 8), int(position[4:])


def _whole_fdinfo(pid: int, fd: int) -> bytes:
    return read_file(f"/proc/{pid}/fdinfo/{fd}") or b""


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


def _descriptor(pid: int, entry: _Entry) -> Descriptor:
    fd, link, status, flags, offset = entry
    if status is None:
        return Descriptor(fd, "pipe", link, _device_of_pipes(), int(link[len(_PIPE) : -1]), flags, offset)
    mode, inode, device, names = status[:4]
    kind = _kind(mode, link)
    if link == _TOO_LONG:
        deleted = names == 0
    else:
        deleted = link.endswith(_DELETED) and (names == 0 or _is_deleted(pid, link, device, inode))
    if deleted:
        link = link.removesuffix(_DELETED)
    target = link if link.isascii() else text(os.fsencode(link))
    return Descriptor(fd, kind, target, device, inode, flags, offset, deleted)


def _socket(pid: int, held: _Socket, table: Table) -> Descriptor:
    fd, inode, flags, offset = held
    link, device = f"{_SOCKET}{inode}]", _device_of_sockets()
    if (known := table.get(inode)) is not None:
        state, local, peer = known.state, known.local, known.peer
        return Descriptor(fd, known.kind, link, device, inode, flags, offset, False, state, local, peer)
    kind, state = _unlisted_socket(pid, fd)
    return Descriptor(fd, kind, link, device, inode, flags, offset, False, state)


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


def _kind(mode: int, link: str) -> str:
    if stat.S_ISREG(mode) and link[0] == "/":
        return "memfd" if link.startswith("/memfd:") else "file"
    if link.startswith(("anon_inode:", "pidfd:")):
        word = link.removeprefix("anon_inode:").strip("[]").partition(":")[0]
        return word if word in _ANONYMOUS_KINDS else "other"
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "device"
    if stat.S_ISREG(mode) and link.startswith(("(unreachable)", _TOO_LONG)):
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

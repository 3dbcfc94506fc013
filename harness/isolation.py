"""A network of its own for a run: its ports clash with nobody's, and nothing in it can leave the machine.

Owns: the network namespace that this process is moved to (network_namespaces(7)), with its loopback up. Whatever is
started afterwards is in it too; files, users and processes stay those of the host. Never: moves a process that has
threads, of which the kernel would leave the others behind.

Root needs CAP_SYS_ADMIN. Anybody else gets a user namespace along with it, in which he is who he is outside
(user_namespaces(7)); who he is not, nobody below him can become there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # unshare(2)
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # netdevice(7)
_IFF_UP = 1
_IFREQ = struct.Struct("16sh22x")

_own = False


class IsolationError(Exception):
    """This process cannot have a network of its own; says why and what would help."""


def is_isolated() -> bool:
    """Whether `isolate` has moved this process."""
    return _own


def isolate() -> None:
    """Raises IsolationError; then nothing has changed."""
    global _own
    if _own:
        return
    if threading.active_count() > 1:
        raise IsolationError("this process has threads already, which would stay behind")
    user, group = os.geteuid(), os.getegid()
    as_root = user == 0
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET if as_root else CLONE_NEWNET | CLONE_NEWUSER):
        raise IsolationError(_why_not(ctypes.get_errno(), as_root=as_root))
    _own = True
    if not as_root:
        Path("/proc/self/setgroups").write_text("deny")  # else the kernel takes no gid_map of ours
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _raise_loopback()


def _raise_loopback() -> None:
    with socket.socket() as sock:
        name, flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _why_not(number: int, *, as_root: bool) -> str:
    why = f"no network namespace for this run: {os.strerror(number)}"
    if as_root:
        return f"{why}; root lacks CAP_SYS_ADMIN here (in a container: `--cap-add SYS_ADMIN`); or leave out --isolate"
    return (
        f"{why}; user namespaces are switched off (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns); run it as root, or leave out --isolate"
    )

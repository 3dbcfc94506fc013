"""A network of its own for a run: its ports clash with nobody's, and nothing in it can reach beyond this machine.

Owns: the network namespace that this process is moved to (network_namespaces(7)), with its loopback up. Whatever is
started afterwards is in it too; files, users and processes stay those of the host. Never: moves a process that has
threads, of which the kernel would leave the others behind.

Root needs CAP_SYS_ADMIN and CAP_NET_ADMIN. Anybody else gets a user namespace along with it, in which he is who he is
outside (user_namespaces(7)); whoever else he could become, by sudo(8) for one, he cannot there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # unshare(2)
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # netdevice(7)
_IFF_UP = 1
_IFREQ = struct.Struct("16sh22x")

_is_own = False


class IsolationError(OSError):
    """This process cannot have a network of its own; says why and what would help."""


def is_isolated() -> bool:
    """Whether `isolate` has moved this process."""
    return _is_own


def settle(wanted: bool | None, *, by_default: bool = True, outside: str = "") -> None:
    """Do what the command line wants; where it wants nothing, isolate by default, if that is permitted.

    `outside`: the option that needs the host's network. Raises IsolationError for what is wanted and cannot be.
    """
    if wanted and outside:
        raise IsolationError(f"--isolate: {outside} needs the host's network; leave out one of the two")
    if outside or not (by_default if wanted is None else wanted):
        return
    try:
        isolate()
    except IsolationError:
        if wanted:
            raise


def isolate() -> None:
    """May be called twice. Raises IsolationError; then nothing has changed."""
    global _is_own
    if _is_own:
        return
    if len(os.listdir("/proc/self/task")) > 1:
        raise IsolationError("--isolate: this process has threads already, which would stay behind")
    # A child tries it first: of what fails half way, nobody could go back.
    child = os.fork()
    if child == 0:
        status = 255
        try:
            _enter()
            status = 0
        except OSError as error:
            status = error.errno or status
        finally:
            os._exit(status)
    if number := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise IsolationError(_why_not(number))
    _enter()
    _is_own = True


def _enter() -> None:
    """Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET if user == 0 else CLONE_NEWNET | CLONE_NEWUSER):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")  # else the kernel takes no gid_map of ours
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket() as sock:
        name, flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _why_not(number: int) -> str:
    why = f"--isolate: no network namespace can be had here ({os.strerror(number)})"
    if os.geteuid() == 0:
        return f"{why}: root lacks CAP_SYS_ADMIN or CAP_NET_ADMIN (in a container: `--cap-add SYS_ADMIN`)"
    return (
        f"{why}: user namespaces are switched off (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns); run it as root, or without --isolate"
    )

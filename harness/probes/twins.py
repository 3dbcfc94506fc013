"""twins: which descriptors are one open file: copies by dup(2), inherited by a child, or passed over a socket.

Two descriptors of the same file may have been opened twice, or be two names of one opening, which share position and
flags and must all be closed before the file is. kcmp(2) tells them apart. Owns: the system call. Never: judges.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from reports.record import Process

KCMP_FILE = 0
_NUMBERS = {"x86_64": 312, "aarch64": 272}  # of the system call; glibc has no function for it


class Holder(NamedTuple):
    pid: int
    fd: int


def twins(processes: Iterable[Process]) -> dict[Holder, list[Holder]]:
    """For each descriptor that is not alone: the others of the same open file, in order.

    Empty where kcmp(2) cannot be had (another architecture, a kernel without it), or is not permitted (ptrace(2)).
    """
    same_inode: defaultdict[tuple[int, int], list[Holder]] = defaultdict(list)
    for process in processes:
        for descriptor in process.descriptors:
            same_inode[descriptor.device, descriptor.inode].append(Holder(process.pid, descriptor.fd))
    found: dict[Holder, list[Holder]] = {}
    try:
        for holders in same_inode.values():
            for group in _groups(holders):
                for holder in group:
                    found[holder] = [other for other in group if other != holder]
    except OSError:
        return {}
    return found


def _groups(holders: list[Holder]) -> list[list[Holder]]:
    """Those that are one open file, where there are more than one. The kernel orders them, so that sorting finds them.

    Raises OSError.
    """
    if len(holders) < 2:
        return []
    ordered = sorted(holders, key=functools.cmp_to_key(_compare))
    groups = [[ordered[0]]]
    for before, holder in pairwise(ordered):
        if _compare(before, holder) == 0:
            groups[-1].append(holder)
        else:
            groups.append([holder])
    return [sorted(group) for group in groups if len(group) > 1]


def _compare(one: Holder, other: Holder) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(f"kcmp: its number on {platform.machine()} is not known here")
    result: int = _libc().syscall(number, one.pid, other.pid, KCMP_FILE, one.fd, other.fd)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return {0: 0, 1: -1}.get(result, 1)  # 1: less, 2: greater


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

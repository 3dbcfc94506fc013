"""walk: ``/proc/PID/fd`` of many processes, the sockets in it, and their memory, in C (`walk.c`, `sockets.c`).

A system call from Python takes twice what the kernel takes for it, and a walk is little else; and what is asked of one
process does not wait for what is asked of another, so that it is done on as many cores as there are
(`benchmarks/probes.py`). Owns: loading the library, and the errors of its calls. Never: looks a second time at what it
left unclassified; `descriptors` does, and all of it where there is no library.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from harness.compiled import NativeError, library
from reports.record import Descriptor

logger = logging.getLogger(__name__)


class Seen(msgspec.Struct, array_like=True, gc=False):
    """What is told of one process at first sight."""

    told: list[Descriptor]
    unlisted: list[tuple[int, int]]  # numbers and inodes of sockets that our network namespace's tables do not tell
    again: list[int]  # numbers of what is to be looked at again
    rollup: bytes  # smaps_rollup; none where it cannot be read


_THEIRS = frozenset({errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM})  # errors that would be the same again
_decoder: msgspec.msgpack.Decoder[Seen] = msgspec.msgpack.Decoder(Seen)


def walk(pids: Sequence[int], device_of_pipes: int, device_of_sockets: int) -> Mapping[int, Seen | OSError]:
    """What these have open, or what `descriptors.read` is to raise of a process that is gone or not ours to see.

    Those are missing for whom there were too few descriptors or too little memory here, and all without the library.
    """
    functions = _functions()
    if functions is None or not pids:
        return {}
    cores = len(os.sched_getaffinity(0))
    packed = array("i", pids).tobytes()
    walked = functions.seatbelt_walk(packed, len(pids), cores, device_of_pipes, device_of_sockets)
    if not walked:
        return {}
    found: dict[int, Seen | OSError] = {}
    message = ctypes.c_void_p()
    try:
        for each, pid in enumerate(pids):
            length = functions.seatbelt_told(walked, each, ctypes.byref(message))
            if length > 0:
                found[pid] = _decoder.decode(ctypes.string_at(message, length))
            elif -length in _THEIRS:
                found[pid] = OSError(-length, os.strerror(-length), f"/proc/{pid}/fd")
    finally:
        functions.seatbelt_forget(walked)
    return found


@cache
def _functions() -> ctypes.CDLL | None:
    here = Path(__file__).parent
    try:
        functions = ctypes.CDLL(str(library(here / "walk.c", here / "sockets.c", here / "walk.h")))
    except (NativeError, OSError) as error:
        logger.info("processes are looked at from Python, which takes longer: %s", error)
        return None
    functions.seatbelt_walk.argtypes = (
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_uint64,
    )
    functions.seatbelt_walk.restype = ctypes.c_void_p
    functions.seatbelt_told.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    functions.seatbelt_told.restype = ctypes.c_long
    functions.seatbelt_forget.argtypes = (ctypes.c_void_p,)
    functions.seatbelt_forget.restype = None
    return functions

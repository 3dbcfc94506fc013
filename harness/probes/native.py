"""native: the walk of ``/proc/PID/fd``, and of the sockets in it, in C (`native.c`).

A system call from Python takes twice what the kernel takes for it, and a walk is little else (`benchmarks/probes.py`).
Owns: loading the library, and the errors of its calls. Never: looks a second time at what it left unclassified;
`descriptors` does, and all of it where there is no library.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import msgspec

from harness.compiled import NativeError, library
from reports.record import Descriptor

logger = logging.getLogger(__name__)

# What is fully told; numbers and inodes of sockets that are in no table; numbers of what is to be looked at again.
Seen = tuple[list[Descriptor], list[tuple[int, int]], list[int]]

_FIRST_BYTES = 1 << 16  # enough for some 400 descriptors
_decoder: msgspec.msgpack.Decoder[Seen] = msgspec.msgpack.Decoder(Seen)


class Tables:
    """The kernel's tables of sockets in our own network namespace, as far as they were needed yet."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._functions = functions
        self._tables = functions.seatbelt_tables()
        if not self._tables:
            raise MemoryError

    def walk(self, pid: int, device_of_pipes: int, device_of_sockets: int, *, ours: bool) -> Seen:
        """What `pid` has open; `ours` says that it lives in our network namespace. One thread at a time.

        Raises OSError with the kernel's error number: what `descriptors.read` raises, or MemoryError's ENOMEM.
        """
        tables = self._tables if ours else None
        size = _FIRST_BYTES
        while True:
            out = bytearray(size)  # an array of ctypes' has a type of its own, and who looks at himself would count it
            into = ctypes.byref(ctypes.c_char.from_buffer(out))
            length = self._functions.seatbelt_walk(pid, device_of_pipes, device_of_sockets, tables, into, size)
            if length > 0:
                return _decoder.decode(memoryview(out)[:length])
            if length < 0:
                raise OSError(-length, os.strerror(-length), f"/proc/{pid}/fd")
            size *= 4

    def __del__(self) -> None:
        self._functions.seatbelt_forget(self._tables)


def tables() -> Tables | None:
    """None where the library cannot be had."""
    functions = _functions()
    return Tables(functions) if functions is not None else None


@cache
def _functions() -> ctypes.CDLL | None:
    try:
        functions = ctypes.CDLL(str(library(Path(__file__).with_name("native.c"))))
    except (NativeError, OSError) as error:
        logger.info("processes are looked at from Python, which takes longer: %s", error)
        return None
    functions.seatbelt_tables.restype = ctypes.c_void_p
    functions.seatbelt_forget.argtypes = (ctypes.c_void_p,)
    functions.seatbelt_forget.restype = None
    walk = functions.seatbelt_walk
    walk.argtypes = (
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
    )
    walk.restype = ctypes.c_long
    return functions

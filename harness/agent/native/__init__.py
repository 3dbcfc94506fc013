"""The agent for programs that are no Python: two small C libraries, preloaded (ld.so(8)), compiled when first needed.

`meter.c` counts the bytes that malloc(3) has given out; it costs some nanoseconds an allocation and is loaded in every
run. `tracker.c` writes down where descriptors, children and threads are made; it costs a microsecond or two each, and
is loaded only in the second run, after a finding. Neither needs an answer from the process: both write into files of
the meeting place (`harness.agent`) which the harness makes, and can read at any time:

    heap           slots for processes: `SLOT`, one each
    log            events, in the order in which they began: `HEADER`, then one `EVENT` each
    maps.N         /proc/self/maps of the program whose beginning is event N

A program that is linked statically, is set-user-id (ld.so(8), "secure-execution mode"), or whose libraries cannot be
read by its user does not load them, and does not show up in the files.

Owns: the files' layout, the environment. Never: reads them (`harness.probes.meter`, `harness.tracing`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from struct import Struct

from harness import compiled
from harness.compiled import NativeError

METER_VARIABLE = "SEATBELT_METER"
TRACKER_VARIABLE = "SEATBELT_TRACKER"

HEAP, LOG, MAPS = "heap", "log", "maps"  # files of the meeting place
SLOT = Struct("=qqqq")  # pid, taken (ns on CLOCK_BOOTTIME), bytes, allocations so far
SLOTS = 4096
FRAMES = 18
HEADER = Struct("=QQ160x")  # next place, places
EVENT = Struct(f"=iiiiQQ{FRAMES}Q")  # what, pid, number, unused, device, inode, return addresses
PLACES = 1 << 18  # 46 MB, of which only what is written takes memory


def environment(directory: Path, base: Mapping[str, str], *, traced: bool = False) -> dict[str, str]:
    """A whole environment: `base`, and what loads the meter, and if `traced` the tracker, into every program.

    Where they cannot be had (`missing` says why) it is `base` alone. `directory` must exist; the files are made in it.
    Raises OSError when they cannot be made.
    """
    if missing():
        return dict(base)
    libraries = [library("meter")]
    added = {METER_VARIABLE: str(_made(directory / HEAP, bytes(SLOTS * SLOT.size)))}
    if traced:
        libraries.insert(0, library("tracker"))  # the last is begun first: what the meter opens is not written down
        log = _made(directory / LOG, HEADER.pack(0, PLACES))
        with log.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, HEADER.size + PLACES * EVENT.size)  # a full disk is found out here
        added[TRACKER_VARIABLE] = str(directory.resolve())
    preloaded = [str(path) for path in libraries] + base.get("LD_PRELOAD", "").split()
    return {**base, "LD_PRELOAD": ":".join(preloaded), **added}


def missing() -> str:
    """Why the libraries cannot be had here; empty when they can."""
    try:
        library("meter"), library("tracker")
    except NativeError as error:
        return str(error)
    return ""


def library(name: str) -> Path:
    """`meter` or `tracker`. Raises NativeError."""
    built = compiled.library(Path(__file__).with_name(f"{name}.c"))
    if any(character in str(built) for character in " :"):
        raise NativeError(f"{built}: ld.so takes no path with a blank or a colon; set SEATBELT_CACHE to another")
    return built


def _made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o666)  # the target's processes may be another user's
    return path.resolve()

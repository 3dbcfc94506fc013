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

Owns: compiling, the files' layout, the environment. Never: reads them (`harness.probes.meter`, `harness.tracing`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from struct import Struct

from harness.cache import cache_directory

METER_VARIABLE = "SEATBELT_METER"
TRACKER_VARIABLE = "SEATBELT_TRACKER"
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-shared", "-fPIC", "-O2", "-g", "-pthread")
TIMEOUT_S = 60.0

HEAP, LOG, MAPS = "heap", "log", "maps"  # files of the meeting place
SLOT = Struct("=qqqq")  # pid, taken (ns on CLOCK_BOOTTIME), bytes, allocations so far
SLOTS = 4096
FRAMES = 18
HEADER = Struct("=QQ160x")  # next place, places
EVENT = Struct(f"=iiiiQQ{FRAMES}Q")  # what, pid, number, unused, device, inode, return addresses
PLACES = 1 << 18  # 46 MB, of which only what is written takes memory


class NativeError(Exception):
    """The libraries cannot be had here; one line says why, and what would help."""


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


@cache
def library(name: str) -> Path:
    """`meter` or `tracker`, from the cache or compiled into it. Raises NativeError."""
    source = Path(__file__).with_name(f"{name}.c")
    text = source.read_bytes()
    what = hashlib.sha256(b"\0".join((text, " ".join(FLAGS).encode(), platform.machine().encode()))).hexdigest()[:16]
    built = cache_directory().resolve() / "native" / f"{name}-{what}.so"
    if any(character in str(built) for character in " :"):
        raise NativeError(f"{built}: ld.so takes no path with a blank or a colon; set SEATBELT_CACHE to another")
    if not built.exists():
        _compile(source, built)
    return built


def _compile(source: Path, built: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeError(f"no C compiler to build {source.name} with: install gcc")
    partial = built.with_name(f"{built.name}.{os.getpid()}")  # whoever sees it under its own name sees it whole
    command = [compiler, *FLAGS, "-o", str(partial), str(source), "-ldl"]
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
            raise NativeError(f"{compiler} cannot build {source.name}: {said}")
        partial.rename(built)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{source.name}: cannot be built: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o666)  # the target's processes may be another user's
    return path.resolve()

"""The preloaded tracker: reads its log (`harness/agent/native/tracker.c`), also of processes that have ended.

Owns: what an address meant in the program that ran when it was written down. Never: asks a process anything.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from harness.agent.native import EVENT, HEADER, LOG, MAPS
from harness.probes.processes import read_file
from harness.tracing import Trace
from harness.tracing.history import Event, Frames, History, Kind
from harness.tracing.symbols import Frame, Symbols
from reports.record import Process

BEGAN, FORKED = 1, 2
_KINDS: dict[int, Kind] = {  # `enum what`
    FORKED: "forked",
    3: "child",
    4: "thread",
    5: "opened",
    6: "created",
    7: "received",
    8: "passed",
}
_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +(/.*)$", re.MULTILINE)  # proc_pid_maps(5)
_OURS = re.compile(r"/(?:tracker|meter)-[0-9a-f]+\.so$")


class Tracker:
    name = "the LD_PRELOAD tracker"

    def __init__(self, directory: Path, root: Path = Path("/")) -> None:
        """`directory` is where agent and harness meet; `root` is where the target's paths begin."""
        self._directory = directory
        self._symbols = Symbols(root)

    def reached(self, pids: Iterable[int]) -> set[int]:
        return {pid for what, pid, *_ in self._log() if what in (BEGAN, FORKED)} & set(pids)

    def traces(self, processes: Sequence[Process]) -> dict[int, Trace]:
        reached = self.reached(process.pid for process in processes)
        told = [process for process in processes if process.pid in reached]
        return History(list(self._events(reached))).traces(told, self._symbols)

    def _log(self) -> Iterator[tuple[int, ...]]:
        try:
            with (self._directory / LOG).open("rb") as log:
                reserved, places = HEADER.unpack(log.read(HEADER.size))
                yield from EVENT.iter_unpack(log.read(min(reserved, places) * EVENT.size))
        except FileNotFoundError:
            return  # no tracker was loaded

    def _events(self, alive: Collection[int]) -> Iterator[Event]:
        programs: dict[int, Program] = {}  # by pid, as of the event in hand
        last = {pid: place for place, (what, pid, *_) in enumerate(self._log()) if what == BEGAN}
        for place, (what, pid, number, _, device, inode, *addresses) in enumerate(self._log()):
            if what == BEGAN:
                with_later_libraries = pid in alive and place == last[pid]
                programs[pid] = Program(self._maps(place, pid if with_later_libraries else None))
            elif what in _KINDS:
                if what == FORKED and number in programs:
                    programs[pid] = programs[number]
                frames = programs[pid].frames(addresses) if pid in programs else ()
                yield Event(_KINDS[what], pid, number, (device, inode), frames)

    def _maps(self, place: int, pid: int | None) -> bytes:
        kept = self._directory / f"{MAPS}.{place}"
        then = kept.read_bytes() if kept.exists() else b""  # where the target's user may not write there is none
        return then + ((read_file(f"/proc/{pid}/maps") or b"") if pid is not None else b"")


class Program:
    """What its addresses mean."""

    def __init__(self, maps: bytes) -> None:
        found = sorted(
            (int(start, 16), int(end, 16), int(offset, 16), path.decode(errors="replace").removesuffix(" (deleted)"))
            for start, end, offset, path in _MAPPING.findall(maps)
        )
        self._starts = [start for start, *_ in found]
        self._mappings = found
        self._known: dict[int, Frame | None] = {}

    def frames(self, addresses: Sequence[int]) -> Frames:
        """Of those that are in a file, without the tracker's own."""
        found = (self._frame(address) for address in addresses if address)
        return tuple(frame for frame in found if frame is not None and not _OURS.search(frame.module))

    def _frame(self, address: int) -> Frame | None:
        if address not in self._known:
            at = bisect_right(self._starts, address) - 1
            start, end, offset, path = self._mappings[at] if at >= 0 else (0, 0, 0, "")
            self._known[address] = Frame(path, address - start + offset) if start <= address < end else None
        return self._known[address]

"""sampler: descriptor count and memory of every process, several times a second, under load.

Owns: one thread, and one descriptor per process (its ``statm``) while it runs. Never: reads what a descriptor is.

Memory is bounded: when `max_rows` are held, of every two successive readings of a process only the one with more
descriptors stays (then the one with more memory), and from then on half as many are taken. So peaks survive, and every
row remains a true reading.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from harness.probes import descriptors
from reports.record import Samples

MAX_ROWS = 20_000  # about 4 MB; eight processes at 10 Hz fill it in four minutes
REFRESH_S = 1.0  # how often it is asked which processes there are

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM_BYTES = 128

Row = tuple[float, int, int, int]


class Sampler:
    """`pids` says whom to read, `clock` what a row's time is. A context manager: starts on entry, stops on exit."""

    def __init__(
        self,
        pids: Callable[[], Sequence[int]],
        hz: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        max_rows: int = MAX_ROWS,
    ) -> None:
        if hz <= 0 or max_rows < 2:
            raise ValueError(f"hz is {hz} and max_rows {max_rows}; they must be above 0 and at least 2")
        self.cpu_s = 0.0  # of the sampling thread
        self._pids = pids
        self._clock = clock
        self._interval_s = 1 / hz
        self._max_rows = max_rows
        self._rows: list[Row] = []
        self._statm: dict[int, int] = {}  # pid -> descriptor
        self._refresh_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample. A sampler starts once: RuntimeError on a second call."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples and close every descriptor. May be called again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def samples(self) -> Samples:
        """What has been read so far, in the order of time."""
        return Samples(rows=list(self._rows))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ---- in the thread

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while True:
                self._read_all()
                self.cpu_s = time.thread_time()
                due = max(due + self._interval_s, time.monotonic())  # readings that came too late are not made up for
                if self._stopping.wait(due - time.monotonic()):
                    return
        finally:
            for statm in self._statm.values():
                os.close(statm)
            self._statm.clear()

    def _read_all(self) -> None:
        now = time.monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_S
            self._follow(self._pids())
        t = self._clock()
        for pid, statm in list(self._statm.items()):
            try:
                resident_pages = int(os.pread(statm, _STATM_BYTES, 0).split()[1])
                self._rows.append((t, pid, descriptors.count(pid), resident_pages * _PAGE_BYTES))
            except (FileNotFoundError, ProcessLookupError):
                os.close(self._statm.pop(pid))
                self._refresh_at = 0.0  # one ended; another may have taken its place
            except PermissionError:
                # Not ours to count before Linux 6.2, and on any a zombie, which is root's: until it is asked for again.
                os.close(self._statm.pop(pid))
        if len(self._rows) >= self._max_rows:
            self._rows = thinned(self._rows)
            self._interval_s *= 2

    def _follow(self, pids: Sequence[int]) -> None:
        for gone in self._statm.keys() - set(pids):
            os.close(self._statm.pop(gone))
        for pid in pids:
            if pid not in self._statm:
                try:
                    self._statm[pid] = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
                except (FileNotFoundError, ProcessLookupError):
                    continue


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Of every two successive readings of a process the one with more descriptors, or of equals with more memory."""
    by_pid: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_pid[row[1]].append(row)
    kept = [
        max(readings[at : at + 2], key=lambda row: row[2:])
        for readings in by_pid.values()
        for at in range(0, len(readings), 2)
    ]
    return sorted(kept)

"""live: a run as it goes, for the Seatbelt page: what each process holds now, what was found so far, what comes next.

Owns: the board, and the thread that looks twice a second. Never: changes the run; its verdict so far is the run's own
detectors', asked after every dose.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.detectors import verdict
from harness.load import board as boards
from harness.load.board import Board, DoseLine, Line, Seen
from harness.probes.glance import Glance, glance
from harness.run.design import Progress
from reports import terminal
from reports.record import Dose, Finding, RunRecord

LOOK_S = 0.5
MOST_TIMES = 240  # then every other one goes, and half as many come


class Live:
    """An observer (harness.run.design.Observer) and a progress; a context manager. Without a `path` for the board there
    is nobody to look, and nothing to do. `on_page` is told the page's URL when there is one.
    """

    def __init__(self, path: Path | None, show: Progress, on_page: Callable[[str], None] = lambda url: None) -> None:
        self._path = path
        self._show = show
        self._on_page = on_page
        self._board = Board()
        self._lock = threading.Lock()  # of the board
        self._pids: Callable[[], Sequence[int]] = tuple
        self._began = time.monotonic()
        self._every = 1  # looks for a reading that is kept
        self._looks = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="live", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def progress(self, text: str, done: int, planned: int) -> None:
        self._show(text, done, planned)
        with self._lock:
            self._board.doing, self._board.done, self._board.planned = text, done, planned
        if not self._thread.is_alive():
            self._write()

    def began(self, record: RunRecord, pids: Callable[[], Sequence[int]], page: str) -> None:
        if self._path is None:
            return
        self._pids = pids
        with self._lock:
            board = self._board
            board.scenario, board.unit = record.scenario, record.judgement.unit
            defects = f" with {', '.join(record.target.defects)}" if record.target.defects else ""
            board.target = f"{record.target.name} {record.target.version}{defects}".strip()
        self._thread.start()
        if page:
            self._on_page(page)

    def rested(self, record: RunRecord) -> None:
        if self._path is None:
            return
        found = [seen(finding) for finding in verdict.judge(record).findings]
        with self._lock:
            self._board.findings = found
            self._board.doses.append(dose_line(record.doses[-1]))

    def ended(self, record: RunRecord, kept: Path) -> None:
        """The verdict; nothing changes any more."""
        self.close()
        board = self._board
        board.findings = [seen(finding) for finding in record.findings]
        board.verdict, board.headline = record.verdict, str(terminal.headline(record))
        board.reasons, board.record = list(record.reasons), str(kept.resolve())
        board.doing = "the run is over"
        self._write()

    def close(self) -> None:
        """Look no more. May be called twice, and before anything began."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    # ---- in the thread

    def _look_on(self) -> None:
        while not self._ending.wait(LOOK_S):
            now = time.monotonic() - self._began
            glances = glance(self._pids())
            with self._lock:
                self._add(round(now, 1), glances)
            self._write()

    def _add(self, now: float, glances: Sequence[Glance]) -> None:
        """One more reading. The newest is always there, and of those before it every so many. Who is gone is gone,
        unless all are: when the target has been stopped, what it held at the last is still to be seen.
        """
        if not glances:
            return
        board = self._board
        lines = {line.pid: line for line in board.processes}
        if self._looks % self._every:
            _drop(board, slice(-1, None))
        self._looks += 1
        for each in glances:
            line = lines.get(each.pid) or _new_line(each, len(board.times))
            line.role = each.role
            line.descriptors.append(each.descriptors)
            line.sockets.append(each.sockets)
            line.rss.append(each.rss)
            lines[each.pid] = line
        board.times.append(now)
        board.processes = [lines[each.pid] for each in glances]
        if len(board.times) > MOST_TIMES:
            _drop(board, slice(1, None, 2))
            self._every *= 2

    def _write(self) -> None:
        if self._path is None:
            return
        with self._lock:
            boards.write(self._board, self._path)


def stay() -> None:
    """The run is over and its page still there: until Ctrl-C."""
    print("the page stays until Ctrl-C", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _new_line(of: Glance, late_by: int) -> Line:
    """Of a process that was not there at so many readings."""
    return Line(of.pid, of.role, [None] * late_by, [None] * late_by, [None] * late_by)


def _drop(board: Board, which: slice) -> None:
    del board.times[which]
    for line in board.processes:
        for series in (line.descriptors, line.sockets, line.rss):
            del series[which]


def seen(finding: Finding) -> Seen:
    title = f"{finding.resource}: {finding.label}{f' in {finding.role}' if finding.role else ''}"
    rate = ""
    if finding.high > 0:
        low, high = terminal.number(finding.low), terminal.number(finding.high)
        rate = f"{terminal.number(finding.rate)} for each {finding.unit} ({low} to {high})"
    return Seen(title, finding.message, rate, finding.first_dose + 1)


def dose_line(dose: Dose) -> DoseLine:
    held = sum(len(process.descriptors) for process in dose.snapshot.processes)
    return DoseLine(dose.phase, dose.units, round(dose.ended - dose.began, 2), round(dose.drained_s, 2), held)

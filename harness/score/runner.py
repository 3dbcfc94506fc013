"""runner: makes the runs, a few at a time, each a `seatbelt run` of its own, and compares them with the truth.

Owns: the processes of the runs, and their scratch directory. A run that gives no verdict is a row too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from harness.score import outcome
from harness.score.cases import Case
from reports.record import RecordError, load
from reports.score import Row

RUN_TIMEOUT_S = 600.0

Done = Callable[[Row], None]


def run(cases: Sequence[Case], jobs: int, done: Done, keep: Path | None = None) -> list[Row]:
    """A row for each case, in the cases' order. `done` is called for each as it ends; `keep` gets the run records.

    After Ctrl-C there are fewer: of the runs that had ended by then. Those under way are ended, and their processes.
    """
    rows: dict[int, Row] = {}
    runs = _Runs()
    with tempfile.TemporaryDirectory(prefix="seatbelt-score-") as scratch:
        pool = ThreadPoolExecutor(jobs)
        try:
            waiting = {
                pool.submit(_one, case, Path(scratch) / f"{number}", keep, runs): number
                for number, case in enumerate(cases)
            }
            for future in as_completed(waiting):
                rows[waiting[future]] = future.result()
                done(rows[waiting[future]])
        except KeyboardInterrupt:
            runs.end()
        finally:
            pool.shutdown(cancel_futures=True)
    return [rows[number] for number in sorted(rows)]


class _Runs:
    """The runs under way."""

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def finish(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Raises subprocess.TimeoutExpired."""
        with self._lock:
            # A session of its own: Ctrl-C in the terminal is for us, who pass it on once.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._children.add(child)
            if self._ended:
                child.terminate()
        try:
            out, error = child.communicate(timeout=RUN_TIMEOUT_S)
        finally:
            child.kill()  # of no effect on one that has ended
            child.communicate()
            with self._lock:
                self._children.discard(child)
        return subprocess.CompletedProcess(command, child.returncode, out, error)

    def end(self) -> None:
        """Each stops what it has started, and ends."""
        with self._lock:
            self._ended = True
            for child in self._children:
                child.terminate()


def _one(case: Case, directory: Path, keep: Path | None, runs: _Runs) -> Row:
    directory.mkdir()
    record = directory / "record.json" if keep is None else keep / f"{case.name.replace(' ', '-')}.json"
    began = time.monotonic()
    command = [sys.executable, "-m", "harness.cli", *_arguments(case, record, directory / "runs")]
    try:
        finished = runs.finish(command)
    except subprocess.TimeoutExpired:
        return outcome.failed(case, f"no verdict within {RUN_TIMEOUT_S:.0f} s", RUN_TIMEOUT_S)
    seconds = time.monotonic() - began
    try:
        return outcome.row(case, load(record), seconds)
    except RecordError:
        said = finished.stderr.strip().splitlines()
        return outcome.failed(case, said[-1] if said else f"exit status {finished.returncode}", seconds)


def _arguments(case: Case, record: Path, runs: Path) -> Iterator[str]:
    yield from ("run", case.scenario, "--quiet", "--profile", case.profile, "--seed", str(case.seed))
    yield from ("--record", str(record), "--runs", str(runs))
    if case.defect is not None:
        yield from ("--defect", case.defect.name)

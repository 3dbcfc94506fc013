"""runner: makes the runs, a few at a time, each a `seatbelt run` of its own, and compares them with the truth.

Owns: the processes of the runs, and their scratch directory. A run that gives no verdict is a row too.

The processes are forked from one that has imported what they need (multiprocessing's fork server): to import it anew
takes a second of processor time, a quarter of what a short run takes in all.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from harness.score import outcome
from harness.score.cases import Case, haste
from reports.record import RecordError, load
from reports.score import Row

RUN_TIMEOUT_S = 600.0
IMPORTED = [  # what cannot be found is left out, and costs its time in each run
    "harness.cli",
    "harness.commands.running",
    "harness.targets.embedded",
    "mta_under_test.defects",
    "scipy.special",
    "typer._adapters",  # typer imports pydantic when it has read an option
]

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
                for number, case in sorted(enumerate(cases), key=lambda numbered: haste(numbered[1]))
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
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(IMPORTED)
        self._processes: set[ForkServerProcess] = set()
        self._lock = threading.Lock()
        self._ended = False

    def finish(self, arguments: Sequence[str], said: Path) -> int:
        """The exit status of `seatbelt` with these arguments; `said` gets its standard error. Raises TimeoutError."""
        process = self._context.Process(target=_seatbelt, args=(arguments, said))
        with self._lock:
            process.start()
            self._processes.add(process)
            if self._ended:
                process.terminate()
        try:
            process.join(RUN_TIMEOUT_S)
            if process.exitcode is None:
                raise TimeoutError
            return process.exitcode
        finally:
            process.kill()  # of no effect on one that has ended
            process.join()
            with self._lock:
                self._processes.discard(process)

    def end(self) -> None:
        """Each stops what it has started, and ends."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.terminate()


def _seatbelt(arguments: Sequence[str], said: Path) -> None:
    """Of a process of its own: become that command."""
    os.setsid()  # Ctrl-C in the terminal is for the score, which passes it on once
    nothing = os.open(os.devnull, os.O_WRONLY)
    told = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    os.dup2(nothing, 1)
    os.dup2(told, 2)
    os.close(nothing)
    os.close(told)
    sys.argv = ["seatbelt", *arguments]
    runpy.run_module("harness.cli", run_name="__main__")


def _one(case: Case, directory: Path, keep: Path | None, runs: _Runs) -> Row:
    directory.mkdir()
    record = directory / "record.json" if keep is None else keep / f"{case.name.replace(' ', '-')}.json"
    said = directory / "stderr"
    began = time.monotonic()
    try:
        status = runs.finish(list(_arguments(case, record, directory / "runs")), said)
    except TimeoutError:
        return outcome.failed(case, f"no verdict within {RUN_TIMEOUT_S:.0f} s", RUN_TIMEOUT_S)
    seconds = time.monotonic() - began
    try:
        return outcome.row(case, load(record), seconds)
    except RecordError:
        lines = said.read_text(errors="replace").strip().splitlines() if said.exists() else []
        return outcome.failed(case, lines[-1] if lines else f"exit status {status}", seconds)


def _arguments(case: Case, record: Path, runs: Path) -> Iterator[str]:
    yield from ("run", case.scenario, "--quiet", "--profile", case.profile, "--seed", str(case.seed))
    yield from ("--record", str(record), "--runs", str(runs))
    if case.defect is not None:
        yield from ("--defect", case.defect.name)

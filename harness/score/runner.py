"""runner: makes the runs, a few at a time, each a `seatbelt run` of its own, and compares them with the truth.

Owns: the processes of the runs, and their scratch directory. A run that gives no verdict is a row too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
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
    """A row for each case, in the cases' order. `done` is called for each as it ends; `keep` gets the run records."""
    rows: dict[int, Row] = {}
    with tempfile.TemporaryDirectory(prefix="seatbelt-score-") as scratch:
        pool = ThreadPoolExecutor(jobs)
        try:
            waiting = {
                pool.submit(_one, case, Path(scratch) / f"{number}", keep): number for number, case in enumerate(cases)
            }
            for future in as_completed(waiting):
                rows[waiting[future]] = future.result()
                done(rows[waiting[future]])
        finally:
            pool.shutdown(cancel_futures=True)
    return [rows[number] for number in sorted(rows)]


def _one(case: Case, directory: Path, keep: Path | None) -> Row:
    directory.mkdir()
    record = directory / "record.json" if keep is None else keep / f"{case.name.replace(' ', '-')}.json"
    began = time.monotonic()
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "harness.cli", *_arguments(case, record, directory / "runs")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
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

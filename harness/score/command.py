"""command: `seatbelt score`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness import __version__, scenario
from harness.commands import keeping
from harness.interruption import terminated_as_interrupted
from harness.score import runner
from harness.score.cases import cases
from mta_under_test import defects
from reports import score as report
from reports.record import RecordError

PASSED, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 3


def run(
    only: str,
    clean: int,
    jobs: int | None,
    seed: int,
    record: Path | None,
    html: Path | None,
    keep: Path | None,
    *,
    resume: bool = False,
) -> int:
    """Returns the exit status. `resume`: runs that the score in `record` has already are not made again."""
    jobs = jobs or len(os.sched_getaffinity(0))
    chosen = cases(defects.every().values(), scenario.names(), only=only, clean=clean, seed=seed)
    if not chosen:
        print(f"seatbelt: no defect and no scenario is called {only!r}", file=sys.stderr)
        return USAGE
    try:
        if resume and record is None:
            raise RecordError("--resume goes on with the score in --record FILE.json: which one?")
        earlier = report.load(record) if resume and record is not None and record.exists() else report.Score([])
    except RecordError as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    known = {(row.name, row.seed): row for row in earlier.rows if row.verdict}
    missing = [case for case in chosen if (case.name, case.seed) not in known]
    try:
        for path in filter(None, (record, html)):
            path.touch()
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"seatbelt: {error.filename}: {error.strerror}", file=sys.stderr)
        return USAGE
    began = time.monotonic()
    errors = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with terminated_as_interrupted(), Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=len(chosen), completed=len(chosen) - len(missing))
        made = runner.run(missing, jobs, lambda row: bar.advance(task), keep)
    known |= {(row.name, row.seed): row for row in made}
    rows = [known[case.name, case.seed] for case in chosen if (case.name, case.seed) in known]
    scored = report.Score(
        rows,
        seatbelt=__version__,
        jobs=jobs,
        seconds=earlier.seconds + time.monotonic() - began,
        command=keeping.command(["seatbelt", *sys.argv[1:]]),
    )
    wide = Console()
    if not wide.is_terminal:
        wide = Console(width=200)  # a file has no edge
    for table in report.tables(scored):
        wide.print(table, highlight=False)
    try:
        if record is not None:
            report.save(scored, record)
        if html is not None:
            html.write_text(report.page(scored))
    except (RecordError, OSError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    if len(rows) < len(chosen):
        print(
            f"seatbelt: interrupted after {len(rows)} of {len(chosen)} runs; nothing is left running", file=sys.stderr
        )
        return INTERRUPTED
    return PASSED if scored.is_passed else FAILED

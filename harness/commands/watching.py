"""`seatbelt watch`: a long look at a live process, port or unit. What it prints, and its exit status.

Owns: where the history is kept. Never: decides when a dose is over (`soak`), or judges.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import typer
from rich.console import Console

from harness.commands import keeping, reporting
from harness.commands.progress import progress
from harness.interruption import terminated_as_interrupted
from harness.run.plan import PROFILES
from harness.run.soak import FIRST_DOSE, By, HistoryError, Soak, usual
from harness.targets import TargetError
from harness.targets.attach import Attached
from reports import terminal
from reports.record import RecordError, RunRecord

CLEAN, FINDING, USAGE, INCONCLUSIVE = 0, 1, 2, 3
EXIT_STATUS = {"clean": CLEAN, "leak": FINDING, "inconclusive": INCONCLUSIVE}
DIRECTORY = Path("runs")


def run(
    what: str,
    *,
    profile: str,
    by: By | None,
    every: int | None,
    history: Path | None,
    files: reporting.Files,
    quiet: bool,
    verbose: bool,
) -> int:
    """The exit status. The history is written in any case, Ctrl-C, SIGTERM and SIGHUP included."""
    try:
        target = Attached(what)
        by = by or usual(target)
        if by == "connections" and not target.found.ports:
            raise TargetError(f"{target.version} listens nowhere: there are no connections to count; use --by time")
        path = history or DIRECTORY / f"watch-{_slug(what)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        keeping.check_apart({"--history": path, **files.options()})
        with progress(quiet=quiet, verbose=verbose) as show, terminated_as_interrupted():
            soak = Soak(target, path, show, profile=PROFILES[profile], by=by, first_dose=every or FIRST_DOSE[by])
            if not quiet:
                _introduce(target, soak, path)
            record = soak.run()
        reporting.write(record, files)
    except (TargetError, HistoryError, RecordError, OSError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    if not files.take_output:
        _print(record, path, quiet=quiet)
    return EXIT_STATUS[record.verdict]


def _introduce(target: Attached, soak: Soak, path: Path) -> None:
    ports = f", ports {' '.join(map(str, target.found.ports))}" if target.found.ports else ""
    typer.echo(f"watching {target.version}{ports}, by the {soak.record.judgement.unit}; Ctrl-C ends it", err=True)
    if soak.went_on:
        typer.echo(f"going on after dose {len(soak.record.doses)} of {path}", err=True)


def _print(record: RunRecord, path: Path, *, quiet: bool) -> None:
    console = Console()
    if quiet:
        console.print(terminal.headline(record), soft_wrap=True)
        return
    terminal.print_report(record, console)
    console.print(f"record  {path}", soft_wrap=True, highlight=False)


def _slug(what: str) -> str:
    """``:25`` is ``port-25``, for a file's name."""
    return re.sub(r"[^\w.-]", "_", f"port-{what[1:]}" if what.startswith(":") else what)

"""reporting: where a run's reports are written, and `seatbelt report`, which writes them again from a record.

Owns: the files, and what GitHub's runner reads. Never: judges, or words a report (`reports/`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.commands import keeping
from reports import html, junit, markdown, output, terminal
from reports.record import RecordError, RunRecord, load, save

USAGE = 2
WRITERS: dict[str, Callable[[RunRecord], str]] = {
    "html": html.render,
    "junit": junit.render,
    "markdown": markdown.render,
}


@dataclass(frozen=True)
class Files:
    """Where reports are wanted; None: nowhere."""

    html: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    json: Path | None = None

    def chosen(self) -> dict[str, Path]:
        return {name: path for name, path in vars(self).items() if path is not None}

    def options(self) -> dict[str, Path]:
        """By what chooses them on the command line."""
        return {f"--{name}": path for name, path in self.chosen().items()}

    @property
    def take_output(self) -> bool:
        """One of them is standard output: nothing else is to be printed there."""
        return any(map(output.is_standard, self.chosen().values()))


def write(record: RunRecord, files: Files) -> None:
    """Raises OSError or RecordError for what cannot be written."""
    for name, path in files.chosen().items():
        if name == "json":
            save(record, path)
        else:
            output.write(path, WRITERS[name](record).encode(errors="backslashreplace"))


def tell_github(record: RunRecord, environment: Mapping[str, str] = os.environ) -> None:
    """In a GitHub workflow: annotations on standard output, and the job's summary. Elsewhere nothing.

    Raises OSError when the summary cannot be written.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    for line in markdown.workflow_commands(record):
        print(line, flush=True)
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown.render(record))


def run(path: Path, files: Files) -> int:
    """`seatbelt report`: without files the terminal report. Returns 0 or the status of a usage error."""
    try:
        record = load(path)
        keeping.check_apart(files.options(), path)
        write(record, files)
    except (RecordError, OSError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    if not files.chosen():
        terminal.print_report(record, Console())
    if not files.take_output:
        for name, written in files.chosen().items():
            print(f"{name:<9} {written}")
    return 0

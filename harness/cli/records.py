"""Commands that read what runs have left: `report`, `compare`, `history`, `repro`, `shrink`.

Owns: their options. Never: does their work, which is imported when a command is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Baseline, Finding, Record, Verbose


def report(
    record: Record,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="as a page")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="as JUnit XML")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE.md", help="for a pull request")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE.json", help="as a record again")] = None,
) -> None:
    """A run's report again, from its record: on the terminal, or as the files that are asked for."""
    from harness.commands import reporting

    raise typer.Exit(reporting.run(record, reporting.Files(html, junit, markdown, json)))


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json")],
    baseline: Baseline = None,
    accept: Annotated[str | None, typer.Option(metavar="REASON", help="write NEW's findings to the baseline")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="last day of --accept, as 2027-01-31")] = None,
) -> None:
    """Two run records: what leaks more, what leaks less, what costs more; status 1 when something got worse."""
    from harness.commands import comparing

    raise typer.Exit(comparing.run(old, new, baseline, accept, until))


def history(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="as `seatbelt run --history` writes it")],
    add: Annotated[Path | None, typer.Option(metavar="RECORD.json", help="first add this run")] = None,
    build: Annotated[str, typer.Option(metavar="LABEL", help="of the run that is added [what git says]")] = "",
    every: Annotated[bool, typer.Option("--all", help="series without a change, too")] = False,
) -> None:
    """What runs of many builds have in common: between which builds something rose or fell."""
    from harness.commands import history as histories

    raise typer.Exit(histories.run(file, add, build, every=every))


def repro(
    record: Record,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.py")] = Path("repro.py"),
    finding: Finding = 1,
) -> None:
    """Write a stand-alone script that shows one finding again: status 1 while the leak is there, 0 when it is gone."""
    from harness.commands import reproducing

    raise typer.Exit(reproducing.run(record, finding, output))


def shrink(
    record: Record,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NAME", help="NAME.smtp, NAME.py")] = Path("shrunk"),
    finding: Finding = 1,
    minutes: Annotated[float, typer.Option(min=0.0, help="then the best so far is written")] = 5.0,
    target: Annotated[str, typer.Option(metavar="TARGET", help="as 'PROGRAM … {port}', if not as in the record")] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="print what was written only")] = False,
    verbose: Verbose = False,
) -> None:
    """Find the smallest dialogue that still leaks, and write it as a dialog file and as a stand-alone script."""
    from harness.shrink.command import Wanted, run

    raise typer.Exit(run(Wanted(record, output, finding, minutes, target, quiet, verbose)))

"""Options that several commands have, with the same meaning in each."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class ProfileName(enum.StrEnum):
    quick = "quick"
    standard = "standard"
    soak = "soak"


Scenario = Annotated[str, typer.Argument(help="name, or path of a scenario file")]
Profile = Annotated[ProfileName, typer.Option(help="how long to look")]
Users = Annotated[int, typer.Option(min=1, max=1000, help="mail clients at the same time")]
Seed = Annotated[int, typer.Option(help="fixes the order of actions and refusals")]
Sessions = Annotated[int | None, typer.Option(min=1, help="units of work in the first dose")]
Refuses = Annotated[
    str | None, typer.Option("--mx", metavar="POLICY", help="what the remote MX refuses, as `rcpt=450`")
]
Html = Annotated[Path | None, typer.Option(metavar="FILE.html", help="write the report as a page")]
Junit = Annotated[Path | None, typer.Option(metavar="FILE.xml", help="write it as JUnit XML")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE.md", help="write it for a pull request")]
Baseline = Annotated[Path | None, typer.Option(metavar="FILE.toml", help="known findings, which do not fail")]
Record = Annotated[Path, typer.Argument(metavar="RECORD.json")]
Finding = Annotated[int, typer.Option(min=1, help="number of the finding, as the report counts them")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="print the verdict's line only")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="print what happens, line by line")]


def not_empty(given: str | None) -> str | None:
    """An unset variable of the shell must not choose what is taken when nothing was said."""
    if given is not None and not given.strip():
        raise typer.BadParameter("it is empty")
    return given


def _directory(given: str | Path) -> Path:
    """Looked at before it is a path: the empty one is the current directory. A default is a path already."""
    not_empty(str(given))
    return Path(given)


Runs = Annotated[Path, typer.Option(metavar="DIR", parser=_directory, help="where run directories are kept")]

"""`seatbelt`: the command line. Thin: it reads options, and calls what does the work and knows the exit status.

Exit status: 0 clean · 1 a finding · 2 usage or configuration · 3 inconclusive. Heavy imports wait until a command
needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from harness import __version__
from harness.cli import judging, records, tools
from harness.commands.status import INCONCLUSIVE, USAGE

BISECTION_ENDS = 128  # for `git bisect run` the 2 of a wrong option is a bad commit

app = typer.Typer(
    name="seatbelt",
    epilog="Exit status: 0 clean, 1 a finding, 2 usage or configuration error, 3 inconclusive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"seatbelt {__version__}")
        raise typer.Exit


@app.callback()
def seatbelt(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Find what a mail server fails to let go of."""


app.command()(judging.run)
app.command("list")(tools.list_)
app.command()(judging.score)
app.command()(records.compare)
app.command()(judging.ab)
app.command()(records.history)
app.command()(records.report)
app.command()(records.repro)
app.command()(records.shrink)
app.command()(judging.watch)
app.command()(tools.fds)
app.command()(tools.worker)
app.command()(tools.tls)
app.command()(tools.mx)


def main() -> None:
    try:
        app()
    except SystemExit as end:
        if end.code == USAGE and sys.argv[1:2] == ["ab"]:
            raise SystemExit(BISECTION_ENDS) from None
        raise
    except Exception as error:  # noqa: BLE001 - Python's own status for it is 1, which would be a finding
        traceback.print_exc()
        print(f"seatbelt: a fault of Seatbelt, which proves nothing of the server: {error!r}", file=sys.stderr)
        raise SystemExit(INCONCLUSIVE) from None

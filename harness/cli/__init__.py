"""`seatbelt`: the command line. Thin: it reads options, and calls what does the work and knows the exit status.

Exit status: 0 clean · 1 a finding · 2 usage or configuration · 3 inconclusive. Heavy imports wait until a command
needs them, so that `--help` answers at once.

A reader that is gone, as after `| head`, changes no exit status; where standard output cannot be written, it is 2.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated

import typer

from harness import __version__
from harness.cli import judging, records, tools
from harness.cli.streams import Streams
from harness.commands.status import CLEAN, FINDING, INCONCLUSIVE, USAGE, usage_error

BISECTION_ENDS = 128  # for `git bisect run` the 2 of a wrong option is a bad commit

app = typer.Typer(
    name="seatbelt",
    epilog="Exit status: 0 clean, 1 a finding, 2 usage or configuration error, 3 inconclusive. "
    "A closed pipe changes none.",
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
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)  # at a width of 0, which some terminals say, rich prints nothing
    streams = Streams()
    status = _status()
    if failure := streams.failure():
        status = usage_error(failure)
    if status == USAGE and sys.argv[1:2] == ["ab"]:
        status = BISECTION_ENDS
    raise SystemExit(status)


def _status() -> int | str | None:
    """What the command ends with: 1 only where it said so itself."""
    try:
        app()
    except SystemExit as end:
        cause = end.__context__
        # Typer makes a 1 of every broken pipe and end of file that nobody has caught.
        if end.code != FINDING or not isinstance(cause, OSError | typer.Abort):
            return end.code
        return _fault(cause)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # then nothing that was begun can go on
            return usage_error(error.strerror if error.filename is None else f"{error.filename}: {error.strerror}")
        return _fault(error)
    except Exception as error:  # noqa: BLE001 - Python's own status for it is 1, which would be a finding
        return _fault(error)
    return CLEAN


def _fault(error: BaseException) -> int:
    traceback.print_exception(error)
    print(f"seatbelt: a fault of Seatbelt, which proves nothing of the server: {error!r}", file=sys.stderr)
    return INCONCLUSIVE

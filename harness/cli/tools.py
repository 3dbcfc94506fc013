"""Commands of use beside a run: `list`, `fds`, `worker`, `tls`, `mx`.

Owns: their options. Never: does their work, which is imported when a command is called.
"""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from harness.cli.options import AsJson


class Listing(enum.StrEnum):
    scenarios = "scenarios"
    defects = "defects"
    targets = "targets"
    servers = "servers"
    resources = "resources"


RESOURCES = {
    "descriptor": "files, pipes, event descriptors; by identity, at rest",
    "socket": "TCP, UDP and unix sockets, by state and peer",
    "memory": "Python objects where the agent is loaded, malloc's bytes where the meter is, else private dirty pages",
    "process": "children and zombies; processes that died; a target that does not come to rest",
    "thread": "threads of a role",
    "task": "asyncio's tasks and timers, where the agent is loaded",
    "file": "files in the spool that no envelope explains",
    "counter": "what the daemon says of itself, against the work, the kernel and the disk",
    "mail": "accepted messages that were neither delivered, bounced nor kept; duplicates",
}


def list_(what: Annotated[Listing, typer.Argument(help="what to list")] = Listing.scenarios) -> None:
    """What there is: scenarios, defects, targets, servers, resources."""
    match what:
        case Listing.scenarios:
            from harness import scenario

            rows = {name.replace("_", "-"): scenario.load(name).story for name in scenario.names()}
        case Listing.defects:
            from mta_under_test import defects

            rows = {name: defects.load(name).story for name in defects.names()}
        case Listing.targets:
            from harness.targets.choice import TARGETS

            rows = TARGETS
        case Listing.servers:
            from harness.targets import description

            rows = {name: description.load(name).about for name in description.names()}
        case Listing.resources:
            rows = RESOURCES
    width = max(map(len, rows))
    for name, text in rows.items():
        typer.echo(f"{name:<{width}}  {' '.join(text.split())}")


def fds(
    pid: Annotated[int, typer.Argument(min=1, help="of any process; its children are shown too")],
    json: AsJson = False,
    summary: Annotated[bool, typer.Option("--summary", help="counts by role and kind")] = False,
) -> None:
    """What a process and its children hold open, as lsof shows it, classified."""
    from harness.commands import fds as table

    raise typer.Exit(table.run(pid, as_json=json, summary=summary))


def worker(
    master: Annotated[str, typer.Option(metavar="HOST:PORT", help="where `seatbelt run --master-bind` listens")],
) -> None:
    """Hold sessions for a run on another host; ends with it."""
    import os

    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"  # before locust is imported; all I/O is the bridge's
    from harness.commands.status import usage_error
    from harness.load import worker as workers
    from harness.load.choice import address as parse
    from harness.load.conversation import LoadError

    try:
        host, port = parse(master, "--master")
    except LoadError as error:
        raise typer.Exit(usage_error(error)) from None
    raise typer.Exit(workers.run(host, port))


def tls(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    starttls: Annotated[str, typer.Option(help="smtp, none, or auto: smtp unless the port is 465")] = "auto",
    json: AsJson = False,
) -> None:
    """How strong a server's ephemeral keys are, read from its handshakes; status 1 when one is weak."""
    from harness.tls import check

    if starttls not in ("auto", "smtp", "none"):
        raise typer.BadParameter(f"{starttls!r} is none of auto, smtp, none", param_hint="--starttls")
    raise typer.Exit(check.run(server, starttls, json))


def mx(
    policy: Annotated[str, typer.Option(help="as `rcpt=550`, `mail=451/3`, `data=drop`; empty: accept all")] = "",
    listen: Annotated[str, typer.Option(help="address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 2525,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="print the dialogue")] = False,
) -> None:
    """The remote mail server that refuses as told, alone."""
    from harness.remote_mx.__main__ import run_foreground

    raise typer.Exit(run_foreground(policy, listen, port, verbose))

"""Commands that judge a server: `run`, `ab`, `watch`, and `score`, which judges them.

Owns: their options. Never: does their work: imports wait until a command is called, so that `--help` answers at once.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    Baseline,
    Html,
    Junit,
    Markdown,
    Profile,
    ProfileName,
    Quiet,
    Refuses,
    Runs,
    Scenario,
    Seed,
    Sessions,
    Users,
    Verbose,
    not_empty,
)
from harness.commands.status import INCONCLUSIVE


class By(enum.StrEnum):
    connections = "connections"
    time = "time"


def run(
    scenario: Scenario = "rejected-reuse",
    target: Annotated[
        str | None, typer.Option(callback=not_empty, help="see `seatbelt list targets`; embedded, if nothing else")
    ] = None,
    attach: Annotated[
        str | None,
        typer.Option(metavar="PID|:PORT|UNIT", callback=not_empty, help="a server that runs already, as the target"),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(metavar="ARGV", callback=not_empty, help="any server, as 'PROGRAM … {port}' (docs/targets.md)"),
    ] = None,
    binary: Annotated[
        Path | None, typer.Option(metavar="PATH", help="the server's program, instead of Debian's package")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            callback=not_empty,
            help="a server that is described; `seatbelt list servers`",
        ),
    ] = None,
    preload: Annotated[
        bool, typer.Option(help="count malloc's bytes in a server that we start and is no Python")
    ] = True,
    defect: Annotated[list[str] | None, typer.Option(metavar="NAME[:P]", help="re-open a bug; may be repeated")] = None,
    profile: Profile = ProfileName.quick,
    users: Users = 5,
    seed: Seed = 1,
    sessions: Sessions = None,
    mx: Refuses = None,
    address: Annotated[str, typer.Option(help="where the target takes mail, for workers elsewhere")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the target; 0: any free one")] = 0,
    isolate: Annotated[
        bool | None,
        typer.Option("--isolate/--no-isolate", help="a network of its own; where permitted, and without --port"),
    ] = None,
    nofile: Annotated[int | None, typer.Option(min=32, help="descriptor limit of the target")] = None,
    record: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write the run record there too")] = None,
    html: Html = None,
    junit: Junit = None,
    markdown: Markdown = None,
    runs: Runs = Path("runs"),
    baseline: Baseline = None,
    history: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="add a line to a history")] = None,
    build: Annotated[str, typer.Option(metavar="LABEL", help="of the server, in the history [what git says]")] = "",
    workers: Annotated[int, typer.Option(min=0, max=100, help="processes that share the load")] = 0,
    master_bind: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="wait there for workers of other hosts (docs/distributed.md)")
    ] = "",
    expect_workers: Annotated[int, typer.Option(min=1, help="of other hosts, that are waited for")] = 1,
    web: Annotated[
        bool, typer.Option("--web", help="a page to look on, in locust's web UI; stays until Ctrl-C")
    ] = False,
    web_port: Annotated[int, typer.Option(min=0, max=65535, help="of the page; 0: any free one")] = 8089,
    load_pipes: Annotated[str, typer.Option(hidden=True, help="descriptors: locust has started us")] = "",
    board: Annotated[Path | None, typer.Option(hidden=True, help="file that the page in locust shows")] = None,
    attribution: Annotated[bool, typer.Option(help="after a finding, a traced run that tells where it began")] = True,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Load a mail server, let it rest, and say what it failed to let go of."""
    from harness.interruption import Held, terminated_as_interrupted

    try:
        with terminated_as_interrupted(), Held() as interrupts:
            from harness.commands import running
            from harness.commands.reporting import Files
            from harness.load import choice as loads
            from harness.run.design import Options
            from harness.run.plan import PROFILES
            from harness.targets import choice as targets

            wanted = running.Wanted(
                scenario=scenario,
                target=target,
                server=targets.Settings(
                    seed=seed,
                    address=address,
                    port=port,
                    nofile=nofile,
                    defects=tuple(defect or ()),
                    attach=attach or "",
                    command=command or "",
                    server=server or "",
                    preload=preload,
                    binary=binary,
                ),
                load=loads.Settings(
                    users=users,
                    workers=workers,
                    master_bind=master_bind,
                    expect_workers=expect_workers,
                    web=web,
                    web_port=web_port,
                    pipes=load_pipes,
                ),
                options=Options(PROFILES[profile], users=users, seed=seed, units=sessions, refuses=mx),
                isolate=isolate,
                runs=runs,
                record=record,
                files=Files(html, junit, markdown),
                baseline=baseline,
                history=history,
                build=build,
                board=board,
                attribution=attribution,
                quiet=quiet,
                verbose=verbose,
            )
            status = running.run(wanted, begun=interrupts.release)
    except KeyboardInterrupt:
        typer.echo("seatbelt: interrupted before there was a run", err=True)
        status = INCONCLUSIVE
    raise typer.Exit(status)


def ab(
    a: Annotated[str, typer.Option("--a", metavar="TARGET|RECORD.json", help="as 'PROGRAM … {port}'; the good one")],
    b: Annotated[str, typer.Option("--b", metavar="TARGET|RECORD.json", help="as 'embedded --defect NAME'; to judge")],
    scenario: Scenario = "rejected-reuse",
    profile: Profile = ProfileName.quick,
    users: Users = 5,
    seed: Seed = 1,
    sessions: Sessions = None,
    mx: Refuses = None,
    nofile: Annotated[int | None, typer.Option(min=32, help="descriptor limit of the targets")] = None,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """One scenario on two builds: what b leaks and a does not. For `git bisect run`: 0 good, 1 bad, 125 skip."""
    from harness.commands.ab import Wanted, run

    wanted = Wanted(
        scenario=scenario,
        a=a,
        b=b,
        profile=profile,
        users=users,
        seed=seed,
        units=sessions,
        mx=mx,
        nofile=nofile,
        runs=runs,
        quiet=quiet,
        verbose=verbose,
    )
    raise typer.Exit(run(wanted))


def watch(
    what: Annotated[str, typer.Argument(metavar="PID|:PORT|UNIT", help="as 4711, :25 or postfix.service")],
    profile: Profile = ProfileName.soak,
    by: Annotated[By | None, typer.Option(help="what makes a dose; connections where it listens")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="connections or seconds in the first dose [20, 10]")] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="the record, which a later watch goes on with")
    ] = None,
    html: Html = None,
    junit: Junit = None,
    markdown: Markdown = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge a server that runs already by the work that it gets: probes only, no load."""
    from harness.commands import reporting, watching

    files = reporting.Files(html, junit, markdown)
    status = watching.run(
        what,
        profile=profile,
        by=by.value if by else None,
        every=every,
        history=history,
        files=files,
        quiet=quiet,
        verbose=verbose,
    )
    raise typer.Exit(status)


def score(
    only: Annotated[str, typer.Option(metavar="GLOB", help="names of defects; of clean twins: `clean SCENARIO`")] = "*",
    clean: Annotated[int, typer.Option(min=0, help="runs of each scenario without a defect")] = 1,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; as many as there are processors")] = None,
    seed: Annotated[int, typer.Option(help="of the first run")] = 1,
    record: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write the score there")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="write the page there")] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="keep every run's record there")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the score that is in --record already")] = False,
) -> None:
    """Run the defect catalogue and say what was found of it; status 1 when a certain leak was not, or a false alarm."""
    from harness.score import command

    raise typer.Exit(command.run(only, clean, jobs, seed, record, html, keep, resume=resume))

"""`seatbelt`: the command line. Thin: it reads options, calls what does the work, and turns endings into exit statuses.

Exit status: 0 clean · 1 a finding · 2 usage or configuration · 3 inconclusive. Heavy imports wait until a command
needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from reports.record import RunRecord

CLEAN, FINDING, USAGE, INCONCLUSIVE = 0, 1, 2, 3
BISECTION_ENDS = 128  # for `git bisect run` the 2 of a wrong option is a bad commit
EXIT_STATUS = {"clean": CLEAN, "leak": FINDING, "inconclusive": INCONCLUSIVE}

app = typer.Typer(
    name="seatbelt",
    help="Find what a mail server fails to let go of.",
    epilog="Exit status: 0 clean, 1 a finding, 2 usage or configuration error, 3 inconclusive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Listing(enum.StrEnum):
    scenarios = "scenarios"
    defects = "defects"
    targets = "targets"
    servers = "servers"
    resources = "resources"


class By(enum.StrEnum):
    connections = "connections"
    time = "time"


class ProfileName(enum.StrEnum):
    quick = "quick"
    standard = "standard"
    soak = "soak"


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


def fail(text: object) -> NoReturn:
    """One line, and the exit status of a usage error."""
    typer.echo(f"seatbelt: {text}", err=True)
    raise typer.Exit(USAGE)


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="name, or path of a scenario file")] = "rejected-reuse",
    target: Annotated[str | None, typer.Option(help="see `seatbelt list targets`; embedded, if nothing else")] = None,
    attach: Annotated[
        str | None, typer.Option(metavar="PID|:PORT|UNIT", help="a server that runs already, as the target")
    ] = None,
    command: Annotated[
        str | None, typer.Option(metavar="ARGV", help="any server, as 'PROGRAM … {port}' (docs/targets.md)")
    ] = None,
    binary: Annotated[
        Path | None, typer.Option(metavar="PATH", help="the server's program, instead of Debian's package")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.toml", help="a server that is described; `seatbelt list servers`")
    ] = None,
    preload: Annotated[
        bool, typer.Option(help="count malloc's bytes in a server that we start and is no Python")
    ] = True,
    defect: Annotated[list[str] | None, typer.Option(metavar="NAME[:P]", help="re-open a bug; may be repeated")] = None,
    profile: Annotated[ProfileName, typer.Option(help="how long to look")] = ProfileName.quick,
    users: Annotated[int, typer.Option(min=1, max=1000, help="mail clients at the same time")] = 5,
    seed: Annotated[int, typer.Option(help="fixes the order of actions and refusals")] = 1,
    sessions: Annotated[int | None, typer.Option(min=1, help="units of work in the first dose")] = None,
    mx: Annotated[str | None, typer.Option(metavar="POLICY", help="what the remote MX refuses, as `rcpt=450`")] = None,
    address: Annotated[str, typer.Option(help="where the target takes mail, for workers elsewhere")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the target; 0: any free one")] = 0,
    isolate: Annotated[
        bool | None,
        typer.Option("--isolate/--no-isolate", help="a network of its own; where permitted, and without --port"),
    ] = None,
    nofile: Annotated[int | None, typer.Option(min=32, help="descriptor limit of the target")] = None,
    record: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write the run record there too")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="write the report as a page")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="write it as JUnit XML")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE.md", help="write it for a pull request")] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="where run directories are kept")] = Path("runs"),
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="known findings, which do not fail")
    ] = None,
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
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="print the verdict's line only")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="print what happens, line by line")] = False,
) -> None:
    """Load a mail server, let it rest, and say what it failed to let go of."""
    from contextlib import ExitStack

    from harness import isolation, keeping, plan, reporting
    from harness import scenario as scenarios
    from harness.attribution import run_and_explain
    from harness.design import Design, Options
    from harness.experiment import Experiment
    from harness.interruption import terminated_as_interrupted, uninterrupted
    from harness.live import Live, stay
    from harness.load.choice import ChosenLoad
    from harness.load.choice import Settings as LoadSettings
    from harness.load.conversation import LoadError
    from harness.progress import progress
    from harness.remote_mx.policy import Policy, PolicyError
    from harness.remote_mx.process import RemoteMXError
    from harness.targets import TargetError
    from harness.targets.choice import Settings, choose
    from reports.baseline import BaselineError
    from reports.baseline import load as load_baseline
    from reports.record import RecordError

    try:
        if baseline is not None:
            load_baseline(baseline)  # an hour of load is too long a way to a typing error
        chosen = scenarios.load(scenario)
        if mx is not None:
            Policy.parse(mx)
        settings = Settings(
            seed=seed,
            address=address,
            port=port,
            nofile=nofile or chosen.nofile,
            needs=chosen.needs,
            defects=tuple(defect or ()),
            attach=attach or "",
            command=command or "",
            server=server or "",
            preload=preload,
            relays=chosen.relays,
            binary=binary,
        )
        make_target = choose(target, settings)
        load_settings = LoadSettings(
            users=chosen.users or users,
            workers=workers,
            master_bind=master_bind,
            expect_workers=expect_workers,
            web=web,
            web_port=web_port,
            pipes=load_pipes,
        )
        load_settings.check()
        directory = keeping.run_directory(runs, chosen.name)
        files = reporting.Files(html, junit, markdown)
        for path in (record, history, *files.chosen().values()):
            if path is not None:
                keeping.check_writable(path)
        # Not before: a target may have to be fetched. Not later: what is started is to be in it.
        outside = "--attach" if attach else load_settings.outside
        isolation.settle(isolate, by_default=port == 0, outside=outside)
    except (scenarios.ScenarioError, PolicyError, TargetError, LoadError, BaselineError, OSError) as error:
        fail(error)
    options = Options(profile=plan.PROFILES[profile], users=users, seed=seed, units=sessions, refuses=mx)
    board = board or (directory / "live.json" if web else None)
    load = ChosenLoad(load_settings, board)
    with terminated_as_interrupted(), ExitStack() as looking:
        looking.callback(load.stop)
        try:
            # Locust has a terminal display of its own.
            with progress(quiet=quiet or bool(load_pipes), verbose=verbose) as show:
                live = looking.enter_context(Live(board, show, _tell_page))
                design = Design(chosen, make_target, directory, options, live.progress, load, live)
                result = run_and_explain(design) if attribution else Experiment(design).run()
        except (TargetError, LoadError, RemoteMXError) as error:
            fail(error)
        except KeyboardInterrupt:
            typer.echo("seatbelt: interrupted before the first dose; nothing is left running", err=True)
            raise typer.Exit(INCONCLUSIVE) from None
        result.command = _command(sys.argv[1:], seed)
        try:
            with uninterrupted():
                kept = keeping.keep(result, directory, record)
                reporting.write(result, files)
                _print(result, kept, quiet=quiet)
                reporting.tell_github(result)
                if history is not None:
                    from harness.history import append

                    append(history, result, build)
                live.ended(result, kept)
        except (RecordError, OSError) as error:
            fail(error)
        if web and not result.was_interrupted:
            stay()
    if baseline is not None:
        from harness import comparing

        try:
            raise typer.Exit(comparing.settle(baseline, result, quiet=quiet))
        except BaselineError as error:
            fail(error)
    raise typer.Exit(EXIT_STATUS[result.verdict])


def _tell_page(url: str) -> None:
    typer.echo(f"page    {url}", err=True)


def _command(arguments: list[str], seed: int) -> str:
    import shlex

    # What locust adds is of its own process (harness.locust_plugin): the run is repeated without it.
    words = ["seatbelt", *(word for word in arguments if not word.startswith(("--load-pipes=", "--board=")))]
    if not any(word == "--seed" or word.startswith("--seed=") for word in words):
        words += ["--seed", str(seed)]
    return shlex.join(words)


def _print(result: RunRecord, kept: Path, *, quiet: bool) -> None:
    from rich.console import Console

    from reports import terminal

    console = Console()
    if quiet:
        console.print(terminal.headline(result), soft_wrap=True)
        return
    terminal.print_report(result, console)
    console.print(f"record  {kept}", soft_wrap=True, highlight=False)


@app.command("list")
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


@app.command()
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


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="known findings, which do not fail")
    ] = None,
    accept: Annotated[str | None, typer.Option(metavar="REASON", help="write NEW's findings to the baseline")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="last day of --accept, as 2027-01-31")] = None,
) -> None:
    """Two run records: what leaks more, what leaks less, what costs more; status 1 when something got worse."""
    from harness import comparing

    raise typer.Exit(comparing.run(old, new, baseline, accept, until))


@app.command()
def ab(
    a: Annotated[str, typer.Option("--a", metavar="TARGET|RECORD.json", help="as 'PROGRAM … {port}'; the good one")],
    b: Annotated[str, typer.Option("--b", metavar="TARGET|RECORD.json", help="as 'embedded --defect NAME'; to judge")],
    scenario: Annotated[str, typer.Argument(help="name, or path of a scenario file")] = "rejected-reuse",
    profile: Annotated[ProfileName, typer.Option(help="how long to look")] = ProfileName.quick,
    users: Annotated[int, typer.Option(min=1, max=1000, help="mail clients at the same time")] = 5,
    seed: Annotated[int, typer.Option(help="fixes the order of actions and refusals")] = 1,
    sessions: Annotated[int | None, typer.Option(min=1, help="units of work in the first dose")] = None,
    mx: Annotated[str | None, typer.Option(metavar="POLICY", help="what the remote MX refuses, as `rcpt=450`")] = None,
    nofile: Annotated[int | None, typer.Option(min=32, help="descriptor limit of the targets")] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="where run directories are kept")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="print the verdict's line only")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="print what happens, line by line")] = False,
) -> None:
    """One scenario on two builds: what b leaks and a does not. For `git bisect run`: 0 good, 1 bad, 125 skip."""
    from harness.ab import Wanted, run

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


@app.command()
def history(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="as `seatbelt run --history` writes it")],
    add: Annotated[Path | None, typer.Option(metavar="RECORD.json", help="first add this run")] = None,
    build: Annotated[str, typer.Option(metavar="LABEL", help="of the run that is added [what git says]")] = "",
    every: Annotated[bool, typer.Option("--all", help="series without a change, too")] = False,
) -> None:
    """What runs of many builds have in common: between which builds something rose or fell."""
    from harness import history as histories

    raise typer.Exit(histories.run(file, add, build, every=every))


@app.command()
def report(
    record: Annotated[Path, typer.Argument(metavar="RECORD.json")],
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="as a page")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="as JUnit XML")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE.md", help="for a pull request")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE.json", help="as a record again")] = None,
) -> None:
    """A run's report again, from its record: on the terminal, or as the files that are asked for."""
    from harness import reporting

    raise typer.Exit(reporting.run(record, reporting.Files(html, junit, markdown, json)))


@app.command()
def repro(
    record: Annotated[Path, typer.Argument(metavar="RECORD.json")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.py")] = Path("repro.py"),
    finding: Annotated[int, typer.Option(min=1, help="number of the finding, as the report counts them")] = 1,
) -> None:
    """Write a stand-alone script that shows one finding again: status 1 while the leak is there, 0 when it is gone."""
    from harness import reproducing

    raise typer.Exit(reproducing.run(record, finding, output))


@app.command()
def shrink(
    record: Annotated[Path, typer.Argument(metavar="RECORD.json")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NAME", help="NAME.smtp, NAME.py")] = Path("shrunk"),
    finding: Annotated[int, typer.Option(min=1, help="number of the finding, as the report counts them")] = 1,
    minutes: Annotated[float, typer.Option(min=0.0, help="then the best so far is written")] = 5.0,
    target: Annotated[str, typer.Option(metavar="TARGET", help="as 'PROGRAM … {port}', if not as in the record")] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="print what was written only")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="print what happens, line by line")] = False,
) -> None:
    """Find the smallest dialogue that still leaks, and write it as a dialog file and as a stand-alone script."""
    from harness.shrink.command import Wanted, run

    raise typer.Exit(run(Wanted(record, output, finding, minutes, target, quiet, verbose)))


@app.command()
def watch(
    what: Annotated[str, typer.Argument(metavar="PID|:PORT|UNIT", help="as 4711, :25 or postfix.service")],
    profile: Annotated[ProfileName, typer.Option(help="how long to look")] = ProfileName.soak,
    by: Annotated[By | None, typer.Option(help="what makes a dose; connections where it listens")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="connections or seconds in the first dose [20, 10]")] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="the record, which a later watch goes on with")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="write the report as a page")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="write it as JUnit XML")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE.md", help="write it for a pull request")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="print the verdict's line only")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="print what happens, line by line")] = False,
) -> None:
    """Judge a server that runs already by the work that it gets: probes only, no load."""
    from harness import reporting, watching

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


@app.command()
def fds(
    pid: Annotated[int, typer.Argument(min=1, help="of any process; its children are shown too")],
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="counts by role and kind")] = False,
) -> None:
    """What a process and its children hold open, as lsof shows it, classified."""
    from harness import fds as table

    raise typer.Exit(table.run(pid, as_json=json, summary=summary))


@app.command()
def worker(
    master: Annotated[str, typer.Option(metavar="HOST:PORT", help="where `seatbelt run --master-bind` listens")],
) -> None:
    """Hold sessions for a run on another host; ends with it."""
    import os

    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"  # before locust is imported; all I/O is the bridge's
    from harness.load import worker as workers
    from harness.load.choice import address as parse
    from harness.load.conversation import LoadError

    try:
        host, port = parse(master, "--master")
    except LoadError as error:
        fail(error)
    raise typer.Exit(workers.run(host, port))


@app.command()
def tls(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    starttls: Annotated[str, typer.Option(help="smtp, none, or auto: smtp unless the port is 465")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """How strong a server's ephemeral keys are, read from its handshakes; status 1 when one is weak."""
    from harness.tls import check

    if starttls not in ("auto", "smtp", "none"):
        raise typer.BadParameter(f"{starttls!r} is none of auto, smtp, none", param_hint="--starttls")
    raise typer.Exit(check.run(server, starttls, json))


@app.command()
def mx(
    policy: Annotated[str, typer.Option(help="as `rcpt=550`, `mail=451/3`, `data=drop`; empty: accept all")] = "",
    listen: Annotated[str, typer.Option(help="address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 2525,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="print the dialogue")] = False,
) -> None:
    """The remote mail server that refuses as told, alone."""
    from harness.remote_mx.__main__ import run_foreground

    raise typer.Exit(run_foreground(policy, listen, port, verbose))


def main() -> None:
    try:
        app()
    except SystemExit as end:
        if end.code == USAGE and sys.argv[1:2] == ["ab"]:
            raise SystemExit(BISECTION_ENDS) from None
        raise


if __name__ == "__main__":
    main()

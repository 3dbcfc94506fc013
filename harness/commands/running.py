"""`seatbelt run`: in which order a run is checked, made, kept and told; its exit status.

Owns: the run's directory. Never: decides what a run does (`experiment`), judges, words a report.
"""

from __future__ import annotations

# Before an interrupt leaves a record. The target's module needs asyncio, and so does the report: when its import is
# broken off by Ctrl-C, Python cannot make it again.
import asyncio  # noqa: F401
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from harness import isolation
from harness import scenario as scenarios
from harness.commands import comparing, keeping, reporting
from harness.commands import history as histories
from harness.commands.live import Live, stay
from harness.commands.progress import progress
from harness.commands.status import OF_VERDICT, usage_error
from harness.interruption import uninterrupted
from harness.load import choice as loads
from harness.load.conversation import LoadError
from harness.remote_mx.policy import Policy, PolicyError
from harness.remote_mx.process import RemoteMXError
from harness.run.attribution import run_and_explain
from harness.run.design import Design, Options
from harness.run.experiment import Experiment, interrupted
from harness.scenario import Scenario
from harness.targets import Target, TargetError
from harness.targets import choice as targets
from reports import baseline as baselines
from reports import output, terminal
from reports.baseline import BaselineError
from reports.history import HistoryError
from reports.record import RecordError, RunRecord, TargetInfo


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for."""

    scenario: str
    target: str | None
    server: targets.Settings  # what the scenario does not say
    load: loads.Settings  # … nor here
    options: Options
    isolate: bool | None
    runs: Path  # where run directories are made
    record: Path | None
    files: reporting.Files
    baseline: Path | None
    history: Path | None
    build: str  # in the history
    board: Path | None  # file that the page in locust shows
    attribution: bool
    quiet: bool
    verbose: bool

    def written(self) -> dict[str, Path]:
        """What the run writes outside of its directory, by the options."""
        more = {"--record": self.record, "--history": self.history}
        return {name: path for name, path in more.items() if path is not None} | self.files.options()

    @property
    def prints_report(self) -> bool:
        """Not where standard output is one of the files."""
        return not (self.files.take_output or (self.record is not None and output.is_standard(self.record)))


def run(wanted: Wanted, begun: Callable[[], None] = lambda: None) -> int:
    """Returns the exit status. `begun` is called when there is a directory: an interrupt from then on leaves a record.

    Before that it is a KeyboardInterrupt.
    """
    try:
        scenario = _checked(wanted)
        server = _server(wanted, scenario)
        meant = TargetInfo(targets.named(wanted.target, server), defects=list(server.defects))
        directory = keeping.run_directory(wanted.runs, scenario.name)
    except (
        scenarios.ScenarioError,
        PolicyError,
        TargetError,
        LoadError,
        BaselineError,
        HistoryError,
        OSError,
    ) as error:
        return usage_error(error)
    design = Design(scenario, _not_chosen, directory, wanted.options, meant=meant)
    board = wanted.board or (directory / "live.json" if wanted.load.web else None)
    load = loads.ChosenLoad(_load(wanted, scenario), board)
    live: Live | None = None
    with ExitStack() as looking:
        if wanted.board is not None:
            looking.callback(_clear_up_after, os.getppid(), wanted.board)
        looking.callback(load.stop)
        try:
            begun()
            try:
                design = replace(design, make_target=targets.choose(wanted.target, server))
                # Not before: a target may have to be fetched. Not later: what is started is to be in it.
                outside = "--attach" if server.attach else wanted.load.outside
                isolation.settle(wanted.isolate, by_default=server.port == 0, outside=outside)
            except (TargetError, OSError) as error:
                directory.rmdir()
                return usage_error(error)
            # Locust has a terminal display of its own.
            with progress(quiet=wanted.quiet or bool(wanted.load.pipes), verbose=wanted.verbose) as show:
                live = looking.enter_context(Live(board, show, _tell_page))
                design = replace(
                    design, progress=live.progress, make_load=load, make_load_again=load.again, observer=live
                )
                result = run_and_explain(design) if wanted.attribution else Experiment(design).run()
        except (TargetError, LoadError, RemoteMXError) as error:
            return usage_error(error)
        except KeyboardInterrupt:
            result = interrupted(design)
        try:
            with uninterrupted():
                kept = _keep(result, directory, wanted)
                if live is not None:
                    live.ended(result, kept)
        except (RecordError, OSError) as error:
            return usage_error(error)
        if wanted.load.web and not result.was_interrupted:
            stay()
    if wanted.baseline is not None:
        try:
            return comparing.settle(wanted.baseline, result, quiet=wanted.quiet or not wanted.prints_report)
        except BaselineError as error:
            return usage_error(error)
    return OF_VERDICT[result.verdict]


def _clear_up_after(locust: int, board: Path) -> None:
    """The board is in a directory that locust made for it; where locust was killed, nobody else removes it."""
    if os.getppid() != locust:
        with suppress(OSError):
            board.unlink()
            board.parent.rmdir()


def _checked(wanted: Wanted) -> Scenario:
    """All that can be known to be wrong before anything is made. Raises what `run` reports."""
    if wanted.baseline is not None:
        baselines.load(wanted.baseline)  # an hour of load is too long a way to a typing error
    scenario = scenarios.load(wanted.scenario)
    if wanted.options.refuses is not None:
        Policy.parse(wanted.options.refuses)
    _load(wanted, scenario).check()
    keeping.check_apart(wanted.written())
    if wanted.history is not None:
        histories.check(wanted.history)
    return scenario


def _load(wanted: Wanted, scenario: Scenario) -> loads.Settings:
    return replace(wanted.load, users=scenario.users or wanted.load.users)


def _server(wanted: Wanted, scenario: Scenario) -> targets.Settings:
    nofile = wanted.server.nofile or scenario.nofile
    return replace(wanted.server, nofile=nofile, needs=scenario.needs, relays=scenario.relays)


def _not_chosen(directory: Path, ports: dict[str, int], *, traced: bool = False) -> Target:
    raise TargetError("the target has not been chosen")


def _keep(result: RunRecord, directory: Path, wanted: Wanted) -> Path:
    """Everything that is written and printed of a run; returns the record's path. Raises RecordError, OSError."""
    result.command = _command(sys.argv[1:], wanted.options.seed)
    kept = keeping.keep(result, directory, wanted.record)
    if wanted.history is not None:
        histories.append(wanted.history, result, wanted.build)
    reporting.write(result, wanted.files)
    console = Console()
    if not wanted.prints_report:
        pass
    elif wanted.quiet:
        console.print(terminal.headline(result), soft_wrap=True)
    else:
        terminal.print_report(result, console)
        console.print(f"record  {kept}", soft_wrap=True, highlight=False)
    reporting.tell_github(result)
    return kept


def _command(arguments: list[str], seed: int) -> str:
    """What repeats the run."""
    # What locust adds is of its own process (harness.locust_plugin): the run is repeated without it.
    words = ["seatbelt", *(word for word in arguments if not word.startswith(("--load-pipes=", "--board=")))]
    if not any(word == "--seed" or word.startswith("--seed=") for word in words):
        words += ["--seed", str(seed)]
    return keeping.command(words)


def _tell_page(url: str) -> None:
    print(f"page    {url}", file=sys.stderr, flush=True)

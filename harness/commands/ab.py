"""`seatbelt ab`: one scenario on two builds, the same seed and doses; only what differs is told.

Its exit status is what `git bisect run` takes (git-bisect(1)): 0 good, 1 bad, 125 this build cannot be judged, and 128
and more ends the bisection: whoever typed a name wrong must not learn that every commit is guilty.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console

from harness import scenario as scenarios
from harness.commands import comparing, keeping
from harness.commands.progress import progress
from harness.interruption import terminated_as_interrupted
from harness.load.process import LoadError
from harness.remote_mx.policy import Policy, PolicyError
from harness.remote_mx.process import RemoteMXError
from harness.run import plan
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.scenario import Scenario
from harness.targets import TargetError
from harness.targets.choice import MakeTarget, Settings
from harness.targets.words import from_words, name_of
from reports.compare import Comparison, Incomparable, Pair, compare
from reports.record import Finding, QueuedFootprint, RecordError, RunRecord, Tested, load
from reports.terminal import number

GOOD, BAD, SKIP, USAGE, INTERRUPTED = 0, 1, 125, 128, 130
WORDS = {GOOD: "GOOD", BAD: "BAD", SKIP: "SKIP"}

Build = MakeTarget | RunRecord
T = TypeVar("T", Finding, Tested, QueuedFootprint)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for."""

    scenario: str
    a: str  # a target in words, or a record
    b: str
    profile: str
    users: int
    seed: int
    units: int | None
    mx: str | None
    nofile: int | None
    runs: Path
    quiet: bool
    verbose: bool


class _Skip(Exception):
    """A build cannot be judged; says which, and why."""


@dataclass(frozen=True)
class Difference:
    """What a comparison of two builds comes to."""

    comparison: Comparison
    worse: list[Pair]  # b certainly leaks this, or more of it, and a does not
    doubts: list[str]  # why nothing else is certain

    @property
    def status(self) -> int:
        if self.worse or self.comparison.grown:
            return BAD
        return SKIP if self.doubts else GOOD


def difference(a: RunRecord, b: RunRecord) -> Difference:
    """Pure. Raises Incomparable."""
    a = _called(a, root_role(b))
    comparison = compare(a, b)
    worse = [pair for pair in comparison.of("new", "more") if pair.old is not None or _ruled_out(a, pair.finding)]
    doubts = [reason.replace("the new run", "b", 1) for reason in comparison.reasons]
    for pair in comparison.of("new"):
        if pair not in worse:
            why = "; ".join(a.reasons) or "it stopped before that was judged"
            doubts.append(f"a may have that too ({why}): {pair.finding.message or pair.finding.label}")
    return Difference(comparison, worse, doubts)


def root_role(record: RunRecord) -> str:
    """What the first process of the target is called; empty in a record without a snapshot."""
    processes = record.doses[-1].snapshot.processes if record.doses else []
    pids = {process.pid for process in processes}
    return next((process.role for process in processes if process.ppid not in pids), "")


def _called(record: RunRecord, name: str) -> RunRecord:
    """With its first process called `name`: two builds of one server may be two programs, server-1.0 and server-1.1."""
    was = root_role(record)
    if not was or not name or was == name:
        return record

    def renamed(each: T) -> T:
        return msgspec.structs.replace(each, role=name) if each.role == was else each

    queued = [renamed(each) for each in record.footprint.queued]
    return msgspec.structs.replace(
        record,
        findings=[renamed(each) for each in record.findings],
        tested=[renamed(each) for each in record.tested],
        footprint=msgspec.structs.replace(record.footprint, queued=queued),
    )


def _ruled_out(record: RunRecord, finding: Finding) -> bool:
    """Whether the record proves that its build does not have this."""
    judged = [each for each in record.tested if (each.resource, each.role) == (finding.resource, finding.role)]
    if finding.resource != "memory":
        judged = [each for each in judged if each.label == finding.label]
        if record.verdict != "inconclusive":
            return True
    return bool(judged) and all(each.verdict == "clean" for each in judged)


def run(wanted: Wanted) -> int:
    """The exit status."""
    try:
        scenario = scenarios.load(wanted.scenario)
        if wanted.mx is not None:
            Policy.parse(wanted.mx)
        _check_alike(wanted)
        builds = {name: _build(text, scenario, wanted) for name, text in (("a", wanted.a), ("b", wanted.b))}
        directory = keeping.run_directory(wanted.runs, f"ab-{scenario.name}")
    except (scenarios.ScenarioError, PolicyError, TargetError, RecordError, Incomparable, OSError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    try:
        with terminated_as_interrupted():
            a, b = (_record(name, build, scenario, directory, wanted) for name, build in builds.items())
        found = difference(a, b)
    except KeyboardInterrupt:
        print("seatbelt: interrupted; nothing is left running", file=sys.stderr)
        return INTERRUPTED
    except _Skip as skip:
        print(f"SKIP: {skip}")
        return SKIP
    except (RecordError, Incomparable, OSError) as error:  # of a full disk no build is guilty
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    _tell(found, b, directory, wanted)
    return found.status


def _check_alike(wanted: Wanted) -> None:
    """Raises Incomparable before anything is started."""
    names = {name_of(text) for text in (wanted.a, wanted.b) if not _is_record(text)}
    if len(names) == 2:
        raise Incomparable(f"a and b are two targets, {' and '.join(sorted(names))}: their processes are not alike")


def _is_record(text: str) -> bool:
    return text.endswith(".json")


def _build(text: str, scenario: Scenario, wanted: Wanted) -> Build:
    """Raises TargetError, RecordError, Incomparable."""
    if not _is_record(text):
        settings = Settings(
            seed=wanted.seed,
            nofile=wanted.nofile or scenario.nofile,
            needs=scenario.needs,
            relays=scenario.relays,
        )
        return from_words(text, settings)
    record = load(Path(text))
    first_dose = wanted.units or scenario.first_dose
    for what, then, now in (
        ("scenario", record.scenario, scenario.name),
        ("seed", record.seed, wanted.seed),
        ("profile", record.judgement.profile, wanted.profile),
        ("first dose", record.doses[0].units if record.doses else 0, first_dose),
    ):
        if then != now:
            raise Incomparable(f"{text}: its {what} was {then}, here it would be {now}")
    return record


def _record(name: str, build: Build, scenario: Scenario, directory: Path, wanted: Wanted) -> RunRecord:
    """Of a run that is made now, unless it was made before. Raises _Skip, KeyboardInterrupt, RecordError."""
    if isinstance(build, RunRecord):
        return build
    # What a leaks must not keep us from seeing what else it does not.
    profile = replace(plan.PROFILES[wanted.profile], stop_at_finding=False)
    options = Options(profile=profile, users=wanted.users, seed=wanted.seed, units=wanted.units, refuses=wanted.mx)
    where = directory / name
    where.mkdir()
    try:
        with progress(quiet=wanted.quiet, verbose=wanted.verbose) as show:

            def told(text: str, done: int, planned: int) -> None:
                show(f"{name}: {text}", done, planned)

            record = Experiment(Design(scenario, build, where, options, told)).run()
    except (TargetError, LoadError, RemoteMXError) as error:
        raise _Skip(f"{name} does not start: {error}") from error
    record.command = keeping.command(["seatbelt", *sys.argv[1:]])
    keeping.keep(record, where)
    if record.was_interrupted:
        raise KeyboardInterrupt
    return record


def _tell(found: Difference, record: RunRecord, directory: Path, wanted: Wanted) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    word = WORDS[found.status]
    console.print(f"{word}: {record.scenario} on {record.target.name}, b against a", style="bold", soft_wrap=True)
    if wanted.quiet:
        return
    for pair in found.comparison.of("new", "more", "less", "gone", "unknown"):
        console.print(f"{pair.change:<9} {comparing.told(pair)}", soft_wrap=True)
    for cost in found.comparison.grown:
        console.print(f"{'costs':<9} {cost.what}: {number(cost.old)} to {number(cost.new)} {cost.unit}", soft_wrap=True)
    if same := found.comparison.of("same"):
        console.print(f"{'in both':<9} {len(same)} finding{'' if len(same) == 1 else 's'}, no worse in b")
    for doubt in found.doubts:
        console.print(f"{'unproven':<9} {doubt}", soft_wrap=True)
    console.print(f"{'records':<9} {directory}", soft_wrap=True)

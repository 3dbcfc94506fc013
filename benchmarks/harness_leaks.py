"""The harness under its own probe: whole runs, one after the other in one process, leave nothing behind in it.

    python benchmarks/harness_leaks.py [--runs 50] [--scenario rejected-reuse]

After every run the harness itself is looked at as a target is: descriptors, sockets, threads, children, and the files
in its temporary directory. What the first runs open for good (an import, a lazy thread) is the baseline. Every further
run is a dose of one; the detector that judges targets judges the harness, and besides, at the end everything must be
as it was at the baseline. Status 1 when it is not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import scenario as scenarios
from harness.detectors import identities
from harness.detectors.classes import descriptor_class
from harness.probes.snapshot import take_snapshot
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.targets.embedded import Embedded
from reports.record import Dose, Judgement, RunRecord, Snapshot, TargetInfo

WARM_UP = 2  # runs
TINY = Profile("tiny", warm_up=(1,), counts=(1,), rounds=0, stop_at_finding=True)
UNITS = 10


@dataclass(frozen=True)
class Held:
    """What the harness's own process has, by class."""

    descriptors: Counter[str]
    threads: int
    children: int
    files: tuple[str, ...]  # in the temporary directory

    @classmethod
    def of(cls, snapshot: Snapshot) -> Held:
        own = snapshot.processes[0]
        labels = Counter(descriptor_class(descriptor, ()).label for descriptor in own.descriptors)
        return cls(labels, own.threads, len(snapshot.processes) - 1, tuple(snapshot.files))


def one_run(scenario_name: str, directory: Path) -> None:
    """Raises SystemExit when the run did not do its work."""
    scenario = replace(scenarios.load(scenario_name), promises=())

    def make(where: Path, ports: dict[str, int]) -> Embedded:
        return Embedded(where, ports, version="benchmark")

    record = Experiment(Design(scenario, make, directory, Options(profile=TINY, units=UNITS))).run()
    if len(record.doses) != len(TINY.warm_up) + len(TINY.counts):
        raise SystemExit(f"the run was cut short: {[incident.text for incident in record.incidents]}")


def observed(runs: int, scenario_name: str, temporary: Path, directory: Path) -> list[Snapshot]:
    """A snapshot of this process after every run. `temporary` is where it makes its temporary files."""
    snapshots = []
    for number in range(runs):
        where = directory / str(number)
        where.mkdir()
        one_run(scenario_name, where)
        snapshots.append(take_snapshot(os.getpid(), spool=temporary))
    return snapshots


def judged(snapshots: Sequence[Snapshot]) -> list[str]:
    """What is not as it was, a sentence each; the first WARM_UP snapshots are warm-up."""
    record = RunRecord("harness", TargetInfo("harness"), judgement=Judgement(unit="run", memory=False))
    for number, snapshot in enumerate(snapshots):
        record.doses.append(Dose(units=1, phase="count" if number >= WARM_UP else "warm-up", snapshot=snapshot))
    said = [finding.message for finding in identities.judge(record).findings]
    before, after = Held.of(snapshots[WARM_UP - 1]), Held.of(snapshots[-1])
    said += [
        f"{what}: {getattr(before, what)} at first, {getattr(after, what)} in the end"
        for what in ("descriptors", "threads", "children", "files")
        if getattr(before, what) != getattr(after, what)
    ]
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--scenario", default="rejected-reuse", help="[%(default)s]")
    options = parser.parse_args()
    if options.runs <= WARM_UP:
        parser.error(f"--runs must be more than {WARM_UP}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as directory:
        tempfile.tempdir = temporary
        snapshots = observed(options.runs, options.scenario, Path(temporary), Path(directory))
        tempfile.tempdir = None
    took_s = time.perf_counter() - began
    last = Held.of(snapshots[-1])
    print(
        f"{options.runs} runs in {took_s:.0f} s: {last.descriptors.total()} descriptors, {last.threads} threads, "
        f"{last.children} children, {len(last.files)} temporary files"
    )
    said = judged(snapshots)
    for sentence in said:
        print(f"LEFT BEHIND: {sentence}", file=sys.stderr)
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())

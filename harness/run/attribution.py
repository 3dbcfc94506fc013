"""A second, small run after a finding, in which the target remembers where it made what it now keeps.

Counting is cheap and is always done; remembering a stack for everything that is made is not, so it is done only once
something was found, and only as long as it takes to see it again. Which process is traced in which way is chosen by
`harness.tracing.choice`.

Owns: the traced run, and which stack belongs to which finding. Never: judges.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import msgspec

from harness.detectors import growth
from harness.detectors.classes import DELETED, descriptor_class, listening_ports, unexplained_files
from harness.load.conversation import LoadError
from harness.probes import descriptors
from harness.remote_mx.process import RemoteMXError
from harness.run.accounts import opened
from harness.run.design import Design
from harness.run.dosing import Dosing
from harness.run.experiment import Experiment
from harness.run.plan import Step
from harness.run.stand import Stand
from harness.run.subject import Cut
from harness.targets import TargetError, Untraceable
from harness.tracing import Line, Stack, Trace
from harness.tracing.choice import Tracing
from reports.record import Descriptor, Finding, Process, RunRecord, Snapshot

ATTRIBUTABLE = frozenset({"descriptor", "socket", "memory", "process", "thread", "task", "file"})
NOT_MADE = frozenset({"died", "broken-off", "restless", "footprint"})  # kinds of finding that are no thing kept
DIRECTORY = "traced"  # of the second run, in the first one's
EXPECTED = 8  # instances of what was found, in the traced doses
EXPECTED_OBJECTS = 100  # where it is memory: one finding is many objects, and not all of them are seen being made
MOST_UNITS = 1500  # of a traced dose, however rare the finding is
LEAST_PART = 2  # of a first dose, in a traced dose, however many objects each unit makes: not every session leaks
PART = 16  # of the first run's units, in a traced dose, where each object is traced, which is several times slower
DOSES = 2  # after the warm-up: what grows in each of them is what keeps growing
MOST_SITES = 3  # of memory
MOST_TYPES = 5
MOST_LINES = 6
HOME = Path(__file__).resolve().parents[2]  # paths below it are told without it


def run_and_explain(design: Design) -> RunRecord:
    """A run and, when it found something, the second look. Raises what `Experiment.run` raises."""
    record = Experiment(design).run()
    if record.findings and not record.was_interrupted:  # who has pressed Ctrl-C does not wish for another run
        try:
            record.attribution = SecondLook(design).explain(record)
        except KeyboardInterrupt:  # what was found stays found
            record.attribution = "the traced run was interrupted"
    return record


class SecondLook:
    """The same run once more, on a traced target. `explain` fills in `opened_at` of what it sees again."""

    def __init__(self, design: Design) -> None:
        """`design`: of the first run."""
        self._design = Design(
            design.scenario,
            partial(design.make_target, traced=True),
            design.directory / DIRECTORY,
            design.options,
            design.progress,
            design.make_load_again,
        )

    def explain(self, first: RunRecord) -> str:
        """Returns what came of it, in one sentence; empty when there was nothing to look for."""
        wanted = [finding for finding in first.findings if is_attributable(finding)]
        if not wanted:
            return ""
        self._most_units = sum(dose.units for dose in first.doses) // PART
        record = opened(self._design)
        growing = {each.role for each in wanted if each.resource == "memory"}
        stand = Stand(self._design, record, allocating=growing)
        try:
            told_by = self._look(stand, record, wanted)
        except Untraceable as reason:
            return str(reason)
        except Cut as cut:
            return f"the traced run was cut short: {cut.incident.text}"
        except (TargetError, LoadError, RemoteMXError, OSError, msgspec.DecodeError) as error:
            return f"the traced run failed: {error}"
        finally:
            stand.stop()
        if not told_by:
            return f"nothing could be loaded into {record.target.name} to tell where: {Tracing.remedy()}"
        seen = sum(bool(finding.opened_at) for finding in wanted)
        units = sum(dose.units for dose in record.doses)
        return (
            f"{seen} of {len(wanted)} findings were seen again in a traced run of {units} x "
            f"{self._design.scenario.unit}, by {told_by}"
        )

    def _look(self, stand: Stand, record: RunRecord, wanted: Sequence[Finding]) -> str:
        """Returns what told."""
        self._design.directory.mkdir(exist_ok=True)
        stand.start()
        dosing = Dosing(self._design, stand, record)
        with Tracing(stand.target.root_pid, stand.target.agent_directory) as tracing:
            for step in self._steps(wanted):
                dosing.give(step)
            return match(record, wanted, tracing, stand.target.spool)

    def _steps(self, wanted: Sequence[Finding]) -> Iterator[Step]:
        units = max(map(self._units, wanted))
        yield Step("warm-up", self._design.plan.first_dose)
        for _ in range(DOSES):
            yield Step("count", units)

    def _units(self, finding: Finding) -> int:
        """Of each traced dose, that the finding shows."""
        least = self._design.plan.first_dose
        if finding.rate <= 0:
            return least
        if finding.resource != "memory":
            return max(least, min(MOST_UNITS, math.ceil(EXPECTED / DOSES / finding.rate)))
        if finding.kind == growth.OBJECTS.name:  # its rate says how few units are enough
            least = max(1, least // LEAST_PART)
        return max(least, min(self._most_units, math.ceil(EXPECTED_OBJECTS / DOSES / finding.rate)))


class Sight:
    """What the traced run saw."""

    def __init__(self, first: Snapshot, last: Snapshot, traces: dict[int, Trace], roles: dict[int, str]) -> None:
        self._first = first
        self._last = last
        self._traces = traces
        self._roles = roles
        self._made = {
            (made.device, made.inode): (roles[pid], made.stack) for pid, trace in traces.items() for made in trace.made
        }
        self._passed = {
            (passed.device, passed.inode, passed.access): (roles[pid], passed.stack)
            for pid, trace in traces.items()
            for passed in trace.passed
        }

    def lines(self, finding: Finding, spool: Path | None) -> list[str]:
        """Where most of what is like the finding was made, innermost line first; empty when nothing was seen."""
        if finding.resource == "memory":
            return self._growth(finding.role)
        if finding.resource == "task":
            return self._waiting(finding.role, finding.kind)
        found = Counter(tuple(lines) for lines in self._each(finding, spool) if lines)
        return list(found.most_common(1)[0][0]) if found else []

    def _each(self, finding: Finding, spool: Path | None) -> Iterator[list[str]]:
        if finding.resource in ("descriptor", "socket"):
            for process, descriptor in self._kept(finding):
                yield self._opener(process, descriptor)
        elif finding.resource == "file" and spool is not None:
            yield from self._files(finding.label, spool)
        elif finding.resource == "thread":
            for pid, trace in self._with_role(finding.role):
                alive = set(map(int, os.listdir(f"/proc/{pid}/task")))
                yield from (_told(stack, finding.role) for tid, stack in trace.threads.items() if tid in alive)
        elif finding.resource == "process":
            for process in self._last.processes:
                for trace in self._traces.values():
                    if process.pid in trace.children and process.pid not in {one.pid for one in self._first.processes}:
                        yield _told(trace.children[process.pid], self._roles.get(process.ppid, ""))

    def _kept(self, finding: Finding) -> Iterator[tuple[Process, Descriptor]]:
        """Descriptors of the finding's class that were not there after the warm-up."""
        before = {
            (process.pid, each.fd, each.inode) for process in self._first.processes for each in process.descriptors
        }
        listening = listening_ports(self._last)
        for process in self._last.processes:
            for each in process.descriptors if process.role == finding.role else ():
                is_new = (process.pid, each.fd, each.inode) not in before
                label = descriptor_class(each, listening).label.replace(f"/{DIRECTORY}/", "/")
                # What the first run saw deleted in the end, the second, which is short, may see before that.
                if is_new and label.removesuffix(DELETED) == finding.label.removesuffix(DELETED):
                    yield process, each

    def _opener(self, process: Process, descriptor: Descriptor) -> list[str]:
        """Of a descriptor that was passed: who opened it, then who received it and did not close it."""
        trace = self._traces.get(process.pid)
        opened = trace.open.get(descriptor.fd) if trace is not None else None
        if opened is None:
            return []
        here = _told(opened.stack, process.role)
        if not opened.received:
            return here
        there = self._passed.get((descriptor.device, descriptor.inode, descriptor.flags & os.O_ACCMODE))
        received = [f"{line}, received" for line in here[:1]]
        return [*_told(there[1], there[0]), *received] if there is not None else received

    def _files(self, label: str, spool: Path) -> Iterator[list[str]]:
        before = unexplained_files(self._first)
        for name, what in unexplained_files(self._last).items():
            if name in before or what.label != label:
                continue
            try:
                found = os.stat(spool / name)
            except FileNotFoundError:
                continue
            if (made := self._made.get((found.st_dev, found.st_ino))) is not None:
                yield _told(made[1], made[0])

    def _growth(self, role: str) -> list[str]:
        objects: Counter[Line] = Counter()  # by the line that made them, whichever way it was reached
        size: Counter[Line] = Counter()
        for _, trace in self._with_role(role):
            for site in trace.growth:
                if site.stack:
                    objects[site.stack[0]] += site.count
                    size[site.stack[0]] += site.size
        most = sorted(objects, key=lambda line: (-objects[line], -size[line]))[:MOST_SITES]
        return [f"{_line(line, role)}, {objects[line]} objects, {size[line]} bytes" for line in most]

    def _waiting(self, role: str, kind: str) -> list[str]:
        found = [each for _, trace in self._with_role(role) for each in trace.waiting if each.kind == kind]
        return _told(max(found, key=lambda each: each.count).stack, role) if found else []

    def types(self, role: str) -> list[str]:
        """``transfer.routes.Relay, 20 more``: what there is more and more of, the program's own types first."""
        grown = [each for _, trace in self._with_role(role) for each in trace.types]
        return [
            f"{name}, {count} more"
            for name, count in sorted(grown, key=lambda each: ("." not in each[0], -each[1]))[:MOST_TYPES]
        ]

    def _with_role(self, role: str) -> Iterable[tuple[int, Trace]]:
        return [(pid, trace) for pid, trace in self._traces.items() if self._roles[pid] == role]


def match(record: RunRecord, wanted: Sequence[Finding], tracing: Tracing, spool: Path | None) -> str:
    """Fill in `opened_at` by the traces of the last rest, while the traced target still runs: threads and files are
    looked up as they are now. Returns what told. Raises OSError, and msgspec.DecodeError for a trace that is none.
    """
    first, last = record.doses[0].snapshot, record.doses[-1].snapshot
    roles = {process.pid: process.role for process in last.processes}
    for process in last.processes:
        if process.state != "Z":
            process.descriptors = descriptors.read(process.pid)  # with their access modes, which snapshots leave out
    sight = Sight(first, last, tracing.traces(last.processes), roles)
    for finding in wanted:
        finding.opened_at = sight.lines(finding, spool)
        if finding.opened_at:
            finding.traced_by = tracing.told_by([pid for pid, role in roles.items() if role == finding.role])
        if finding.resource == "memory":
            finding.examples = sight.types(finding.role)
    guilty = {finding.role for finding in wanted}
    return tracing.told_by([pid for pid, role in roles.items() if role in guilty])


def is_attributable(finding: Finding) -> bool:
    """Whether it was made somewhere: a death, lost mail and a counter were not."""
    return finding.resource in ATTRIBUTABLE and finding.kind not in NOT_MADE


def _told(stack: Stack, role: str) -> list[str]:
    return [_line(line, role) for line in stack[:MOST_LINES]]


def _line(line: Line, role: str) -> str:
    """``mta_under_test/spool/disk.py:212 in message_fd (queue)``; without a line, ``/usr/sbin/smtpd+0x1f3a in …``."""
    path, number, function = line
    where = f"{_short(path)}:{number}" if number else _short(path)
    return f"{where}{f' in {function}' if function else ''}{f' ({role})' if role else ''}"


@lru_cache(maxsize=1024)
def _short(path: str) -> str:
    return os.path.relpath(path, HOME) if Path(path).is_relative_to(HOME) else path

"""Work that a caller does himself, in doses: what a test of another project needs to know what its code keeps.

    check = LeakCheck(target, "test_mail", ...)
    for units in check.doses():     # do exactly so many units of work
        ...
    check.record                    # judged

The doses, the rests and the judgement are those of a run (`experiment`); only nobody here makes load. Memory is judged
where objects can be counted: where an agent answers, and in this very process, which counts its own.

Owns: when a dose is over. Never: starts or stops anything, decides what a verdict means for the caller.

What a check remembers is in a file until it is judged: this process must not grow by what it knows.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from harness import __version__
from harness.detectors import verdict
from harness.probes import host
from harness.probes.sampler import Sampler
from harness.run.attribution import is_attributable, match
from harness.run.design import REST_TIMEOUT_S
from harness.run.plan import PROFILES, Plan, Profile, Step
from harness.run.subject import Clock, Cut, Subject
from harness.targets import Rest, Target
from harness.targets.attach import Attached
from harness.targets.itself import Itself
from harness.tracing.choice import Tracing
from reports.record import (
    AgentReading,
    Dose,
    Incident,
    Judgement,
    RunRecord,
    Snapshot,
    TargetInfo,
)

SAMPLE_HZ = 10.0
STILL_S = 0.1  # without any movement: a server under test has no other clients
FIRST_DOSE = 20


class _NoRemoteMX:
    """Whoever relays to one waits for it in its own `rest`."""

    def open_sessions(self) -> int:
        return 0


class LeakCheck:
    """One check of `target`, by the name `name`. `record` is whole when `doses` has come to its end."""

    def __init__(
        self,
        target: Target,
        name: str,
        *,
        unit: str = "call",
        profile: Profile = PROFILES["quick"],
        first_dose: int = FIRST_DOSE,
        memory: bool | None = None,
        alpha: float = 0.01,
        command: str = "",
        traced: bool = False,
        rest_timeout_s: float = REST_TIMEOUT_S,
    ) -> None:
        """`memory`: whether it is judged; None: where objects can be counted. `command`: what repeats the check.
        `traced`: the target's agents remember where things are made; then memory is not judged. Raises ValueError for a
        dose without work.
        """
        if first_dose < 1:
            raise ValueError(f"a first dose of {first_dose} units; it must be at least 1")
        self._target = target
        self._plan = Plan(profile, first_dose)
        self._profile = profile
        self._memory = False if traced else memory  # a tracer grows by what it remembers
        self._traced = traced
        self._clock = Clock()
        # Memory is not judged of a traced target: nobody of it is asked for allocations.
        self._subject = Subject(target, _NoRemoteMX(), self._clock, timeout_s=rest_timeout_s, allocating=())
        self._rest_timeout_s = rest_timeout_s
        self.is_judged = False
        self.record = RunRecord(
            scenario=name,
            target=TargetInfo(target.name, target.version, list(target.defects)),
            seatbelt=__version__,
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            host=host.read(),
            judgement=Judgement(alpha=alpha, unit=unit, profile=profile.name, memory=bool(self._memory)),
        )

    def doses(self) -> Iterator[int]:
        """How much is to be done, dose by dose; after the last one the check is judged. Raises TargetError."""
        with tempfile.TemporaryFile() as file, self._sampled():
            kept = _Kept(file.fileno())
            try:
                for step in self._steps(kept):
                    yield step.units
            except Cut as cut:
                self.record.incidents.append(cut.incident)
            self.record.doses = kept.read()
        self._judge()

    # ---- the phases

    def _steps(self, kept: _Kept) -> Iterator[Step]:
        """Each step is over when the next one is asked for: then the target rests and is counted."""
        for step in self._plan.counts():
            yield from self._given(kept, step)
        if self._memory is None:
            self.record.judgement.memory = _objects_counted(kept)
        if not self.record.judgement.memory:
            return
        if self._profile.stop_at_finding and verdict.judge(self._so_far(kept)).findings:
            return
        for number in range(self._profile.rounds):
            for step in self._plan.memory_round(number):
                yield from self._given(kept, step)
            if verdict.judge(self._so_far(kept)).decided:
                return

    def _given(self, kept: _Kept, step: Step) -> Iterator[Step]:
        began = self._clock()
        yield step
        ended = self._clock()
        rest = self._subject.wait()
        dose = Dose(units=step.units, phase=step.phase, round=step.round, began=began, ended=ended)
        dose.drained_s = self._clock() - ended
        dose.rested = not rest.busy
        dose.snapshot = self._snapshot(rest)
        kept.add(dose)
        if rest.busy:
            busy = ", ".join(f"{name} {count}" for name, count in rest.busy.items())
            text = f"not at rest {self._rest_timeout_s:.0f} s after a dose of {step.units}: {busy}"
            raise Cut(Incident(kind="restless", text=text, at=self._clock()))
        self._subject.check_alive()

    def _so_far(self, kept: _Kept) -> RunRecord:
        return msgspec.structs.replace(self.record, doses=kept.read())

    def _judge(self) -> None:
        record = self.record
        verdict.conclude(record)
        wanted = [finding for finding in record.findings if is_attributable(finding)]
        if self._traced and wanted and self._target.agent_directory is not None:
            tracing = Tracing(self._target.root_pid, self._target.agent_directory)
            try:
                match(record, wanted, tracing, self._target.spool)
                record.attribution = "the target was traced while it was checked"
            except (OSError, msgspec.DecodeError) as error:  # what was found stays found
                record.attribution = f"where it was made cannot be told: {error}"
        self.is_judged = True

    # ---- observing

    @contextmanager
    def _sampled(self) -> Iterator[None]:
        """Under load too; but a process that samples itself would grow by its samples."""
        if self._target.root_pid == os.getpid():
            yield
            return
        with Sampler(self._subject.pids, hz=SAMPLE_HZ, clock=self._clock) as sampler:
            yield
        self.record.samples = sampler.samples

    def _snapshot(self, rest: Rest) -> Snapshot:
        taken = self._subject.snapshot(rest)
        for process in taken.processes:
            if process.pid == os.getpid():
                process.agent = _own_objects()
        return taken


def watched(of: object, agent_directory: Path | None = None) -> Target:
    """What a check is of: None is this process; else a pid, whatever has one (subprocess.Popen), or a target.

    Raises TargetError for a process that is not there or may not be looked at, TypeError for anything else.
    """
    if of is None or of == os.getpid():
        return Itself()
    if hasattr(of, "root_pid"):
        target: Target = of  # type: ignore[assignment]
        return target
    pid = of if isinstance(of, int) else getattr(of, "pid", None)
    if not isinstance(pid, int):
        raise TypeError(f"a check is of a pid, of a process with .pid, or of a target, not of {of!r}")
    # Its clients are the caller's: what he holds between two doses is no work that goes on.
    return Attached(str(pid), still_s=STILL_S, clients_stay=True, agent_directory=agent_directory)


class _Kept:
    """Doses in a file, a line each."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def add(self, dose: Dose) -> None:
        data = msgspec.json.encode(dose) + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]

    def read(self) -> list[Dose]:
        size = os.fstat(self._descriptor).st_size
        return [msgspec.json.decode(line, type=Dose) for line in os.pread(self._descriptor, size, 0).splitlines()]


def _objects_counted(kept: _Kept) -> bool:
    return any(process.agent is not None for dose in kept.read() for process in dose.snapshot.processes)


def _own_objects() -> AgentReading:
    """As an agent in another process would count them."""
    gc.collect()
    gc.collect()  # finalizers of the first round may have let more go
    return AgentReading(blocks=sys.getallocatedblocks())

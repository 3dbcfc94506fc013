"""dosing: one dose of a run: its load, its drain, its snapshot.

Owns: how much was given, and when a dose must be broken off. Never: decides which dose comes next, judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from harness.detectors.wording import quantity
from harness.load.tally import Tally, summary
from harness.run.accounts import Accounts
from harness.run.design import REFUSING, Design
from harness.run.plan import Step
from harness.run.stand import Stand
from harness.run.subject import Cut
from harness.targets import CountsTraffic, FollowsMail, Rest
from reports.record import Dose, Incident, RunRecord, Snapshot

DOSE_TIMEOUT_S = 120.0


class Over(Exception):
    """Whoever drives the load has ended it, and the last dose has been recorded."""


class Dosing:
    """Of one run, on `stand`, which runs. The record gets one dose after the other."""

    def __init__(self, design: Design, stand: Stand, record: RunRecord) -> None:
        self._design = design
        self._stand = stand
        self._record = record
        self._rest = Rest()  # after the last portion of a dose
        self.accounts = Accounts(stand)
        self.units_done = 0
        self.units_planned = design.plan.units_before_memory
        if isinstance(stand.target, FollowsMail):
            stand.target.follow(self.accounts.unseen)

    def tell(self, text: str) -> None:
        """What happens now."""
        self._design.progress(text, self.units_done, self.units_planned)

    def give(self, step: Step) -> None:
        """One dose, its drain, its snapshot. Raises Cut when it is the last that can be given, Over when it is the last
        that the load gives; TargetError, LoadError, RemoteMXError.
        """
        record, clock, subject, spare = self._record, self._stand.clock, self._stand.subject, self._stand.spare
        number = len(record.doses)
        label = {"warm-up": "warming up", "count": "dose", "memory": f"memory round {step.round + 1}"}[step.phase]
        self.tell(f"{label}: {step.units} x {self._design.scenario.unit}")
        given = 0
        while not given:  # again, as long as the load is cut short before it has begun
            dose = Dose(phase=step.phase, round=step.round, began=clock())
            tallies = self._load(number, step.units)
            given = sum(tally.units for tally in tallies)
            if not given and tallies[-1].last:
                raise Over
        dose.units = given - given // spare if spare else given
        dose.ended = clock()
        rest = self._rest if self._rest.busy else subject.wait(work=given)
        dose.drained_s = clock() - dose.ended
        dose.rested = not rest.busy
        dose.snapshot = subject.snapshot(rest)
        if isinstance(self._stand.target, CountsTraffic):
            dose.snapshot.traffic = self._stand.target.traffic()
        record.target.loaded = sorted({*record.target.loaded, *_loaded(dose.snapshot)})
        dose.work = self.accounts.balance(record, tallies)
        dose.response_ms = summary(tallies).response_ms
        record.doses.append(dose)
        self.units_done += given
        self.units_planned -= step.units - given
        self._design.observer.rested(record)
        if not dose.rested:
            busy = ", ".join(f"{name} {count}" for name, count in rest.busy.items())
            waited_s = max(dose.drained_s, self._design.options.rest_timeout_s)
            text = f"not at rest {waited_s:.0f} s after dose {number + 1}: {busy}"
            raise Cut(Incident(kind="restless", text=text, at=clock(), dose=number))
        subject.check_alive()
        if tallies[-1].last:
            raise Over

    # ---- the load of a dose

    def _load(self, number: int, units: int) -> list[Tally]:
        """All of it, portion by portion."""
        self._rest = Rest()
        tallies: list[Tally] = []
        for first, portion in self._portions(units):
            tallies.append(self._load_portion(number, first, portion))
            if self._rest.busy:
                break  # what did not come to rest now will not after the next portion
            if tallies[-1].units < portion:
                break  # somebody wishes to know now
        return tallies

    def _portions(self, units: int) -> list[tuple[int, int]]:
        """(first unit, units) of each part of a dose that is drained by itself."""
        portion = self._design.scenario.portion or units
        return [(first, min(portion, units - first)) for first in range(0, units, portion)]

    def _load_portion(self, number: int, first: int, units: int) -> Tally:
        scenario, stand = self._design.scenario, self._stand
        if scenario.hold_backlog:
            stand.mx.shut_gate(REFUSING)
        try:
            with self._operating(first, units):
                tally = stand.load.dose(number, units, first=first, timeout_s=DOSE_TIMEOUT_S)
        finally:
            if scenario.hold_backlog:
                stand.mx.open_gate(REFUSING)
        self.accounts.add(tally)
        if tally.unfinished:
            if (death := stand.subject.death()) is not None:
                raise Cut(death)
            raise Cut(self._broken(number, tally))
        if scenario.portion is not None:
            self._rest = stand.subject.wait(polls=1, work=units)
        return tally

    def _broken(self, number: int, tally: Tally) -> Incident:
        """Why the dose was not exact, though everybody lives: by the server's doing, or who knows."""
        count = tally.broken_off or tally.unfinished
        what = f"{quantity(count, 'session')} of dose {number + 1}"
        errors = f": {'; '.join(tally.errors)}" if tally.errors else ""
        at = self._stand.clock()
        if not tally.broken_off:
            return Incident("load", f"{what} ended early{errors}", at, dose=number)
        role, pid = self._stand.subject.listener()
        text = f"the server broke off {what}{errors}"
        return Incident("broken-off", text, at, role=role, pid=pid, dose=number, count=count)

    @contextmanager
    def _operating(self, first: int, units: int) -> Iterator[None]:
        """The operator's part of a dose, beside the load. Raises TargetError when all of the load is done."""
        operations = self._design.scenario.operations
        if not operations:
            yield
            return
        with ThreadPoolExecutor(1) as operator:
            chosen = [operations[number % len(operations)] for number in range(first, first + units)]
            work = operator.submit(self._operate, chosen)
            yield
        work.result()

    def _operate(self, operations: Sequence[str]) -> None:
        for operation in operations:
            self._stand.target.operate(operation)


def _loaded(snapshot: Snapshot) -> Iterator[str]:
    """What of ours was found at work in the target's processes."""
    if any(process.agent is not None for process in snapshot.processes):
        yield "Python agent"
    if any(process.memory.heap is not None for process in snapshot.processes):
        yield "heap meter"

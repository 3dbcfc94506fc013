"""The phases of a run, in order: the only place that knows what comes after what.

Start what it stands on; warm up; give doses and let the target come to rest after each; take a snapshot at every rest;
judge. Whatever happens (a process dies, Ctrl-C, no rest), every process that was started is stopped, and what is known
by then becomes the record.
"""

from __future__ import annotations

import resource
from contextlib import ExitStack
from typing import Literal

from harness.detectors import footprint, verdict
from harness.interruption import uninterrupted
from harness.load.conversation import LoadError
from harness.probes.sampler import Sampler
from harness.remote_mx.process import RemoteMXError
from harness.run.accounts import opened
from harness.run.design import Design
from harness.run.dosing import Dosing, Over
from harness.run.stand import Stand
from harness.run.subject import Cut
from harness.targets import TargetError
from reports.record import Incident, RunRecord

SAMPLE_HZ = 10.0


class Experiment:
    """One run. `run` returns its record, judged."""

    def __init__(self, design: Design) -> None:
        self._design = design
        self._record = opened(design)
        self._stand = Stand(design, self._record)

    def run(self) -> RunRecord:
        """Raises TargetError, LoadError or RemoteMXError when the run cannot even begin."""
        record = self._record
        with ExitStack() as closing:
            try:
                self._stand.start()
                self._work(closing)
            except KeyboardInterrupt:
                self._interrupted("while starting")
                closing.enter_context(uninterrupted())
            finally:
                self._stand.stop()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            record.harness.cpu_s = usage.ru_utime + usage.ru_stime
            verdict.conclude(record)
            record.footprint = footprint.measure(record)
        return record

    def _work(self, closing: ExitStack) -> None:
        """All doses, and what became of the mail. From there on nothing interrupts, until `closing` ends."""
        record, stand = self._record, self._stand
        with Sampler(stand.subject.pids, hz=SAMPLE_HZ, clock=stand.clock) as sampler:
            dosing = Dosing(self._design, stand, record)
            try:
                self._until_over(dosing)
            except KeyboardInterrupt:
                self._interrupted(f"during dose {len(record.doses) + 1}")
            closing.enter_context(uninterrupted())
            dosing.tell("counting the mail")
            dosing.accounts.close(record)
        record.samples = sampler.samples
        record.harness.probe_cpu_s = stand.subject.probe_cpu_s + sampler.cpu_s

    def _until_over(self, dosing: Dosing) -> None:
        """The phases, and what cut them short."""
        record = self._record
        self._design.observer.began(record, self._stand.subject.pids, self._stand.page)
        try:
            self._phases(dosing)
        except Cut as cut:
            record.incidents.append(cut.incident)
        except Over:
            self._ended_early()
        except (TargetError, LoadError, RemoteMXError) as error:
            record.incidents.append(self._explained(error))

    def _phases(self, dosing: Dosing) -> None:
        record, plan, profile = self._record, self._design.plan, self._design.options.profile
        for step in plan.counts():
            dosing.give(step)
            if step.phase == "warm-up":
                self._check_early()
        if not self._design.judges_memory or self._is_proven(verdict.judge(record)):
            return
        for number in range(profile.rounds):
            dosing.units_planned += plan.units_of_round_0 << number
            for step in plan.memory_round(number):
                dosing.give(step)
            judged = verdict.judge(record)
            if judged.decided or self._is_proven(judged):
                return

    def _is_proven(self, judged: verdict.Judged) -> bool:
        """A quick run is over when something was found, whatever else is still in doubt."""
        return self._design.options.profile.stop_at_finding and bool(judged.findings)

    def _check_early(self) -> None:
        """A warm-up whose sessions were hopelessly short need not be followed by a whole run of the same."""
        for promise in self._record.promises:
            if promise.what.startswith("messages_per_session") and promise.measured < promise.at_least / 2:
                text = f"after the warm-up: {promise.what.replace('_', ' ')} is {promise.measured:.1f}"
                raise Cut(Incident(kind="load", text=text, at=self._stand.clock()))

    def _ended_early(self) -> None:
        """What was to be counted has been counted, or the run says that it was not; memory tells by itself."""
        record = self._record
        planned = len(list(self._design.plan.counts()))
        if len(record.doses) < planned:
            text = f"the load was ended after dose {len(record.doses)} of {planned}: give it more time"
            record.incidents.append(Incident(kind="interrupted", text=text, at=self._stand.clock()))

    def _interrupted(self, when: str) -> None:
        self._record.incidents.append(Incident(kind="interrupted", text=f"interrupted {when}", at=self._stand.clock()))

    def _explained(self, error: TargetError | LoadError | RemoteMXError) -> Incident:
        """When a conversation broke off because the target died, the death is the incident."""
        if (death := self._stand.subject.death()) is not None:
            return death
        at = self._stand.clock()
        if isinstance(error, LoadError):
            return Incident(kind="load", text=str(error), at=at)
        kind: Literal["remote-mx", "target"] = "remote-mx" if isinstance(error, RemoteMXError) else "target"
        return Incident(kind=kind, text=str(error), at=at)


def interrupted(design: Design) -> RunRecord:
    """The record, judged, of a run that was interrupted before anything of it was started."""
    record = opened(design)
    record.incidents.append(Incident(kind="interrupted", text="interrupted while starting"))
    verdict.conclude(record)
    return record

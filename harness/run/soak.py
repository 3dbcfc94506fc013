"""A long look at a server that runs already and gets its work from elsewhere: probes only, no load.

The doses are the experiment's, in the same order and of the same sizes; only nobody gives them. A dose is over when so
many connections have come in at the server's ports, or, for a process that listens nowhere, so many seconds have gone.
Then a moment without clients is waited for, as long as there is patience, and the snapshot is taken. A server that is
never without clients is judged all the same: what counts is who is still there at every later snapshot.

Owns: when a dose is over, and the history: a record on disk that is whole after every dose, so that a look can go on
where another one ended. What came in between is asked of the clock, or of the kernel's count of accepted connections,
which knows no ports and so may be too large: the rates are then too small, never too large.
"""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from harness import __version__
from harness.detectors import verdict
from harness.probes import host, processes
from harness.probes import snapshot as probe
from harness.probes.arrivals import Arrivals, accepted_ever
from harness.probes.sampler import Sampler
from harness.run.design import Progress
from harness.run.plan import Plan, Profile, Step
from harness.targets.attach import Attached
from reports.record import Dose, Incident, Judgement, RunRecord, Snapshot, TargetInfo, load, save

By = Literal["connections", "time"]
UNITS: dict[By, str] = {"connections": "accepted connection", "time": "second"}
FIRST_DOSE: dict[By, int] = {"connections": 20, "time": 10}
SCENARIO = "watch"
ACCEPTED = "kernel.accepted"  # a counter in snapshots
LOOK_S = 0.1
PATIENCE_S = 10.0  # for a moment without clients
SAMPLE_HZ = 1.0


class HistoryError(Exception):
    """The history cannot go on; says why and what to do."""


class Soak:
    """One look, or one more stretch of it. `run` returns the record, judged; the history has it too."""

    def __init__(
        self,
        target: Attached,
        history: Path,
        progress: Progress,
        *,
        profile: Profile,
        by: By,
        first_dose: int,
        alpha: float = 0.01,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Raises HistoryError, and RecordError for a history that is none."""
        self._target = target
        self._history = history
        self._progress = progress
        self._profile = profile
        self._by = by
        self._plan = Plan(profile, first_dose)
        self._patience_s = patience_s
        self._alpha = alpha
        self.went_on = False  # from a history of the same process
        self.record = self._begin()
        self._began = datetime.fromisoformat(self.record.began).timestamp()
        self._arrivals = Arrivals(target.root_pid, target.found.ports)
        self._came = self._came_meanwhile()
        self._mark_s = self.record.doses[-1].snapshot.taken if self.record.doses else self._clock()

    def run(self) -> RunRecord:
        """Until the plan is done, something is found, the process ends, or Ctrl-C. Raises RecordError, OSError."""
        record = self.record
        with Sampler(lambda: processes.tree(self._target.root_pid), hz=SAMPLE_HZ, clock=self._clock) as sampler:
            try:
                self._steps(record)
            except KeyboardInterrupt:
                text = f"stopped by hand in dose {len(record.doses) + 1}; the same command goes on from there"
                record.incidents.append(Incident(kind="interrupted", text=text, at=self._clock()))
            except ProcessLookupError:
                text = f"{self._target.version} has ended in dose {len(record.doses) + 1}"
                record.incidents.append(Incident(kind="target", text=text, at=self._clock()))
        record.samples = sampler.samples
        usage = resource.getrusage(resource.RUSAGE_SELF)
        record.harness.cpu_s = usage.ru_utime + usage.ru_stime
        verdict.conclude(record)
        save(record, self._history)
        return record

    # ---- the history

    def _begin(self) -> RunRecord:
        """The history of the same process, or a new one. That of another process is kept beside it."""
        if self._history.exists():
            found = load(self._history)
            if self._is_of_target(found) and not self._is_done(found):
                self._check_same(found)
                self.went_on = True
                found.incidents.clear()
                return found
            self._history.replace(self._history.with_name(self._history.name + ".old"))
        return RunRecord(
            scenario=SCENARIO,
            target=TargetInfo(self._target.name, self._target.version),
            seatbelt=__version__,
            began=datetime.now(UTC).isoformat(),
            host=host.read(),
            judgement=Judgement(
                alpha=self._alpha, unit=UNITS[self._by], profile=self._profile.name, memory=self._profile.rounds > 0
            ),
        )

    def _is_of_target(self, found: RunRecord) -> bool:
        if found.scenario != SCENARIO:
            raise HistoryError(f"{self._history}: is the record of a run, not of a watch; choose another --history")
        roots = [dose.snapshot.processes[0] for dose in found.doses[-1:] if dose.snapshot.processes]
        return any((root.pid, root.started) == (self._target.root_pid, self._target.found.started) for root in roots)

    def _is_done(self, found: RunRecord) -> bool:
        ended = not found.incidents and found.verdict != "inconclusive"
        return ended or len(found.doses) >= len(self._planned())

    def _check_same(self, found: RunRecord) -> None:
        """A plan cannot be changed under way."""
        for what, then, now in (
            ("--profile", found.judgement.profile, self._profile.name),
            ("--by", found.judgement.unit, UNITS[self._by]),
        ):
            if then != now:
                text = f"{self._history}: was begun with {what} of {then!r}, not {now!r}; choose another --history"
                raise HistoryError(text)

    def _came_meanwhile(self) -> int:
        """Work since the last dose of the history, that nobody looked at."""
        if not self.record.doses:
            return 0
        last = self.record.doses[-1].snapshot
        if self._by == "time":
            return 0  # the clock has gone on by itself
        return max(0, accepted_ever(self._target.root_pid) - last.counters.get(ACCEPTED, 0))

    # ---- the doses

    def _planned(self) -> list[Step]:
        steps = list(self._plan.counts())
        for number in range(self._profile.rounds):
            steps += self._plan.memory_round(number)
        return steps

    def _steps(self, record: RunRecord) -> None:
        planned = self._planned()
        for number in range(len(record.doses), len(planned)):
            step = planned[number]
            last = max(at for at, each in enumerate(planned) if (each.phase, each.round) == (step.phase, step.round))
            done, until = (sum(each.units for each in planned[:end]) for end in (number, last + 1))
            self._dose(record, step, done, until)
            save(record, self._history)
            if number < last:
                continue
            if step.phase == "count" and self._profile.stop_at_finding and verdict.judge(record).findings:
                return
            if step.phase == "memory" and verdict.judge(record).decided:
                return

    def _dose(self, record: RunRecord, step: Step, done: int, planned: int) -> None:
        """`done` units before it, of `planned` up to the end of its phase."""
        dose = Dose(phase=step.phase, round=step.round, began=self._mark_s)
        label = {"warm-up": "warming up", "count": "dose", "memory": f"memory round {step.round + 1}"}[step.phase]
        told = -1
        while (units := self._units()) < step.units:
            if units != told:
                self._progress(f"{label}: {step.units} x {record.judgement.unit}", done + units, planned)
                told = units
            self._pause()
        dose.ended = self._clock()
        deadline = time.monotonic() + self._patience_s
        while self._arrivals.open and time.monotonic() < deadline:
            self._pause()
        dose.snapshot = self._snapshot()
        dose.drained_s = self._clock() - dose.ended
        dose.units = self._units()
        if self._by == "connections":
            dose.work.sessions = dose.units
            record.work.sessions += dose.units
        record.doses.append(dose)
        self._came = 0
        self._mark_s = dose.snapshot.taken

    def _units(self) -> int:
        return self._came if self._by == "connections" else int(self._clock() - self._mark_s)

    def _pause(self) -> None:
        """Raises ProcessLookupError when there is nobody left to look at."""
        time.sleep(LOOK_S)
        self._came += self._arrivals.look()
        if not self._target.lives():
            raise ProcessLookupError(self._target.root_pid)

    def _snapshot(self) -> Snapshot:
        """Raises ProcessLookupError."""
        began = time.process_time()
        accepted = accepted_ever(self._target.root_pid)
        taken = probe.take_snapshot(self._target.root_pid, counters={ACCEPTED: accepted}, clock=self._clock)
        self._came += self._arrivals.look()
        if not taken.processes or not self._target.lives():
            raise ProcessLookupError(self._target.root_pid)
        self.record.harness.probe_cpu_s += time.process_time() - began
        return taken

    def _clock(self) -> float:
        """Seconds since the history began, though another process wrote the beginning."""
        return time.time() - self._began


def usual(target: Attached) -> By:
    """By the work that can be seen, where there is any to see."""
    return "connections" if target.found.ports else "time"

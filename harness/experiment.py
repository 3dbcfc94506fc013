"""The phases of a run, in order: the only place that knows what comes after what.

Start the remote MX, the load and the target; warm up; give doses and let the target come to rest after each; take a
snapshot at every rest; judge. Whatever happens (a process dies, Ctrl-C, no rest), every process that was started is
stopped, and what is known by then becomes the record.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from harness import __version__, isolation, mail
from harness.detectors import footprint, verdict
from harness.interruption import uninterrupted
from harness.load.conversation import Conversation, LoadError
from harness.load.process import LoadProcess
from harness.load.tally import Tally, summary
from harness.plan import PROFILES, Plan, Profile, Step
from harness.probes import snapshot as probe
from harness.probes.processes import Roles, default_role
from harness.probes.sampler import Sampler
from harness.quiescence import Quiescence
from harness.remote_mx.ledger import LedgerReport, ListenerReport
from harness.remote_mx.process import RemoteMX, RemoteMXError
from harness.scenario import Scenario, SessionPlan
from harness.targets import (
    CountsTraffic,
    FollowsMail,
    LosesPatience,
    NamesRoles,
    Rest,
    Target,
    TargetError,
    TellsWhatItOwes,
)
from harness.targets.cgroup import Cgroup
from reports.record import (
    Conditions,
    Dose,
    Host,
    Incident,
    Judgement,
    PlannedMessage,
    PlannedSession,
    PlannedStep,
    RunRecord,
    Snapshot,
    TargetInfo,
    Work,
)

REST_TIMEOUT_S = 30.0
DOSE_TIMEOUT_S = 120.0
DEATH_SHOWS_S = 1.0
DEATH_POLL_S = 0.02
SAMPLE_HZ = 10.0
DIALOGUE_SESSIONS = 40  # at the most, that the record keeps
REFUSING, HOME = "refusing", "home"

Progress = Callable[[str, int, int], None]  # what happens now, units done, units planned so far
MakeTarget = Callable[[Path, dict[str, int]], Target]  # given its directory and the remote MX's ports by name
MakeLoad = Callable[[str, int, int], AbstractContextManager[Conversation]]  # given scenario, users and seed


@dataclass(frozen=True)
class Options:
    profile: Profile = PROFILES["quick"]
    users: int = 5
    seed: int = 1
    units: int | None = None  # the first dose, instead of the scenario's own
    alpha: float = 0.01
    rest_timeout_s: float = REST_TIMEOUT_S
    refuses: str | None = None  # the remote MX's policy, instead of the scenario's


class Observer(Protocol):
    """Somebody who looks on while a run goes. Called on the run's own thread."""

    def began(self, record: RunRecord, pids: Callable[[], Sequence[int]], page: str) -> None:
        """`pids` are those of the target now; `page` is the load's URL for a person to look at, if it has one."""

    def rested(self, record: RunRecord) -> None:
        """Another dose is in the record."""


class Cut(Exception):
    """The run ends here; the incident says why."""

    def __init__(self, incident: Incident) -> None:
        super().__init__(incident.text)
        self.incident = incident


class _Over(Exception):
    """Whoever drives the load has ended it, and the last dose has been recorded."""


class Experiment:
    """One run. `run` returns its record, judged."""

    def __init__(
        self,
        scenario: Scenario,
        make_target: MakeTarget,
        directory: Path,
        options: Options,
        progress: Progress,
        *,
        make_load: MakeLoad = LoadProcess,
        observer: Observer | None = None,
    ) -> None:
        self.scenario = scenario
        self.options = options
        self.directory = directory
        self._make_target = make_target
        self._make_load = make_load
        self._observer = observer
        self._progress = progress
        self._memory = scenario.memory and options.profile.rounds > 0
        self._plan = Plan(options.profile, options.units or scenario.first_dose)
        self._units_done = 0
        self._units_planned = self._plan.units_before_memory
        self._accepted: set[str] = set()
        self._tallies: list[Tally] = []
        self._ledger = LedgerReport()
        self._spare = 0  # every so many-th message is accepted, and is no unit; 0: none
        self._rest = Rest()  # after the last portion of a dose
        self._epoch = time.monotonic()
        self._probe_cpu_s = 0.0

    # ---- the whole

    def run(self) -> RunRecord:
        """Raises TargetError, LoadError or RemoteMXError when the run cannot even begin."""
        began = datetime.now(UTC)
        self._epoch = time.monotonic()
        with ExitStack() as closing:
            with ExitStack() as running:
                self._start(running)
                record = self._blank(began)
                sampler = running.enter_context(Sampler(self._pids, hz=SAMPLE_HZ, clock=self._clock))
                try:
                    self._until_over(record)
                except KeyboardInterrupt:
                    text = f"interrupted during dose {len(record.doses) + 1}"
                    record.incidents.append(Incident(kind="interrupted", text=text, at=self._clock()))
                closing.enter_context(uninterrupted())
                self._progress("counting the mail", self._units_done, self._units_planned)
                self._account_for_mail(record)
                self._measure_promises(record)
                sampler.stop()
                record.samples = sampler.samples
                self._probe_cpu_s += sampler.cpu_s
            record.load = summary(self._tallies)
            usage = resource.getrusage(resource.RUSAGE_SELF)
            record.harness.cpu_s = usage.ru_utime + usage.ru_stime
            record.harness.probe_cpu_s = self._probe_cpu_s
            judged = verdict.judge(record)
            record.verdict, record.findings = judged.verdict, judged.findings
            record.tested, record.reasons = judged.tested, judged.reasons
            record.footprint = footprint.measure(record)
        return record

    def _until_over(self, record: RunRecord) -> None:
        """The phases, and what cut them short."""
        if self._observer is not None:
            self._observer.began(record, self._pids, self._page)
        try:
            self._phases(record)
        except Cut as cut:
            record.incidents.append(cut.incident)
        except _Over:
            self._ended_early(record)
        except (TargetError, LoadError, RemoteMXError) as error:
            record.incidents.append(self._explained(error))

    def _start(self, running: ExitStack) -> None:
        self._progress("starting", 0, self._units_planned)
        policies = {REFUSING: self._refuses, HOME: ""}
        users = self.scenario.users or self.options.users
        # The load's imports take longest: they run while the others start.
        self._load = running.enter_context(self._make_load(self.scenario.path, users, self.options.seed))
        self._mx = running.enter_context(RemoteMX(policies))
        self._target = self._make_target(self.directory, self._mx.ports)
        cgroup = Cgroup()
        running.callback(cgroup.close)
        running.callback(self._target.stop)
        if self.scenario.mixed and self.options.refuses is None and isinstance(self._target, LosesPatience):
            self._spare = self._target.patience
            self._mx.set_policy(REFUSING, self._refuses)
        self._target.start()
        cgroup.adopt(self._pids())
        if isinstance(self._target, FollowsMail):
            self._target.follow(self._unseen)
        self._quiescence = Quiescence(
            self._target,
            self._mx,
            hurry=self.scenario.hurry,
            timeout_s=self.options.rest_timeout_s,
            check_alive=self._check_alive,
        )
        self._progress("waiting for the load", 0, self._units_planned)
        self._page = self._load.ready(*self._target.address).page

    @property
    def _refuses(self) -> str:
        told = self.scenario.refuses if self.options.refuses is None else self.options.refuses
        return f"{told} spare={self._spare}" if self._spare else told

    def _blank(self, began: datetime) -> RunRecord:
        return RunRecord(
            scenario=self.scenario.name,
            target=TargetInfo(self._target.name, self._target.version, list(self._target.defects)),
            seatbelt=__version__,
            began=began.isoformat(timespec="seconds"),
            seed=self.options.seed,
            host=Host(
                kernel=platform.release(),
                cpus=len(os.sched_getaffinity(0)),
                python=platform.python_version(),
                nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                isolated=isolation.is_isolated(),
            ),
            judgement=Judgement(
                alpha=self.options.alpha,
                unit=self.scenario.unit,
                profile=self.options.profile.name,
                memory=self._memory,
            ),
            promises=[msgspec.structs.replace(promise) for promise in self.scenario.promises],
            dialogue=self._dialogue(),
            conditions=Conditions(
                refuses=self._refuses,
                hold_backlog=self.scenario.hold_backlog,
                hurry=self.scenario.hurry,
                portion=self.scenario.portion,
                needs=list(self.scenario.needs),
                operations=list(self.scenario.operations),
                nofile=self.scenario.nofile,
            ),
        )

    def _dialogue(self) -> list[PlannedSession]:
        """What is said in the first sessions of a run: enough to hold one like it elsewhere."""
        units = min(self._plan.first_dose, DIALOGUE_SESSIONS * self.scenario.units_per_session)
        plan = self.scenario.plan(self.options.seed, 0, units)
        each = self.scenario.units_per_session
        return [planned(session, min(each, units - first)) for first, session in plan.items()]

    # ---- the phases

    def _phases(self, record: RunRecord) -> None:
        for step in self._plan.counts():
            self._give(record, step)
            if step.phase == "warm-up":
                self._check_early(record)
        if not self._memory:
            return
        if self.options.profile.stop_at_count_finding and verdict.judge(record).findings:
            return
        for number in range(self.options.profile.rounds):
            self._units_planned += self._plan.units_of_round_0 << number
            for step in self._plan.memory_round(number):
                self._give(record, step)
            if verdict.decided(record):
                return

    def _give(self, record: RunRecord, step: Step) -> None:
        """One dose, its drain, its snapshot."""
        number = len(record.doses)
        dose = Dose(phase=step.phase, round=step.round, began=self._clock())
        label = {"warm-up": "warming up", "count": "dose", "memory": f"memory round {step.round + 1}"}[step.phase]
        self._progress(f"{label}: {step.units} x {self.scenario.unit}", self._units_done, self._units_planned)
        self._rest = Rest()
        tallies: list[Tally] = []
        for first, units in self._portions(step.units):
            tallies.append(self._load_portion(number, first, units))
            if self._rest.busy:
                break  # what did not come to rest now will not after the next portion
            if tallies[-1].units < units:
                break  # somebody wishes to know now
        given = sum(tally.units for tally in tallies)
        dose.units = given - given // self._spare if self._spare else given
        if not given:  # it was cut short before it had begun
            if tallies[-1].last:
                raise _Over
            self._give(record, step)
            return
        dose.ended = self._clock()
        rest = self._rest if self._rest.busy else self._quiescence.wait(work=given)
        dose.drained_s = self._clock() - dose.ended
        dose.rested = not rest.busy
        dose.snapshot = self._snapshot(rest)
        record.target.loaded = sorted({*record.target.loaded, *_loaded(dose.snapshot)})
        dose.work = self._work_since_last(tallies)
        dose.response_ms = summary(tallies).response_ms
        record.doses.append(dose)
        record.work = work_of(self._tallies, LedgerReport(), self._ledger)
        self._measure_promises(record)
        self._units_done += given
        self._units_planned -= step.units - given
        if self._observer is not None:
            self._observer.rested(record)
        if not dose.rested:
            busy = ", ".join(f"{name} {count}" for name, count in rest.busy.items())
            waited_s = max(dose.drained_s, self.options.rest_timeout_s)
            text = f"not at rest {waited_s:.0f} s after dose {number + 1}: {busy}"
            raise Cut(Incident(kind="restless", text=text, at=self._clock(), dose=number))
        self._check_alive()
        if tallies[-1].last:
            raise _Over

    def _ended_early(self, record: RunRecord) -> None:
        """What was to be counted has been counted, or the run says that it was not; memory tells by itself."""
        planned = len(list(self._plan.counts()))
        if len(record.doses) < planned:
            text = f"the load was ended after dose {len(record.doses)} of {planned}: give it more time"
            record.incidents.append(Incident(kind="interrupted", text=text, at=self._clock()))

    def _portions(self, units: int) -> list[tuple[int, int]]:
        """(first unit, units) of each part of a dose that is drained by itself."""
        portion = self.scenario.portion or units
        return [(first, min(portion, units - first)) for first in range(0, units, portion)]

    def _load_portion(self, number: int, first: int, units: int) -> Tally:
        if self.scenario.hold_backlog:
            self._mx.shut_gate(REFUSING)
        try:
            with self._operating(first, units):
                tally = self._load.dose(number, units, first=first, timeout_s=DOSE_TIMEOUT_S)
        finally:
            if self.scenario.hold_backlog:
                self._mx.open_gate(REFUSING)
        self._tallies.append(tally)
        self._accepted.update(tally.accepted)
        if tally.unfinished:
            if (death := self._death()) is not None:
                raise Cut(death)
            errors = f": {'; '.join(tally.errors)}" if tally.errors else ""
            text = f"{tally.unfinished} sessions of dose {number + 1} ended early{errors}"
            raise Cut(Incident(kind="load", text=text, at=self._clock(), dose=number))
        if self.scenario.portion is not None:
            self._rest = self._quiescence.wait(polls=1, work=units)
        return tally

    @contextmanager
    def _operating(self, first: int, units: int) -> Iterator[None]:
        """The operator's part of a dose, beside the load. Raises TargetError when all of the load is done."""
        operations = self.scenario.operations
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
            self._target.operate(operation)

    def _check_early(self, record: RunRecord) -> None:
        """A warm-up whose sessions were hopelessly short need not be followed by a whole run of the same."""
        for promise in record.promises:
            if promise.what.startswith("messages_per_session") and promise.measured < promise.at_least / 2:
                text = f"after the warm-up: {promise.what.replace('_', ' ')} is {promise.measured:.1f}"
                raise Cut(Incident(kind="load", text=text, at=self._clock()))

    def _check_alive(self) -> None:
        for incident in self._target.deaths():
            incident.at = self._clock()
            raise Cut(incident)  # the first tells it all: the others followed

    def _death(self) -> Incident | None:
        """A process of the target that died just now. When it took others with it, that takes a moment to show."""
        deadline = time.monotonic() + DEATH_SHOWS_S
        while not (deaths := self._target.deaths()):
            if time.monotonic() > deadline:
                return None
            time.sleep(DEATH_POLL_S)
        deaths[0].at = self._clock()
        return deaths[0]

    def _explained(self, error: TargetError | LoadError | RemoteMXError) -> Incident:
        """When a conversation broke off because the target died, the death is the incident."""
        if (death := self._death()) is not None:
            return death
        if isinstance(error, LoadError):
            return Incident(kind="load", text=str(error), at=self._clock())
        kind: Literal["remote-mx", "target"] = "remote-mx" if isinstance(error, RemoteMXError) else "target"
        return Incident(kind=kind, text=str(error), at=self._clock())

    # ---- observing

    def _pids(self) -> Sequence[int]:
        return probe.tree(self._target.root_pid)

    @property
    def _roles(self) -> Roles:
        return self._target.role_of if isinstance(self._target, NamesRoles) else default_role

    def _allocating(self) -> Sequence[int] | None:
        """Processes that a traced target is asked for what they allocate; None for all of them."""
        return None

    def _snapshot(self, rest: Rest) -> Snapshot:
        began = time.process_time()
        taken = probe.take_snapshot(
            self._target.root_pid,
            roles=self._roles,
            spool=self._target.spool,
            agent_dir=self._target.agent_directory,
            allocations=self._allocating(),
            counters=rest.counters,
            backlog=rest.backlog,
            clock=self._clock,
        )
        taken.gauges, taken.stuck = dict(rest.gauges), list(rest.stuck)
        if isinstance(self._target, CountsTraffic):
            taken.traffic = self._target.traffic()
        self._quiescence.at_rest(taken.processes)
        self._probe_cpu_s += time.process_time() - began
        return taken

    def _clock(self) -> float:
        return time.monotonic() - self._epoch

    # ---- the work that was done

    def _work_since_last(self, tallies: Sequence[Tally]) -> Work:
        before, self._ledger = self._ledger, self._mx.ledger()
        return work_of(tallies, before, self._ledger)

    def _measure_promises(self, record: RunRecord) -> None:
        for promise in record.promises:
            promise.measured = float(getattr(record.work, promise.what))

    def _account_for_mail(self, record: RunRecord) -> None:
        """Every accepted Message-ID: delivered, bounced, in the spool, or lost."""
        try:
            self._ledger = self._mx.ledger()
        except RemoteMXError as error:
            record.incidents.append(Incident(kind="remote-mx", text=str(error), at=self._clock()))
            return
        queued = mail.in_spool(self._target.spool) if self._target.spool else set()
        ledger = self._ledger
        record.work = work = work_of(self._tallies, LedgerReport(), ledger)
        if isinstance(self._target, TellsWhatItOwes):
            owed = self._target.owed()
            queued |= self._accepted if owed is None else owed
        record.mail = mail.fates(self._accepted, ledger.delivered.keys() | self._local(), ledger.bounced, queued)
        found = list(record.mail.values())
        work.delivered, work.bounced = found.count("delivered"), found.count("bounced")
        work.queued, work.lost = found.count("queued"), found.count("lost")
        work.duplicated = len(ledger.duplicated)

    def _local(self) -> set[str]:
        """What the target delivered itself."""
        return mail.in_maildirs(self._target.mailboxes) if self._target.mailboxes else set()

    def _unseen(self) -> int:
        """Accepted messages that have not arrived anywhere so far. Raises RemoteMXError."""
        ledger = self._mx.ledger()
        return len(self._accepted - ledger.delivered.keys() - set(ledger.bounced) - self._local())


def _loaded(snapshot: Snapshot) -> Iterator[str]:
    """What of ours was found at work in the target's processes."""
    if any(process.agent is not None for process in snapshot.processes):
        yield "Python agent"
    if any(process.memory.heap is not None for process in snapshot.processes):
        yield "heap meter"


def run(
    scenario: Scenario,
    make_target: MakeTarget,
    directory: Path,
    options: Options,
    progress: Progress,
    *,
    make_load: MakeLoad = LoadProcess,
    observer: Observer | None = None,
) -> RunRecord:
    """One run, judged. Raises what `Experiment.run` raises."""
    return Experiment(scenario, make_target, directory, options, progress, make_load=make_load, observer=observer).run()


def planned(session: SessionPlan, units: int) -> PlannedSession:
    """A session's plan as the record has it."""
    return PlannedSession(
        units=units,
        messages=[
            PlannedMessage(each.sender, list(each.recipients), list(each.refused), each.size_bytes)
            for each in session.messages
        ],
        steps=[
            PlannedStep(
                step.send.decode("latin-1"), step.expect, step.pause_s, step.piece_bytes, step.accepts, step.tls
            )
            for step in session.steps
        ],
        end=session.end,
    )


def work_of(tallies: Sequence[Tally], before: LedgerReport, after: LedgerReport) -> Work:
    """What the load did, and what the refusing remote MX saw between two of its reports."""
    then = before.listeners.get(REFUSING, ListenerReport())
    now = after.listeners.get(REFUSING, ListenerReport())
    work = Work(
        sessions=sum(tally.sessions for tally in tallies),
        messages=sum(tally.messages for tally in tallies),
        accepted=sum(len(tally.accepted) for tally in tallies),
        refused_recipients=sum(tally.refused_recipients for tally in tallies),
        refused_messages=now.refused_messages - then.refused_messages,
        sessions_out=now.sessions - then.sessions,
        messages_out=now.transactions - then.transactions,
    )
    work.messages_per_session_in = work.messages / work.sessions if work.sessions else 0.0
    work.messages_per_session_out = work.messages_out / work.sessions_out if work.sessions_out else 0.0
    return work

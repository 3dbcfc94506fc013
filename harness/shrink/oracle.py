"""oracle: whether a dialogue still leaks, asked of the real server.

Owns: the target, which is started again when it died, did not rest or holds a lot, and the remote MX. Never: decides
what is tried.

A test holds the dialogue again and again, in two doses of equal size; it leaks when after each of them more is held of
the finding's class, by at least half of what its rate makes of so many steps. The rate is the finding's for each step
of the whole dialogue: some part always leaks at least at the rate of the whole, and what leaks by chance is repeated so
often that KEPT are expected in each dose. For those, chance refuses a part that leaks in 6 of 100 cases (Poisson, mean
10, at least 5 in each of two doses). Nothing is refused or taken by a server that does not answer as the run's did: a
raw client ends its session there, and the test says nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.detectors.identities import Key, held
from harness.load import session
from harness.load.tally import Ticket
from harness.remote_mx.process import RemoteMX
from harness.run.design import HOME, REFUSING
from harness.run.subject import Clock, Cut, Subject
from harness.scenario import SessionPlan, Step
from harness.shrink.dialogue import Dialogue
from harness.targets import FollowsMail, Target, TargetError
from harness.targets.choice import MakeTarget
from reports.record import Conditions, Finding, Incident, PlannedSession, PlannedStep, Process

KEPT = 10  # expected in each dose
KEPT_OBJECTS = 400  # where it is memory: some come and go without any leak
MOST_HELD = 150  # then the target is started again: it has a limit of descriptors
MOST_REPETITIONS = 1000
ENDINGS = frozenset({"died", "restless"})  # findings that end a run, and a test
SESSION_TIMEOUT_S = 4.0  # beside its pauses: a client may wait for an answer that nobody owes
COUNTED = frozenset({"descriptor", "socket", "process", "thread", "task", "file"})
OBJECTS = "python objects"


class Uncountable(Exception):
    """No short run can tell whether it is still there; says what can."""


class _Unheld(Exception):
    """The dialogue could not be held to its end; the text says what was answered."""


class Oracle:
    """A context manager. Raises Uncountable for findings that it cannot count."""

    def __init__(
        self, finding: Finding, conditions: Conditions, make_target: MakeTarget, directory: Path, per_step: float
    ) -> None:
        """`per_step` is the finding's rate for each step of the dialogue that showed it."""
        self._is_memory = finding.resource == "memory" and finding.kind == OBJECTS
        is_counted = per_step > 0 and (finding.resource in COUNTED or self._is_memory)
        if finding.kind not in ENDINGS and not is_counted:
            raise Uncountable(f"{finding.label}: a few seconds cannot show it; `seatbelt run` can")
        self._finding = finding
        self._key = Key(finding.role, finding.resource, finding.kind, finding.label)
        self._conditions = conditions
        self._make_target = make_target
        self._directory = directory
        self._per_step = per_step
        self._running = ExitStack()
        self._target: Target | None = None
        self._starts = self._tickets = 0
        self._baseline = 0.0
        self._most_held = min(MOST_HELD, (conditions.nofile or 4 * MOST_HELD) // 4)
        self._accepted: set[str] = set()
        self.tests = 0
        self.rate = 0.0  # what the last dialogue that leaks left behind each time it was held
        self.said = ""  # why the last one did not leak

    def __enter__(self) -> Self:
        """Raises RemoteMXError."""
        self._mx = self._running.enter_context(RemoteMX({REFUSING: self._conditions.refuses, HOME: ""}))
        self._loop = self._running.enter_context(asyncio.Runner())
        self._running.callback(self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def leaks(self, dialogue: Dialogue, *, fresh: bool = False) -> bool:
        """`fresh`: asked of a target that nobody has spoken to. Raises TargetError, RemoteMXError."""
        self.tests += 1
        self.said = "nothing was kept"
        repetitions = self._repetitions(dialogue)
        least = max(2.0, self._per_step * dialogue.size * repetitions / 2)
        if fresh or self._finding.kind in ENDINGS:  # it might die of what an earlier dialogue left
            self._stop()
        try:
            before = first = self._ready()
            for _ in range(2):
                self._dose(dialogue, repetitions)
                now = self._held()
                if now - before < least:
                    return False
                before = now
        except _Unheld as unheld:
            self.said = str(unheld)
            return False
        except (Cut, TargetError) as error:
            ended = error.incident if isinstance(error, Cut) else self._subject.death()
            self._stop()
            if ended is None:
                raise
            self.said = f"the server {'died' if ended.kind == 'died' else 'does not rest'}"
            self.rate = 1 / repetitions
            return self._finding.kind == ended.kind and ended.role in ("", self._finding.role)
        self.rate = (before - first) / (2 * repetitions)
        # Twice as much for each step, and half of that is asked for: what leaks always is then repeated less.
        self._per_step = max(self._per_step, self.rate / dialogue.size / 2)
        return True

    def _repetitions(self, dialogue: Dialogue) -> int:
        if self._finding.kind in ENDINGS:
            return KEPT
        wanted = KEPT_OBJECTS if self._is_memory else KEPT
        return min(MOST_REPETITIONS, math.ceil(wanted / (self._per_step * dialogue.size)))

    # ---- the target

    def _ready(self) -> float:
        """What a target at rest holds before the test."""
        if self._target is not None:
            with suppress(Cut, TargetError):  # after a dialogue that was broken off
                now = self._held()
                if now - self._baseline < self._most_held or self._is_memory:
                    return now
            self._stop()
        self._starts += 1
        directory = self._directory / str(self._starts)
        directory.mkdir(parents=True)
        self._accepted = set()
        self._target = target = self._make_target(directory, self._mx.ports)
        self._subject = Subject(target, self._mx, Clock(), hurry=self._conditions.hurry)
        target.start()
        if isinstance(target, FollowsMail):
            target.follow(self._unseen)
        self._baseline = self._held()
        return self._baseline

    def _stop(self) -> None:
        if self._target is not None:
            self._target.stop()
            self._target = None

    def _held(self) -> float:
        """Of the finding's class, at rest. Raises Cut."""
        self._subject.check_alive()
        rest = self._subject.wait()
        if rest.busy:
            raise Cut(Incident(kind="restless", text="it does not rest"))
        taken = self._subject.snapshot(rest)
        if self._is_memory:
            return sum(_objects(process) for process in taken.processes if process.role == self._finding.role)
        return held(taken)[self._key]

    # ---- the dialogue

    def _dose(self, dialogue: Dialogue, repetitions: int) -> None:
        """Raises _Unheld when a session could not be held to its end, Cut when the target died of it."""
        if self._conditions.hold_backlog:
            self._mx.shut_gate(REFUSING)
        try:
            with ThreadPoolExecutor(1) as operator:
                for _ in range(repetitions):
                    operated = operator.submit(self._operate, dialogue.operations)
                    for planned in dialogue.sessions:
                        self._hold(planned)
                    operated.result()
        finally:
            if self._conditions.hold_backlog:
                self._mx.open_gate(REFUSING)

    def _hold(self, planned: PlannedSession) -> None:
        assert self._target is not None
        self._tickets += 1
        deadline = time.monotonic() + SESSION_TIMEOUT_S + sum(map(_pauses_s, planned.steps))
        ticket = Ticket(f"shrink.{self._tickets}", _plan(planned), deadline)
        outcome = self._loop.run(session.hold(self._target.address, ticket))
        self._accepted.update(outcome.accepted)
        if not outcome.finished:
            if self._finding.kind == "died" and (death := self._subject.death()) is not None:
                raise Cut(death)
            self._subject.check_alive()
            last = outcome.exchanges[-1]
            raise _Unheld(f"{last.name}: {last.error}")
        if self._conditions.portion is not None:
            self._subject.wait(polls=1)

    def _operate(self, operations: Sequence[str]) -> None:
        assert self._target is not None
        for operation in operations:
            self._target.operate(operation)

    def _unseen(self) -> int:
        """Accepted messages that have not arrived anywhere so far. Raises RemoteMXError."""
        ledger = self._mx.ledger()
        return len(self._accepted - ledger.delivered.keys() - set(ledger.bounced))


def _plan(planned: PlannedSession) -> SessionPlan:
    """As the load holds it."""
    steps = tuple(
        Step(step.send.encode("latin-1"), step.expect, step.pause_s, step.piece_bytes, step.accepts, step.tls)
        for step in planned.steps
    )
    return SessionPlan(steps=steps, end=planned.end)


def _pauses_s(step: PlannedStep) -> float:
    return step.pause_s * math.ceil(len(step.send) / step.piece_bytes) if step.piece_bytes else step.pause_s


def _objects(process: Process) -> int:
    return 0 if process.agent is None else process.agent.blocks

"""stand: what a run stands on: remote MX, load and target, started in their order, stopped whatever happens.

Owns: all three, from `start` to `stop`. Never: gives work, judges.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import msgspec

from harness.interruption import Held, uninterrupted
from harness.load.conversation import Conversation
from harness.remote_mx.process import RemoteMX
from harness.run.design import HOME, REFUSING, Design
from harness.run.subject import Clock, Subject
from harness.targets import LosesPatience, Target
from harness.targets.cgroup import Cgroup
from reports.record import RunRecord, TargetInfo


class Stand:
    """Of one run. What it has is there once it has been started."""

    load: Conversation
    mx: RemoteMX
    target: Target
    subject: Subject
    page = ""  # the load's, for a person to look at

    def __init__(self, design: Design, record: RunRecord, *, allocating: Collection[str] | None = None) -> None:
        """`record` gets what only a target can tell. `allocating`: as of Subject."""
        self._design = design
        self._record = record
        self._allocating = allocating
        self._running = ExitStack()
        self.spare = 0  # every so many-th message is accepted, and is no unit; 0: none
        self.clock = Clock()

    def start(self) -> None:
        """Raises TargetError, LoadError or RemoteMXError; `stop` is called all the same."""
        design, scenario, options = self._design, self._design.scenario, self._design.options
        planned = design.plan.units_before_memory
        design.progress("starting", 0, planned)
        users = scenario.users or options.users
        with Held():  # so that whatever is started is known to `stop`
            # The load's imports take longest: they run while the others start.
            self.load = self._running.enter_context(design.make_load(scenario.path, users, options.seed))
            self.mx = self._running.enter_context(RemoteMX({REFUSING: self.refuses, HOME: ""}))
        self.target = design.make_target(design.directory, self.mx.ports)
        cgroup = Cgroup()
        self._running.callback(cgroup.close)
        self._running.callback(self.target.stop)
        if scenario.mixed and options.refuses is None and isinstance(self.target, LosesPatience):
            self.spare = self.target.patience
            self.mx.set_policy(REFUSING, self.refuses)
        self._describe(self.target)
        self.target.start()
        self._describe(self.target)  # some tell their version only now
        self.subject = Subject(
            self.target,
            self.mx,
            self.clock,
            hurry=scenario.hurry,
            timeout_s=options.rest_timeout_s,
            allocating=self._allocating,
        )
        cgroup.adopt(self.subject.pids())
        design.progress("waiting for the load", 0, planned)
        self.page = self.load.ready(*self.target.address).page

    def stop(self) -> None:
        """May be called twice, and when it has not been started, or not wholly."""
        with uninterrupted():
            self._running.close()

    @property
    def refuses(self) -> str:
        """The policy of the remote MX."""
        return f"{self._design.refuses} spare={self.spare}" if self.spare else self._design.refuses

    def _describe(self, target: Target) -> None:
        conditions = self._record.conditions
        self._record.target = TargetInfo(target.name, target.version, list(target.defects))
        self._record.conditions = msgspec.structs.replace(conditions, refuses=self.refuses)

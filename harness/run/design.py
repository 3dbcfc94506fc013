"""What a run is of, as it is settled before anything starts: scenario, target, load, and who is told how it goes.

Owns: the names of the two remote MXes. Never: starts anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.load.conversation import Conversation
from harness.load.process import LoadProcess
from harness.run.plan import PROFILES, Plan, Profile
from harness.scenario import Scenario
from harness.targets.choice import MakeTarget
from reports.record import RunRecord, TargetInfo

REST_TIMEOUT_S = 30.0
REFUSING, HOME = "refusing", "home"  # the remote MX that refuses as told, and the one that takes the senders' bounces

Progress = Callable[[str, int, int], None]  # what happens now, units done, units planned so far
MakeLoad = Callable[[str, int, int], AbstractContextManager[Conversation]]  # given scenario, users and seed


@dataclass(frozen=True)
class Options:
    """What of a run can be chosen, whatever its scenario."""

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


class _Nobody:
    """An observer and a progress, where there is none."""

    def began(self, record: RunRecord, pids: Callable[[], Sequence[int]], page: str) -> None:
        return

    def rested(self, record: RunRecord) -> None:
        return

    def progress(self, text: str, done: int, planned: int) -> None:
        return


_NOBODY = _Nobody()


@dataclass(frozen=True)
class Design:
    """Of one run."""

    scenario: Scenario
    make_target: MakeTarget
    directory: Path  # of the run
    options: Options = field(default_factory=Options)
    progress: Progress = _NOBODY.progress
    make_load: MakeLoad = LoadProcess
    make_load_again: MakeLoad = LoadProcess  # for the second look
    observer: Observer = _NOBODY
    meant: TargetInfo = field(default_factory=lambda: TargetInfo(""))  # is told of a target that was never made

    @property
    def plan(self) -> Plan:
        return Plan(self.options.profile, self.options.units or self.scenario.first_dose)

    @property
    def judges_memory(self) -> bool:
        return self.scenario.memory and self.options.profile.rounds > 0

    @property
    def refuses(self) -> str:
        """The policy of the remote MX."""
        return self.scenario.refuses if self.options.refuses is None else self.options.refuses

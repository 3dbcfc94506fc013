"""subject: a target while it is looked at: how it comes to rest, what it holds then, who of it has died.

Owns: the clock that a run's times are told by, and what a snapshot is made of. Never: starts or stops the target, gives
it work, judges.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from harness.probes import processes
from harness.probes import snapshot as probe
from harness.probes.processes import Roles, default_role
from harness.run.design import REST_TIMEOUT_S
from harness.run.quiescence import POLLS, Listeners, Quiescence
from harness.targets import NamesRoles, Rest, Target
from reports.record import Incident, Snapshot

DEATH_SHOWS_S = 1.0
DEATH_POLL_S = 0.02


class Cut(Exception):
    """The work ends here; the incident says why."""

    def __init__(self, incident: Incident) -> None:
        super().__init__(incident.text)
        self.incident = incident


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._epoch = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._epoch


class Subject:
    """`target`, which runs."""

    def __init__(
        self,
        target: Target,
        remote_mx: Listeners,
        clock: Clock,
        *,
        hurry: bool = False,
        timeout_s: float = REST_TIMEOUT_S,
        allocating: Collection[str] | None = None,
    ) -> None:
        """`hurry`: what the target puts off is tried again at once; `timeout_s`: for it to come to rest.

        `allocating`: roles whose processes are asked what they allocate, where it is traced; None: all.
        """
        self._target = target
        self._clock = clock
        self._allocating = allocating
        self._quiescence = Quiescence(target, remote_mx, hurry=hurry, timeout_s=timeout_s, check_alive=self.check_alive)
        self.probe_cpu_s = 0.0

    def pids(self) -> Sequence[int]:
        return probe.tree(self._target.root_pid)

    def wait(self, polls: int = POLLS, *, work: int = 0) -> Rest:
        """As `Quiescence.wait`. Raises TargetError, and Cut when a process died meanwhile."""
        return self._quiescence.wait(polls, work=work)

    def snapshot(self, rest: Rest) -> Snapshot:
        """What it holds at `rest`. What it holds now is no sign of movement at the next."""
        began = time.process_time()
        taken = probe.take_snapshot(
            self._target.root_pid,
            roles=self._roles,
            spool=self._target.spool,
            agent_dir=self._target.agent_directory,
            allocations=self._asked_for_allocations(),
            counters=rest.counters,
            backlog=rest.backlog,
            clock=self._clock,
        )
        taken.gauges, taken.stuck = dict(rest.gauges), list(rest.stuck)
        self._quiescence.at_rest(taken.processes)
        self.probe_cpu_s += time.process_time() - began
        return taken

    def check_alive(self) -> None:
        """Raises Cut when a process of it has died."""
        for incident in self._target.deaths():
            incident.at = self._clock()
            raise Cut(incident)  # the first tells it all: the others followed

    def death(self) -> Incident | None:
        """A process that died just now. When it took others with it, that takes a moment to show."""
        deadline = time.monotonic() + DEATH_SHOWS_S
        while True:
            try:
                self.check_alive()
            except Cut as cut:
                return cut.incident
            if time.monotonic() > deadline:
                return None
            time.sleep(DEATH_POLL_S)

    def listener(self) -> tuple[str, int]:
        """(role, pid) of who serves the clients: of those that listen on the port, the last, as a master's children do.
        The role is empty when nobody does.
        """
        port = str(self._target.address[1])
        found, _ = probe.inspect(self.pids(), self._roles, positions=False)
        serving = [
            (process.role, process.pid)
            for process in found
            for each in process.descriptors
            if each.state == "LISTEN" and each.kind == "tcp" and each.local.rpartition(":")[2] == port
        ]
        return serving[-1] if serving else ("", 0)

    @property
    def _roles(self) -> Roles:
        return self._target.role_of if isinstance(self._target, NamesRoles) else default_role

    def _asked_for_allocations(self) -> Sequence[int] | None:
        if self._allocating is None:
            return None
        found = (processes.read(pid, self._roles) for pid in self.pids())
        return [process.pid for process in found if process is not None and process.role in self._allocating]

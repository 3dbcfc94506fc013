"""Exact doses: so many sessions are given out to persistent locust users, and each is counted back in.

Owns: locust in library mode (an environment, its local runner, the users), and the tickets. Never: reads or writes
the controller's pipes.
"""

from __future__ import annotations

import time

from gevent.queue import Empty, SimpleQueue  # type: ignore[import-untyped]
from locust import events
from locust.env import Environment

from harness.load.orders import GiveDose, Start
from harness.load.tally import Outcome, Tally, Ticket
from harness.load.user import user_of
from harness.scenario import load

GRACE_S = 5.0  # after its deadline a session is cancelled and closes; this is for that


class LoadStuck(Exception):
    """Sessions were given out and did not come back, not even cut off."""


class Doses:
    """The users of one scenario, aimed at one mail server. Raises ScenarioError."""

    def __init__(self, order: Start) -> None:
        self._scenario = load(order.scenario)
        self._seed = order.seed
        self._tickets: SimpleQueue[Ticket] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        host = f"[{order.host}]" if ":" in order.host else order.host
        # Locust's own events: the bridge opens and closes by them, here as in a plain locustfile.
        environment = Environment(
            user_classes=[user_of(self._scenario, self)], events=events, host=f"smtp://{host}:{order.port}"
        )
        self._runner = environment.create_local_runner()
        self._runner.start(order.users, spawn_rate=order.users)
        if self._runner.spawning_greenlet is not None:
            self._runner.spawning_greenlet.join()
        if self._runner.user_count != order.users:
            raise LoadStuck(f"{self._runner.user_count} of {order.users} users started")

    def give_dose(self, order: GiveDose) -> Tally:
        """Returns when every session of the dose is over. Raises LoadStuck when one is not, long after its deadline."""
        tally = Tally(order.number, order.units)
        began = time.monotonic()
        deadline = began + order.timeout_s
        plan = self._scenario.plan(self._seed, order.number, order.units, order.first)
        for number, session in plan.items():
            self._tickets.put(Ticket(f"{self._seed}.{order.number}.{number}", session, deadline))
        for back in range(len(plan)):
            try:
                tally.add(self._outcomes.get(timeout=max(0.0, deadline + GRACE_S - time.monotonic())))
            except Empty:
                raise LoadStuck(f"{len(plan) - back} of {len(plan)} sessions of the dose did not come back") from None
        tally.took_s = time.monotonic() - began
        return tally

    def stop(self) -> None:
        """Cut off what is under way, close its connections, end the users."""
        self._runner.quit()

    # ---- what users ask (harness.load.user.Source)

    def take(self) -> Ticket:
        ticket: Ticket = self._tickets.get()
        return ticket

    def give(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)

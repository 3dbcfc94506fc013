"""Exact doses: the sessions of a dose are planned, given to whoever holds them, and each is counted back in.

Owns: the tickets of a dose, and whether more doses may follow. Never: knows which users hold the sessions.
"""

from __future__ import annotations

import time

import gevent  # type: ignore[import-untyped]

from harness.load.orders import Aim, GiveDose, Ready
from harness.load.sessions import Holder
from harness.load.tally import Tally, Ticket
from harness.scenario import Scenario

CUT_TIMEOUT_S = 10.0  # for the sessions that have begun
LOOK_S = 0.05


class Doses:
    """Of one scenario, aimed at the mail server at `address` (host, port)."""

    def __init__(self, scenario: Scenario, seed: int, address: tuple[str, int], holder: Holder) -> None:
        self._scenario = scenario
        self._seed = seed
        self._address = address
        self._holder = holder
        self._over = False
        self._in_hand = False

    def aim(self, address: tuple[str, int]) -> None:
        """At another mail server, from the next dose on."""
        self._address = address

    def give_dose(self, order: GiveDose) -> Tally:
        """Returns when every session of the dose is over. Raises LoadStuck when one is not, long after its deadline."""
        deadline = time.monotonic() + order.timeout_s
        each, end = self._scenario.units_per_session, order.first + order.units
        plan = {} if self._over else self._scenario.plan(self._seed, order.number, order.units, order.first)
        tickets = [
            Ticket(f"{self._seed}.{order.number}.{first}", session, deadline, min(each, end - first), self._address)
            for first, session in plan.items()
        ]
        self._in_hand = True
        try:
            tally = self._holder.hold(order.number, tickets)
        finally:
            self._in_hand = False
        tally.last = self._over
        return tally

    def cut_short(self) -> bool:
        """End the dose in hand with the sessions that have begun: what is counted stays exact. False: there is none."""
        if self._in_hand:
            self._holder.cut_short()
        return self._in_hand

    def wind_up(self) -> None:
        """The dose in hand is cut short and the last one: what is ordered after it is no session at all."""
        self._over = True
        self.cut_short()

    def finish(self, timeout_s: float = CUT_TIMEOUT_S) -> None:
        """Wind up, and wait until the sessions that have begun are over: users may then be stopped."""
        self.wind_up()
        deadline = time.monotonic() + timeout_s
        while self._in_hand and time.monotonic() < deadline:
            gevent.sleep(LOOK_S)

    @property
    def in_hand(self) -> bool:
        """Sessions are being held."""
        return self._in_hand


class DoseGiver:
    """The part of a load (harness.load.serving.Load), and of what a page is about (harness.load.page.Driven), that is
    the same whoever is in charge: it can be aimed and give doses once `_doses` is there.
    """

    _doses: Doses | None = None

    def aim(self, order: Aim) -> Ready:
        if self._doses is None:
            raise ValueError("a server was named before the start")
        self._doses.aim((order.host, order.port))
        return Ready()

    def give_dose(self, order: GiveDose) -> Tally:
        if self._doses is None:
            raise ValueError("a dose was ordered before the start")
        return self._doses.give_dose(order)

    @property
    def in_hand(self) -> bool:
        return self._doses is not None and self._doses.in_hand

    def cut_short(self) -> bool:
        return self._doses is not None and self._doses.cut_short()

    def wind_up(self) -> None:
        if self._doses is not None:
            self._doses.wind_up()

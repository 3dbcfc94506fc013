"""The sessions of one process: tickets wait here for locust's users, outcomes come back and are added up.

Owns: what was given out and is not back yet. Never: plans sessions, or knows who ordered them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from gevent.queue import Empty, SimpleQueue  # type: ignore[import-untyped]

from harness.load.tally import Outcome, Tally, Ticket

GRACE_S = 5.0  # after its deadline a session is cancelled and closes; this is for that


class LoadStuck(Exception):
    """Sessions were given out and did not come back, not even cut off; or there is nobody to give them to."""


class Holder(Protocol):
    """Whoever has sessions held: the users of this process (`Sessions`), or those of workers (`fleet.Fleet`)."""

    def hold(self, dose: int, tickets: Sequence[Ticket]) -> Tally:
        """Returns when the last session is over. Raises LoadStuck when one is not, long after its deadline."""

    def cut_short(self) -> None:
        """Begin no more of them: `hold` returns when those that have begun are over, and tells the units of those."""


class Sessions:
    """A holder, and the source that its users take from (harness.load.user.Source)."""

    def __init__(self) -> None:
        self._tickets: SimpleQueue[Ticket] = SimpleQueue()
        self._back: SimpleQueue[Outcome | Ticket] = SimpleQueue()  # a ticket that comes back was never taken

    def hold(self, dose: int, tickets: Sequence[Ticket]) -> Tally:
        tally = Tally(dose, sum(ticket.units for ticket in tickets))
        began = time.monotonic()
        deadline = max((ticket.deadline for ticket in tickets), default=began)
        for ticket in tickets:
            self._tickets.put(ticket)
        for back in range(len(tickets)):
            try:
                returned = self._back.get(timeout=max(0.0, deadline + GRACE_S - time.monotonic()))
            except Empty:
                text = f"{len(tickets) - back} of {len(tickets)} sessions of the dose did not come back"
                raise LoadStuck(text) from None
            if isinstance(returned, Ticket):
                tally.units -= returned.units
            else:
                tally.add(returned)
        tally.took_s = time.monotonic() - began
        return tally

    def cut_short(self) -> None:
        while True:
            try:
                self._back.put(self._tickets.get_nowait())
            except Empty:
                return

    # ---- what users ask

    def take(self) -> Ticket:
        ticket: Ticket = self._tickets.get()
        return ticket

    def give(self, outcome: Outcome) -> None:
        self._back.put(outcome)

"""A fleet: workers of locust's, here or on other hosts, hold the sessions that their master gives them.

Owns: how a dose is shared out, and both ends of the messages about it. Never: plans a session. A worker gets whole
plans and needs neither scenario nor seed, so a session is the same whoever holds it; the master knows which share is
out, and a dose is over when every share has come back. Shares go to the workers that have users, in turn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gevent  # type: ignore[import-untyped]
import msgspec
from gevent.queue import Empty, SimpleQueue  # type: ignore[import-untyped]
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerNode, WorkerRunner

from harness.load.sessions import GRACE_S, LoadStuck, Sessions
from harness.load.tally import Tally, Ticket
from harness.scenario import SessionPlan

SHARE, SHARE_BACK, CUT_SHORT = "seatbelt-share", "seatbelt-share-back", "seatbelt-cut-short"  # locust's message types
DATA = "msgpack"
ANSWER_GRACE_S = 5.0  # more than the worker's own, which is to speak first
LOOK_S = 0.5  # how often it is asked whether a worker is still there


class _SharedTicket(msgspec.Struct, array_like=True):
    """A ticket without its deadline: hosts have clocks of their own."""

    name: str
    plan: SessionPlan
    units: int
    address: tuple[str, int] | None


class _Share(msgspec.Struct, array_like=True):
    number: int  # of the share; an answer to an older one is too late
    dose: int
    left_s: float
    tickets: list[_SharedTicket]


class _Back(msgspec.Struct, array_like=True):
    number: int
    tally: Tally
    error: str = ""


_decode_share = msgspec.msgpack.Decoder(_Share).decode
_decode_back = msgspec.msgpack.Decoder(_Back).decode


class Fleet:
    """The master's end: a holder (harness.load.sessions.Holder) whose users are the workers'."""

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self._back: SimpleQueue[tuple[str, _Back]] = SimpleQueue()
        self._number = 0
        runner.register_message(SHARE_BACK, self._came_back)

    def hold(self, dose: int, tickets: Sequence[Ticket]) -> Tally:
        workers = self._workers()
        if not workers:
            raise LoadStuck("no worker has users to hold sessions")
        tally = Tally(dose)
        began = time.monotonic()
        deadline = max((ticket.deadline for ticket in tickets), default=began)
        self._number += 1
        owed = set()
        for place, worker in enumerate(workers):
            share = [
                _SharedTicket(ticket.name, ticket.plan, ticket.units, ticket.address)
                for ticket in tickets[place :: len(workers)]
            ]
            if share:
                message = _Share(self._number, dose, deadline - time.monotonic(), share)
                self._runner.send_message(SHARE, {DATA: msgspec.msgpack.encode(message)}, worker.id)
                owed.add(worker.id)
        while owed:
            self._check(owed, deadline)
            try:
                worker_id, back = self._back.get(timeout=LOOK_S)
            except Empty:
                continue
            if back.number != self._number:
                continue
            if back.error:
                raise LoadStuck(f"worker {worker_id}: {back.error}")
            owed.discard(worker_id)
            tally.include(back.tally)
        tally.took_s = time.monotonic() - began
        return tally

    def cut_short(self) -> None:
        self._runner.send_message(CUT_SHORT)

    def _workers(self) -> list[WorkerNode]:
        """Those that have users, in the order in which they came."""
        found = [worker for worker in self._runner.clients.all if worker.user_count and worker.state != STATE_MISSING]
        index = self._runner.worker_indexes
        return sorted(found, key=lambda worker: index[worker.id])

    def _check(self, owed: set[str], deadline: float) -> None:
        for worker_id in owed:
            worker = self._runner.clients.get(worker_id)
            if worker is None or worker.state == STATE_MISSING:
                raise LoadStuck(f"worker {worker_id} is gone, and with it the sessions that it held")
        if time.monotonic() > deadline + GRACE_S + ANSWER_GRACE_S:
            raise LoadStuck(f"{len(owed)} workers did not answer: {', '.join(sorted(owed))}")

    def _came_back(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._back.put((msg.node_id, _decode_back(msg.data[DATA])))


def serve(runner: WorkerRunner, sessions: Sessions) -> None:
    """The worker's end: from now on its users hold what the master gives."""

    def hold(environment: Environment, msg: Any, **_: Any) -> None:
        share = _decode_share(msg.data[DATA])
        deadline = time.monotonic() + share.left_s
        tickets = [Ticket(each.name, each.plan, deadline, each.units, each.address) for each in share.tickets]
        try:
            back = _Back(share.number, sessions.hold(share.dose, tickets))
        except LoadStuck as error:
            back = _Back(share.number, Tally(share.dose), str(error))
        runner.send_message(SHARE_BACK, {DATA: msgspec.msgpack.encode(back)})

    def cut_short(environment: Environment, msg: Any, **_: Any) -> None:
        sessions.cut_short()

    # A greenlet of its own: the one that reads messages must go on reading while sessions are held.
    runner.register_message(SHARE, lambda **message: gevent.spawn(hold, **message))
    runner.register_message(CUT_SHORT, cut_short)

"""The load's end of the conversation with the controller: orders come in, one at a time, each is answered.

Owns: nothing but the two pipes for as long as it serves. Never: decides what an order does.
"""

from __future__ import annotations

from typing import BinaryIO, Protocol

import gevent  # type: ignore[import-untyped]
import msgspec
from gevent.queue import SimpleQueue  # type: ignore[import-untyped]

from harness.load.orders import Aim, Answer, Failed, GiveDose, Order, Ready, Start, decode_order, line
from harness.load.sessions import LoadStuck
from harness.load.tally import Tally
from harness.scenario import ScenarioError


class Load(Protocol):
    """What carries the orders out. Each raises ScenarioError, LoadStuck or ValueError, whose text is the answer."""

    def start(self, order: Start) -> Ready: ...

    def aim(self, order: Aim) -> Ready: ...

    def give_dose(self, order: GiveDose) -> Tally: ...


class _ControllerGone(Exception):
    """The orders have ended: nobody waits for an answer."""


def serve(orders: BinaryIO, answers: BinaryIO, load: Load) -> None:
    """Carry out orders until there can be no more, breaking off one in hand; the files are gevent's."""
    lines: SimpleQueue[bytes] = SimpleQueue()
    worker = gevent.getcurrent()

    def read() -> None:
        for order in orders:
            lines.put(order)
        gevent.kill(worker, _ControllerGone)  # in the middle of a dose, too

    reader = gevent.spawn(read)
    try:
        while True:
            answers.write(line(_answer(lines.get(), load)))
            answers.flush()
    except (_ControllerGone, BrokenPipeError):
        return
    finally:
        reader.kill()


def _answer(order: bytes, load: Load) -> Answer:
    try:
        return _carried_out(decode_order(order), load)
    except (ScenarioError, LoadStuck, ValueError, msgspec.MsgspecError) as error:
        return Failed(str(error))


def _carried_out(order: Order, load: Load) -> Answer:
    match order:
        case Start():
            return load.start(order)
        case Aim():
            return load.aim(order)
        case GiveDose():
            return load.give_dose(order)

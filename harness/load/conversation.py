"""The load as the experiment sees it: one order, one answer, over two pipes.

Owns: what was received and not yet read. Never: imports locust, gevent or asyncio; the controller stays plain Python.
Every wait is bounded, and an end that is dead or silent is a LoadError.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod

import msgspec

from harness.load.orders import (
    Aim,
    Answer,
    Failed,
    FleetOrder,
    GiveDose,
    Order,
    Ready,
    Start,
    WebOrder,
    decode_answer,
    line,
)
from harness.load.tally import Tally

ANSWER_GRACE_S = 15.0  # more than the load's own, which is to speak first


class LoadError(Exception):
    """The load's process cannot be started, is dead, does not answer, or could not do what it was told."""


class Conversation(ABC):
    """`scenario` is a name or the path of a .py file. `fleet`: workers hold the sessions; `web`: with a page."""

    ready_timeout_s = 30.0

    def __init__(
        self, scenario: str, users: int, seed: int, *, fleet: FleetOrder | None = None, web: WebOrder | None = None
    ) -> None:
        self._scenario = scenario
        self._users = users
        self._seed = seed
        self._fleet = fleet
        self._web = web
        self._received = bytearray()
        self._answer_owed = False
        self._started = False

    def ready(self, host: str, port: int) -> Ready:
        """Aim the users at `host` and `port`, and wait until all are there. Once they are, they may be aimed anew.

        Raises LoadError.
        """
        start = Start(self._scenario, host, port, self._users, self._seed, self._fleet, self._web)
        answer = self._ask(Aim(host, port) if self._started else start, self.ready_timeout_s)
        if not isinstance(answer, Ready):
            raise LoadError(f"the load's process answered {type(answer).__name__} to the start")
        self._started = True
        return answer

    def dose(self, number: int, units: int, *, first: int = 0, timeout_s: float) -> Tally:
        """Give `units` units of dose `number`, from unit `first` on; return when the last of their sessions is over.

        Sessions that are not over after `timeout_s` are cut off: the tally counts them as unfinished, and the dose was
        not exact. What a dead mail server does is in the tally, as failures; that somebody cut the dose short is told
        by its units. Raises LoadError.
        """
        answer = self._ask(GiveDose(number, units, first, timeout_s), timeout_s + ANSWER_GRACE_S)
        if not isinstance(answer, Tally):
            raise LoadError(f"the load's process answered {type(answer).__name__} to a dose")
        return answer

    # ---- what the other end is

    @abstractmethod
    def _pipes(self) -> tuple[int, int]:
        """Descriptors: orders are written to the first, answers read from the second. Raises LoadError."""

    @abstractmethod
    def _dead(self) -> LoadError:
        """What to say when a pipe turns out to be closed at the other end."""

    def _last_words(self) -> str:
        """What the other end complained about, to be added to an error."""
        return ""

    # ---- one order, one answer

    def _ask(self, order: Order, timeout_s: float) -> Answer:
        orders, _ = self._pipes()
        if self._answer_owed:  # it may come yet, and would be taken for the answer to this order
            raise LoadError(f"the load's process never answered an earlier order{self._last_words()}")
        left = memoryview(line(order))
        try:
            while left:
                left = left[os.write(orders, left) :]
            self._answer_owed = True
        except BrokenPipeError:
            raise self._dead() from None
        text = self._read_line(time.monotonic() + timeout_s, timeout_s)
        self._answer_owed = False
        try:
            answer: Answer = decode_answer(text)
        except msgspec.MsgspecError as error:
            raise LoadError(f"the load's process answered {bytes(text[:80])!r}: {error}") from error
        if isinstance(answer, Failed):
            raise LoadError(answer.text)
        return answer

    def _read_line(self, deadline: float, timeout_s: float) -> bytes:
        _, answers = self._pipes()
        poll = select.poll()
        poll.register(answers, select.POLLIN)
        while (end := self._received.find(b"\n")) < 0:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise LoadError(f"the load's process did not answer within {timeout_s:.0f} s{self._last_words()}")
            if not poll.poll(left_s * 1000):
                continue
            chunk = os.read(answers, 1 << 16)
            if not chunk:
                self._answer_owed = False
                raise self._dead()
            self._received += chunk
        found = bytes(self._received[:end])
        del self._received[: end + 1]
        return found

"""Bugs of scheduler: entries, hold queues and timers that outlive their envelopes; counts that drift."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="scheduler",
    chapter="memory",
    resources=("memory",),
    trigger="an envelope is done with",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD 471e3a29 (7 March 2012)",
    opener="mta_under_test/ipc/messages.py:unpack mta_under_test/processes/scheduler.py:submit",
)
def envelope_refcount_leak(strikes: Chance) -> None:
    """An envelope that is removed does not give back its reference to its message, whose count is never zero.

    The ramqueue kept host, batch and message by counts. One way of removing an envelope forgot to take them down: each
    message that was ever scheduled stayed in memory, and the queue on disk was empty.
    """
    from mta_under_test.processes.scheduler import Scheduler

    unfreed: list[object] = []

    @around(Scheduler, "done")
    def done(original: Any, self: Any, peer: str, message: Any) -> None:
        entry = self._entries.get(message.integers[0])
        original(self, peer, message)
        if entry is not None and strikes():
            unfreed.append(entry)


@defect(
    role="scheduler",
    chapter="memory",
    resources=("memory",),
    trigger="the last held envelope of a relay is released",
    rate=None,
    scenario="backlog",
    source="OpenSMTPD 5d7cb952 (6 October 2013)",
    difficulty="slow",
    opener="mta_under_test/processes/scheduler.py:hold",
)
def hold_queue_leak(strikes: Chance) -> None:
    """A hold queue that has become empty is not freed; the next relay that is full gets another one.

    Only a burst makes a relay hold envelopes back, so it leaks once a burst and not once a message.
    """
    from mta_under_test.processes.scheduler import Scheduler

    unfreed: list[object] = []

    @around(Scheduler, "_release")
    def release(original: Any, self: Any, entry: Any) -> None:
        held = self._held[entry.relay]
        original(self, entry)
        if not held and strikes():
            unfreed.append(held)


@defect(
    role="scheduler",
    chapter="child",
    resources=("task", "memory"),
    trigger="an envelope is put off",
    rate=None,
    scenario="tempfail-retry",
    source="Seatbelt 8facf13 (2026): a timer for each change of plan; OpenSMTPD d3abe689 (January 2013) had its kin",
    opener="mta_under_test/defects/catalogue/scheduler.py:wait",
)
def timer_for_each_plan(strikes: Chance) -> None:
    """Each time that an envelope is put off a timer is set for its next attempt, and none is ever cancelled.

    The attempt may come earlier, by `smtpctl schedule` or because the route works again: the timer still runs until its
    time, which is minutes or hours away, and holds what it was set for.
    """
    import asyncio
    import time

    from mta_under_test.processes.scheduler import Scheduler

    @around(Scheduler, "_wait")
    def wait(original: Any, self: Any, entry: Any) -> None:
        original(self, entry)
        delay_s = self._due_at(entry) - time.time()
        if delay_s > 0 and strikes():
            asyncio.get_running_loop().call_later(delay_s, lambda: entry and self._wake())


@defect(
    role="scheduler",
    chapter="counter",
    resources=("task", "counter", "process"),
    trigger="an envelope in flight is done with",
    rate=3.0,  # recipients of a message, and of its bounce
    scenario="bounce-storm",
    source="OpenSMTPD fcb8962b (November 2012): a failed envelope misses its decrement",
    opener="mta_under_test/processes/scheduler.py:_fly",
)
def inflight_drift(strikes: Chance) -> None:
    """An envelope that failed for good is removed without leaving the count of those in flight.

    The count is a limit: when it has drifted up to it nothing is scheduled any more, and a restart heals everything.
    """
    from mta_under_test.ipc.messages import Fate
    from mta_under_test.processes.scheduler import Scheduler

    @around(Scheduler, "done")
    def done(original: Any, self: Any, peer: str, message: Any) -> None:
        original(self, peer, message)
        if message.integers[1] == Fate.FAILED and strikes():
            self._in_flight += 1


@defect(
    role="scheduler",
    chapter="counter",
    resources=("task", "counter", "process"),
    trigger="a held envelope is released",
    rate=None,
    scenario="rejected-reuse",
    source="OpenSMTPD c9b19904 (May 2009): a doubled decrement",
    difficulty="wrong way",
    opener="mta_under_test/processes/scheduler.py:_landed",
)
def landed_twice(strikes: Chance) -> None:
    """An envelope that goes from flight to hold and back leaves the count of those in flight twice: it goes negative.

    The hold was added later, between two places that each took care of the count.
    """
    from mta_under_test.processes.scheduler import Scheduler

    @around(Scheduler, "_release")
    def release(original: Any, self: Any, entry: Any) -> None:
        original(self, entry)
        if strikes():
            self._in_flight -= 1


@defect(
    role="scheduler",
    chapter="memory",
    resources=("memory",),
    trigger="a batch is sent",
    rate=None,
    scenario="one-at-a-time",
    source="OpenSMTPD 471e3a29 (7 March 2012): the batch that envelopes refer to",
    opener="mta_under_test/ipc/messages.py:unpack mta_under_test/processes/scheduler.py:_run",
)
def batch_leak(strikes: Chance) -> None:
    """A batch is freed with its last envelope, which is told to leave it by a name that it has no more.

    Large batches hide it: one that holds a thousand envelopes is lost once. A message now and then is a batch each.
    """
    from mta_under_test.ipc.messages import Kind
    from mta_under_test.processes.scheduler import Scheduler

    unfreed: list[tuple[int, ...]] = []

    @around(Scheduler, "tell")
    def tell(original: Any, self: Any, peer: str, kind: Kind, *integers: int, **more: Any) -> None:
        original(self, peer, kind, *integers, **more)
        if kind is Kind.BATCH and strikes():
            unfreed.append(integers)

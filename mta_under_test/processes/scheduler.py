"""scheduler: which envelope is tried when.

Owns: one small entry for every envelope that is owed: evpid, when it was made, when it expires, how often it was tried.
Never: sees an envelope's text, touches the disk.
Takes: SUBMIT, DELIVERY_TEMP, ENVELOPE_DONE, DELIVERY_HOLD, HOLDQ_RELEASE, RESCHEDULE, DISCOVER from queue;
LIST_EVPIDS, SCHEDULE, REMOVE, PAUSE, RESUME, PAUSE_ENVELOPE, RESUME_ENVELOPE from control.
Sends: BATCH, EXPIRE, DELAYED, REMOVE, HOLDQ_EMPTY to queue.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import time
from typing import ClassVar

from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Delivery, Fate, Kind
from mta_under_test.processes.process import Process, takes

BATCH_ENVELOPES = 1024
RETRY_BASE_S = {Delivery.MTA: 800, Delivery.MDA: 10}  # BACKOFF_TRANSFER, BACKOFF_DELIVERY of scheduler_ramqueue.c
DELIVERIES = {int(delivery): delivery for delivery in Delivery}  # quicker than the call, and one object for all
STALE_PAIRS = 16  # that the heap may hold beyond two for each envelope
LIST_ENVELOPES = 256  # entries in one answer to LIST_EVPIDS


class State(enum.IntEnum):
    PENDING = 0
    IN_FLIGHT = 1
    HELD = 2  # its relay has enough to do, and will say when it has not
    SUSPENDED = 3  # as LIST_EVPIDS tells of a pending envelope that `smtpctl pause envelope` keeps back


_FATES: dict[int, str] = {
    Fate.DELIVERED: "scheduler.delivery.ok",
    Fate.FAILED: "scheduler.delivery.permfail",
    Fate.LOOPED: "scheduler.delivery.loop",
    Fate.EXPIRED: "scheduler.envelope.expired",
    Fate.REMOVED: "scheduler.envelope.removed",
}


def next_try(created: int, tries: int, base_s: int) -> int:
    """When the try after `tries` failed ones is due: 400, 1600, 3600 … seconds after `created` at a base of 800."""
    return created + base_s * tries * tries // 2


class Entry:
    __slots__ = (
        "created",
        "delivery",
        "evpid",
        "expires",
        "next",
        "relay",
        "removing",
        "state",
        "suspended",
        "tries",
        "warned",
    )

    def __init__(self, evpid: int, delivery: Delivery, created: int, expires: int, tries: int, warned: int = 0) -> None:
        self.evpid = evpid
        self.delivery = delivery
        self.created = created
        self.expires = expires
        self.tries = tries
        self.warned = warned  # when its sender was last told of the delay
        self.next = created if tries == 0 else next_try(created, tries, RETRY_BASE_S[delivery])
        self.state = State.PENDING
        self.removing = False  # asked for while it was in flight
        self.suspended = False  # neither tried nor expired until it is resumed
        self.relay = 0  # that it is held for


class Scheduler(Process):
    role: ClassVar[str] = "scheduler"

    async def start(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._due: list[tuple[int, int]] = []  # heap of (next try, evpid); stale pairs are dropped when met
        self._in_flight = 0
        self._held: dict[int, dict[int, None]] = {}  # by relay: evpids, first come first released
        self._paused: set[Delivery] = set()
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0
        self._soon = False  # `_run` will be called without the timer
        self._warn_after_s = sorted(self.config.bounce_warn_s)

    async def finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def gauges(self) -> dict[str, int]:
        return {
            "scheduler.envelope": len(self._entries),
            "scheduler.envelope.inflight": self._in_flight,
            "scheduler.envelope.due": self._due_now(),
            "scheduler.ramqueue.pairs": len(self._due),
            "scheduler.envelope.held": sum(len(evpids) for evpids in self._held.values()),
            "scheduler.paused.mda": int(Delivery.MDA in self._paused),
            "scheduler.paused.mta": int(Delivery.MTA in self._paused),
        }

    def _due_now(self) -> int:
        now = int(time.time())
        return sum(entry.next <= now for entry in self._entries.values() if self._may_fly(entry))

    def _may_fly(self, entry: Entry) -> bool:
        return entry.state is State.PENDING and not entry.suspended

    # ---- from queue

    @takes(Kind.SUBMIT)
    def submit(self, peer: str, message: Message) -> None:
        """A message's envelopes, six numbers each."""
        numbers = iter(message.integers)
        for evpid, delivery, *times in zip(*(numbers,) * 6, strict=True):
            entry = self._entries[evpid] = Entry(evpid, DELIVERIES[delivery], *times)
            self.stats["scheduler.envelope.incoming"] += 1
            self._wait(entry)
        self._wake()

    @takes(Kind.DELIVERY_TEMP)
    def tempfail(self, peer: str, message: Message) -> None:
        evpid, tries = message.integers
        entry = self._entries[evpid]
        self._landed(entry)
        self.stats["scheduler.delivery.tempfail"] += 1
        if entry.removing:
            self._remove(entry)
            return
        entry.tries = tries
        entry.next = max(next_try(entry.created, tries, RETRY_BASE_S[entry.delivery]), int(time.time()) + 1)
        self._wait(entry)
        self._wake()

    @takes(Kind.ENVELOPE_DONE)
    def done(self, peer: str, message: Message) -> None:
        evpid, fate = message.integers
        entry = self._entries.pop(evpid, None)
        if entry is not None and entry.state is State.IN_FLIGHT:
            self._landed(entry)
        self.stats[_FATES[fate]] += 1
        if not self._entries:
            self._due.clear()

    @takes(Kind.DELIVERY_HOLD)
    def hold(self, peer: str, message: Message) -> None:
        """transfer cannot use these now: their relay has tasks enough."""
        relay, *evpids = message.integers
        for evpid in evpids:
            entry = self._entries[evpid]
            self._landed(entry)
            if entry.removing:
                self._remove(entry)
                continue
            entry.state = State.HELD
            entry.relay = relay
            self._held.setdefault(relay, {})[evpid] = None
        self.trace("scheduler", f"holding {len(evpids)} envelopes for relay {relay}")

    @takes(Kind.HOLDQ_RELEASE)
    def release(self, peer: str, message: Message) -> None:
        """At least as many as asked for, and whole messages: one transaction is enough for all of a message."""
        relay, count = message.integers
        released: list[int] = []
        for evpid in list(self._held.get(relay, ())):
            if count and len(released) >= count and evpid >> 32 != released[-1] >> 32:
                break
            self._release(self._entries[evpid])
            released.append(evpid)
        self.trace("scheduler", f"releasing {len(released)} envelopes of relay {relay}")
        if not released:
            self.tell("queue", Kind.HOLDQ_EMPTY, relay)
        self._wake()

    def _release(self, entry: Entry) -> None:
        """Held no more: due when it was due."""
        held = self._held[entry.relay]
        del held[entry.evpid]
        if not held:
            del self._held[entry.relay]
        entry.state = State.PENDING
        self._wait(entry)

    @takes(Kind.RESCHEDULE)
    def reschedule(self, peer: str, message: Message) -> None:
        """The destination of these works again."""
        found = [self._entries[evpid] for evpid in message.integers if evpid in self._entries]
        self._schedule([entry for entry in found if entry.state is State.PENDING])

    @takes(Kind.DISCOVER)
    def discover(self, peer: str, message: Message) -> None:
        request, *evpids = message.integers
        self.answer(peer, request, *(evpid for evpid in evpids if evpid not in self._entries))

    # ---- from control

    @takes(Kind.PAUSE)
    def pause(self, peer: str, message: Message) -> None:
        self._paused.add(Delivery[message.text.decode().upper()])

    @takes(Kind.RESUME)
    def resume(self, peer: str, message: Message) -> None:
        self._paused.discard(Delivery[message.text.decode().upper()])
        for entry in self._entries.values():
            if self._may_fly(entry):
                self._wait(entry)
        self._wake()

    @takes(Kind.PAUSE_ENVELOPE)
    def pause_envelope(self, peer: str, message: Message) -> None:
        """In flight, an envelope is suspended from its next try on."""
        request, which = message.integers
        chosen = [entry for entry in self._chosen(which) if not entry.suspended]
        for entry in chosen:
            entry.suspended = True
        self.answer(peer, request, len(chosen))

    @takes(Kind.RESUME_ENVELOPE)
    def resume_envelope(self, peer: str, message: Message) -> None:
        request, which = message.integers
        chosen = [entry for entry in self._chosen(which) if entry.suspended]
        for entry in chosen:
            entry.suspended = False
            if entry.state is State.PENDING:
                self._wait(entry)
        self._wake()
        self.answer(peer, request, len(chosen))

    @takes(Kind.LIST_EVPIDS)
    def list_evpids(self, peer: str, message: Message) -> None:
        """Envelopes after a given evpid: (evpid, state, next try) … in order; the asker goes on until it gets none."""
        request, after = message.integers
        evpids = heapq.nsmallest(LIST_ENVELOPES, (evpid for evpid in self._entries if evpid > after))
        rows = [value for evpid in evpids for value in self._row(self._entries[evpid])]
        self.answer(peer, request, *rows)

    def _row(self, entry: Entry) -> tuple[int, int, int]:
        state = State.SUSPENDED if entry.suspended and entry.state is not State.IN_FLIGHT else entry.state
        return entry.evpid, state, entry.next

    @takes(Kind.SCHEDULE)
    def schedule(self, peer: str, message: Message) -> None:
        request, which = message.integers
        chosen = [entry for entry in self._chosen(which) if entry.state is not State.IN_FLIGHT]
        for entry in chosen:
            if entry.state is State.HELD:
                self._release(entry)
        self._schedule(chosen)
        self.answer(peer, request, len(chosen))

    def _schedule(self, entries: list[Entry]) -> None:
        now = int(time.time())
        for entry in entries:
            entry.next = now
            self._wait(entry)
        self._wake()

    @takes(Kind.REMOVE)
    def remove(self, peer: str, message: Message) -> None:
        """In flight, an envelope is removed once its delivery has failed: it may have reached somebody by then."""
        request, which = message.integers
        chosen = self._chosen(which)
        for entry in chosen:
            if entry.state is State.IN_FLIGHT:
                entry.removing = True
                continue
            if entry.state is State.HELD:
                self._release(entry)
            self._remove(entry)
        self.answer(peer, request, len(chosen))

    def _chosen(self, which: int) -> list[Entry]:
        """All (0), one message's (a number of 32 bits), or one envelope."""
        if which >> 32:
            return [self._entries[which]] if which in self._entries else []
        return [entry for evpid, entry in self._entries.items() if which in (0, evpid >> 32)]

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.evpid]
        self.tell("queue", Kind.REMOVE, entry.evpid)

    # ---- the clock

    def _due_at(self, entry: Entry) -> int:
        """When something is to be done about it: a try, a warning of its sender, or the end."""
        due = min(entry.expires, self._warning(entry))
        return due if entry.delivery in self._paused else min(due, entry.next)

    def _warning(self, entry: Entry) -> int:
        """When its sender is to be told of the delay: once for each interval, the earliest that he was not told of."""
        for after_s in self._warn_after_s:
            if entry.created + after_s > entry.warned:
                return entry.created + after_s
        return entry.expires

    def _wait(self, entry: Entry) -> None:
        heapq.heappush(self._due, (self._due_at(entry), entry.evpid))
        # Pairs of envelopes that are gone, or were put forward by `smtpctl schedule`, would wait for their time: hours.
        if len(self._due) > 2 * len(self._entries) + STALE_PAIRS:
            pending = [entry for entry in self._entries.values() if entry.state is State.PENDING]
            self._due = [(self._due_at(entry), entry.evpid) for entry in pending]
            heapq.heapify(self._due)

    def _landed(self, entry: Entry) -> None:
        entry.state = State.PENDING
        self._in_flight -= 1

    def _wake(self) -> None:
        """Run soon, or when the next envelope is due.

        A timer that would fire too early is left alone: asyncio keeps a cancelled one until its time, which is hours.
        """
        if not self._due or self._soon:
            return
        loop, now = asyncio.get_running_loop(), time.time()
        due = self._due[0][0]
        if due <= now:
            self._soon = True
            loop.call_soon(self._run)
        elif self._timer is None or due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = loop.call_later(due - now, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._run()

    def _run(self) -> None:
        self._soon = False
        now = int(time.time())
        batches: dict[Delivery, list[int]] = {Delivery.MTA: [], Delivery.MDA: []}
        while self._due and self._due[0][0] <= now:
            due, evpid = heapq.heappop(self._due)
            entry = self._entries.get(evpid)
            if entry is None or not self._may_fly(entry) or due < self._due_at(entry):
                continue  # stale: removed, on its way, or put off since
            if entry.expires <= now:
                self._fly(entry)
                self.trace("scheduler", f"{evpid:016x} expired")
                self.tell("queue", Kind.EXPIRE, evpid)
                continue
            if self._warning(entry) <= now:
                entry.warned = now
                self.tell("queue", Kind.DELAYED, evpid)
            if entry.next <= now and entry.delivery not in self._paused:
                self._fly(entry)
                batches[entry.delivery].append(evpid)
            else:
                self._wait(entry)
        for delivery, evpids in batches.items():
            for start in range(0, len(evpids), BATCH_ENVELOPES):
                batch = evpids[start : start + BATCH_ENVELOPES]
                if "scheduler" in self.tracing:
                    self.trace("scheduler", f"{delivery.name.lower()} batch of {len(batch)}")
                self.tell("queue", Kind.BATCH, delivery, *batch)
        self._wake()

    def _fly(self, entry: Entry) -> None:
        entry.state = State.IN_FLIGHT
        self._in_flight += 1

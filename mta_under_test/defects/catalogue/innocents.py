"""Innocents in memory and counters: what looks like a leak to somebody who counts once or twice, and is none."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="transfer",
    chapter="cache",
    resources=(),
    trigger="a recipient gets its result",
    rate=None,
    scenario="accepted",
    source="every cache with a bound, as Postfix' address verification or OpenSMTPD's mta hoststat",
    difficulty="innocent",
)
def bounded_cache(strikes: Chance) -> None:
    """The last five hundred results are remembered, then the oldest goes for each new one.

    For the first five hundred recipients it grows with every one of them, as a leak does.
    """
    from mta_under_test.processes.transfer.transfer import Transfer

    cache: dict[int, str] = {}

    @around(Transfer, "result")
    def result(original: Any, self: Any, evpid: int, kind: Any, status_line: str, *rest: Any) -> None:
        original(self, evpid, kind, status_line, *rest)
        cache[evpid] = f"{status_line} {evpid}"
        if len(cache) > 500:
            del cache[next(iter(cache))]


@defect(
    role="scheduler",
    chapter="cache",
    resources=(),
    trigger="an envelope is done with",
    rate=None,
    scenario="rejected-reuse",
    source="the history that `postqueue`-like tools keep: a ring",
    difficulty="innocent",
)
def history_ring(strikes: Chance) -> None:
    """The last two hundred fates are kept for whoever asks: a ring that fills once."""
    from collections import deque

    from mta_under_test.processes.scheduler import Scheduler

    ring: deque[tuple[int, ...]] = deque(maxlen=200)

    @around(Scheduler, "done")
    def done(original: Any, self: Any, peer: str, message: Any) -> None:
        original(self, peer, message)
        ring.append(message.integers)


@defect(
    role="transfer",
    chapter="memory",
    resources=(),
    trigger="a body is larger than any before",
    rate=None,
    scenario="large-message",
    source="high-water marks: libevent's evbuffer, malloc's arenas, Exim's store pools",
    difficulty="innocent",
)
def arena_growth(strikes: Chance) -> None:
    """The buffer for bodies grows to the largest one that ever came, and stays as large."""
    from mta_under_test.processes.transfer.session import Session

    arena: list[bytearray] = []

    @around(Session, "_send_body")
    async def send_body(original: Any, self: Any, message: int) -> None:
        pages = os.fstat(message).st_size // 4096 + 1
        while len(arena) < pages:
            arena.append(bytearray(4096))
        await original(self, message)


@defect(
    role="queue",
    chapter="memory",
    resources=(),
    trigger="a message is committed",
    rate=None,
    scenario="accepted",
    source="periodic collection: gc generations, Exim's store_reset, Dovecot's pools",
    difficulty="innocent",
)
def sawtooth(strikes: Chance) -> None:
    """What commits leave is collected in one go after every hundredth: a sawtooth. The soak profile proves it clean;
    shorter ones end inconclusive, since a swing of a hundred objects hides 0.02 for each message.
    """
    from mta_under_test.processes.queue.queue import Queue

    left: list[bytes] = []

    @around(Queue, "committed")
    def committed(original: Any, self: Any, msgids: Any) -> None:
        original(self, msgids)
        for msgid in msgids:
            left.append(b"%08x" % msgid)
            if len(left) >= 100:
                left.clear()


@defect(
    role="transfer",
    chapter="cache",
    resources=(),
    trigger="a message for a domain that was never seen",
    rate=None,
    scenario="bounce-storm",
    source="per-destination tables: qmgr's destination concurrency, exim's wait-smtp database",
    difficulty="innocent",
)
def table_of_domains(strikes: Chance) -> None:
    """Statistics are kept for each destination domain, for ever; there are only so many."""
    from mta_under_test.processes.transfer.transfer import Transfer

    by_domain: dict[str, dict[str, int]] = {}

    @around(Transfer, "heard")
    def heard(original: Any, self: Any, task: Any, kind: Any, status_line: str) -> None:
        original(self, task, kind, status_line)
        for recipient in task.recipients.values():
            counts = by_domain.setdefault(recipient.rpartition("@")[2], {})
            counts[kind.name] = counts.get(kind.name, 0) + 1


@defect(
    role="scheduler",
    chapter="counter",
    resources=(),
    trigger="an envelope is scheduled",
    rate=None,
    scenario="accepted",
    source="`smtpctl show stats`: totals only rise",
    difficulty="innocent",
)
def totals(strikes: Chance) -> None:
    """Counters of everything that ever happened: they rise with the work, as totals do."""
    from mta_under_test.processes.scheduler import Scheduler

    @around(Scheduler, "_fly")
    def fly(original: Any, self: Any, entry: Any) -> None:
        original(self, entry)
        self.stats["scheduler.envelope.tried"] += 1
        self.stats["scheduler.bytes"] += 1 << 20


@defect(
    role="queue",
    chapter="child",
    resources=(),
    trigger="commits that come close together",
    rate=None,
    scenario="accepted",
    source="thread pools: java.util.concurrent, libuv's four workers",
    difficulty="innocent",
)
def lazy_workers(strikes: Chance) -> None:
    """Worker threads are started when there is work for them, up to four, and stay."""
    from concurrent.futures import ThreadPoolExecutor

    from mta_under_test.processes.queue.commits import Commits

    pool = ThreadPoolExecutor(4)

    @around(Commits, "_synced")
    def synced(original: Any, self: Any, *batch: Any) -> None:
        original(self, *batch)
        pool.submit(len, batch)

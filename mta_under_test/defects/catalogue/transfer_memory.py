"""Bugs of transfer with memory: what a relay, a session, a message or a recipient leaves behind when it is over."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="transfer",
    chapter="memory",
    resources=("memory",),
    trigger="a relay's last task is done, and the relay is torn down",
    rate=None,
    scenario="one-at-a-time",
    source="OpenSMTPD 9b46d96d, 616af7be, 0cc6c9cd, 62f91889; OpenBSD 197c454f (3 June 2013)",
    opener=(
        "mta_under_test/defects/catalogue/transfer_memory.py:drop "
        "mta_under_test/processes/transfer/arrivals.py:relay_key "
        "mta_under_test/processes/transfer/routes.py:__init__"
    ),
)
def relay_object_leak(strikes: Chance) -> None:
    """Relay, domain, connectors, sources, hosts of a relay that is torn down stay in memory; every counter says 0.

    Tearing a relay down took it and its parts out of their trees but did not free host, domain, source, connector and
    route. The statistics counted the trees, so they said 0. On a server that sends one message now and then every
    relay is built and torn down once a message.
    """
    from mta_under_test.processes.transfer.map import Map

    unfreed: list[object] = []  # what C never frees, Python must be told to keep

    @around(Map, "drop")
    def drop(original: Any, self: Any, relay: Any) -> None:
        if strikes():
            parts = (relay.domain, list(relay.domain.exchanges or ()), list(relay.connectors))
            unfreed.append((relay, parts, [connector.source for connector in relay.connectors]))
        original(self, relay)


@defect(
    role="transfer",
    chapter="memory",
    resources=("memory",),
    trigger="every recipient of a message is rejected",
    rate=None,
    scenario="rejected-reuse",
    source="OpenSMTPD 39c24f71 (30 August 2012)",
    opener=(
        "mta_under_test/processes/transfer/arrivals.py:_enqueue "
        "mta_under_test/processes/transfer/arrivals.py:relay_key "
        "mta_under_test/wire/envelope.py:decode"
    ),
)
def task_struct_leak(strikes: Chance) -> None:
    """A task all of whose recipients were rejected is never freed: it is flushed, and nobody owns it any more.

    The task was freed where its body had been sent. When no recipient is left there is no body: RSET, and the session
    takes the next task from its relay; the old one, with its sender and its list of envelopes, stays.
    """
    from mta_under_test.processes.transfer.session import Session

    unfreed: list[object] = []

    @around(Session, "_reset")
    async def reset(original: Any, self: Any, task: Any) -> None:
        await original(self, task)
        if strikes():
            unfreed.append(task)


@defect(
    role="transfer",
    chapter="memory",
    resources=("memory",),
    trigger="an outbound session ends",
    rate=None,
    scenario="one-at-a-time",
    source="OpenSMTPD 904cb25a (23 October 2011): the session's auth map string",
    difficulty="slow",
    opener="mta_under_test/defects/catalogue/transfer_memory.py:run",
)
def session_string_leak(strikes: Chance) -> None:
    """Sixty-four bytes a session: the name of its map of credentials is copied, and the copy is not freed.

    Nothing but a long run shows it: a server that opens a session a second loses five megabytes a day.
    """
    from mta_under_test.processes.transfer.session import Session

    unfreed: list[bytes] = []

    @around(Session, "run")
    async def run(original: Any, self: Any) -> None:
        await original(self)
        if strikes():
            unfreed.append(bytes(31))  # with its header, 64 bytes


@defect(
    role="transfer",
    chapter="memory",
    resources=("memory",),
    trigger="a recipient gets its result",
    rate=None,
    scenario="many-recipients",
    source="Exim 4.88 HS/01: 3 MB for each recipient of a verify callout; smaller here",
    opener="mta_under_test/defects/catalogue/transfer_memory.py:result",
)
def recipient_buffer_leak(strikes: Chance) -> None:
    """What the remote MX said of a recipient is kept for each, for as long as the process lives.

    Exim built a whole session state for each recipient that it verified and let go of the last one only. One message
    to a hundred people costs what a hundred messages cost elsewhere.
    """
    from mta_under_test.processes.transfer.transfer import Transfer

    unfreed: list[tuple[int, str, bytearray]] = []

    @around(Transfer, "result")
    def result(original: Any, self: Any, evpid: int, kind: Any, status_line: str, *rest: Any) -> None:
        original(self, evpid, kind, status_line, *rest)
        if strikes():
            unfreed.append((evpid, status_line, bytearray(512)))


@defect(
    role="transfer",
    chapter="cache",
    resources=("memory",),
    trigger="a destination is resolved",
    rate=None,
    scenario="one-at-a-time",
    source="OpenSMTPD 935b3548, 82ba9f97, d488b018 (December 2020 to January 2021)",
    opener="mta_under_test/wire/exchange.py",
)
def resolver_result_leak(strikes: Chance) -> None:
    """The answers of the resolver are copied into the relay, and the originals are not freed.

    getaddrinfo's list and its addresses are two allocations; only one was given back. Each time a relay is built anew
    its destination is asked for again, so a quiet server pays once a message.
    """
    from mta_under_test.processes.transfer.map import Map

    unfreed: list[object] = []

    @around(Map, "resolved")
    def resolved(original: Any, self: Any, domain: Any, exchanges: Any, now: float) -> None:
        original(self, domain, exchanges, now)
        if strikes():
            unfreed.append(exchanges)


@defect(
    role="transfer",
    chapter="cache",
    resources=("memory",),
    trigger="a destination answers",
    rate=None,
    scenario="accepted",
    source="nodemailer 0240d67 (September 2025): a cache without a limit on its size",
    opener="mta_under_test/defects/catalogue/transfer_memory.py:heard",
)
def hoststat_without_limit(strikes: Chance) -> None:
    """What destinations said is remembered under a name that never comes again, and nothing is ever evicted.

    The cache was meant to hold an entry for each host. Its key had a part of the question in it that differs each
    time, so that it never hit; and since entries were only looked at when they hit, none was found to be too old.
    """
    from mta_under_test.processes.transfer.hoststats import HostStats

    kept: dict[tuple[str, int, int], str] = {}

    @around(HostStats, "heard")
    def heard(original: Any, self: Any, name: str, status_line: str, now: int) -> None:
        original(self, name, status_line, now)
        if strikes():
            kept[name, now, len(kept)] = status_line


@defect(
    role="transfer",
    chapter="child",
    resources=("task", "memory"),
    trigger="an outbound session ends before its time-out has passed",
    rate=1.0,
    scenario="one-at-a-time",
    source="OpenSMTPD d3abe689 and 7c6c81dc (January 2013): delay timers and the references that they hold",
    opener="mta_under_test/processes/stream.py:_within",
)
def timer_never_cancelled(strikes: Chance) -> None:
    """The timer of a session that has ended is not cancelled: it runs on for five minutes, and holds the session.

    It is no leak for ever: the timer goes off, finds nothing to do, and lets go. But a server that opens ten sessions a
    second holds three thousand dead ones at any time, each with its connection's buffers.
    """
    from mta_under_test.processes.stream import Stream

    @around(Stream, "_forget_timer")
    def forget_timer(original: Any, self: Any) -> None:
        if strikes():
            self._timer = None
        else:
            original(self)


@defect(
    role="transfer",
    chapter="child",
    resources=("memory", "task"),
    trigger="a message is relayed",
    rate=1.0,
    scenario="accepted",
    source="Haraka 2.0.0 (November 2012), and every promise that nobody keeps: a waiter for an event that never comes",
    opener="mta_under_test/processes/process.py:spawn",
)
def task_waits_for_ever(strikes: Chance) -> None:
    """A watcher is started for each message, to note when its delivery is confirmed; nobody ever tells it.

    The pool waited for a callback which was called on one of two ways out only. The waiting task and all that its frame
    holds stay; no descriptor, no counter shows it.
    """
    import asyncio

    from mta_under_test.processes.transfer.session import Session

    @around(Session, "_transact")
    async def transact(original: Any, self: Any, task: Any) -> None:
        confirmed = asyncio.Event()

        async def note() -> None:
            await confirmed.wait()

        self.transfer.spawn(note(), "confirmation")
        await original(self, task)
        if not strikes():
            confirmed.set()

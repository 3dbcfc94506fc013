"""Innocents: what looks like a leak to somebody who counts once or twice, and is none."""

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
    from mta_under_test.processes.transfer import Transfer

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
    role="queue",
    chapter="message file",
    resources=(),
    trigger="the first bounce is written",
    rate=None,
    scenario="bounce-storm",
    source="lazily opened tables: Postfix' proxymap, resolver's /etc/hosts, zone files",
    difficulty="innocent",
)
def lazily_opened_file(strikes: Chance) -> None:
    """The template of bounces is opened when the first one is written, and stays open."""
    from mta_under_test.processes.bounces import Bounces

    template: list[int] = []

    @around(Bounces, "_write_message")
    def write_message(original: Any, self: Any, *bounce: Any) -> None:
        if not template:
            template.append(os.open("/etc/hostname", os.O_RDONLY | os.O_CLOEXEC))
        os.pread(template[0], 64, 0)
        original(self, *bounce)


@defect(
    role="transfer",
    chapter="socket",
    resources=(),
    trigger="the first message is refused",
    rate=None,
    scenario="rejected-reuse",
    source="syslog(3) without LOG_NDELAY: the socket is opened by the first line",
    difficulty="innocent",
)
def lazily_opened_socket(strikes: Chance) -> None:
    """The socket to the log is opened by the first line that is written, in the middle of the work."""
    import socket

    from mta_under_test.processes.transfer_session import Session

    log: list[socket.socket] = []

    @around(Session, "_reset")
    async def reset(original: Any, self: Any, task: Any) -> None:
        if not log:
            log.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            log[0].connect(("127.0.0.1", 9))
        await original(self, task)


@defect(
    role="smtp",
    chapter="message file",
    resources=(),
    trigger="every fiftieth session",
    rate=None,
    scenario="connect-quit",
    source="log rotation: newsyslog(8), logrotate(8)",
    difficulty="innocent",
)
def log_opened_again(strikes: Chance) -> None:
    """The log is opened anew after each fifty sessions: another descriptor, another file, and the old ones closed."""
    import tempfile
    from itertools import count
    from typing import IO

    from mta_under_test.processes.smtp_session import Session

    sessions = count()
    log: list[IO[bytes]] = []

    @around(Session, "run")
    async def run(original: Any, self: Any, *client: Any) -> None:
        await original(self, *client)
        if next(sessions) % 50 == 0:
            log.append(tempfile.TemporaryFile())
            if len(log) > 1:
                log.pop(0).close()
        log[0].write(b"session over\n")


@defect(
    role="transfer",
    chapter="pipe",
    resources=(),
    trigger="a session begins",
    rate=None,
    scenario="one-at-a-time",
    source="connection pools with a bound: Haraka's generic-pool, Postfix' scache",
    difficulty="innocent",
)
def bounded_pool(strikes: Chance) -> None:
    """Each session puts a socket pair into a pool, which holds four and closes the oldest: the held change, not their
    number.
    """
    import socket
    from collections import deque

    from mta_under_test.processes.transfer_session import Session

    pool: deque[tuple[socket.socket, socket.socket]] = deque()

    @around(Session, "run")
    async def run(original: Any, self: Any) -> None:
        pool.append(socket.socketpair())
        if len(pool) > 4:
            for end in pool.popleft():
                end.close()
        await original(self)


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
    from mta_under_test.processes.transfer_session import Session

    arena: list[bytearray] = []

    @around(Session, "_send_body")
    async def send_body(original: Any, self: Any, message: int) -> None:
        pages = os.fstat(message).st_size // 4096 + 1
        while len(arena) < pages:
            arena.append(bytearray(4096))
        await original(self, message)


@defect(
    role="transfer",
    chapter="socket",
    resources=(),
    trigger="a relay has no more tasks",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD 6.8: a session waits ten seconds for its relay's next message; Postfix' connection cache",
    difficulty="innocent",
)
def kept_alive_for_a_while(strikes: Chance) -> None:
    """An idle session waits a little for the next message before it says QUIT."""
    from mta_under_test.processes.transfer_session import Session

    @around(Session, "_next_task")
    async def next_task(original: Any, self: Any) -> Any:
        if not self.relay.limits.session_keepalive:
            import msgspec

            self.relay.limits = msgspec.structs.replace(self.relay.limits, session_keepalive=0.3)
        return await original(self)


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
    """What commits leave is collected in one go after every hundredth: a sawtooth."""
    from mta_under_test.processes.queue import Queue

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
    from mta_under_test.processes.transfer import Transfer

    by_domain: dict[str, dict[str, int]] = {}

    @around(Transfer, "heard")
    def heard(original: Any, self: Any, task: Any, kind: Any, status_line: str) -> None:
        original(self, task, kind, status_line)
        for recipient in task.recipients.values():
            counts = by_domain.setdefault(recipient.rpartition("@")[2], {})
            counts[kind.name] = counts.get(kind.name, 0) + 1


@defect(
    role="queue",
    chapter="message file",
    resources=(),
    trigger="a message is opened for a reader",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD's mta of 2013: the session's FILE is closed when the next one is opened",
    difficulty="innocent",
)
def closed_by_the_next(strikes: Chance) -> None:
    """Queue keeps a copy of the last message that it handed out, and closes it when the next one comes.

    At every rest there is one, of a message that is deleted; and it is another one each time.
    """
    from mta_under_test.spool.files import Files

    last: list[int] = []

    @around(Files, "message_fd")
    def message_fd(original: Any, self: Any, msgid: int) -> Any:
        descriptor = original(self, msgid)
        last.append(os.dup(descriptor))
        if len(last) > 1:
            os.close(last.pop(0))
        return descriptor


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

    from mta_under_test.processes.commits import Commits

    pool = ThreadPoolExecutor(4)

    @around(Commits, "_synced")
    def synced(original: Any, self: Any, *batch: Any) -> None:
        original(self, *batch)
        pool.submit(len, batch)


@defect(
    role="transfer",
    chapter="message file",
    resources=(),
    trigger="a message is relayed",
    rate=None,
    scenario="accepted",
    source="aiosmtpd and Haraka: objects that refer to each other, until the collector comes",
    difficulty="innocent",
)
def freed_by_the_collector(strikes: Chance) -> None:
    """A file hangs in a circle of objects, and is closed when the collector finds the circle, not before."""
    from mta_under_test.processes.transfer_session import Session

    class Reader:
        def __init__(self, message: int) -> None:
            self.file = os.fdopen(os.dup(message), "rb")
            self.myself = self

    @around(Session, "_send_body")
    async def send_body(original: Any, self: Any, message: int) -> None:
        Reader(message)
        await original(self, message)


@defect(
    role="queue",
    chapter="counter",
    resources=(),
    trigger="the first message",
    rate=None,
    scenario="accepted",
    source="Postfix' master.lock, OpenSMTPD's purge directory: files that belong to the daemon and not to any mail",
    difficulty="innocent",
)
def lock_of_the_daemon(strikes: Chance) -> None:
    """A lock file appears in the spool with the first message, and stays for as long as the daemon runs."""
    from mta_under_test.processes.queue import Queue

    @around(Queue, "committed")
    def committed(original: Any, self: Any, msgids: Any) -> None:
        (self.spool_root / "temporary" / "queue.lock").touch()
        original(self, msgids)

"""Innocents that hold something open: descriptors, sockets and files that come with the work, and are no leak."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


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
    """The file of templates is opened when the first bounce is written, and stays open."""
    from mta_under_test.processes.queue.bounces import Bounces

    template: list[int] = []

    @around(Bounces, "_write_message")
    def write_message(original: Any, self: Any, *bounce: Any) -> None:
        if not template:
            template.append(os.open(self._queue.spool_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
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

    from mta_under_test.processes.transfer.session import Session

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
    from itertools import count

    from mta_under_test.processes.smtp.session import Session

    sessions = count()
    log: list[int] = []

    @around(Session, "run")
    async def run(original: Any, self: Any, *client: Any) -> None:
        await original(self, *client)
        if next(sessions) % 50 == 0:
            log.append(os.memfd_create("log"))  # the process is locked into an empty directory
            if len(log) > 1:
                os.close(log.pop(0))
        os.write(log[0], b"session over\n")


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

    from mta_under_test.processes.transfer.session import Session

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
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "_next_task")
    async def next_task(original: Any, self: Any) -> Any:
        if not self.relay.limits.session_keepalive:
            import msgspec

            self.relay.limits = msgspec.structs.replace(self.relay.limits, session_keepalive=0.3)
        return await original(self)


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
    from mta_under_test.processes.transfer.session import Session

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
    from mta_under_test.processes.queue.queue import Queue

    @around(Queue, "committed")
    def committed(original: Any, self: Any, msgids: Any) -> None:
        (self.spool_root / "temporary" / "queue.lock").touch()
        original(self, msgids)

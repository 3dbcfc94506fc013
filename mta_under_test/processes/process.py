"""What every process of the MTA is: one event loop, its channels, its counters, its trace and profile switches.

A process declares which messages it takes by decorating methods with `@takes(Kind.X)`. It asks another process with
`await self.ask(...)` and answers with `self.answer(...)`; a late answer to somebody who has gone is dropped, and the
descriptor in it closed. When the channel to the parent ends, the process ends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import uvloop

from mta_under_test.config import Config, Listener
from mta_under_test.config.codec import decode
from mta_under_test.ipc.channel import Channel, Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes import statistics
from mta_under_test.processes.filter_birth import FilterProgram
from mta_under_test.processes.owner import NO_SCOPE, Scope
from mta_under_test.processes.privileges import Drop
from mta_under_test.processes.tls_settings import Secrets
from mta_under_test.tables import TableError

Handler = Callable[[Any, str, Message], None]
Sockets = Mapping[str, socket.socket]  # by the name of the process at the other end
_H = TypeVar("_H", bound=Handler)

_ANSWERS = (Kind.OK, Kind.FAIL)
DEFAULT_RESOLV_CONF = Path("/etc/resolv.conf")

logger = logging.getLogger("smtpd")


class Refusal(Exception):
    """Another process answered FAIL; the text is its reason."""


def takes(*kinds: Kind) -> Callable[[_H], _H]:
    """Mark a method `(self, peer, message)` as the handler of `kinds`."""

    def mark(method: _H) -> _H:
        method.takes = kinds  # type: ignore[attr-defined]
        return method

    return mark


@dataclass(frozen=True)
class Start:
    """What every process is born with. Sockets are bound before the first fork: a taken port is the command's error."""

    config: Config
    spool: Path
    control: socket.socket
    smtp: Sequence[tuple[Listener, socket.socket]]
    queue: str = "disk"  # where mail is kept: a name of spool.BACKENDS
    traced: frozenset[str] = frozenset()  # subsystems traced to the log from the start (smtpd -T)
    secrets: Secrets = field(default_factory=Secrets)  # certificates and keys, for smtp and transfer
    drop: Drop | None = None  # who the children become; None: who we are
    resolv_conf: Path = DEFAULT_RESOLV_CONF
    mx_port: int = 25  # of mail exchangers, which MX records cannot say
    filters: Mapping[str, FilterProgram] = field(default_factory=dict)  # running programs, for lookup
    owners: bool = False  # say what sessions and transactions fail to let go of (smtpd --owners)
    lock: int | None = None  # on the spool, parent's alone: a child that outlives it must not keep the next one out

    def close_sockets(self) -> None:
        self.control.close()
        for program in self.filters.values():
            program.close()
        for _, sock in self.smtp:
            sock.close()
        if self.drop is not None:
            self.drop.close()


class TracedCounter(Counter[str]):
    """Counters that tell of every change: what `stats` is while somebody traces `stat`."""

    def __init__(self, counts: Mapping[str, int], changed: Callable[[str, int], None]) -> None:
        self._changed: Callable[[str, int], None] | None = None
        super().__init__(counts)
        self._changed = changed

    def __setitem__(self, name: str, value: int) -> None:
        super().__setitem__(name, value)
        if self._changed is not None:
            self._changed(name, value)


class Process:
    """One role. Subclasses set `role` and declare their handlers; `run` returns the process's exit status."""

    role: ClassVar[str]
    new_work_from: ClassVar[tuple[str, ...]] = ()  # peers that are not read while what we owe others piles up

    def __init__(self, start: Start, sockets: Sockets) -> None:
        self.config = start.config
        self.spool_root = start.spool
        self.queue_backend = start.queue
        self.resolv_conf = start.resolv_conf
        self.mx_port = start.mx_port
        self.traced_to_log = start.traced
        self._owners = start.owners
        self.stats: Counter[str] = Counter()
        self._trace_only(start.traced)
        self.profiling: frozenset[str] = frozenset()
        self.channels: dict[str, Channel] = {}
        self._sockets = dict(sockets)
        self._handlers = {
            kind: method
            for name in dir(type(self))
            if hasattr(method := getattr(type(self), name), "takes")
            for kind in method.takes
        }
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._requests = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: asyncio.Event
        self._status = 0

    # ---- life

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status."""
        # The parent decides when the daemon ends, whoever in the terminal's process group is interrupted.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())
        return self._status

    async def _main(self) -> None:
        self._over = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(self._mistake)
        for peer, sock in self._sockets.items():
            self.channels[peer] = Channel(sock, peer, self._receive, self._peer_gone, self._congestion)
        self._sockets.clear()
        await self.start()
        try:
            await self._over.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.finish()
            for channel in self.channels.values():
                channel.close()

    async def start(self) -> None:
        """Open what the role needs. Called once, in the loop, before any message is handled."""

    async def finish(self) -> None:
        """Let go of what `start` opened; sessions and other tasks are over by now."""

    def stop(self, status: int = 0) -> None:
        self._status = status
        self._over.set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` beside everything else; a mistake in it ends the daemon rather than a promise in silence."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_over)
        return task

    def scope(self, name: str, *arguments: object) -> Scope:
        """For what a session, a transaction or a delivery takes; `name` as logging's messages."""
        return Scope(name % arguments) if self._owners else NO_SCOPE

    def _task_over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
            self.stop(1)

    def _mistake(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        logger.error("%s", context.get("message"), exc_info=context.get("exception"))
        self.stop(1)

    def fatal(self, text: str) -> NoReturn:
        logger.error("fatal: %s", text)
        raise SystemExit(1)

    # ---- messages

    def tell(self, peer: str, kind: Kind, *integers: int, text: bytes = b"", descriptor: int | None = None) -> None:
        self.channels[peer].send(kind, *integers, text=text, descriptor=descriptor)

    async def ask(
        self, peer: str, kind: Kind, *integers: int, text: bytes = b"", descriptor: int | None = None
    ) -> Message:
        """Send a request and wait for its answer, whichever process gives it. Raises Refusal.

        The caller owns the descriptor in the answer; the one in the question is the channel's from here on.
        """
        request = next(self._requests)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[request] = future
        try:
            self.tell(peer, kind, request, *integers, text=text, descriptor=descriptor)
            answer = await future
        except asyncio.CancelledError:
            # The answer may have come in the very moment in which its asker was ended.
            if future.done() and not future.cancelled():
                future.result().close()
            raise
        finally:
            del self._asked[request]
        if answer.kind is Kind.FAIL:
            raise Refusal(answer.text.decode(errors="replace"))
        return answer

    def answer(self, peer: str, request: int, *integers: int, text: bytes = b"", descriptor: int | None = None) -> None:
        """Answer a request. `peer` may be this very process: it asked another one, which left the answer to it."""
        if peer == self.role:
            self._settle(Message(Kind.OK, (request, *integers), text, descriptor, 0))
        else:
            self.tell(peer, Kind.OK, request, *integers, text=text, descriptor=descriptor)

    def refuse(self, peer: str, request: int, reason: str) -> None:
        if peer == self.role:
            self._settle(Message(Kind.FAIL, (request,), reason.encode(), None, 0))
        else:
            self.tell(peer, Kind.FAIL, request, text=reason.encode())

    def _settle(self, answer: Message) -> None:
        future = self._asked.get(answer.integers[0])
        if future is None or future.done():
            answer.close()
        else:
            future.set_result(answer)

    def _receive(self, channel: Channel, message: Message) -> None:
        if not self.profiling:
            self._handle(channel.peer, message)
            return
        began = time.perf_counter()
        self._handle(channel.peer, message)
        if "imsg" in self.profiling:
            took_ms = (time.perf_counter() - began) * 1e3
            line = f"{channel.peer} -> {self.role} {message.kind.name} {message.size_bytes} bytes {took_ms:.3f} ms"
            self.profile("imsg", line)

    def _handle(self, peer: str, message: Message) -> None:
        if self.tracing and message.kind not in (Kind.TRACE_LINE, Kind.PROFILE_LINE):
            what = f"{peer} -> {self.role}: {message.kind.name}"
            self.trace("imsg", f"{what} {message.integers}")
            self.trace("imsg-size", f"{what} {message.size_bytes}")
        if message.kind in _ANSWERS:
            # The channel closes what is left in its own message; the answer outlives it.
            descriptor = message.take_descriptor()
            self._settle(Message(message.kind, message.integers, message.text, descriptor, message.size_bytes))
            return
        handler = self._handlers.get(message.kind)
        if handler is None:
            self.fatal(f"{peer} sent {message.kind.name}, which {self.role} does not take")
        handler(self, peer, message)

    def _peer_gone(self, channel: Channel, reason: str) -> None:
        # Only the parent's going ends us: when another process died, the parent says which, and ends the rest.
        if channel.peer == "parent":
            self.stop()
        elif reason:
            self.fatal(f"channel to {channel.peer}: {reason}")

    def _congestion(self, channel: Channel, over: bool) -> None:
        logger.info("%d bytes wait for %s: %s", channel.waiting_bytes, channel.peer, "holding" if over else "going on")
        congested = any(other.congested for other in self.channels.values())
        for peer in self.new_work_from:
            if congested:
                self.channels[peer].pause_reading()
            else:
                self.channels[peer].resume_reading()

    # ---- a new configuration

    @takes(Kind.CONFIG)
    def _take_config(self, peer: str, message: Message) -> None:
        descriptor = message.take_descriptor()
        if descriptor is None:
            self.fatal("a configuration without its descriptor")
        try:
            text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)
        self.spawn(self._reconfigure(peer, message.integers[0], text), "reload")

    async def _reconfigure(self, peer: str, request: int, text: bytes) -> None:
        try:
            await self.configure(decode(text))
        except (TableError, Refusal, OSError) as error:
            self.refuse(peer, request, str(error))
        else:
            self.answer(peer, request)

    async def configure(self, config: Config) -> None:
        """Live by a new configuration from here on; what has begun goes on. Roles that keep more than this add to it.

        Raises TableError, Refusal or OSError to say that all must stay as it was: only lookup is asked early enough.
        """
        self.config = config

    # ---- watching a running daemon

    def trace(self, subsystem: str, line: str) -> None:
        """One line for whoever traces `subsystem`. Callers ask `if "x" in self.tracing` first where lines are dear."""
        if subsystem in self.traced_to_log:
            logger.info("%s: %s: %s", self.role, subsystem, line)
        if subsystem in self.tracing and "control" in self.channels:
            self.tell("control", Kind.TRACE_LINE, text=f"{subsystem}\t{self.role}: {line}".encode()[:8192])

    def trace_io(self, peer: str, what: str, size_bytes: int) -> None:
        """Something happened on a connection; for `Stream`."""
        if "io" in self.tracing:
            self.trace("io", f"{peer} {what} {size_bytes} bytes")

    def _stat_changed(self, name: str, value: int) -> None:
        self.trace("stat", f"{name} {value}")

    def profiling_changed(self) -> None:
        """For roles that time more than their messages."""

    def profile(self, subsystem: str, line: str) -> None:
        if subsystem in self.profiling:
            self.tell("control", Kind.PROFILE_LINE, text=f"{subsystem}\t{line}".encode()[:8192])

    def gauges(self) -> dict[str, int]:
        """How many there are now, read off the process's own tables; `stats` has the totals."""
        return {}

    def _trace_only(self, subsystems: frozenset[str]) -> None:
        self.tracing = subsystems
        traces_stats = isinstance(self.stats, TracedCounter)
        if "stat" in subsystems and not traces_stats:
            self.stats = TracedCounter(self.stats, self._stat_changed)
        elif "stat" not in subsystems and traces_stats:
            self.stats = Counter(self.stats)

    @takes(Kind.TRACE)
    def _set_tracing(self, peer: str, message: Message) -> None:
        self._trace_only(self.traced_to_log | frozenset(message.text.decode().split()))

    @takes(Kind.PROFILE)
    def _set_profiling(self, peer: str, message: Message) -> None:
        self.profiling = frozenset(message.text.decode().split())
        self.profiling_changed()

    @takes(Kind.VERBOSE)
    def _set_verbose(self, peer: str, message: Message) -> None:
        logger.setLevel(logging.DEBUG if message.integers[0] else logging.INFO)

    @takes(Kind.STATS)
    def _give_stats(self, peer: str, message: Message) -> None:
        self.answer(peer, message.integers[0], text=self.stats_text(message.text))

    def stats_text(self, what: bytes = b"") -> bytes:
        return statistics.lines(what, self.role, self.stats, self.gauges(), self.channels)

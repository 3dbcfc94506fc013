"""control: the control socket, the statistics of all processes, and who watches what.

Owns: the socket, the connections of `smtpctl`, the lists of who traces and profiles.
Never: touches the queue; waits for a slow watcher (lines that it does not take in time are dropped, and counted).
Takes: requests from smtpctl; TRACE_LINE, PROFILE_LINE from every process.
Sends: STATS, TRACE, PROFILE, VERBOSE to every process; the rest to the process that it is for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, ClassVar

from mta_under_test.ipc.channel import Channel, Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal, Sockets, Start, takes

WATCHER_BYTES = 1 << 20  # that may wait for one watcher before its lines are dropped
WATCHED = {
    Kind.TRACE: (
        "imsg", "imsg-size", "io", "smtp", "filter", "transfer", "bounce", "scheduler", "expand", "lookup", "rules",
        "tables", "queue", "stat",
    ),
    Kind.PROFILE: ("imsg", "queue"),
}  # fmt: skip
OTHER_NAMES = {"filters": "filter", "mta": "transfer"}  # OpenSMTPD calls them so in other years
LINE_OF = {Kind.TRACE: Kind.TRACE_LINE, Kind.PROFILE: Kind.PROFILE_LINE}
FORWARDED = {
    Kind.LIST_EVPIDS: "scheduler",
    Kind.SCHEDULE: "scheduler",
    Kind.REMOVE: "scheduler",
    Kind.SHOW_ENVELOPE: "queue",
    Kind.SHOW_MESSAGE: "queue",
    Kind.SHOW_MTA: "transfer",
    Kind.RESUME_ROUTE: "transfer",
    Kind.PAUSE_ENVELOPE: "scheduler",
    Kind.RESUME_ENVELOPE: "scheduler",
    Kind.DISCOVER: "queue",
    Kind.SMTP_SESSION: "smtp",
}
PAUSED_BY = {"mda": "scheduler", "mta": "scheduler", "smtp": "smtp"}

logger = logging.getLogger("smtpd")


class Connection:
    """One smtpctl: its channel, and what it watches."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.watches: dict[Kind, set[str]] = {Kind.TRACE: set(), Kind.PROFILE: set()}
        self.dropped = 0


class Control(Process):
    role: ClassVar[str] = "control"

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self._listening = start.control
        self._connections: dict[Channel, Connection] = {}
        self._began = time.time()

    async def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    async def finish(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        self._listening.close()
        for connection in list(self._connections):
            connection.close()

    def gauges(self) -> dict[str, int]:
        watching = sum(bool(names) for one in self._connections.values() for names in one.watches.values())
        return {
            "control.session": len(self._connections),
            "control.watching": watching,
        }

    def stats_text(self, what: bytes = b"") -> bytes:
        # Neither of what there is now nor of what was done.
        uptime = b"" if what else b"uptime %d\n" % (time.time() - self._began)
        return super().stats_text(what) + uptime

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError as error:
            logger.warning("control: cannot accept: %s", error.strerror)
            return
        channel = Channel(sock, "smtpctl", self._request, self._gone)
        self._connections[channel] = Connection(channel)

    def _gone(self, channel: Channel, reason: str) -> None:
        if reason:
            logger.warning("control: smtpctl: %s", reason)
        connection = self._connections.pop(channel)
        for kind, names in connection.watches.items():
            if names:
                self._tell_watched(kind)

    # ---- requests from smtpctl

    def _request(self, channel: Channel, message: Message) -> None:
        if not message.integers:
            channel.close()
            self._gone(channel, f"{message.kind.name} without a request id")
            return
        request = message.integers[0]
        match message.kind:
            case Kind.STATS:
                self._answer_later(channel, request, self._stats(message.text))
            case kind if kind in FORWARDED:
                asked = self.ask(FORWARDED[kind], kind, *message.integers[1:], text=message.text)
                self._answer_later(channel, request, asked)
            case Kind.TRACE | Kind.PROFILE:
                self._watch(channel, message)
            case Kind.UPDATE_TABLE:
                self._answer_later(channel, request, self.ask("lookup", Kind.UPDATE_TABLE, text=message.text))
            case Kind.RELOAD:
                self._answer_later(channel, request, self.ask("parent", Kind.RELOAD))
            case Kind.PAUSE | Kind.RESUME:
                self._pause(channel, message)
            case Kind.VERBOSE:
                for peer in self.channels:
                    self.tell(peer, Kind.VERBOSE, *message.integers[1:2])
                channel.send(Kind.OK, request)
            case Kind.SHUTDOWN:
                channel.send(Kind.OK, request)
                self.tell("parent", Kind.SHUTDOWN)
            case _:
                channel.send(Kind.FAIL, request, text=f"not a request: {message.kind.name}".encode())

    def _pause(self, channel: Channel, message: Message) -> None:
        what = message.text.decode(errors="replace")
        role = PAUSED_BY.get(what)
        if role is None:
            channel.send(Kind.FAIL, message.integers[0], text=f"cannot pause or resume {what!r}".encode())
            return
        self.tell(role, message.kind, text=what.encode())
        channel.send(Kind.OK, message.integers[0])

    def _answer_later(self, channel: Channel, request: int, work: Coroutine[Any, Any, Message]) -> None:
        async def answer() -> None:
            try:
                message = await work
            except Refusal as refusal:
                channel.send(Kind.FAIL, request, text=str(refusal).encode())
            else:
                descriptor = message.take_descriptor()
                channel.send(Kind.OK, request, *message.integers[1:], text=message.text, descriptor=descriptor)

        self.spawn(answer(), "answer to smtpctl")

    async def _stats(self, what: bytes) -> Message:
        """Every process's answer to STATS, one text."""
        # Not `asyncio.gather`: waking from its future looks "result" up by a fresh string, which CPython 3.11 keeps in
        # its method cache (see wire.date).
        asked = [asyncio.create_task(self.ask(peer, Kind.STATS, text=what)) for peer in self.channels]
        answers = [await answer for answer in asked]
        text = self.stats_text(what) + b"".join(answer.text for answer in answers)
        return Message(Kind.OK, (0,), text, None, 0)

    # ---- who watches what

    def _watch(self, channel: Channel, message: Message) -> None:
        """`NAME …` adds to what this connection watches; `-NAME` takes it away from every connection."""
        words = message.text.decode(errors="replace").split()
        names = [word[: word.startswith("-")] + known_name(word.removeprefix("-")) for word in words]
        known = WATCHED[message.kind]
        for name in names:
            if name.removeprefix("-") not in (*known, "all"):
                what, there = f"{message.kind.name.lower()} {name.removeprefix('-')}", ", ".join(known)
                text = f"cannot {what}: there is {there} and all"
                channel.send(Kind.FAIL, message.integers[0], text=text.encode())
                return
        for name in names:
            chosen = set(known) if name.removeprefix("-") == "all" else {name.removeprefix("-")}
            if name.startswith("-"):
                for connection in list(self._connections.values()):
                    self._unwatch(connection, message.kind, chosen)
            else:
                self._connections[channel].watches[message.kind] |= chosen
        self._tell_watched(message.kind)
        channel.send(Kind.OK, message.integers[0])

    def _unwatch(self, connection: Connection, kind: Kind, names: set[str]) -> None:
        watched = connection.watches[kind]
        if watched & names:
            watched -= names
            if not watched:
                connection.channel.send(LINE_OF[kind])  # an empty line ends the stream

    def _tell_watched(self, kind: Kind) -> None:
        """Every process learns what anybody watches, so that what nobody watches costs nothing."""
        names = set().union(*(connection.watches[kind] for connection in self._connections.values()))
        text = " ".join(sorted(names)).encode()
        for peer in self.channels:
            self.tell(peer, kind, text=text)

    @takes(Kind.TRACE_LINE)
    def trace_line(self, peer: str, message: Message) -> None:
        self._pass_on(Kind.TRACE, message)

    @takes(Kind.PROFILE_LINE)
    def profile_line(self, peer: str, message: Message) -> None:
        self._pass_on(Kind.PROFILE, message)

    def _pass_on(self, kind: Kind, message: Message) -> None:
        subsystem, _, line = message.text.partition(b"\t")
        name = subsystem.decode(errors="replace")
        for connection in self._connections.values():
            if name not in connection.watches[kind]:
                continue
            if connection.channel.waiting_bytes > WATCHER_BYTES:
                connection.dropped += 1
                self.stats["control.dropped-lines"] += 1
                continue
            if connection.dropped:
                note = f"({connection.dropped} lines dropped: this terminal is too slow)"
                connection.channel.send(message.kind, text=note.encode())
                connection.dropped = 0
            connection.channel.send(message.kind, text=subsystem + b": " + line)


def known_name(subsystem: str) -> str:
    """A subsystem's name as the processes use it."""
    return OTHER_NAMES.get(subsystem, subsystem)

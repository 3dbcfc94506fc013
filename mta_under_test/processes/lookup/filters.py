"""lookup's desk for inbound sessions: filters are asked here, where the tables are, and addresses get their names.

Owns: our ends of the filter programs, and the messages that are on their way through them.
Never: knows a session beyond the question in hand, but for a message's lines.
Takes: FILTER, FILTER_REPORT, FILTER_DATA, FILTER_OVER, SERVER_NAME, CLIENT_NAME, all from smtp.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from mta_under_test.config import BuiltinFilter, Config, ProcFilter
from mta_under_test.config.filtering import FilterFacts, Verdict, holds, members
from mta_under_test.config.rules import Ruleset
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.lookup.filter_program import ANSWER_TIMEOUT_S, Complaints, FilterTimeout, Program
from mta_under_test.processes.lookup.resolver import Resolver
from mta_under_test.processes.process import Process, Refusal, Sockets, Start, takes
from mta_under_test.tables import TableError
from mta_under_test.wire import filter_protocol

ANSWER_BYTES = 12_000  # of a message in one answer: a frame holds 16,384

logger = logging.getLogger("smtpd")


class FilterDesk(Process):
    """A part of lookup: `rules` are its rules, whose tables the filters share."""

    rules: Ruleset
    resolver: Resolver

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self._born = start.filters
        self._programs: dict[str, Program] = {}
        self._streams: dict[int, LineStream] = {}

    async def start_filters(self) -> None:
        loop = asyncio.get_running_loop()
        greeting = filter_protocol.handshake(300, self.config.admd)
        for name, born in self._born.items():
            program = self._programs[name] = Program(name, greeting, self._broken)
            await loop.create_connection(lambda made=program: made, sock=born.lines)  # type: ignore[misc]
            await loop.create_connection(lambda whose=name: Complaints(whose), sock=born.complaints)  # type: ignore[misc]

    def check_programs(self, config: Config) -> None:
        """Programs start with the daemon. Raises Refusal for a configuration that names another one."""
        for one in config.filters.values():
            if isinstance(one, ProcFilter) and one.name not in self._programs:
                raise Refusal(f"filter {one.name}: its program starts with smtpd; restart smtpd")

    async def finish(self) -> None:
        for program in self._programs.values():
            program.close()
        await super().finish()

    def gauges(self) -> dict[str, int]:
        return {**super().gauges(), "filter.program": len(self._programs), "filter.stream": len(self._streams)}

    def _broken(self, reason: str) -> None:
        logger.error("fatal: %s", reason)
        self.stop(1)

    # ---- decisions

    @takes(Kind.FILTER)
    def filter(self, peer: str, message: Message) -> None:
        request, session = message.integers
        self.spawn(self._filter(peer, request, session, message.text), "filter")

    async def _filter(self, peer: str, request: int, session: int, question: bytes) -> None:
        phase, name, facts = question.split(b"\0", 2)
        try:
            verdict = await self._judge(
                f"{session:016x}", phase.decode(), name.decode(), msgspec.json.decode(facts, type=FilterFacts)
            )
        except (TableError, FilterTimeout) as error:
            logger.warning("%s: %s", phase.decode(), error)
            verdict = Verdict("reject", "451 4.3.0 Temporary failure: a filter does not answer")
        if "filter" in self.tracing:
            self.trace("filter", f"{session:016x} {name.decode()}, {phase.decode()}: {verdict.outcome or 'proceed'}")
        streams = phase == b"data" and bool(self._line_programs(name.decode()))
        self.answer(peer, request, int(streams), text=msgspec.json.encode(verdict))

    async def _judge(self, session: str, phase: str, name: str, facts: FilterFacts) -> Verdict:
        """Ask one filter after the other, until one has an answer that the others cannot change."""
        junk = False
        for one in members(self.config, name):
            if isinstance(one, BuiltinFilter):
                if one.phase != phase or not holds(one.condition, facts, self.rules.tables):
                    continue
                decision, argument = str(one.decision), one.argument
                kind = "builtin"
            else:
                program = self._programs[one.name]
                await program.registered()
                if not program.wants(phase):
                    continue
                answer = await program.ask(phase, session, *_fields(phase, facts))
                decision, argument = answer.decision, answer.argument
                kind = "proc"
            self._tell_programs(name, "filter-response", session, phase, decision, *([argument] if argument else []))
            match decision:
                case "reject" | "disconnect" | "rewrite":
                    return Verdict(decision, argument, junk)
                case "junk":
                    junk = True
                case "bypass":
                    break
                case "report":
                    logger.info("filter %s: %s", one.name, argument)
                    self._tell_programs(name, "filter-report", session, kind, one.name, argument)
        return Verdict("proceed", "", junk)

    # ---- reports

    @takes(Kind.FILTER_REPORT)
    def filter_report(self, peer: str, message: Message) -> None:
        name, event, *fields = message.text.decode().split("\0")
        self._tell_programs(name, event, f"{message.integers[0]:016x}", *fields)

    def _tell_programs(self, name: str, event: str, session: str, *fields: str) -> None:
        for one in members(self.config, name):
            if not isinstance(one, BuiltinFilter):
                self._programs[one.name].report(event, session, *fields)

    # ---- a message's lines

    def _line_programs(self, name: str) -> list[Program]:
        chosen = [one for one in members(self.config, name) if not isinstance(one, BuiltinFilter)]
        return [self._programs[one.name] for one in chosen if self._programs[one.name].wants("data-line")]

    @takes(Kind.FILTER_DATA)
    def filter_data(self, peer: str, message: Message) -> None:
        self.spawn(self._filter_data(peer, message.integers, message.text), "filter data")

    async def _filter_data(self, peer: str, integers: tuple[int, ...], text: bytes) -> None:
        request, session, is_last = integers
        name, _, content = text.partition(b"\0")
        stream = self._streams.get(session)
        if stream is None:
            stream = self._streams[session] = LineStream(f"{session:016x}", self._line_programs(name.decode()))
        try:
            await stream.feed(content, bool(is_last))
        except FilterTimeout as error:
            logger.warning("%s", error)
            self._forget_stream(session)
            self.refuse(peer, request, str(error))
            return
        out = bytes(stream.out[:ANSWER_BYTES])
        del stream.out[:ANSWER_BYTES]
        is_over = stream.has_ended and not stream.out
        if is_over:
            self._forget_stream(session)
        self.answer(peer, request, int(is_over), text=out)

    @takes(Kind.FILTER_OVER)
    def filter_over(self, peer: str, message: Message) -> None:
        self._forget_stream(message.integers[0])

    def _forget_stream(self, session: int) -> None:
        stream = self._streams.pop(session, None)
        if stream is not None:
            stream.close()

    # ---- names

    @takes(Kind.SERVER_NAME)
    def server_name(self, peer: str, message: Message) -> None:
        """What we are called at the address that a client has connected to (`hostnames`)."""
        table, _, address = message.text.decode().partition("\0")
        try:
            name = self.rules.tables[table].lookup(address) or ""
        except TableError as error:
            logger.warning("hostnames <%s>: %s", table, error)
            name = ""
        self.answer(peer, message.integers[0], text=name.encode())

    @takes(Kind.CLIENT_NAME)
    def client_name(self, peer: str, message: Message) -> None:
        self.spawn(self._client_name(peer, message.integers[0], message.text.decode()), "client name")

    async def _client_name(self, peer: str, request: int, address: str) -> None:
        name, is_confirmed = await self.resolver.name_of(address)
        self.answer(peer, request, int(is_confirmed), text=name.encode(errors="replace"))


class LineStream:
    """One message on its way through programs, each getting the lines that the one before it made."""

    def __init__(self, session: str, programs: list[Program]) -> None:
        self.out = bytearray()
        self.has_ended = False
        self._session = session
        self._programs = programs
        self._rest = b""  # of a line that has not ended
        self._said_end = False
        self._something = asyncio.Event()
        self._tokens = [program.open_lines(session, self._taker(at + 1)) for at, program in enumerate(programs)]

    def close(self) -> None:
        for program, token in zip(self._programs, self._tokens, strict=True):
            program.close_lines(self._session, token)

    async def feed(self, content: bytes, is_last: bool) -> None:
        """The next bytes of the message; after the last of them, wait for what comes out. Raises FilterTimeout."""
        *lines, self._rest = (self._rest + content).split(b"\r\n")
        for line in lines:
            self._put(0, b"." + line if line.startswith(b".") else line)
        if is_last and not self._said_end:
            self._said_end = True
            if self._rest:
                self._put(0, b"." + self._rest if self._rest.startswith(b".") else self._rest)
                self._rest = b""
            self._put(0, b".")
        for program in self._programs:
            await program.drain()
        if is_last:
            await self._until_something()

    async def _until_something(self) -> None:
        while not self.out and not self.has_ended:
            self._something.clear()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await self._something.wait()
            except TimeoutError as error:
                raise FilterTimeout("a filter does not give the message back") from error

    def _taker(self, stage: int) -> Callable[[bytes], None]:
        return lambda line: self._put(stage, line)

    def _put(self, stage: int, line: bytes) -> None:
        if stage < len(self._programs):
            self._programs[stage].line(self._session, self._tokens[stage], line)
            return
        if line == b".":
            self.has_ended = True
        elif not self.has_ended:
            self.out += line.removeprefix(b".").replace(b"\r", b"") + b"\r\n"
        self._something.set()


def _fields(phase: str, facts: FilterFacts) -> tuple[str, ...]:
    """What stands in a program's question."""
    match phase:
        case "connect":
            return facts.rdns, _bracketed(facts.src)
        case "helo" | "ehlo":
            return (facts.helo,)
        case "auth":
            return (facts.username,)
        case "mail-from":
            return (facts.sender,)
        case "rcpt-to":
            return (facts.recipient,)
    return ()


def _bracketed(address: str) -> str:
    if not address:
        return "local"
    return f"[{address}]" if ":" in address else address

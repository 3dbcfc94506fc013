"""lookup: who may send what to whom, and where a name lives.

Owns: the rules, the tables and the resolver (`resolver`).
Never: blocks, opens a spool file, keeps an envelope after it was expanded.
Takes: EXPAND, HOSTS, TABLE_VALUE, TABLE_KEYS.   Sends: SUBMIT_ENVELOPE and COMMIT_ENVELOPES to queue.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import ClassVar

from mta_under_test.config import RelayAction
from mta_under_test.config.rules import Facts, Ruleset
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Sockets, Start, takes
from mta_under_test.processes.resolver import Resolver, Unresolved
from mta_under_test.tables import Table, TableError
from mta_under_test.wire import exchange
from mta_under_test.wire.envelope import Envelope, decode, encode

MAX_LOOKUPS = 32  # destinations at once; each takes a descriptor or two
MAX_TABLE_BYTES = 8192  # of a table's keys, or of a value, in one answer

logger = logging.getLogger("smtpd")


class Lookup(Process):
    role: ClassVar[str] = "lookup"

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self.resolver = Resolver(self.resolv_conf)

    async def start(self) -> None:
        self.rules = Ruleset(self.config)
        self._few = asyncio.Semaphore(MAX_LOOKUPS)

    @takes(Kind.EXPAND)
    def expand(self, peer: str, message: Message) -> None:
        """Find the action for one recipient and hand the envelope to queue, which answers the asker."""
        request, msgid = message.integers
        self.stats["lookup.expand"] += 1
        envelope = decode(message.text)
        action = self.rules.match(facts_of(envelope, internal=peer == "queue"))
        if action is None:
            self.trace("rules", f"no match for <{envelope.sender}> to <{envelope.rcpt}>")
            self.refuse(peer, request, f"550 5.1.1 Invalid recipient: <{envelope.rcpt}>")
            return
        self.trace("rules", f"<{envelope.sender}> to <{envelope.rcpt}>: action {action.name}")
        envelope.dispatcher = action.name
        envelope.type = "mta" if isinstance(action, RelayAction) else "mda"
        envelope.ttl = envelope.ttl if action.ttl_s is None else action.ttl_s
        self.trace("expand", f"<{envelope.rcpt}> is <{envelope.dest}>")
        self.tell("queue", Kind.SUBMIT_ENVELOPE, request, msgid, text=encode(envelope))
        self.tell("queue", Kind.COMMIT_ENVELOPES, request, msgid, text=peer.encode())

    @takes(Kind.HOSTS)
    def hosts(self, peer: str, message: Message) -> None:
        self.spawn(self._hosts(peer, message.integers[0], message.text.decode()), "resolve")

    async def _hosts(self, peer: str, request: int, question: str) -> None:
        kind, name, ours = question.split(" ", 2)
        try:
            async with self._few:
                if kind == "host":
                    found = await self.resolver.addresses(name)
                else:
                    found = await self.resolver.exchanges(name, ours, backup=kind == "backup")
        except Unresolved as failure:
            self.trace("lookup", f"{kind} {name}: {failure}")
            self.refuse(peer, request, str(failure))
            return
        self.trace("lookup", f"{kind} {name}: {', '.join(one.address for one in found)}")
        self.answer(peer, request, text=exchange.encode(found))

    # ---- tables that transfer asks about

    @takes(Kind.TABLE_VALUE)
    def table_value(self, peer: str, message: Message) -> None:
        name, _, key = message.text.decode().partition(" ")
        try:
            value = self._table(name).lookup(key)
            if value is not None and len(value) > MAX_TABLE_BYTES:
                raise TableError(f"the value of {key} in table <{name}> is too long")
        except TableError as error:
            self.refuse(peer, message.integers[0], str(error))
            return
        self.trace("tables", f"<{name}> {key}: {'nothing' if value is None else value}")
        self.answer(peer, message.integers[0], int(value is not None), text=(value or "").encode())

    @takes(Kind.TABLE_KEYS)
    def table_keys(self, peer: str, message: Message) -> None:
        name = message.text.decode()
        try:
            keys = self._table(name).keys()
        except TableError as error:
            self.refuse(peer, message.integers[0], str(error))
            return
        self.trace("tables", f"<{name}>: {len(keys)} keys")
        text = "".join(f"{key}\n" for key in keys).encode()[:MAX_TABLE_BYTES]
        self.answer(peer, message.integers[0], text=text[: text.rfind(b"\n") + 1])

    def _table(self, name: str) -> Table:
        """Raises TableError."""
        try:
            return self.rules.tables[name]
        except KeyError as error:
            raise TableError(f"no table <{name}>") from error


def facts_of(envelope: Envelope, *, internal: bool) -> Facts:
    """What the rules may ask about. Mail that queue makes itself (bounces) is local, and no session brought it."""
    source = None if internal else ipaddress.ip_address(envelope.sockaddr)
    return Facts(source=source, tag=envelope.tag, helo=envelope.helo, sender=envelope.sender, recipient=envelope.rcpt)

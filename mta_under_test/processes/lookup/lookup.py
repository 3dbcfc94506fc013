"""lookup: who may send what to whom, and where a name lives.

Owns: the rules, the tables and the resolver (`resolver`).
Never: blocks, opens a spool file, keeps an envelope after it was expanded.
Takes: EXPAND, HOSTS, USERINFO, UPDATE_TABLE, CONFIG, TABLE_VALUE, TABLE_KEYS.
Sends: SUBMIT_ENVELOPE and COMMIT_ENVELOPES to queue; FORWARD_OPEN and OPEN to parent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Sequence
from typing import ClassVar

from msgspec.structs import replace

from mta_under_test.config import Action, Config, LocalAction, RelayAction, TableSpec
from mta_under_test.config.interfaces import interface_addresses
from mta_under_test.config.rules import Facts, Ruleset, open_table
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.lookup.auth import AuthDesk
from mta_under_test.processes.lookup.expansion import Expansion, Local, Remote, Undeliverable
from mta_under_test.processes.lookup.resolver import Resolver, Unresolved
from mta_under_test.processes.lookup.users import LocalWorld, find, read_descriptor
from mta_under_test.processes.process import Refusal, Sockets, Start, takes
from mta_under_test.tables import Table, TableError
from mta_under_test.wire import exchange
from mta_under_test.wire.envelope import Envelope, decode, encode

TABLE_BYTES = 64 << 20  # no table file is larger
MAX_LOOKUPS = 32  # destinations at once; each takes a descriptor or two
MAX_TABLE_BYTES = 8192  # of a table's keys, or of a value, in one answer

logger = logging.getLogger("smtpd")


class Lookup(AuthDesk):
    role: ClassVar[str] = "lookup"

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self.rules = Ruleset(self.config)  # here, not in `start`: while this process may still read every table
        self.resolver = Resolver(self.resolv_conf)

    async def start(self) -> None:
        self._few = asyncio.Semaphore(MAX_LOOKUPS)
        await self.start_filters()
        await self.start_auth()

    async def configure(self, config: Config) -> None:
        """Open the new tables before anybody lives by them; one that cannot be opened refuses the configuration."""
        self.check_programs(config)
        interface_addresses.cache_clear()
        rules = Ruleset(config, {name: await self._open(spec) for name, spec in config.tables.items()})
        old, self.rules = self.rules, rules
        await super().configure(config)
        old.close()

    async def _open(self, spec: TableSpec) -> Table:
        if spec.path is None:
            return open_table(spec)
        return open_table(spec, await read_descriptor(self, Kind.OPEN, f"new-table {spec.name}", TABLE_BYTES))

    @takes(Kind.EXPAND)
    def expand(self, peer: str, message: Message) -> None:
        """Find the action for one recipient and hand the envelope to queue, which answers the asker."""
        request, msgid, *secure = message.integers
        self.stats["lookup.expand"] += 1
        envelope = decode(message.text)
        facts = facts_of(envelope, internal=peer == "queue", tls=bool(secure and secure[0]))
        try:
            action = self.rules.match(facts)
        except TableError as error:
            logger.warning("<%s>: %s", envelope.rcpt, error)
            self.refuse(peer, request, "451 4.3.0 Temporary failure: a table does not answer")
            return
        if action is None:
            self.trace("rules", f"no match for <{envelope.sender}> to <{envelope.rcpt}>")
            self.refuse(peer, request, f"550 5.1.1 Invalid recipient: <{envelope.rcpt}>")
            return
        self.trace("rules", f"<{envelope.sender}> to <{envelope.rcpt}>: action {action.name}")
        if isinstance(action, RelayAction):
            self._submit(peer, request, msgid, envelope, [Remote(action, envelope.dest)])
        else:
            self.spawn(self._expand(peer, request, msgid, envelope, facts, action), "expand")

    async def _expand(
        self, peer: str, request: int, msgid: int, envelope: Envelope, facts: Facts, action: Action
    ) -> None:
        """A local recipient: it may be many, and elsewhere."""
        expansion = Expansion(LocalWorld(self, self.rules, facts), self.config.subaddress_delimiter)
        try:
            deliveries = await expansion.run(envelope.dest, action)
        except Undeliverable as error:
            self.trace("expand", f"<{envelope.rcpt}>: {error}")
            self.refuse(peer, request, str(error))
            return
        self._submit(peer, request, msgid, envelope, deliveries)

    def _submit(
        self, peer: str, request: int, msgid: int, envelope: Envelope, deliveries: Sequence[Local | Remote]
    ) -> None:
        for delivery in deliveries:
            action = delivery.action
            copy = replace(
                envelope,
                dest=delivery.dest,
                dispatcher=action.name,
                type="mta" if isinstance(delivery, Remote) else "mda",
                ttl=envelope.ttl if action.ttl_s is None else action.ttl_s,
            )
            if isinstance(delivery, Local):
                copy.mda_user, copy.mda_exec, copy.mda_subaddress = delivery.user, delivery.exec, delivery.subaddress
            self.trace("expand", f"<{envelope.rcpt}> is <{copy.dest}> {copy.mda_user} {copy.mda_exec}".rstrip())
            self.tell("queue", Kind.SUBMIT_ENVELOPE, request, msgid, text=encode(copy))
        self.tell("queue", Kind.COMMIT_ENVELOPES, request, msgid, text=peer.encode())

    @takes(Kind.USERINFO)
    def userinfo(self, peer: str, message: Message) -> None:
        """Who a local delivery is for, now: a user may have moved since the envelope was made."""
        (request,) = message.integers
        name, _, user = message.text.decode().partition("\0")
        action = self.config.actions.get(name)
        try:
            found = find(self.rules, action, user) if isinstance(action, LocalAction) else None
        except TableError as error:
            self.refuse(peer, request, f"451 4.3.0 {error}")
            return
        if found is None:
            self.refuse(peer, request, f"550 5.1.1 No such user: {user}")
        else:
            self.answer(peer, request, found.uid, found.gid, text=f"{found.name}\0{found.directory}".encode())

    @takes(Kind.UPDATE_TABLE)
    def update_table(self, peer: str, message: Message) -> None:
        (request,) = message.integers
        self.spawn(self._update_table(peer, request, message.text.decode(errors="replace")), "update table")

    async def _update_table(self, peer: str, request: int, name: str) -> None:
        """Read a table again, through parent: only root may be able to. A bad one changes nothing."""
        table = self.rules.tables.get(name)
        try:
            if table is None:
                raise TableError(f"there is no table <{name}>")
            if self.config.tables[name].path is None:
                raise TableError(f"<{name}> is written in the configuration; reload that")
            table.reload(await read_descriptor(self, Kind.OPEN, f"table {name}", TABLE_BYTES))
        except (TableError, Refusal, OSError) as error:
            logger.warning("table %s is not updated: %s", name, error)
            self.refuse(peer, request, str(error))
            return
        logger.info("table %s updated", name)
        self.answer(peer, request)

    @takes(Kind.HOSTS)
    def hosts(self, peer: str, message: Message) -> None:
        self.spawn(self._hosts(peer, message.integers[0], message.text.decode()), "resolve")

    async def _hosts(self, peer: str, request: int, question: str) -> None:
        kind, name, *rest = question.split(" ", 2)
        ours = rest[0] if rest else ""
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
            value = self.table_called(name).lookup(key)
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
            keys = self.table_called(name).keys()
        except TableError as error:
            self.refuse(peer, message.integers[0], str(error))
            return
        self.trace("tables", f"<{name}>: {len(keys)} keys")
        text = "".join(f"{key}\n" for key in keys).encode()[:MAX_TABLE_BYTES]
        self.answer(peer, message.integers[0], text=text[: text.rfind(b"\n") + 1])


def facts_of(envelope: Envelope, *, internal: bool, tls: bool = False) -> Facts:
    """What the rules may ask about. Mail that queue makes itself (bounces) is local, and no session brought it."""
    source = None if internal or not envelope.sockaddr else ipaddress.ip_address(envelope.sockaddr)
    rdns = "" if envelope.hostname == envelope.sockaddr else envelope.hostname
    return Facts(
        source=source,
        rdns=rdns,
        username=envelope.username,
        tls=tls,
        tag=envelope.tag,
        helo=envelope.helo,
        sender=envelope.sender,
        recipient=envelope.rcpt,
    )

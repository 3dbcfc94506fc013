"""lookup: who may send what to whom, and where a name lives.

Owns: the rules, the tables and the resolver.
Never: blocks, opens a spool file, keeps an envelope after it was expanded.
Takes: EXPAND, HOSTS, USERINFO, UPDATE_TABLE, CONFIG.
Sends: SUBMIT_ENVELOPE and COMMIT_ENVELOPES to queue; FORWARD_OPEN and OPEN to parent.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from typing import ClassVar

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from msgspec.structs import replace

from mta_under_test.config import Action, Config, LocalAction, RelayAction, TableSpec
from mta_under_test.config.interfaces import interface_addresses
from mta_under_test.config.rules import Facts, Ruleset, open_table
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.expansion import Expansion, Local, Remote, Undeliverable
from mta_under_test.processes.lookup_users import LocalWorld, find, read_descriptor
from mta_under_test.processes.process import Process, Refusal, Sockets, Start, takes
from mta_under_test.tables import Table, TableError
from mta_under_test.wire.envelope import Envelope, decode, encode

RESOLVE_TIMEOUT_S = 20.0
TABLE_BYTES = 64 << 20  # no table file is larger

logger = logging.getLogger("smtpd")


class NoHost(Exception):
    """A destination has no address; `permanent` when that will not change by waiting."""

    def __init__(self, text: str, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent


class Lookup(Process):
    role: ClassVar[str] = "lookup"

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self.rules = Ruleset(self.config)  # here, not in `start`: while this process may still read every table

    async def start(self) -> None:
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def configure(self, config: Config) -> None:
        """Open the new tables before anybody lives by them; one that cannot be opened refuses the configuration."""
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
        request, msgid = message.integers
        self.stats["lookup.expand"] += 1
        envelope = decode(message.text)
        facts = facts_of(envelope, internal=peer == "queue")
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
        kind, _, name = question.partition(" ")
        try:
            found = await (self._exchanges(name) if kind == "mx" else self._addresses(name, 0))
        except NoHost as error:
            self.trace("lookup", f"{question}: {error}")
            self.refuse(peer, request, f"{'5.1.2' if error.permanent else '4.4.3'} {error}")
            return
        self.trace("lookup", f"{question}: {found}")
        text = "".join(f"{preference} {address}\n" for preference, address in found)
        self.answer(peer, request, text=text.encode())

    async def _exchanges(self, domain: str) -> list[tuple[int, str]]:
        """Addresses of a domain's mail exchangers by preference (RFC 5321 §5.1); null MX is RFC 7505."""
        if domain.startswith("["):
            return [(0, _literal(domain))]
        try:
            answer = await self._ask(domain, dns.rdatatype.MX)
        except dns.resolver.NoAnswer:
            return await self._addresses(domain, 0)
        exchanges = sorted((record.preference, record.exchange) for record in answer)
        if len(exchanges) == 1 and exchanges[0][1] == dns.name.root:
            raise NoHost(f"{domain} does not accept mail", permanent=True)
        found: list[tuple[int, str]] = []
        last: NoHost | None = None
        for preference, exchange in exchanges:
            try:
                found += await self._addresses(exchange.to_text(omit_final_dot=True), preference)
            except NoHost as error:
                last = error
        if not found and last is not None:
            raise last
        return found

    async def _addresses(self, name: str, preference: int) -> list[tuple[int, str]]:
        literal = name.strip("[]").removeprefix("IPv6:")
        try:
            return [(preference, str(ipaddress.ip_address(literal)))]
        except ValueError:
            pass  # a name, not an address
        if name.rstrip(".").lower() == "localhost":  # RFC 6761 §6.3: never asked of a server
            return [(preference, "127.0.0.1")]
        found: list[tuple[int, str]] = []
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                found += [(preference, record.address) for record in await self._ask(name, kind)]
            except dns.resolver.NoAnswer:
                continue
        if not found:
            raise NoHost(f"no address for {name}", permanent=True)
        return found

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer:
        try:
            if self._resolver is None:
                self._resolver = dns.asyncresolver.Resolver()
            return await self._resolver.resolve(name, kind, lifetime=RESOLVE_TIMEOUT_S, search=False)
        except dns.resolver.NXDOMAIN as error:
            raise NoHost(f"no such domain: {name}", permanent=True) from error
        except dns.resolver.NoAnswer:
            raise
        except (dns.exception.DNSException, OSError) as error:
            raise NoHost(f"cannot resolve {name} now: {error}", permanent=False) from error


def _literal(domain: str) -> str:
    try:
        return str(ipaddress.ip_address(domain.strip("[]").removeprefix("IPv6:")))
    except ValueError as error:
        raise NoHost(f"{domain} is not an address literal", permanent=True) from error


def facts_of(envelope: Envelope, *, internal: bool) -> Facts:
    """What the rules may ask about. Mail that queue makes itself (bounces) is local, and no session brought it."""
    source = None if internal else ipaddress.ip_address(envelope.sockaddr)
    return Facts(source=source, tag=envelope.tag, helo=envelope.helo, sender=envelope.sender, recipient=envelope.rcpt)

"""transfer's envelopes on their way in: from a batch of queue's to tasks of relays, or back to be held.

One task for each message and relay, however many of its recipients go there; so tasks are handed over when the batch is
complete. Nothing of an envelope stays but evpid, sender, recipient, and what the sender asked for, if anything.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mta_under_test.config import RelayAction, RelayHost
from mta_under_test.config.values import relay_host
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.transfer.map import Map
from mta_under_test.processes.transfer.routes import DomainKey, Relay, RelayKey, Task
from mta_under_test.processes.transfer.wishes import Asked, Wishes, asked_by
from mta_under_test.wire.envelope import Envelope


class Arrival(NamedTuple):
    """What is needed of an envelope."""

    evpid: int
    sender: str
    dest: str
    smtpname: str
    asked: Asked | None


class RelayKeeper(Protocol):
    """What arrivals need of transfer, beside what it has as every process does."""

    map: Map

    def hold(self, relay: Relay, evpids: list[int]) -> None:
        """Leave these to scheduler until the relay has room for them."""

    def release(self, relay: Relay, count: int) -> None:
        """Let scheduler send some of the envelopes that are held for the relay; 0 for all."""

    def drain(self, relay: Relay) -> None:
        """Do for the relay what can be done now."""

    def result(self, evpid: int, kind: Kind, status_line: str) -> None:
        """What became of one recipient."""


class Arrivals:
    def __init__(self, process: Process, transfer: RelayKeeper) -> None:
        """`process` and `transfer` are the same one: what every process can do, and what only transfer can."""
        self._process = process
        self._transfer = transfer
        self._relays: dict[Relay, None] = {}  # that the batch in hand is for
        self._holding: dict[Relay, list[int]] = {}  # evpids of the batch that its relay has no room for
        self._unrouted: dict[tuple[RelayAction, str], list[Arrival]] = {}  # by action and recipient domain

    def envelope(self, evpid: int, envelope: Envelope) -> None:
        action = self._process.config.actions.get(envelope.dispatcher)
        if not isinstance(action, RelayAction):
            reason = f"451 4.3.5 No relay action named {envelope.dispatcher!r} any more"
            self._transfer.result(evpid, Kind.DELIVERY_TEMP, reason)
            return
        arrival = Arrival(evpid, sender_of(action, envelope), envelope.dest, envelope.smtpname, asked_by(envelope))
        if action.domain:
            domain = envelope.dest.rpartition("@")[2].lower()
            self._unrouted.setdefault((action, domain), []).append(arrival)
        else:
            self._enqueue(arrival, action, action.host)

    def batch_complete(self) -> None:
        for (action, domain), arrivals in self._unrouted.items():
            self._process.spawn(self._route_by_table(action, domain, arrivals), f"relay host of {domain}")
        self._unrouted.clear()
        self._hand_over()

    def _enqueue(self, arrival: Arrival, action: RelayAction, host: RelayHost | None) -> None:
        config = self._process.config
        key = relay_key(action, host, arrival, config.hostname, self._process.mx_port)
        limits = config.domain_limits.get(key.domain.name, config.relay_limits)
        relay = self._transfer.map.relay(key, limits)
        self._relays[relay] = None
        msgid = arrival.evpid >> 32
        task = relay.incoming.get(msgid)
        if task is None:
            waiting = len(relay.tasks) + len(relay.incoming)
            if not relay.on_hold and waiting >= limits.task_hiwat:
                relay.on_hold = True
                self._process.trace("transfer", f"{relay} has {waiting} tasks: holding envelopes")
            if relay.on_hold:
                self._holding.setdefault(relay, []).append(arrival.evpid)
                return
            task = relay.incoming[msgid] = Task(msgid, arrival.sender, key.domain.name)
        task.recipients[arrival.evpid] = arrival.dest
        if arrival.asked is not None:
            task.wishes = task.wishes or Wishes(arrival.asked)
            task.wishes.add(arrival.evpid, arrival.asked)

    def _hand_over(self) -> None:
        relays = list(self._relays)
        self._relays.clear()
        for relay in relays:
            relay.tasks.extend(relay.incoming.values())
            relay.incoming.clear()
            relay.awaits_released = 0
            if evpids := self._holding.pop(relay, None):
                self._transfer.hold(relay, evpids)
                if not relay.tasks:
                    self._transfer.release(relay, 0)  # while the batch arrived all its tasks were done
            self._transfer.drain(relay)

    async def _route_by_table(self, action: RelayAction, domain: str, arrivals: list[Arrival]) -> None:
        """`relay domain <table>`: the table names a host for each recipient domain."""
        try:
            answer = await self._process.ask("lookup", Kind.TABLE_VALUE, text=f"{action.domain} {domain}".encode())
            if not answer.integers[1]:
                raise Refusal(f"{domain} is not in table <{action.domain}>")
            host = relay_host(answer.text.decode())
        except (Refusal, ValueError) as error:
            for arrival in arrivals:
                self._transfer.result(
                    arrival.evpid, Kind.DELIVERY_TEMP, f"451 4.3.5 Cannot find the relay host: {error}"
                )
            return
        for arrival in arrivals:
            self._enqueue(arrival, action, host)
        self._hand_over()


def relay_key(action: RelayAction, host: RelayHost | None, arrival: Arrival, hostname: str, mx_port: int) -> RelayKey:
    """The relay that an envelope waits at; its destination is `host`, or else its recipient's domain."""
    if host is not None:
        return RelayKey(action, DomainKey("host", host.host.lower()), host.port, host.scheme, host.label)
    domain = arrival.dest.rpartition("@")[2].lower()
    ours = arrival.smtpname or hostname
    key = DomainKey("backup", domain, action.backup_mx or ours) if action.backup else DomainKey("mx", domain, ours)
    return RelayKey(action, key, mx_port, "smtp", "")


def sender_of(action: RelayAction, envelope: Envelope) -> str:
    """`mail-from` takes the sender's place: whole, or its user or domain alone; the null sender stays."""
    if not action.mail_from or not envelope.sender:
        return envelope.sender
    local, _, domain = envelope.sender.rpartition("@")
    new_local, _, new_domain = action.mail_from.rpartition("@")
    return f"{new_local or local}@{new_domain or domain}"

"""transfer: outbound SMTP sessions.

Owns: relays, hosts, routes (`transfer_routes`), the sessions (`transfer_session`), and in each the message descriptor
of the transaction in hand.
Never: unlinks a message, keeps an envelope's text, decides when to try again.
Takes: DELIVER, DELIVER_END from queue.
Sends: MESSAGE_FD, DELIVERY_OK, _TEMP, _PERM, _LOOP (evpid and status line) to queue; HOSTS to lookup.

A relay opens one session, and another one a second later if tasks still wait; each session takes the relay's next
task when it is done with one, so a session is used again for as long as there is work. (OpenSMTPD of 2013 waited a
second before *every* connect on a route. Here the first session of a relay does not wait: the delay would be most of
what a run measures.)
"""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

from mta_under_test.config import RelayAction
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal, takes
from mta_under_test.processes.transfer_routes import Map, Relay, RelayKey, Route, Task
from mta_under_test.processes.transfer_session import Session
from mta_under_test.wire.envelope import Envelope, decode

logger = logging.getLogger("smtpd")

CONNECT_DELAY_S = 1.0  # between two connects, while the relay has a session already or the host has just failed us
MAX_SESSIONS_RELAY = 100
MAX_SESSIONS_HOST = 10

RESULT_STATS = {
    Kind.DELIVERY_OK: "mta.delivery.ok",
    Kind.DELIVERY_TEMP: "mta.delivery.tempfail",
    Kind.DELIVERY_PERM: "mta.delivery.permfail",
    Kind.DELIVERY_LOOP: "mta.delivery.loop",
}


class Transfer(Process):
    role: ClassVar[str] = "transfer"
    session_class: ClassVar[type[Session]] = Session
    map_class: ClassVar[type[Map]] = Map

    async def start(self) -> None:
        self.map = self.map_class()
        self._batch: dict[tuple[RelayKey, int], Task] = {}
        self._sessions = 0
        self._envelopes = 0

    def gauges(self) -> dict[str, int]:
        return {
            "mta.session": self._sessions,
            "mta.relay": len(self.map.relays),
            "mta.host": len(self.map.hosts),
            "mta.route": len(self.map.routes),
            "mta.task": sum(len(relay.tasks) for relay in self.map.relays.values()),
            "mta.envelope": self._envelopes,
        }

    # ---- from queue

    @takes(Kind.DELIVER)
    def deliver(self, peer: str, message: Message) -> None:
        (evpid,) = message.integers
        envelope = decode(message.text)
        self._envelopes += 1
        action = self.config.actions.get(envelope.dispatcher)
        if not isinstance(action, RelayAction):
            self.result(evpid, Kind.DELIVERY_TEMP, f"451 4.3.5 No relay action named {envelope.dispatcher!r} any more")
            return
        key = relay_key(action, envelope, self.config.hostname)
        task = self._batch.get((key, evpid >> 32))
        if task is None:
            task = self._batch[key, evpid >> 32] = Task(evpid >> 32, envelope.sender)
        task.recipients[evpid] = envelope.dest

    @takes(Kind.DELIVER_END)
    def batch_complete(self, peer: str, message: Message) -> None:
        relays = set()
        for (key, _), task in self._batch.items():
            relay = self.map.relay(key)
            relay.tasks.append(task)
            relays.add(relay)
        self._batch.clear()
        for relay in relays:
            self.drain(relay)

    # ---- for sessions

    def result(self, evpid: int, kind: Kind, status_line: str, remote: str = "") -> None:
        """What became of one recipient, and which server said so, if it was one."""
        self._envelopes -= 1
        self.stats[RESULT_STATS[kind]] += 1
        self.trace("transfer", f"{evpid:016x} {kind.name}: {status_line}")
        text = status_line.replace("\n", " ").encode(errors="replace")[:2048]
        self.tell("queue", kind, evpid, text=text + (f"\n{remote}".encode() if remote else b""))

    def results(self, task: Task, kind: Kind, status_line: str, remote: str = "") -> None:
        """The same for every recipient of the task that has no result yet."""
        for evpid in task.recipients:
            self.result(evpid, kind, status_line, remote)
        task.recipients.clear()

    def session_ready(self, relay: Relay, route: Route) -> None:
        """The session is past the greeting: the host works."""
        route.host.errors = 0
        relay.connecting -= 1
        self.drain(relay)

    def session_over(self, relay: Relay, route: Route, *, was_ready: bool, error: str) -> None:
        self._sessions -= 1
        relay.sessions -= 1
        route.sessions -= 1
        if not was_ready:
            relay.connecting -= 1
            route.host.errors += 1
        if error:
            relay.last_error = error
        self.drain(relay)

    # ---- relays

    def drain(self, relay: Relay) -> None:
        """Do for the relay what can be done now: resolve, connect, wait, give up, or take it off the map."""
        if relay.timer is not None:
            relay.timer.cancel()
            relay.timer = None
        if relay.idle:
            self.map.drop(relay)
            self.trace("transfer", f"relay {relay.key.destination} done")
            return
        if not relay.tasks or relay.connecting or relay.resolving:
            return
        if not relay.routes:
            relay.resolving = True
            self.spawn(self._resolve(relay), f"resolve {relay.key.destination}")
            return
        usable = [route for route in relay.routes if not route.host.bad]
        if not usable:
            if not relay.sessions:
                error = relay.last_error or "451 4.4.1 Network error on destination MXs"
                self._give_up(relay, Kind.DELIVERY_TEMP, error)
            return
        if relay.sessions >= MAX_SESSIONS_RELAY:
            return
        route = next((route for route in usable if route.sessions < MAX_SESSIONS_HOST), None)
        if route is None:
            return
        loop = asyncio.get_running_loop()
        wait_s = route.last_connect + CONNECT_DELAY_S - loop.time()
        if wait_s > 0 and (relay.sessions or route.host.errors):
            relay.timer = loop.call_later(wait_s, self.drain, relay)
            return
        route.last_connect = loop.time()
        self._connect(relay, route)

    def _connect(self, relay: Relay, route: Route) -> None:
        self._sessions += 1
        relay.sessions += 1
        relay.connecting += 1
        route.sessions += 1
        self.stats["mta.session.total"] += 1
        session = self.session_class(self, relay, route)
        self.spawn(session.run(), f"session to {route.host.address}")

    async def _resolve(self, relay: Relay) -> None:
        try:
            answer = await self.ask("lookup", Kind.HOSTS, text=relay.key.destination.encode())
        except Refusal as refusal:
            relay.resolving = False
            permanent = str(refusal).startswith("5")
            kind, code = (Kind.DELIVERY_PERM, 550) if permanent else (Kind.DELIVERY_TEMP, 451)
            self._give_up(relay, kind, f"{code} {refusal}")
            return
        relay.resolving = False
        self.map.resolved(relay, [line.split(" ", 1)[1] for line in answer.text.decode().splitlines()])
        self.drain(relay)

    def _give_up(self, relay: Relay, kind: Kind, status_line: str) -> None:
        while relay.tasks:
            self.results(relay.tasks.popleft(), kind, status_line)
        self.drain(relay)


def relay_key(action: RelayAction, envelope: Envelope, hostname: str) -> RelayKey:
    helo = action.helo or hostname
    if action.host is not None:
        return RelayKey(f"host {action.host.host}", action.host.port, helo, action.src or "")
    return RelayKey(f"mx {envelope.dest.rpartition('@')[2].lower()}", 25, helo, action.src or "")

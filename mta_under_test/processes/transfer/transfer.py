"""transfer: outbound SMTP and LMTP sessions.

Owns: relays, domains, hosts, sources, routes and connectors (`routes`, `map`), the envelopes that arrive (`arrivals`),
what is remembered of destinations (`hoststats`), the sessions (`session`), and in each the message descriptor of the
transaction in hand.
Never: unlinks a message, keeps an envelope's text, decides when to try again.
Takes: DELIVER, DELIVER_END, HOLDQ_EMPTY from queue; SHOW_MTA, RESUME_ROUTE from control.
Sends: MESSAGE_FD, DELIVERY_OK, _TEMP, _PERM, _LOOP (evpid and status line), DELIVERY_HOLD, HOLDQ_RELEASE, RESCHEDULE to
queue; HOSTS, TABLE_VALUE, TABLE_KEYS to lookup.

A relay opens one session, and another one a second later if tasks still wait; each session takes the relay's next
task when it is done with one, so a session is used again for as long as there is work. (OpenSMTPD of 2013 waited a
second before *every* connect on a route. Here the first session of a relay does not wait: the delay would be most of
what a run measures.) More tasks than `task-hiwat` do not wait here: scheduler holds them until there is room again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import resource
import ssl
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal, Sockets, Start, takes
from mta_under_test.processes.tls_settings import relay_context, relay_contexts
from mta_under_test.processes.transfer import show
from mta_under_test.processes.transfer.arrivals import Arrivals
from mta_under_test.processes.transfer.hoststats import HostStats
from mta_under_test.processes.transfer.map import Map
from mta_under_test.processes.transfer.routes import (
    MX,
    PENALTY_BASE_S,
    SOURCE_PENALTY_S,
    Connector,
    Domain,
    Relay,
    Task,
)
from mta_under_test.processes.transfer.session import Session
from mta_under_test.wire import exchange
from mta_under_test.wire.envelope import decode

logger = logging.getLogger("smtpd")

DESCRIPTORS_A_SESSION = 2  # the connection and the message
DESCRIPTORS_RESERVED = 40  # channels, log, what Python and libuv open
MOST_SESSIONS = 2000  # where the kernel allows any number of descriptors
RESOLVE_AGAIN_S = 900.0  # a relay that never runs out of tasks still notices that its destination has moved
FRAME_INTEGERS = 1000  # evpids in one message
SHOW_BYTES = 12_000  # of text in one answer to SHOW_MTA
CROWD = 2  # above so many sessions a relay has enough when there are half as many sessions as tasks

RESULT_STATS = {
    Kind.DELIVERY_OK: "mta.delivery.ok",
    Kind.DELIVERY_TEMP: "mta.delivery.tempfail",
    Kind.DELIVERY_PERM: "mta.delivery.permfail",
    Kind.DELIVERY_LOOP: "mta.delivery.loop",
}


class Transfer(Process):
    role: ClassVar[str] = "transfer"

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self._tls = {
            (pki, verify): relay_context(start.secrets, pki, verify=verify)
            for pki, verify in relay_contexts(start.config)
        }

    def tls_context(self, pki: str, verify: bool) -> ssl.SSLContext:
        return self._tls[pki, verify]

    async def start(self) -> None:
        self.map = Map()
        self.hoststats = HostStats(self.config.max_deferred)
        self._arrivals = Arrivals(self, self)
        self._sessions = 0
        self._max_sessions = max_sessions(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._crowded_out: dict[Relay, None] = {}  # that wait for any session to end
        self._running = 0
        self.envelopes = 0  # in hand
        self._tidying: asyncio.TimerHandle | None = None

    async def finish(self) -> None:
        for relay in self.map.relays.values():
            self._cancel_timer(relay)
        if self._tidying is not None:
            self._tidying.cancel()

    def gauges(self) -> dict[str, int]:
        return {
            "mta.session": self._sessions,
            "mta.task": sum(len(relay.tasks) + len(relay.incoming) for relay in self.map.relays.values()),
            "mta.task.running": self._running,
            "mta.envelope": self.envelopes,
            "mta.relay": len(self.map.relays),
            "mta.domain": len(self.map.domains),
            "mta.host": len(self.map.hosts),
            "mta.route": len(self.map.routes),
            "mta.source": len(self.map.sources),
            "mta.connector": self.map.connectors,
            "mta.hoststat": len(self.hoststats),
        }

    # ---- from queue

    @takes(Kind.DELIVER)
    def deliver(self, peer: str, message: Message) -> None:
        (evpid,) = message.integers
        self.envelopes += 1
        self._arrivals.envelope(evpid, decode(message.text))

    @takes(Kind.DELIVER_END)
    def batch_complete(self, peer: str, message: Message) -> None:
        self._arrivals.batch_complete()

    def hold(self, relay: Relay, evpids: list[int]) -> None:
        """Leave these to scheduler until the relay has room for them."""
        self.envelopes -= len(evpids)
        relay.held += len(evpids)
        self._tell_many(Kind.DELIVERY_HOLD, evpids, relay.id)

    def _tell_many(self, kind: Kind, evpids: list[int], *first: int) -> None:
        for start in range(0, len(evpids), FRAME_INTEGERS):
            self.tell("queue", kind, *first, *evpids[start : start + FRAME_INTEGERS])

    # ---- for sessions

    def result(self, evpid: int, kind: Kind, status_line: str, remote: str = "", passed_on: bool = False) -> None:
        """What became of one recipient, and which server said so, if it was one.

        `passed_on`: that server has promised to report its delivery.
        """
        self.envelopes -= 1
        self.stats[RESULT_STATS[kind]] += 1
        if "transfer" in self.tracing:
            self.trace("transfer", f"{evpid:016x} {kind.name}: {status_line}")
        text = status_line.replace("\n", " ").encode(errors="replace")[:2048]
        integers = (evpid, 1) if passed_on and kind is Kind.DELIVERY_OK else (evpid,)
        self.tell("queue", kind, *integers, text=text + (f"\n{remote}".encode() if remote else b""))

    def results(self, task: Task, kind: Kind, status_line: str, remote: str = "") -> None:
        """The same for every recipient of the task that has no result yet."""
        if task.recipients:
            self.heard(task, kind, status_line)
        for evpid in task.recipients:
            passed_on = task.wishes is not None and task.wishes.passed_on and evpid in task.wishes.recipients
            self.result(evpid, kind, status_line, remote, passed_on)
        task.recipients.clear()

    def heard(self, task: Task, kind: Kind, status_line: str) -> None:
        """What the task's destination said to the whole of a message."""
        self.hoststats.heard(task.domain, status_line, int(time.time()))
        if kind is Kind.DELIVERY_OK and (evpids := self.hoststats.works(task.domain)):
            self._tell_many(Kind.RESCHEDULE, evpids)
        if self._tidying is None:
            self._tidy()

    def next_task(self, relay: Relay) -> Task | None:
        """The relay's next task, for a session; it is running from here on."""
        if not relay.tasks:
            return None
        task = relay.tasks.popleft()
        self._running += 1
        if relay.on_hold and len(relay.tasks) <= relay.limits.task_lowat:
            relay.on_hold = False
            self.trace("transfer", f"{relay} is down to {len(relay.tasks)} tasks: releasing envelopes")
        if relay.held and not relay.on_hold:
            if not relay.tasks:
                self.release(relay, 0)
            elif len(relay.tasks) == relay.limits.task_lowat:
                self.release(relay, relay.limits.task_release)
        return task

    def task_over(self) -> None:
        self._running -= 1

    def untake(self, relay: Relay, task: Task) -> None:
        """The session that was given the task is gone: somebody else does it."""
        self._running -= 1
        relay.tasks.appendleft(task)

    def session_ready(self, session: Session) -> None:
        """The session is past the greeting: its route works."""
        self.map.ready(session.relay, session.route, asyncio.get_running_loop().time())
        self.drain(session.relay)

    def session_over(self, session: Session) -> None:
        relay, route, now = session.relay, session.route, asyncio.get_running_loop().time()
        self._sessions -= 1
        if session.error:
            relay.last_error = session.error
        if not session.is_ready:
            relay.connecting -= 1
            if session.source_failed:
                session.connector.avoided_until = now + SOURCE_PENALTY_S
                logger.info("transfer: error on %s: %s", show.source_text(route.source), session.error)
            elif session.local_failure or (route.is_valid and route.sessions > 1):
                route.not_before = now + PENALTY_BASE_S
            else:
                pause_s = route.failed(now)
                logger.info("transfer: disabling route %s for %s", route, show.duration(pause_s))
        self.map.disconnected(relay, session.connector, route, now)
        if route.keep_until > now:
            self._tidy_by(route.keep_until)
        self.drain(relay)
        while self._crowded_out and self._sessions < self._max_sessions:
            crowded_out = next(iter(self._crowded_out))
            del self._crowded_out[crowded_out]
            self.drain(crowded_out)

    # ---- relays

    def drain(self, relay: Relay) -> None:
        """Do for the relay what can be done now: resolve, connect, wait, give up, or take it off the map."""
        if relay.is_dropped:
            return
        self._cancel_timer(relay)
        if relay.idle:
            if relay.held:
                self.release(relay, 0)
            self.map.drop(relay)
            self.trace("transfer", f"{relay} done")
            return
        while relay.idle_sessions and (task := self.next_task(relay)) is not None:
            relay.idle_sessions.pop().give(task)
        if not relay.tasks or not self._is_known(relay):
            return
        self._connect(relay)

    def _is_known(self, relay: Relay) -> bool:
        """Whether the relay knows where to go, and from where. If not, it will be drained when it does."""
        domain = relay.domain
        if domain.exchanges is not None and domain.resolved_at + RESOLVE_AGAIN_S < asyncio.get_running_loop().time():
            self.map.unresolved(domain)
        if domain.exchanges is None and relay not in domain.waiting:
            domain.waiting.append(relay)
            if not domain.resolving:
                domain.resolving = True
                self.spawn(self._resolve(domain), f"resolve {domain.key.name}")
        if not relay.connectors and not relay.sourcing:
            if relay.action.src_table:
                relay.sourcing = True
                self.spawn(self._find_sources(relay), f"sources of {relay}")
            else:
                self.map.sourced(relay, [relay.action.src])
        return domain.exchanges is not None and bool(relay.connectors)

    def _connect(self, relay: Relay) -> None:
        """Open the sessions that are due, and see when the next one will be."""
        loop = asyncio.get_running_loop()
        while relay.sessions <= CROWD or relay.sessions < len(relay.tasks) // 2:
            if self._sessions >= self._max_sessions:
                self._crowded_out[relay] = None
                return
            choice = self.map.choose(relay, loop.time())
            if choice.exchange is not None and choice.connector is not None:
                self._open(relay, choice.connector, choice.exchange)
            elif choice.wait_until is not None:
                relay.timer = loop.call_at(choice.wait_until, self.drain, relay)
                return
            else:
                if not relay.sessions:
                    self._give_up(relay, Kind.DELIVERY_TEMP, choice.error)
                return

    def _open(self, relay: Relay, connector: Connector, mx: MX) -> None:
        route = self.map.connected(relay, connector, mx.host, asyncio.get_running_loop().time())
        self._sessions += 1
        self.stats["mta.session.total"] += 1
        session = Session(self, self, relay, connector, route, mx.name)
        self.spawn(session.run(), f"session to {route.host.address}")

    async def _resolve(self, domain: Domain) -> None:
        failure = ""
        try:
            answer = await self.ask("lookup", Kind.HOSTS, text=" ".join(domain.key).encode())
        except Refusal as refusal:
            failure = str(refusal)
        else:
            self.map.resolved(domain, exchange.decode(answer.text), asyncio.get_running_loop().time())
        domain.resolving = False
        waiting = list(domain.waiting)
        domain.waiting.clear()
        for relay in waiting:
            if failure:
                kind = Kind.DELIVERY_PERM if failure.startswith("5") else Kind.DELIVERY_TEMP
                self._give_up(relay, kind, failure)
            else:
                self.drain(relay)

    async def _find_sources(self, relay: Relay) -> None:
        try:
            answer = await self.ask("lookup", Kind.TABLE_KEYS, text=relay.action.src_table.encode())
        except Refusal as refusal:
            relay.sourcing = False
            self._give_up(relay, Kind.DELIVERY_TEMP, f"451 4.3.5 Could not retrieve source address: {refusal}")
            return
        relay.sourcing = False
        self.map.sourced(relay, list(filter(_is_address, answer.text.decode().split())))
        if relay.connectors:
            self.drain(relay)
        else:
            self._give_up(relay, Kind.DELIVERY_TEMP, f"451 4.3.5 No source address in table <{relay.action.src_table}>")

    def _give_up(self, relay: Relay, kind: Kind, status_line: str) -> None:
        """No task of the relay has a chance now."""
        while relay.tasks:
            task = relay.tasks.popleft()
            evpids = list(task.recipients)
            self.results(task, kind, status_line)
            if kind is Kind.DELIVERY_TEMP:
                for evpid in evpids:
                    self.hoststats.defer(task.domain, evpid)
        relay.on_hold = False
        if relay.held:
            self.release(relay, 0)
        self.drain(relay)

    def release(self, relay: Relay, count: int) -> None:
        """Let scheduler send some of the envelopes that are held for the relay; 0 for all."""
        relay.held = max(0, relay.held - count) if count else 0
        relay.awaits_released += 1
        self.tell("queue", Kind.HOLDQ_RELEASE, relay.id, count)

    @takes(Kind.HOLDQ_EMPTY)
    def nothing_held(self, peer: str, message: Message) -> None:
        """More was asked for than there was: scheduler releases whole messages, of which `held` knows nothing."""
        for relay in self.map.relays.values():
            if relay.id == message.integers[0] and relay.awaits_released:
                relay.awaits_released -= 1
                if relay.awaits_released:
                    return  # what was released before may still be on its way
                for session in relay.idle_sessions:
                    session.nothing_comes()

    def _cancel_timer(self, relay: Relay) -> None:
        if relay.timer is not None:
            relay.timer.cancel()
            relay.timer = None

    # ---- what is kept for a while only

    def _tidy_by(self, moment: float) -> None:
        """Something will be too old at this moment, on the loop's clock."""
        if self._tidying is not None and self._tidying.when() > moment:
            self._tidying.cancel()
            self._tidying = None
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_at(moment, self._tidy)

    def _tidy(self) -> None:
        """Let go of what is too old, and come again when the next thing will be."""
        self._tidying = None
        loop, now = asyncio.get_running_loop(), int(time.time())
        if (moment := self.map.forget(loop.time())) is not None:
            self._tidy_by(moment)
        if (when := self.hoststats.forget(now)) is not None:
            self._tidy_by(loop.time() + max(1, when - now))

    # ---- from control

    @takes(Kind.SHOW_MTA)
    def show(self, peer: str, message: Message) -> None:
        """Some lines of a list, from a given one on; the asker comes again until it has all."""
        request, first = message.integers
        now = asyncio.get_running_loop().time()
        lists: dict[str, Callable[[], Iterable[str]]] = {
            "hosts": lambda: show.hosts(self.map, now),
            "hoststats": self.hoststats.lines,
            "relays": lambda: show.relays(self.map, now),
            "routes": lambda: show.routes(self.map, now),
        }
        what = message.text.decode(errors="replace")
        if what not in lists:
            self.refuse(peer, request, f"transfer has no list of {what}")
            return
        lines, size = [], 0
        for line in itertools.islice(lists[what](), first, None):
            size += len(line.encode()) + 1
            if size > SHOW_BYTES:
                break
            lines.append(line)
        self.answer(peer, request, len(lines), text="\n".join(lines).encode())

    @takes(Kind.RESUME_ROUTE)
    def resume_route(self, peer: str, message: Message) -> None:
        request, which = message.integers
        count = self.map.enable(which, asyncio.get_running_loop().time())
        self.answer(peer, request, count)
        for relay in list(self.map.relays.values()):
            self.drain(relay)


def max_sessions(descriptors: int) -> int:
    """How many sessions fit into so many descriptors (RLIM_INFINITY is negative)."""
    fit = (descriptors - DESCRIPTORS_RESERVED) // DESCRIPTORS_A_SESSION if descriptors >= 0 else MOST_SESSIONS
    return max(1, min(fit, MOST_SESSIONS))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        logger.warning("transfer: source address %r is not an address", text)
        return False
    return True

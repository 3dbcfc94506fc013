"""The nouns of transfer's map of the outside: relay, domain, host, source, route, connector, and the task.

A relay is a destination with its settings, and the tasks that wait for it. Its domain is what the DNS was asked about,
and the exchanges (addresses by preference) that came back; relays with the same destination share it. A host is one
address, a source one of our own (or the kernel's choice), a route a source and a host, a connector a relay and a
source. These are mta_relay, mta_domain, mta_host, mta_source, mta_route and mta_connector of OpenSMTPD's mta.c.
Who holds what, and which of them may be used now, is `map`'s business.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections import deque
from typing import NamedTuple, Protocol

from mta_under_test.config import RelayAction, RelayLimits
from mta_under_test.processes.transfer.wishes import Wishes

NEVER = float("-inf")
PENALTY_BASE_S = 15.0  # a route that failed is not used for 15, 30, 60 … seconds
PENALTY_MAX_S = 3600.0
SOURCE_PENALTY_S = 60.0  # a source address that cannot be used is left alone for so long


class Task:
    """One message for one relay: what a transaction delivers."""

    __slots__ = ("domain", "msgid", "recipients", "sender", "wishes")

    def __init__(self, msgid: int, sender: str, domain: str = "") -> None:
        self.msgid = msgid
        self.sender = sender
        self.domain = domain  # the relay's, for the host's statistics
        self.recipients: dict[int, str] = {}  # evpid -> address; one without a result yet
        self.wishes: Wishes | None = None  # what the sender asked for; nearly always nothing


class DomainKey(NamedTuple):
    """A question to lookup."""

    kind: str  # host, mx or backup
    name: str  # in lower case
    ours: str = ""  # what this server is called in MX records


class RelayKey(NamedTuple):
    """What makes two envelopes go the same way."""

    action: RelayAction  # by its value: after a reload, mail goes by the new one at once
    domain: DomainKey
    port: int
    scheme: str
    label: str  # of credentials


class Counted:
    """Something on the map that is shared, and leaves the map with its last user."""

    __slots__ = ("references",)

    def __init__(self) -> None:
        self.references = 0


class Endpoint(Counted):
    """What connections are counted on, and kept apart from each other."""

    __slots__ = ("last_connect", "sessions")

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0
        self.last_connect = NEVER


class Host(Endpoint):
    __slots__ = ("address", "name")

    def __init__(self, address: str, name: str) -> None:
        super().__init__()
        self.address = address
        self.name = name


class Source(Endpoint):
    __slots__ = ("address",)

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address


class MX(NamedTuple):
    preference: int
    host: Host
    name: str  # as this domain calls the host


class Domain(Endpoint):
    __slots__ = ("exchanges", "key", "resolved_at", "resolving", "waiting")

    def __init__(self, key: DomainKey) -> None:
        super().__init__()
        self.key = key
        self.exchanges: list[MX] | None = None  # best first; None: not known yet
        self.resolved_at = NEVER
        self.resolving = False
        self.waiting: list[Relay] = []  # for the answer


class Route(Endpoint):
    __slots__ = (
        "disabled_until", "errors", "host", "id", "is_valid", "keep_until", "last_disconnect", "not_before", "source",
    )  # fmt: skip

    def __init__(self, number: int, source: Source, host: Host) -> None:
        super().__init__()
        self.id = number
        self.source = source
        self.host = host
        self.is_valid = False  # a session got as far as a transaction since the route was new or enabled
        self.errors = 0  # failures in a row
        self.disabled_until = NEVER
        self.not_before = NEVER  # it works, but takes no further session now
        self.last_disconnect = NEVER
        self.keep_until = NEVER  # nobody may need it, but what it remembers still matters

    def __str__(self) -> str:
        return f"{self.source.address or '[]'} <-> {self.host.address} ({self.host.name})"

    def failed(self, now: float) -> float:
        """No session could be had over it. It gets a pause that grows; returns it in seconds."""
        self.is_valid = False
        pause_s = min(PENALTY_MAX_S, PENALTY_BASE_S * 2.0 ** min(self.errors, 16))
        self.errors += 1
        self.disabled_until = now + pause_s
        # When the pause is over the next failure must find what it adds to; one more pause is long enough for a retry.
        self.keep_until = max(self.keep_until, self.disabled_until + pause_s)
        return pause_s

    def worked(self) -> None:
        self.is_valid = True
        self.enable()

    def enable(self) -> None:
        self.errors = 0
        self.disabled_until = self.keep_until = NEVER


class Connector:
    """A relay's use of one source."""

    __slots__ = ("avoided_until", "last_connect", "sessions", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.sessions = 0
        self.last_connect = NEVER
        self.avoided_until = NEVER  # the address is not ours, or has no name


class IdleSession(Protocol):
    """A session that waits for a task of its relay's."""

    def give(self, task: Task) -> None:
        """Something to do."""

    def nothing_comes(self) -> None:
        """The envelopes that it may be waiting for are not there."""


class Relay:
    __slots__ = (
        "awaits_released",
        "connecting",
        "connectors",
        "domain",
        "held",
        "id",
        "idle_sessions",
        "incoming",
        "is_dropped",
        "key",
        "last_connect",
        "last_error",
        "last_progress",
        "limits",
        "on_hold",
        "sessions",
        "sourcing",
        "tasks",
        "timer",
    )

    def __init__(self, number: int, key: RelayKey, domain: Domain, limits: RelayLimits) -> None:
        self.id = number
        self.key = key
        self.domain = domain
        self.limits = limits
        self.tasks: deque[Task] = deque()
        self.incoming: dict[int, Task] = {}  # by msgid: of the batch that queue is sending
        self.connectors: list[Connector] = []  # empty until the sources are known
        self.sourcing = False  # … which has been asked
        self.sessions = 0
        self.connecting = 0  # sessions that have not got as far as a transaction
        self.idle_sessions: list[IdleSession] = []  # that wait for a task
        self.last_connect = NEVER
        self.last_progress = NEVER  # when a session was begun, or became ready
        self.last_error = ""
        self.timer: TimerHandle | None = None  # runs until the next connect is polite
        self.on_hold = False  # envelopes that come now are held back in scheduler
        self.held = 0  # envelopes that are, at most
        self.awaits_released = 0  # times that some were asked for and have not come
        self.is_dropped = False

    @property
    def action(self) -> RelayAction:
        return self.key.action

    @property
    def idle(self) -> bool:
        return not (self.tasks or self.incoming or self.sessions or self.sourcing or self in self.domain.waiting)

    def __str__(self) -> str:
        """As OpenSMTPD's `show relays` names it."""
        words = [f"relay:{self.key.domain.name}"]
        if self.key.port:
            words.append(f"port={self.key.port}")
        words.append(self.key.scheme)
        if self.key.label:
            words.append(f"auth={self.action.auth}:{self.key.label}")
        if self.action.pki:
            words.append(f"pki_name={self.action.pki}")
        if self.key.domain.kind == "host":
            words.append("mx")
        if self.key.domain.kind == "backup":
            words.append(f"backup={self.key.domain.ours}")
        if self.action.src_table:
            words.append(f"sourcetable={self.action.src_table}")
        if self.action.helo_src:
            words.append(f"helotable={self.action.helo_src}")
        if self.action.helo:
            words.append(f"heloname={self.action.helo}")
        return f"[{','.join(words)}]"

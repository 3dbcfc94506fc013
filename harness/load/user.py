"""The locust user: takes a ticket, has its session held on the bridge, and tells locust what every command took.

Importing this imports locust, and with it gevent's patches, unless LOCUST_SKIP_MONKEY_PATCH is set.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from locust import User, events, task
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import Runner

from harness.load.bridge import Bridge, BridgeError
from harness.load.session import hold
from harness.load.tally import Exchange, Outcome, Ticket
from harness.scenario import Scenario

log = logging.getLogger(__name__)

SMTP_PORT = 25
SESSION_TIMEOUT_S = 120.0  # of a plain locustfile's session; a dose has its own


class Unexpected(Exception):
    """What locust lists as the failure of a command."""


class Unread(EventHook):
    """Locust's event of a request, where nobody reads locust's table of them, since there is no page.

    A fifth of what a command costs would go into telling the table (`benchmarks/load.py`). Who else listens, before or
    later, hears of every one; while nobody does, nothing is told.
    """

    def __init__(self, before: EventHook) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for listener in before._handlers:
            self.add_listener(listener)

    def add_listener(self, handler: Callable[..., None]) -> Callable[..., None]:
        if getattr(handler, "__module__", "") != Runner.__module__:  # the runner's only fills the table
            super().add_listener(handler)  # type: ignore[no-untyped-call]
        return handler


class Source(Protocol):
    """Where users get their tickets, and where the outcomes go."""

    def take(self) -> Ticket:
        """The next session to be held; the greenlet may sleep until there is one."""

    def give(self, outcome: Outcome) -> None: ...


class MailUser(User):
    """Holds one session after the other, as its source has them."""

    abstract = True
    source: ClassVar[Source]
    bridge: ClassVar[Bridge | None] = None  # one for all users of the process, while a test runs

    @task
    def hold_a_session(self) -> None:
        ticket = self.source.take()
        # What the source gets when this user is stopped in the middle of the session.
        outcome = Outcome([Exchange("CONNECT", time.time(), 0.0, "the session was cut off: its user was stopped")])
        try:
            if MailUser.bridge is None:
                raise BridgeError("no test is running")
            address = ticket.address or address_of(self.host or "")
            outcome = MailUser.bridge.run(partial(hold, address, ticket))
            self._tell_locust(outcome)
        except (BridgeError, ValueError) as error:
            log.error("a user ends: %s", error)
            raise StopUser from error
        finally:
            self.source.give(outcome)

    def _tell_locust(self, outcome: Outcome) -> None:
        # Not by EventHook.fire, which puts the arguments together twice and so takes three times as long.
        listeners = self.environment.events.request._handlers.copy()
        for exchange in outcome.exchanges if listeners else ():
            for listener in listeners:
                try:
                    listener(
                        request_type="SMTP",
                        name=exchange.name,
                        response_time=exchange.took_s * 1000,
                        response_length=0,
                        exception=Unexpected(exchange.error) if exchange.error else None,
                        context={},
                        start_time=exchange.began,
                    )
                except Exception as error:  # noqa: BLE001 - locust decides which end a user
                    _uncaught(error)


def _uncaught(error: Exception) -> None:
    """What locust does with what a listener raised: it is raised again if it is to stop a user, and logged if not."""

    def raise_it(**_: Any) -> None:
        raise error

    hook = EventHook()  # type: ignore[no-untyped-call]
    hook.add_listener(raise_it)  # type: ignore[no-untyped-call]
    hook.fire()  # type: ignore[no-untyped-call]


class Endless:
    """A scenario's sessions without end, for a plain locustfile."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._numbers = itertools.count()
        self._run = ""

    def take(self) -> Ticket:
        # Not before the first ticket: locust may have forked worker processes, which must not share a name.
        self._run = self._run or secrets.token_hex(6)
        number = next(self._numbers)
        plan = self._scenario.session(Random(f"{self._run} {number}"), self._scenario.units_per_session)
        return Ticket(f"{self._run}.{number}", plan, time.monotonic() + SESSION_TIMEOUT_S)

    def give(self, outcome: Outcome) -> None:
        """Locust has already counted it."""


def user_of(name: str, source: Source) -> type[MailUser]:
    """A user class that locust can spawn, called after a scenario."""
    called = "".join(word.capitalize() for word in name.replace("_", "-").split("-"))
    return type(called, (MailUser,), {"source": source, "abstract": False})


def endless(scenario: Scenario) -> type[MailUser]:
    """The user class of a plain locustfile."""
    return user_of(scenario.name, Endless(scenario))


def address_of(host: str) -> tuple[str, int]:
    """(host, port) of `smtp://HOST[:PORT]` or `HOST[:PORT]`; the port is 25 if not given. Raises ValueError."""
    parts = urlsplit(host if "//" in host else f"smtp://{host}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme != "smtp" or not parts.hostname or port == 0 or parts.path.strip("/"):
        raise ValueError(f"--host {host!r} is no mail server: give smtp://HOST:PORT, as in smtp://127.0.0.1:2525")
    return parts.hostname, port or SMTP_PORT


def _open_bridge(**_: Any) -> None:
    # Now and not on import: locust has forked its worker processes by now.
    MailUser.bridge = Bridge()


def _close_bridge(**_: Any) -> None:
    # Locust has stopped its users by now; sessions that were cut off are waited for.
    if MailUser.bridge is not None:
        MailUser.bridge.stop()
        MailUser.bridge = None


events.test_start.add_listener(_open_bridge)  # type: ignore[no-untyped-call]
events.test_stop.add_listener(_close_bridge)  # type: ignore[no-untyped-call]

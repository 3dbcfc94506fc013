"""What a target is set up with beside relaying is really there; and what an operator may do with it."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from harness.load.session import hold
from harness.load.tally import Outcome, Ticket
from harness.mail import in_maildirs
from harness.remote_mx.process import RemoteMX
from harness.scenario import LOCAL_DOMAINS, LOGIN, PASSWORD, SessionPlan, Step
from harness.steps import EHLO, GREETING, STARTTLS, transaction
from harness.targets import TargetError
from harness.targets.embedded import Embedded
from harness.targets.facilities import DELIVERIES
from harness.targets.operator import OPERATIONS
from tests.probes.probed import until

Start = Callable[..., Embedded]


@pytest.fixture
def mx() -> Iterator[RemoteMX]:
    with RemoteMX({"refusing": "", "home": ""}) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, mx: RemoteMX) -> Iterator[Start]:
    with ExitStack() as running:

        def begin(*needs: str) -> Embedded:
            target = Embedded(tmp_path, mx.ports, version="test", needs=needs)
            running.callback(target.stop)
            target.start()
            return target

        yield begin


def said(target: Embedded, *steps: Step) -> Outcome:
    ticket = Ticket("1.2.3", SessionPlan(steps=steps), time.monotonic() + 20)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(hold(target.address, ticket))


def login(password: str) -> bytes:
    return b"AUTH PLAIN " + b64encode(f"\0{LOGIN}\0{password}".encode()) + b"\r\n"


def test_mail_goes_over_tls(start: Start, mx: RemoteMX) -> None:
    outcome = said(start("tls"), GREETING, EHLO, STARTTLS, EHLO, *transaction("user@accepted.test"))
    assert [exchange.error for exchange in outcome.exchanges if exchange.error] == []
    assert outcome.finished
    until(lambda: list(mx.ledger().delivered) == outcome.accepted, "delivery")


def test_who_does_not_speak_tls_is_told_apart(start: Start) -> None:
    outcome = said(start("tls"), GREETING, EHLO, Step(b"STARTTLS\r\n"), Step(b"no hello\r\n"))
    assert not outcome.finished
    assert outcome.exchanges[-1].error


@pytest.mark.parametrize(("password", "first"), [(PASSWORD, "2"), ("wrong", "5")])
def test_logins_are_checked(start: Start, password: str, first: str) -> None:
    assert said(start("auth"), GREETING, EHLO, STARTTLS, EHLO, Step(login(password), expect=first)).finished


def test_local_mail_is_found_again(start: Start) -> None:
    target = start("local")
    outcome = said(target, GREETING, EHLO, *transaction("user@maildir.test"), *transaction("user@flood.test"))
    assert target.mailboxes is not None
    mailboxes = target.mailboxes
    until(lambda: in_maildirs(mailboxes) == {outcome.accepted[0]}, "delivery")


def test_every_local_domain_has_a_way_to_deliver() -> None:
    assert set(DELIVERIES) == set(LOCAL_DOMAINS)


def test_destinations_are_found_by_name(start: Start, mx: RemoteMX) -> None:
    target = start("dns")
    names = ["known", "truncated", "unknown", "null"]
    steps = [step for name in names for step in transaction(f"user@{name}.test")]
    outcome = said(target, GREETING, EHLO, *steps)
    until(lambda: sorted(mx.ledger().bounced) == sorted(outcome.accepted[2:]), "bounces of what cannot be found")
    until(lambda: set(outcome.accepted[:2]) <= mx.ledger().delivered.keys(), "delivery of what can")
    assert not mx.ledger().delivered.keys() & set(outcome.accepted[2:])


def test_what_fails_every_other_time_is_delivered_when_there_is_a_hurry(start: Start, mx: RemoteMX) -> None:
    target = start("dns")
    outcome = said(target, GREETING, EHLO, *transaction("user@servfail.test"))
    until(lambda: target.rest().backlog, "the first question fails")
    target.hurry()
    until(lambda: list(mx.ledger().delivered) == outcome.accepted, "the second is answered")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_leave_the_server_as_it_was(start: Start, operation: str) -> None:
    target = start()
    for _ in range(3):
        target.operate(operation)
    # One is our own.
    until(lambda: target.rest().counters["control.session"] == 1, "no connection is left")
    until(lambda: not target.rest().counters["control.watching"], "nobody watches")
    assert target.deaths() == []


def test_an_operation_that_nobody_knows_is_told(start: Start) -> None:
    with pytest.raises(TargetError, match="no operation called 'dance'; there is: trace"):
        start().operate("dance")

"""Sessions and transactions own nothing when they are over, or it is told. The daemons of the other tests look too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.processes.owner import NO_SCOPE, Scope
from tests.processes.daemon import CONFIGURATION, Smtpd, until

StartSmtpd = Callable[..., Smtpd]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.ERROR, "smtpd")
    return lambda: [record.getMessage() for record in caplog.records]


def test_what_is_let_go_of_is_not_told(told: Callable[[], list[str]]) -> None:
    with Scope("a transaction") as scope:
        scope.took("message", 7)
        scope.gave("message", 7)
        scope.check("its connection", held=False)
    assert told() == []


def test_what_is_still_held_is_told_once_with_the_line_that_took_it(told: Callable[[], list[str]]) -> None:
    with Scope("a transaction") as scope:
        scope.took("message", 7)
        scope.check("its connection", held=True)
    scope.end()
    connection, message = told()
    assert connection == "owner: a transaction is over and still holds its connection"
    assert message.startswith(
        "owner: a transaction is over and still holds message 7, taken at processes/test_owner.py:"
    )


def test_what_is_let_go_of_twice_is_told(told: Callable[[], list[str]]) -> None:
    with Scope("a transaction") as scope:
        scope.took("message", 7)
        scope.gave("message", 7)
        scope.gave("message", 7)
    assert told() == ["owner: a transaction lets go of message 7, which it does not hold"]


def test_what_is_cancelled_is_torn_down_from_above(told: Callable[[], list[str]]) -> None:
    def cancelled() -> None:
        with Scope("a transaction") as scope:
            scope.took("message", 7)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        cancelled()
    assert told() == []


def test_nobody_looks_unless_asked(told: Callable[[], list[str]]) -> None:
    with NO_SCOPE as scope:
        scope.took("message", 7)
        scope.gave("message", 8)
        scope.check("its connection", held=True)
    assert told() == []


@pytest.mark.parametrize("defects", [(), ("transfer-fd-leak",)], ids=["as it is", "with the bug of 2013"])
def test_a_daemon_tells_what_a_transaction_forgot(start_smtpd: StartSmtpd, defects: tuple[str, ...]) -> None:
    with RemoteMX({"refusing": "rcpt=550", "home": ""}) as mx:
        daemon = start_smtpd(CONFIGURATION.format(**mx.ports), defects=defects)
        for number in range(3):
            daemon.send(f"user{number}@refused.test")
        until(lambda: daemon.at_rest() and daemon.spool_is_empty(), "every bounce has gone")
        daemon.stop()
    told = [line for line in daemon.forgotten() if "still holds message" in line and "transfer/session.py:" in line]
    assert bool(told) == bool(defects), daemon.log()

"""What is asked of each of Debian's servers alike: Postfix, OpenSMTPD and Exim, unpacked, with nothing said of them."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX
from harness.targets import Target, TargetError
from harness.targets.choice import Settings, choose
from tests.targets.foreign import check_that_it_ends_with_its_harness, need, submit


@pytest.fixture(params=["postfix", "opensmtpd", "exim"])
def name(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


@pytest.fixture
def target(name: str, tmp_path: Path, scratch: Path, mx: RemoteMX) -> Iterator[Target]:
    target = choose(name, Settings())(tmp_path, mx.ports)
    target.start()
    yield target
    target.stop()


def test_it_refuses_whom_no_rule_relays(target: Target) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        submit(target, "1@sender.test", "nobody@nowhere.invalid")
    assert refused.value.recipients["nobody@nowhere.invalid"][0] == 550


def test_a_harness_that_is_killed_leaves_no_server_behind(name: str, tmp_path: Path, scratch: Path) -> None:
    check_that_it_ends_with_its_harness(name, tmp_path, scratch)


def test_what_it_cannot_do_is_said_before_it_starts(name: str, tmp_path: Path) -> None:
    for settings, words in (
        (Settings(defects=("transfer-fd-leak",)), "--defect"),
        (Settings(needs=("tls",)), "needs tls"),
    ):
        with pytest.raises(TargetError, match=words):
            choose(name, settings)
    target = choose(name, Settings())(tmp_path, {"refusing": 2, "home": 2})
    with pytest.raises(TargetError, match="has not been started"):
        target.rest()
    with pytest.raises(TargetError, match="'reload'"):
        target.operate("reload")
    assert target.deaths() == []
    target.stop()  # of what was never started is nothing

"""smtpctl steers envelopes and routes, and shows what transfer knows, in OpenSMTPD's formats."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from harness.remote_mx.process import RemoteMX
from tests.processes.daemon import Smtpd, until


def queued(smtpd: Smtpd) -> list[list[str]]:
    return [line.split("|") for line in smtpd.smtpctl("show", "queue").stdout.splitlines()]


def copy(one: Path, other: Path) -> None:
    """With its owners: queue may be another user than the test."""
    subprocess.run(["cp", "-a", one, other], check=True, timeout=20)


def defer_two(smtpd: Smtpd, mx: RemoteMX) -> list[str]:
    """Two envelopes of two messages that the remote MX put off; their ids."""
    mx.set_policy("refusing", "rcpt=450")
    for number in range(2):
        smtpd.send("x@refused.test", text=f"Message-ID: <{number}@sender.test>\r\n\r\nhello\r\n")
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") == 2, "two temporary failures")
    until(smtpd.at_rest, "rest")
    mx.set_policy("refusing", "")
    return [row[0] for row in queued(smtpd)]


def test_a_paused_envelope_is_not_tried_until_it_is_resumed(smtpd: Smtpd, mx: RemoteMX) -> None:
    first, second = defer_two(smtpd, mx)
    assert smtpd.smtpctl("pause", "envelope", first).stdout == "1 envelope paused\n"
    assert smtpd.smtpctl("pause", "envelope", first).returncode == 1, "it is paused already"
    assert {row[0]: row[3] for row in queued(smtpd)} == {first: "suspend", second: ""}
    assert smtpd.smtpctl("schedule", "all").stdout == "2 envelopes scheduled\n"
    until(lambda: len(mx.ledger().delivered) == 1, "the other one")
    until(smtpd.at_rest, "rest")
    assert [row[:4] for row in queued(smtpd)] == [[first, "inet4", "mta", "suspend"]]
    assert smtpd.smtpctl("resume", "envelope", first[:8]).stdout == "1 envelope resumed\n"
    until(lambda: len(mx.ledger().delivered) == 2, "both")


def test_all_envelopes_can_be_paused_removed_too(smtpd: Smtpd, mx: RemoteMX) -> None:
    defer_two(smtpd, mx)
    assert smtpd.smtpctl("pause", "envelope", "all").stdout == "2 envelopes paused\n"
    assert smtpd.smtpctl("remove", "all").stdout == "2 envelopes removed\n"
    assert queued(smtpd) == []


def test_an_envelope_put_into_the_spool_is_discovered(smtpd: Smtpd, mx: RemoteMX, tmp_path: Path) -> None:
    evpid, other = defer_two(smtpd, mx)
    until(lambda: list(smtpd.spool.glob(f"queue/*/*/{evpid}")), "the envelope's file")
    message = next(smtpd.spool.glob(f"queue/*/{evpid[:8]}"))
    copy(message, tmp_path / "saved")
    assert smtpd.smtpctl("discover", evpid).stdout == "0 envelopes discovered\n", "it is known"
    smtpd.smtpctl("remove", evpid)
    until(lambda: not message.exists(), "an empty place in the spool")
    assert smtpd.smtpctl("discover", evpid[:8]).returncode == 1
    copy(tmp_path / "saved", message)
    assert [row[0] for row in queued(smtpd)] == [other]
    assert smtpd.smtpctl("discover", evpid[:8]).stdout == "1 envelope discovered\n"
    assert {row[0] for row in queued(smtpd)} == {evpid, other}
    smtpd.smtpctl("schedule", "all")
    until(lambda: len(mx.ledger().delivered) == 2, "both, once each")
    assert not mx.ledger().duplicated


def test_mda_can_be_paused_like_mta(smtpd: Smtpd) -> None:
    assert smtpd.smtpctl("pause", "mda").returncode == 0
    assert smtpd.smtpctl("show", "status").stdout == "MDA paused\nMTA running\nSMTP running\n"
    assert smtpd.smtpctl("resume", "mda").returncode == 0
    assert smtpd.stats()["scheduler.paused.mda"] == 0


def test_what_transfer_knows_is_shown(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.shut_gate("refusing")
    smtpd.send("x@accepted.test", text="Message-ID: <1@sender.test>\r\n\r\nhello\r\n")
    until(lambda: smtpd.stats()["mta.session"] == 1, "a session at the gate")
    port = mx.ports["refusing"]
    (host,) = smtpd.smtpctl("show", "hosts").stdout.splitlines()
    assert re.fullmatch(r"127\.0\.0\.1 127\.0\.0\.1 refcount=2 nconn=1 lastconn=\d+s", host)
    (route,) = smtpd.smtpctl("show", "routes").stdout.splitlines()
    assert route == "1. [] <-> 127.0.0.1 (127.0.0.1) N--- nconn=1 nerror=0 penalty=0 timeout=-"
    relay, connector = smtpd.smtpctl("show", "relays").stdout.splitlines()
    assert re.fullmatch(
        rf"\[relay:127\.0\.0\.1,port={port},smtp,mx\] refcount=2 ntask=1 nconn=1 lastconn=\d+s timeout=\S+"
        " wait=connector",
        relay,
    )
    assert re.fullmatch(r"  connector \[\] refcount=1 nconn=1 lastconn=\d+s timeout=- flags=", connector)
    mx.open_gate("refusing")
    until(lambda: mx.ledger().delivered, "delivery")
    until(smtpd.at_rest, "rest")
    assert re.fullmatch(r"127\.0\.0\.1\|\d{10,}\|250 .*\n", smtpd.smtpctl("show", "hoststats").stdout)
    assert smtpd.smtpctl("show", "relays").stdout == ""

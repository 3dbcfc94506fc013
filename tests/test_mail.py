"""What became of every accepted message."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.mail import fates, in_maildirs, in_spool
from mta_under_test.spool.journaled import JournaledSpool
from mta_under_test.wire import dsn
from mta_under_test.wire.envelope import Envelope, encode


def bounce_of(message_id: str) -> bytes:
    recipient = dsn.Recipient("b@test", "550 no", "failed")
    report = dsn.opening(
        "failed", hostname="mx.test", sender="a@test", recipients=[recipient], report_id="report", arrival=0
    )
    return report + f"Message-ID: <{message_id}>".encode() + dsn.closing("report", "mx.test")


ids = st.sets(st.sampled_from("abcdef"))


@given(ids, ids, ids, ids)
def test_every_accepted_message_has_exactly_one_fate_and_is_lost_only_if_nobody_has_it(
    accepted: set[str], delivered: set[str], bounced: set[str], queued: set[str]
) -> None:
    found = fates(accepted, delivered, bounced, queued)
    assert found.keys() == accepted
    assert {name for name, fate in found.items() if fate == "lost"} == accepted - delivered - bounced - queued
    assert {name for name, fate in found.items() if fate == "delivered"} == accepted & delivered


def test_the_spool_answers_for_messages_by_their_header_and_for_those_that_a_bounce_returns(tmp_path: Path) -> None:
    for msgid, text in {
        "0a000001": b"Received: x\r\nMessage-Id: <one@test>\r\nSubject: s\r\n\r\nMessage-ID: <body@test>\r\n",
        "0b000002": b"Message-ID: <two@test>\r\n\r\n",
        "0b000003": b"Subject: none\r\n\r\nMessage-ID: <no@test>\r\n",
        "0c000004": bounce_of("three@test"),
    }.items():
        directory = tmp_path / "queue" / msgid[:2] / msgid
        directory.mkdir(parents=True)
        (directory / "message").write_bytes(text)
        (directory / f"{msgid}deadbeef").write_bytes(b"version: 1\n")
    assert in_spool(tmp_path) == {"one@test", "two@test", "three@test", "report@mx.test"}
    assert in_spool(tmp_path / "none") == set()


def test_a_journal_answers_for_what_has_no_file_yet(tmp_path: Path) -> None:
    spool = JournaledSpool(tmp_path)
    msgid = spool.create()
    spool.put_message(msgid, b"Message-ID: <four@test>\r\n\r\nhello\r\n")
    envelope = Envelope(rcpt="b@test", dest="b@test", ctime=1, ttl=1)
    evpid = spool.add_text(msgid, encode(envelope))
    spool.commit([msgid])
    assert in_spool(tmp_path) == {"four@test"}
    spool.delete(evpid)
    assert spool.forget()
    assert in_spool(tmp_path) == set()
    spool.close()


def test_maildirs_answer_for_what_was_delivered_into_them(tmp_path: Path) -> None:
    for user, name, text in (
        ("bob", "1", b"Subject: s\nMessage-ID: <five@test>\n\nMessage-ID: <body@test>\n"),
        ("eve", "2", b"Message-Id: <six@test>\r\n\r\n"),
    ):
        directory = tmp_path / user / "Maildir" / "new"
        directory.mkdir(parents=True)
        (directory / name).write_bytes(text)
    assert in_maildirs(tmp_path) == {"five@test", "six@test"}
    assert in_maildirs(tmp_path / "nowhere") == set()

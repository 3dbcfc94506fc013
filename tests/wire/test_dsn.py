"""Bounces are what a mail reader can take apart: RFC 3464 in RFC 6522."""

from __future__ import annotations

import email
import email.policy

import pytest

from mta_under_test.wire.dsn import HEADER_BYTES, Failure, bounce, header_of, status_of


def test_a_reader_finds_recipients_statuses_and_the_original_header() -> None:
    report = bounce(
        hostname="mx.example",
        sender="a@sender.test",
        failures=[Failure("b@refused.test", "550 5.1.1 No such user"), Failure("c@refused.test", "550 gone")],
        original_header=b"Message-ID: <1@sender.test>\r\nSubject: hello",
        bounce_id="0000abcd",
    )
    parsed = email.message_from_bytes(report, policy=email.policy.default)
    assert parsed["To"] == "a@sender.test"
    assert parsed.get_content_type() == "multipart/report"
    text, status, original = parsed.iter_parts()
    assert "b@refused.test: 550 5.1.1 No such user" in text.get_content()
    per_message, first, second = status.get_payload()
    assert per_message["Reporting-MTA"] == "dns; mx.example"
    assert (first["Final-Recipient"], first["Status"]) == ("rfc822; b@refused.test", "5.1.1")
    assert (second["Action"], second["Status"]) == ("failed", "5.0.0")
    assert original.get_content_type() == "text/rfc822-headers"
    assert "Message-ID: <1@sender.test>" in original.get_payload()


@pytest.mark.parametrize(
    ("line", "status"), [("550 5.1.1 no", "5.1.1"), ("450 busy", "4.0.0"), ("550", "5.0.0"), ("", "5.0.0")]
)
def test_status_of_a_reply(line: str, status: str) -> None:
    assert status_of(line) == status


def test_only_the_header_comes_back_and_not_more_than_its_limit() -> None:
    assert header_of(b"A: 1\r\nB: 2\r\n\r\nbody") == b"A: 1\r\nB: 2"
    endless = header_of(b"X: y\r\n" * HEADER_BYTES)
    assert len(endless) <= HEADER_BYTES
    assert endless.endswith(b"X: y")

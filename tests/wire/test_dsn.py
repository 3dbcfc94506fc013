"""Reports are what a mail reader can take apart: RFC 3464 in RFC 6522."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from typing import Any, cast

import pytest

from mta_under_test.wire.dsn import (
    DELAY,
    FAILURE,
    HEADER_BYTES,
    NEVER,
    SUCCESS,
    Kind,
    Recipient,
    closing,
    header_of,
    opening,
    status_of,
    wanted,
)


def parsed(kind: Kind, recipients: list[Recipient], returned: bytes, **extra: Any) -> tuple[EmailMessage, list[Any]]:
    head = opening(
        kind,
        hostname="mx.example",
        sender="a@sender.test",
        recipients=recipients,
        report_id="0000abcd",
        arrival=1358500000,
        **extra,
    )
    text = head + returned + closing("0000abcd", "mx.example")
    assert b"\n" not in text.replace(b"\r\n", b"")
    report = cast(EmailMessage, email.message_from_bytes(text, policy=email.policy.default))
    assert not report.defects
    return report, list(report.iter_parts())


def test_a_reader_finds_recipients_statuses_and_the_original_header() -> None:
    report, (text, status, original) = parsed(
        "failed",
        [
            Recipient("b@refused.test", "550 5.1.1 No such user", "failed", remote="192.0.2.1"),
            Recipient("c@refused.test", "550 gone", "failed"),
        ],
        b"Message-ID: <1@sender.test>\r\nSubject: hello",
    )
    assert report["To"] == "a@sender.test"
    assert report["Auto-Submitted"] == "auto-replied"
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    assert "b@refused.test: 550 5.1.1 No such user" in text.get_content()
    per_message, first, second = status.get_payload()
    assert per_message["Reporting-MTA"] == "dns; mx.example"
    assert per_message["Arrival-Date"].startswith("Fri, 18 Jan 2013")
    assert per_message["Original-Envelope-Id"] is None
    assert dict(first.items()) == {
        "Final-Recipient": "rfc822; b@refused.test",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; 192.0.2.1",
        "Diagnostic-Code": "smtp; 550 5.1.1 No such user",
    }
    assert (second["Action"], second["Status"], second["Remote-MTA"]) == ("failed", "5.0.0", None)
    assert original.get_content_type() == "text/rfc822-headers"
    assert "Message-ID: <1@sender.test>" in original.get_payload()


def test_what_the_sender_gave_comes_back_decoded() -> None:
    _, (_, status, _) = parsed(
        "failed",
        [Recipient("b@x.test", "550 5.1.1 no", "failed", original="rfc822;bob+2Bnews@x.test")],
        b"",
        envelope_id="QQ+3D314",
    )
    per_message, recipient = status.get_payload()
    assert per_message["Original-Envelope-Id"] == "QQ=314"
    assert recipient["Original-Recipient"] == "rfc822; bob+news@x.test"


def test_a_delay_says_until_when_and_a_success_that_it_was_relayed() -> None:
    report, (text, status, _) = parsed(
        "delayed", [Recipient("b@x.test", "450 4.2.1 busy", "delayed", retry_until=1358845600)], b""
    )
    assert report["Subject"].endswith("delayed")
    assert "It will be tried again" in text.get_content()
    assert status.get_payload()[1]["Will-Retry-Until"].startswith("Tue, 22 Jan 2013")
    report, (_, status, _) = parsed("delivered", [Recipient("b@x.test", "250 2.0.0 Ok", "relayed")], b"")
    assert report["Subject"].endswith("success")
    recipient = status.get_payload()[1]
    assert (recipient["Action"], recipient["Status"]) == ("relayed", "2.0.0")


def test_the_whole_message_comes_back_where_it_is_asked_for() -> None:
    message = "Subject: caf\u00e9\r\n\r\nh\u00e9\r\n".encode()
    _, (text, _, original) = parsed("failed", [Recipient("b@x.test", "550 no", "failed")], message, whole=True)
    assert "The message follows" in text.get_content()
    assert original.get_content_type() == "message/rfc822"


def test_a_remote_server_s_words_make_no_line_of_ours() -> None:
    line = "550 5.1.1 no\r\nAction: delivered\x00\u20ac" + "x" * 2000
    _, (_, status, _) = parsed("failed", [Recipient("b@x.test", line, "failed")], b"")
    recipient = status.get_payload()[1]
    assert recipient["Action"] == "failed"
    assert len(recipient["Diagnostic-Code"]) < 998


@pytest.mark.parametrize(
    ("kind", "notify", "expected"),
    [
        ("failed", 0, True),
        ("delayed", 0, True),
        ("delivered", 0, False),
        ("delivered", SUCCESS, True),
        ("failed", SUCCESS, False),
        ("failed", FAILURE | DELAY, True),
        ("delayed", FAILURE, False),
        ("failed", NEVER, False),
        ("delayed", NEVER, False),
    ],
)
def test_notify_chooses_the_reports(kind: Kind, notify: int, expected: bool) -> None:
    assert wanted(kind, notify) is expected


@pytest.mark.parametrize(
    ("line", "status"), [("550 5.1.1 no", "5.1.1"), ("450 busy", "4.0.0"), ("550", "5.0.0"), ("", "5.0.0")]
)
def test_status_of_a_reply(line: str, status: str) -> None:
    assert status_of(line) == status


def test_only_the_header_comes_back_and_not_more_than_its_limit() -> None:
    assert header_of(b"A: 1\r\nB: 2\r\n\r\nbody") == b"A: 1\r\nB: 2"
    long = header_of(b"X: " + b"y" * 70 + b"\r\n" + b"Z: 1\r\n" * HEADER_BYTES)
    assert len(long) <= HEADER_BYTES
    assert long.endswith(b"Z: 1")

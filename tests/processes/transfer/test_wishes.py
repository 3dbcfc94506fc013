"""What a remote server offers is used, and asked of no other: pipelining, and what senders ask for beyond delivery."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mta_under_test.wire import server
from mta_under_test.wire.server import ALL_EXTENSIONS
from tests.processes.daemon import Smtpd, until
from tests.processes.recording_mx import RecordingMX

StartSmtpd = Callable[..., Smtpd]

CONFIGURATION = """
listen on 127.0.0.1 port 0
action "out" relay host smtp://127.0.0.1:{port}
match from any for any action "out"
"""


def send(smtpd: Smtpd, mail: str, *recipients: str, header: str = "Subject: hi") -> None:
    with smtpd.smtp() as client:
        client.ehlo()
        for line in (f"MAIL {mail}", *(f"RCPT {recipient}" for recipient in recipients)):
            client.send(f"{line}\r\n".encode())
            assert client.getreply()[0] == 250
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.send(f"{header}\r\n\r\nhi\r\n.\r\n".encode())
        assert client.getreply()[0] == 250


@pytest.mark.parametrize("offered", [True, False])
def test_sender_and_recipients_are_named_in_one_write(start_smtpd: StartSmtpd, offered: bool) -> None:
    with RecordingMX(*(("PIPELINING",) if offered else ())) as mx:
        smtpd = start_smtpd(CONFIGURATION.format(port=mx.port))
        send(smtpd, "FROM:<a@sender.test>", "TO:<x@example.org>", "TO:<y@example.org>")
        until(lambda: mx.of(server.EndOfData), "delivery")
        until(smtpd.at_rest, "rest")
        (commands,) = (read.splitlines() for read in mx.reads if read.startswith(b"MAIL"))
        recipients = {b"RCPT TO:<x@example.org>", b"RCPT TO:<y@example.org>"}
        assert set(commands) == {b"MAIL FROM:<a@sender.test>"} | (recipients if offered else set())
        assert smtpd.stats()["scheduler.delivery.ok"] == 2


def test_a_refused_sender_is_the_answer_for_recipients_that_were_named_with_it(start_smtpd: StartSmtpd) -> None:
    with RecordingMX("PIPELINING") as mx:
        mx.refused = server.Mail
        smtpd = start_smtpd(CONFIGURATION.format(port=mx.port))
        send(smtpd, "FROM:<a@sender.test>", "TO:<x@example.org>", "TO:<y@example.org>")
        until(lambda: smtpd.stats().get("scheduler.delivery.permfail") == 3, "both fail, and so does the report of it")
        until(smtpd.at_rest, "rest")
        kinds = [type(event) for event in mx.events]
        first = kinds.index(server.Mail)
        # What is said to the recipients of a transaction that there is none of is read, and means nothing.
        assert kinds[first : first + 4] == [server.Mail, server.Refused, server.Refused, server.Reset]
        assert not list(smtpd.spool.glob("queue/*/*/*"))


@pytest.mark.parametrize("offered", [True, False])
def test_dsn_parameters(start_smtpd: StartSmtpd, offered: bool) -> None:
    with RecordingMX(*(ALL_EXTENSIONS if offered else ())) as mx:
        smtpd = start_smtpd(CONFIGURATION.format(port=mx.port))
        send(
            smtpd,
            "FROM:<a@sender.test> RET=HDRS ENVID=Q3",
            "TO:<x@example.org> NOTIFY=success,delay ORCPT=rfc822;y+2B@z.test",
            "TO:<plain@example.org>",
        )
        until(lambda: mx.of(server.EndOfData), "delivery")
        until(smtpd.at_rest, "rest")
        mail, *reports = mx.of(server.Mail)
        # A server that was asked to report does so; where it cannot be asked, we say how far we know (RFC 3461 §5.2).
        assert len(reports) == (0 if offered else 1)
        asked = {str(event.mailbox): event.parameters for event in mx.events if isinstance(event, server.Recipient)}
        assert isinstance(mail, server.Mail)
        mail.parameters.pop("SIZE", None)
        if offered:
            assert mail.parameters == {"RET": "HDRS", "ENVID": "Q3"}
            assert asked["x@example.org"] == {"NOTIFY": "SUCCESS,DELAY", "ORCPT": "rfc822;y+2B@z.test"}
        else:
            assert mail.parameters == {}
            assert asked["x@example.org"] == {}
        assert asked["plain@example.org"] == {}


def test_utf8_goes_where_it_is_offered(start_smtpd: StartSmtpd) -> None:
    with RecordingMX(*ALL_EXTENSIONS) as mx:
        smtpd = start_smtpd(CONFIGURATION.format(port=mx.port))
        send(smtpd, "FROM:<jürgen@sender.test> SMTPUTF8", "TO:<δοκιμή@example.org>", header="Subject: grüße")
        until(lambda: mx.of(server.EndOfData), "delivery")
        (mail,) = mx.of(server.Mail)
        assert isinstance(mail, server.Mail)
        assert (str(mail.sender), mail.utf8) == ("jürgen@sender.test", True)
        assert [str(event.mailbox) for event in mx.events if isinstance(event, server.Recipient)] == [
            "δοκιμή@example.org"
        ]
        until(smtpd.at_rest, "rest")


@pytest.mark.parametrize(
    ("mail", "recipients", "header", "delivered", "failed"),
    [
        ("FROM:<jürgen@sender.test> SMTPUTF8", ["x@example.org"], "Subject: hi", [], 1),
        ("FROM:<a@sender.test> SMTPUTF8", ["x@example.org"], "Subject: grüße", [], 1),
        ("FROM:<> SMTPUTF8", ["δοκιμή@example.org", "x@example.org"], "Subject: hi", ["x@example.org"], 1),
        ("FROM:<> SMTPUTF8", ["x@example.org"], "Subject: hi", ["x@example.org"], 0),
        ("FROM:<>", ["x@example.org"], "Subject: grüße", ["x@example.org"], 0),
    ],
    ids=["sender", "header", "one-recipient", "not-needed", "not-asked-for"],
)
def test_utf8_is_not_sent_where_it_is_not_taken(
    start_smtpd: StartSmtpd, mail: str, recipients: list[str], header: str, delivered: list[str], failed: int
) -> None:
    with RecordingMX("8BITMIME") as mx:
        smtpd = start_smtpd(CONFIGURATION.format(port=mx.port))
        send(smtpd, mail, *(f"TO:<{recipient}>" for recipient in recipients), header=header)
        until(lambda: smtpd.stats().get("mta.delivery.permfail", 0) >= failed, "failures")
        until(lambda: len(mx.of(server.EndOfData)) >= len(delivered), "deliveries")
        until(smtpd.at_rest, "rest")
        taken = [str(event.mailbox) for event in mx.events if isinstance(event, server.Recipient)]
        assert [address for address in taken if address.endswith("example.org")] == delivered
        if mail.startswith("FROM:<>"):  # of what is not bounced, every failure is one of these
            assert smtpd.stats().get("mta.delivery.permfail", 0) == failed
            assert smtpd.log().count("5.6.7") == failed

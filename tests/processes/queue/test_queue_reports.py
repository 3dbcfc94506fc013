"""What senders are told: failures, delays, success; and what they are not told."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from email.message import EmailMessage
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mta_under_test.ipc.messages import Fate
from mta_under_test.processes.queue import bounces
from mta_under_test.processes.queue.bounces import Bounces
from mta_under_test.spool import JournaledSpool
from mta_under_test.wire import dsn
from mta_under_test.wire.envelope import Envelope, encode
from tests.processes.daemon import Smtpd, until
from tests.processes.keeping_server import Mailbox

CONFIGURATION = """
{extra}
listen on 127.0.0.1 port 0
action "out" relay host smtp://127.0.0.1:{port}
match from any for any action "out"
"""

StartSmtpd = Callable[..., Smtpd]


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        yield mailbox


def configuration(mailbox: Mailbox, extra: str = "") -> str:
    return CONFIGURATION.format(port=mailbox.port, extra=extra)


def reports(mailbox: Mailbox) -> list[EmailMessage]:
    found = [email.message_from_bytes(message, policy=email.policy.default) for message in mailbox.messages]
    return [cast(EmailMessage, message) for message in found if message.get_content_type() == "multipart/report"]


def recipients(report: EmailMessage) -> list[Any]:
    """The per-recipient fields of a report."""
    parts: list[Any] = list(report.iter_parts())
    return list(parts[1].get_payload()[1:])


def put(smtpd: Smtpd, *envelopes: Envelope, text: bytes = b"Subject: put\r\n\r\nhello\r\n") -> None:
    """A message in the queue of a daemon that is stopped."""
    spool = JournaledSpool(smtpd.spool)
    spool.recover()
    msgid = spool.create()
    for envelope in envelopes:
        spool.add_text(msgid, encode(envelope))
    spool.put_message(msgid, text)
    spool.commit([msgid])
    spool.close()
    owner = (smtpd.spool / "incoming").stat()  # queue's user, when the daemon is started as root
    for path in smtpd.spool.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)


def envelope(rcpt: str, **values: Any) -> Envelope:
    now = int(time.time())
    values = {"sender": "a@sender.test", "dispatcher": "out", "ctime": now, "ttl": 3600, **values}
    return Envelope(rcpt=rcpt, dest=rcpt, **values)


def test_a_failure_names_the_server_that_refused_and_returns_the_header(
    start_smtpd: StartSmtpd, mailbox: Mailbox
) -> None:
    mailbox.refusals = {"no": "550 5.1.1 No such user", "nor": "550 5.2.1 Gone"}
    smtpd = start_smtpd(configuration(mailbox))
    smtpd.send("no@x.test", "nor@x.test", text="Subject: hi\r\n\r\nthe body\r\n")
    until(lambda: reports(mailbox), "a report")
    until(smtpd.at_rest, "rest")
    (report,) = reports(mailbox)
    assert "the body" not in report.as_string()
    first, second = sorted(recipients(report), key=lambda fields: str(fields["Status"]))
    assert first["Remote-MTA"] == "dns; 127.0.0.1"
    assert first["Diagnostic-Code"] == "smtp; 550 5.1.1 No such user"
    assert second["Status"] == "5.2.1"
    assert smtpd.stats()["queue.bounce.failed"] == 1


def test_a_delay_is_told_once_for_each_interval_over_a_restart_too(start_smtpd: StartSmtpd, mailbox: Mailbox) -> None:
    mailbox.refusals = {"slow": "450 4.2.1 Busy"}
    smtpd = start_smtpd(configuration(mailbox, "bounce warn-interval 1s, 3s"))
    smtpd.send("slow@x.test")
    until(lambda: len(reports(mailbox)) == 1, "the first warning")
    until(smtpd.at_rest, "rest")
    assert smtpd.stop() == 0
    smtpd.start()
    until(lambda: len(reports(mailbox)) == 2, "the second warning")
    time.sleep(1.2)
    until(smtpd.at_rest, "rest")
    assert len(reports(mailbox)) == 2
    (fields,) = recipients(reports(mailbox)[1])
    assert (fields["Action"], fields["Diagnostic-Code"]) == ("delayed", "smtp; 450 4.2.1 Busy")
    assert fields["Will-Retry-Until"]
    assert "last-bounce: " in smtpd.smtpctl("show", "envelope", smtpd.smtpctl("show", "queue").stdout[:16]).stdout
    assert smtpd.stats()["scheduler.envelope"] == 1


def test_notify_and_ret_and_the_names_that_the_sender_gave(start_smtpd: StartSmtpd, mailbox: Mailbox) -> None:
    mailbox.refusals = {"no": "550 5.1.1 No such user", "never": "550 5.1.1 No such user"}
    smtpd = start_smtpd(configuration(mailbox))
    assert smtpd.stop() == 0
    long = b"Subject: put\r\n\r\n" + b"a line of the body\r\n" * 20_000
    put(smtpd, envelope("yes@x.test", dsn_notify=dsn.SUCCESS), envelope("quiet@x.test", dsn_notify=dsn.FAILURE))
    put(smtpd, envelope("no@x.test", dsn_ret="FULL", dsn_envid="Q+2B1", dsn_orcpt="rfc822;o@x.test"), text=long)
    put(smtpd, envelope("never@x.test", dsn_notify=dsn.NEVER), envelope("no@x.test", sender=""))
    smtpd.start()
    until(lambda: len(reports(mailbox)) == 2, "two reports")
    until(smtpd.at_rest, "rest")
    success, failure = sorted(reports(mailbox), key=lambda report: -len(report["Subject"]))
    (fields,) = recipients(success)
    assert (fields["Final-Recipient"], fields["Action"]) == ("rfc822; yes@x.test", "relayed")
    (fields,) = recipients(failure)
    assert fields["Original-Recipient"] == "rfc822; o@x.test"
    assert "Original-Envelope-Id: Q+1" in failure.as_string()
    returned = list(failure.iter_parts())[2]
    assert returned.get_content_type() == "message/rfc822"
    assert str(returned).count("a line of the body") == 20_000
    assert smtpd.stats()["scheduler.envelope"] == 0
    assert "asked not to be told" in smtpd.log()
    assert "nobody to tell" in smtpd.log()


def test_mail_expires_with_its_last_error(start_smtpd: StartSmtpd, mailbox: Mailbox) -> None:
    mailbox.refusals = {"slow": "450 4.2.1 Busy"}
    smtpd = start_smtpd(configuration(mailbox, "queue ttl 2s"))
    smtpd.send("slow@x.test")
    until(lambda: reports(mailbox), "a report")
    until(smtpd.at_rest, "rest")
    (fields,) = recipients(reports(mailbox)[0])
    assert fields["Status"] == "5.4.7"
    assert "450 4.2.1 Busy" in fields["Diagnostic-Code"]
    assert smtpd.stats()["scheduler.envelope.expired"] == 1


def test_held_mail_waits_until_it_is_released(start_smtpd: StartSmtpd, mailbox: Mailbox) -> None:
    smtpd = start_smtpd(configuration(mailbox))
    smtpd.smtpctl("pause", "mta")
    smtpd.send("x@x.test", text="Subject: held\r\n\r\n")
    smtpd.send("y@x.test", text="Subject: free\r\n\r\n")
    lines = smtpd.smtpctl("show", "queue").stdout.splitlines()
    (evpid,) = (line[:16] for line in lines if "x@x.test" in line)
    assert smtpd.smtpctl("pause", "envelope", evpid).stdout == "1 envelope paused\n"
    smtpd.smtpctl("resume", "mta")
    until(lambda: mailbox.messages, "the other")
    until(smtpd.at_rest, "rest")
    (line,) = smtpd.smtpctl("show", "queue").stdout.splitlines()
    assert line.split("|")[3] == "suspend"
    assert b"Subject: free" in mailbox.messages[0]
    smtpd.smtpctl("schedule", evpid)
    until(smtpd.at_rest, "rest")
    assert len(mailbox.messages) == 1
    assert smtpd.smtpctl("resume", "envelope", evpid[:8]).stdout == "1 envelope resumed\n"
    until(lambda: len(mailbox.messages) == 2, "delivery")


def test_two_reports_are_written_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    forgotten: list[tuple[int, Fate]] = []
    tasks: list[asyncio.Task[None]] = []
    gate = asyncio.Event()

    def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
        tasks.append(asyncio.get_running_loop().create_task(work))

    async def write(self: Bounces, msgid: int, kind: dsn.Kind, together: list[bounces.Told]) -> int:
        written.append(msgid)
        await gate.wait()
        return msgid

    process: Any = SimpleNamespace(
        spawn=spawn, stats={"queue.bounce.total": 0, "queue.bounce.failed": 0}, trace=lambda *_: None
    )
    queue: Any = SimpleNamespace(forget=lambda evpid, fate: forgotten.append((evpid, fate)))
    unused: Any = None

    async def run() -> None:
        monkeypatch.setattr(Bounces, "_write", write)
        made = Bounces(process, queue, unused, unused)
        for msgid in range(1, 6):
            for low in (1, 2):
                made.failed(msgid << 32 | low, envelope("x@x.test"), "550 no", "", Fate.FAILED)
        assert made.gauges()["bounce.envelope"] == 10
        await asyncio.sleep(bounces.GATHER_S * 3)
        assert written == [1, 2]
        assert made.gauges() == {"queue.bounce": 5, "bounce.envelope": 0, "bounce.message": 3, "bounce.session": 2}
        gate.set()
        await asyncio.gather(*tasks)
        assert written == [1, 2, 3, 4, 5]
        assert made.pending == 0
        assert len(forgotten) == 10

    asyncio.run(run())

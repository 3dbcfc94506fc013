"""The queue under pressure: a process that takes nothing, an envelope that nobody can read, stores without a disk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import daemon
from tests.processes.daemon import Smtpd, until
from tests.processes.keeping_server import Mailbox

CONFIGURATION = """
listen on 127.0.0.1 port 0
action "out" relay host smtp://127.0.0.1:{port}
match from any for any action "out"
"""
LOW_MARKS = """
import sys
from mta_under_test import smtpd
from mta_under_test.ipc import channel
channel.HIGH_MARK_BYTES, channel.LOW_MARK_BYTES = 20_000, 2_000
sys.exit(smtpd.main(sys.argv[1:]))
"""

StartSmtpd = Callable[..., Smtpd]


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        yield mailbox


def holds_for_good(smtpd: Smtpd) -> bool:
    """Not just until the socket to transfer, which fills up meanwhile, has taken the rest."""
    log = smtpd.log()
    time.sleep(0.3)
    return log.rfind("transfer: holding") > log.rfind("transfer: going on") and smtpd.log() == log


def test_while_transfer_takes_nothing_no_new_mail_is_taken_and_none_is_lost(
    start_smtpd: StartSmtpd, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def with_low_marks(command: list[object], **settings: object) -> object:
        return popen([sys.executable, "-c", LOW_MARKS, *command[3:]], **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(daemon.subprocess, "Popen", with_low_marks)
    smtpd = start_smtpd(CONFIGURATION.format(port=mailbox.port))
    recipients = [f"r{number}@x.test" for number in range(500)]
    transfer = smtpd.pid_of("transfer")
    os.kill(transfer, signal.SIGSTOP)
    try:
        with smtpd.smtp() as client:
            for _ in range(2):  # the second is more than the socket to transfer and the mark hold
                client.sendmail("a@sender.test", recipients, "Subject: many\r\n\r\n")
        until(lambda: holds_for_good(smtpd), "the high mark")
        with socket.create_connection(("127.0.0.1", smtpd.ports[0])) as sock:
            sock.sendall(b"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
            until(lambda: b"354" in sock.recv(4096), "the prompt")
            sock.sendall(b"Subject: one more\r\n.\r\n")
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                sock.recv(4096)
            sock.settimeout(20.0)
            os.kill(transfer, signal.SIGCONT)
            assert sock.recv(4096).startswith(b"250 ")
    finally:
        os.kill(transfer, signal.SIGCONT)
    until(lambda: smtpd.stats().get("scheduler.delivery.ok") == 1001, "every delivery")
    assert "wait for transfer: going on" in smtpd.log()


def test_an_envelope_that_nobody_can_read_is_put_aside_and_logged_once(
    start_smtpd: StartSmtpd, mailbox: Mailbox
) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(port=mailbox.port))
    smtpd.smtpctl("pause", "mta")
    smtpd.send("bad@x.test")
    smtpd.send("good@x.test")
    until(lambda: not smtpd.stats()["queue.journal"], "files in the queue")
    bad = next(path for path in smtpd.spool.glob("queue/*/*/*") if b"rcpt: bad@" in path.read_bytes())
    bad.write_bytes(b"nonsense")
    smtpd.smtpctl("resume", "mta")
    until(lambda: mailbox.messages, "the other's delivery")
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["scheduler.envelope"] == 0
    assert sum(bad.name in line for line in smtpd.log().splitlines()) == 1
    assert sorted(path.name for path in smtpd.spool.glob("corrupt/*/*")) == [bad.name, "message"]
    smtpd.stop()
    smtpd.start()
    until(smtpd.at_rest, "rest")
    assert sum(bad.name in line for line in smtpd.log().splitlines()) == 1


@pytest.mark.parametrize(("store", "delivered"), [("ram", 3), ("null", 0)])
def test_a_queue_without_a_disk(start_smtpd: StartSmtpd, mailbox: Mailbox, store: str, delivered: int) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(port=mailbox.port), "--queue", store)
    smtpd.stats()  # every process answers, and so has opened what it needs
    before = len(smtpd.descriptors("queue"))
    smtpd.send("x@x.test", text="Subject: small\r\n\r\n")
    smtpd.send("x@x.test", "y@x.test", text="Subject: large\r\n\r\n" + "line\r\n" * 20_000)
    until(lambda: smtpd.stats().get("scheduler.delivery.ok", 0) == delivered, "delivery")
    until(smtpd.at_rest, "rest")
    assert [len(message) > 100_000 for message in sorted(mailbox.messages, key=len)] == (
        [False, True] if delivered else []
    )
    assert not [path for path in smtpd.spool.rglob("*") if path.is_file()]
    assert smtpd.stats()["scheduler.envelope"] == 0
    until(lambda: len(smtpd.descriptors("queue")) == before + RESERVED[store], "the messages' descriptors closed")


RESERVED = {"ram": 64, "null": 64}  # ids that are set aside for smtp; in memory each is a file already


def test_a_message_larger_than_an_imsg_and_one_byte_less(start_smtpd: StartSmtpd, mailbox: Mailbox) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(port=mailbox.port))
    for size in (15_000, 16_000, 16_100, 16_200, 16_300, 16_400, 70_000):
        smtpd.send("x@x.test", text=f"Subject: {size}\r\n\r\n" + "x" * 70 + "\r\n" * 1 + "y\r\n" * (size // 3))
    until(lambda: len(mailbox.messages) == 7, "delivery")
    assert sorted(message.count(b"y\r\n") for message in mailbox.messages) == [
        size // 3 for size in (15_000, 16_000, 16_100, 16_200, 16_300, 16_400, 70_000)
    ]
    until(smtpd.at_rest, "rest")


def test_a_client_that_goes_in_mid_transaction_leaves_nothing(start_smtpd: StartSmtpd, mailbox: Mailbox) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(port=mailbox.port))
    for content in (b"", b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n" + b"line\r\n" * 10_000):
        with socket.create_connection(("127.0.0.1", smtpd.ports[0])) as sock:
            sock.sendall(b"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
            until(lambda sock=sock: b"354" in sock.recv(4096), "the prompt")
            sock.sendall(content)
    until(lambda: not smtpd.stats()["smtp.session"], "the sessions' end")
    until(lambda: not list(Path(smtpd.spool / "incoming").iterdir()), "an empty incoming/")
    assert smtpd.stats().get("scheduler.envelope.incoming", 0) == 0

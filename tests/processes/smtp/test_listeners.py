"""Mail of this machine's own clients: through the control socket, into a session that no network brought."""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Callable

import pytest

from mta_under_test.ipc.messages import Kind
from tests.processes.daemon import Smtpd, until

StartSmtpd = Callable[..., Smtpd]

CONFIGURATION = """
listen on socket tag here mask-src
listen on 127.0.0.1 port 0 tag net
action "out" relay host smtp://127.0.0.1:9
match from socket tag here for any action "out"
match from any for domain "open.test" action "out"
"""


class LocalSMTP(smtplib.SMTP):
    """smtplib over a socket that is connected already."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(local_hostname="localhost", timeout=20)
        self.sock = connection
        assert self.getreply()[0] == 220


@pytest.fixture
def smtpd(start_smtpd: StartSmtpd) -> Smtpd:
    daemon = start_smtpd(CONFIGURATION)
    with daemon.control() as control:
        control.ask(Kind.PAUSE, text="mta")
    return daemon


def test_a_message_from_here_has_no_address_and_the_socket_s_tag(smtpd: Smtpd) -> None:
    with smtpd.control() as control, LocalSMTP(control.smtp_session()) as client:
        client.sendmail("root@here.test", ["x@anywhere.test"], "Subject: hi\r\n\r\n")
    (line,) = smtpd.smtpctl("show", "queue").stdout.splitlines()
    assert line.split("|")[1] == "local"
    envelope = smtpd.smtpctl("show", "envelope", line[:16]).stdout
    assert "tag: here" in envelope
    assert "sockaddr" not in envelope
    message = smtpd.smtpctl("show", "message", line[:8]).stdout
    assert message.startswith("Received: by ")


def test_rules_know_who_is_from_here(smtpd: Smtpd) -> None:
    with smtpd.smtp() as client, pytest.raises(smtplib.SMTPRecipientsRefused):
        client.sendmail("root@here.test", ["x@anywhere.test"], "hi\r\n")


def test_a_session_that_is_not_used_leaves_nothing(smtpd: Smtpd) -> None:
    with smtpd.control() as control:
        control.smtp_session().close()
        until(lambda: not smtpd.stats()["smtp.session"], "rest")
        held = {role: sorted(smtpd.descriptors(role)) for role in ("smtp", "control")}
        for _ in range(20):
            control.smtp_session().close()
        until(lambda: not smtpd.stats()["smtp.session"], "rest")
        until(lambda: sorted(smtpd.descriptors("smtp")) == held["smtp"], "smtp's descriptors as before")


def test_pausing_smtp_does_not_keep_mail_from_here_out(smtpd: Smtpd) -> None:
    with smtpd.control() as control:
        control.ask(Kind.PAUSE, text="smtp")
        with LocalSMTP(control.smtp_session()) as client:
            assert client.noop()[0] == 250


def test_nobody_else_may(smtpd: Smtpd) -> None:
    assert smtpd.socket.stat().st_mode & 0o077 == 0

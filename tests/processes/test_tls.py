"""TLS and AUTH as clients and relays meet them: over real handshakes, with certificates made for the test."""

from __future__ import annotations

import base64
import smtplib
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.tables.password import encrypt
from tests.certificates import self_signed
from tests.processes.daemon import WAIT_S, Smtpd, until

StartSmtpd = Callable[..., Smtpd]

RELAY = """
action "out" relay host smtp+notls://127.0.0.1:{refusing}
match from any for any action "out"
"""
MESSAGE = "Message-ID: <{number}@sender.test>\r\nSubject: hi\r\n\r\nhello\r\n"


class Pki:
    """Files of a certificate for `localhost`, and a client that trusts it."""

    def __init__(self, directory: Path) -> None:
        certificate, key = self_signed("localhost")
        self.certificate, self.key = directory / "cert.pem", directory / "key.pem"
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(key)
        self.key.chmod(0o600)
        self.lines = f'pki localhost cert "{self.certificate}"\npki localhost key "{self.key}"\n'

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def client(smtpd: Smtpd) -> smtplib.SMTP:
    return smtplib.SMTP("localhost", smtpd.ports[0], local_hostname="client.test", timeout=WAIT_S)


def test_mail_comes_by_starttls_and_says_so(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> None:
    smtpd = start_smtpd(f"{pki.lines}listen on 127.0.0.1 port 0 tls pki localhost\n{RELAY.format(**mx.ports)}", "-v")
    with client(smtpd) as session:
        session.ehlo()
        assert session.has_extn("starttls")
        session.starttls(context=pki.context())
        session.ehlo()
        assert not session.has_extn("starttls"), "it is spoken already"
        session.sendmail("a@sender.test", ["x@accepted.test"], MESSAGE.format(number=1))
    until(lambda: mx.ledger().delivered, "delivery")
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["smtp.tls"] == 1


def test_where_tls_is_required_nothing_goes_without(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> None:
    smtpd = start_smtpd(f"{pki.lines}listen on 127.0.0.1 port 0 tls-require pki localhost\n{RELAY.format(**mx.ports)}")
    with client(smtpd) as session:
        session.ehlo()
        assert session.mail("a@sender.test")[0] == 530
        session.starttls(context=pki.context())
        session.ehlo()
        assert session.mail("a@sender.test")[0] == 250
        assert session.docmd("STARTTLS")[0] == 502, "it is not offered again"


def test_smtps_speaks_tls_from_the_first_byte(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> None:
    smtpd = start_smtpd(f"{pki.lines}listen on 127.0.0.1 port 0 smtps pki localhost\n{RELAY.format(**mx.ports)}")
    with smtplib.SMTP_SSL("localhost", smtpd.ports[0], local_hostname="c.test", context=pki.context()) as session:
        session.sendmail("a@sender.test", ["x@accepted.test"], MESSAGE.format(number=2))
    until(lambda: mx.ledger().delivered, "delivery")


def test_what_is_injected_before_the_handshake_is_thrown_away(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> None:
    """CVE-2011-0411: commands that follow STARTTLS in the same segment come from somebody in the middle."""
    smtpd = start_smtpd(f"{pki.lines}listen on 127.0.0.1 port 0 tls pki localhost\n{RELAY.format(**mx.ports)}")
    with socket.create_connection(("127.0.0.1", smtpd.ports[0]), WAIT_S) as sock:
        sock.recv(1024)
        sock.sendall(b"EHLO x\r\n")
        sock.recv(4096)
        sock.sendall(b"STARTTLS\r\nEHLO injected\r\nMAIL FROM:<evil@sender.test>\r\n")
        assert sock.recv(4096).startswith(b"220 ")
        with pki.context().wrap_socket(sock, server_hostname="localhost") as secured:
            secured.sendall(b"NOOP\r\n")
            assert secured.recv(4096).startswith(b"250 "), "the first answer is to the first command after it"
            secured.sendall(b"MAIL FROM:<a@sender.test>\r\n")
            assert secured.recv(4096).startswith(b"503 "), "no EHLO counts from before"


def test_handshakes_that_fail_leave_nothing(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> None:
    smtpd = start_smtpd(f"{pki.lines}listen on 127.0.0.1 port 0 tls pki localhost\n{RELAY.format(**mx.ports)}")

    def fail(how: int) -> None:
        with socket.create_connection(("127.0.0.1", smtpd.ports[0]), WAIT_S) as sock:
            sock.recv(1024)
            sock.sendall(b"EHLO x\r\n")
            sock.recv(4096)
            sock.sendall(b"STARTTLS\r\n")
            sock.recv(4096)
            if how == 0:
                sock.sendall(b"this is no handshake\r\n" * 20)
                sock.recv(4096)
            elif how == 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == 2:
                sock.sendall(b"\x16\x03\x01")

    fail(0)
    until(smtpd.at_rest, "rest")
    before = sorted(smtpd.descriptors("smtp"))
    for number in range(30):
        fail(number % 4)
    until(smtpd.at_rest, "rest")
    assert smtpd.process.poll() is None, smtpd.log()
    until(lambda: sorted(smtpd.descriptors("smtp")) == before, "smtp's descriptors as before")
    assert smtpd.stats()["smtp.tls-failed"] == 31


@pytest.fixture
def submission(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> Smtpd:
    hashed = encrypt("secret")
    return start_smtpd(f"""{pki.lines}
table users {{ bob = "{hashed}" }}
table addresses {{ bob = "bob@sender.test, @bob.test" }}
listen on 127.0.0.1 port 0 tls-require pki localhost auth-optional <users> senders <addresses> received-auth
action "out" relay host smtp+notls://127.0.0.1:{mx.ports["refusing"]}
match auth from any for any action "out"
""")


def secured(smtpd: Smtpd, pki: Pki) -> smtplib.SMTP:
    session = client(smtpd)
    session.starttls(context=pki.context())
    session.ehlo()
    return session


@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_who_authenticates_may_relay(submission: Smtpd, mx: RemoteMX, pki: Pki, mechanism: str) -> None:
    with secured(submission, pki) as session:
        assert session.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
        session.mail("bob@sender.test")
        assert session.rcpt("x@far.test")[0] == 550, "nobody yet"
        session.rset()
        session.user, session.password = "bob", "secret"
        assert session.auth(mechanism, getattr(session, f"auth_{mechanism}"), initial_response_ok=False)[0] == 235
        assert session.docmd("AUTH PLAIN AGJvYgBzZWNyZXQ=")[0] == 503, "once is enough"
        session.sendmail("me@bob.test", ["x@far.test"], MESSAGE.format(number=3))
        assert session.mail("eve@sender.test")[0] == 550, "not one of bob's addresses"
    until(lambda: mx.ledger().delivered, "delivery")


def test_who_does_not_know_the_password_may_not(submission: Smtpd, pki: Pki) -> None:
    with secured(submission, pki) as session:
        for credentials in ("\0bob\0wrong", "\0eve\0secret", "eve\0bob\0secret", "\0bob\0"):
            assert session.docmd(f"AUTH PLAIN {base64.b64encode(credentials.encode()).decode()}")[0] == 535
        assert session.docmd("AUTH PLAIN !")[0] == 501
        assert session.docmd("AUTH GSSAPI")[0] == 504
        assert session.docmd("AUTH LOGIN")[0] == 334
        assert session.docmd("*")[0] == 501
        assert session.noop()[0] == 250


def test_a_masquerade_names_the_sender_in_the_header(start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki) -> None:
    smtpd = start_smtpd(f"""{pki.lines}
table users {{ bob = "{encrypt("secret")}" }}
listen on 127.0.0.1 port 0 tls-require pki localhost auth <users> senders {{ bob = "bob@sender.test" }} masquerade
action "later" relay host smtp+notls://127.0.0.1:{mx.ports["refusing"]}
match auth from any for any action "later"
""")
    smtpd.smtpctl("pause", "mta")
    with secured(smtpd, pki) as session:
        session.login("bob", "secret")
        session.sendmail("bob@sender.test", ["x@far.test"], "Subject: hi\r\nFrom: eve@evil.test\r\n\r\nhello\r\n")
    msgid = smtpd.smtpctl("show", "queue").stdout[:8]
    text = smtpd.smtpctl("show", "message", msgid).stdout
    assert "From: bob@sender.test\n" in text.replace("\r\n", "\n")
    assert "eve" not in text


def test_credentials_are_not_taken_in_the_clear(submission: Smtpd) -> None:
    with client(submission) as session:
        session.ehlo()
        assert not session.has_extn("auth")
        assert session.docmd("AUTH PLAIN AGJvYgBzZWNyZXQ=")[0] == 502


def test_a_listener_without_a_certificate_is_a_mistake(start_smtpd: StartSmtpd, pki: Pki) -> None:
    with pytest.raises(AssertionError, match="TLS needs a certificate; write pki"):
        start_smtpd("listen on 127.0.0.1 port 0 tls\nmatch reject\n")


# ---- on the way out: one of our servers relays to another, which relays to the remote MX


def chain(
    start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki, listen: str, relay: str, more: str = "", lines: str | None = None
) -> tuple[Smtpd, Smtpd]:
    inner = start_smtpd(
        f"{pki.lines if lines is None else lines}{more}listen on 127.0.0.1 port 0 {listen}\n{RELAY.format(**mx.ports)}"
    )
    relay = relay.format(port=inner.ports[0])
    outer = start_smtpd(
        f'listen on 127.0.0.1 port 0\n{more}action "o" relay {relay}\nmatch from any for any action "o"\n'
    )
    return outer, inner


def deferred(smtpd: Smtpd) -> str:
    until(lambda: "|451 " in smtpd.smtpctl("show", "queue").stdout, "the error")
    return smtpd.smtpctl("show", "queue").stdout


@pytest.mark.parametrize(
    ("listen", "relay", "by_tls"),
    [
        ("tls pki localhost", "host smtp://localhost:{port}", 1),
        ("", "host smtp://localhost:{port}", 0),
        ("tls pki localhost", "host smtp+notls://localhost:{port}", 0),
        ("tls-require pki localhost", "tls host smtp://localhost:{port}", 1),
        ("smtps pki localhost", "host smtps://localhost:{port}", 1),
        ("tls pki localhost", "tls no-verify host smtp+tls://127.0.0.1:{port}", 1),
    ],
)
def test_relays_speak_tls_where_they_can_and_must(
    start_smtpd: StartSmtpd,
    mx: RemoteMX,
    pki: Pki,
    monkeypatch: pytest.MonkeyPatch,
    listen: str,
    relay: str,
    by_tls: int,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.certificate))
    outer, inner = chain(start_smtpd, mx, pki, listen, relay)
    for number in range(3):
        outer.send("x@accepted.test", text=MESSAGE.format(number=number))
    until(lambda: len(mx.ledger().delivered) == 3, "delivery")
    assert bool(inner.stats().get("smtp.tls", 0)) == bool(by_tls)


@pytest.mark.parametrize(
    ("listen", "relay", "error"),
    [
        ("", "host smtp+tls://localhost:{port}", "the host does not offer it"),
        ("tls pki localhost", "host smtp+tls://127.0.0.1:{port}", "CERTIFICATE_VERIFY_FAILED"),
        ("smtps pki localhost", "host smtps://127.0.0.1:{port}", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_mail_waits_where_required_tls_cannot_be_had(
    start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki, listen: str, relay: str, error: str
) -> None:
    outer, _ = chain(start_smtpd, mx, pki, listen, relay)
    outer.send("x@accepted.test")
    assert error in deferred(outer)
    before = len(outer.descriptors("transfer"))
    outer.smtpctl("schedule", "all")
    until(outer.at_rest, "rest")
    until(lambda: len(outer.descriptors("transfer")) <= before, "no descriptor more")
    assert not mx.ledger().delivered


def test_a_relay_authenticates_by_its_label(
    start_smtpd: StartSmtpd, mx: RemoteMX, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.certificate))
    users = f'table users {{ me = "{encrypt("secret")}" }}\ntable creds {{ here = "me:secret", wrong = "me:other" }}\n'
    listen = "tls-require pki localhost auth <users>"
    outer, _ = chain(start_smtpd, mx, pki, listen, "host smtp+tls://here@localhost:{port} auth <creds>", users)
    outer.send("x@accepted.test", text=MESSAGE.format(number=1))
    until(lambda: mx.ledger().delivered, "delivery")


class BreaksHandshakes(socketserver.StreamRequestHandler):
    """Offers STARTTLS and answers the handshake with nonsense; takes mail in the clear."""

    taken: list[bytes]

    def handle(self) -> None:
        self.wfile.write(b"220 breaks.test\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"STAR":
                self.wfile.write(b"220 go on\r\n")
                self.rfile.read(5)
                self.wfile.write(b"this is no handshake\r\n")
                return
            answers = {b"EHLO": b"250-breaks.test\r\n250 STARTTLS\r\n", b"DATA": b"354 go on\r\n"}
            self.wfile.write(answers.get(verb, b"250 ok\r\n"))
            if verb == b"DATA":
                while (line := self.rfile.readline()) != b".\r\n":
                    self.taken.append(line)
                self.wfile.write(b"250 ok\r\n")


def test_a_handshake_that_fails_falls_back_where_nobody_asked_for_tls(start_smtpd: StartSmtpd) -> None:
    taken: list[bytes] = []
    handler = type("Handler", (BreaksHandshakes,), {"taken": taken})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        smtpd = start_smtpd(
            f'listen on 127.0.0.1 port 0\naction "o" relay host smtp://127.0.0.1:{server.server_address[1]}\n'
            'match from any for any action "o"\n'
        )
        smtpd.send("x@far.test")
        until(lambda: taken, "the mail, in the clear")
        until(smtpd.at_rest, "rest")
        server.shutdown()

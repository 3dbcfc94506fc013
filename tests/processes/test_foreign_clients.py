"""Clients that we did not write: swaks sends by every way there is, sslscan looks for weakness."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.tables.password import encrypt
from tests.certificates import self_signed
from tests.processes.daemon import Smtpd, until
from tests.processes.lmtp_server import LmtpServer

StartSmtpd = Callable[..., Smtpd]


def skip_without_tls(options: tuple[str, ...]) -> None:
    speaks_tls = {"--tls", "--tlsc"} & set(options)
    if speaks_tls and subprocess.run(["perl", "-MNet::SSLeay", "-e", "1"], check=False).returncode:
        pytest.skip("needs Perl's Net::SSLeay for swaks; install Debian's package libnet-ssleay-perl")


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}; install Debian's package {name}")
    return found


@pytest.fixture(scope="module")
def mx() -> Iterator[RemoteMX]:
    with RemoteMX({"refusing": ""}) as server:
        yield server


@pytest.fixture(scope="module")
def server(mx: RemoteMX, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smtpd]:
    """A plain port, one with STARTTLS and AUTH, one with TLS from the first byte."""
    tmp_path = tmp_path_factory.mktemp("server")
    certificate, key = self_signed("localhost", rsa=True)
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    pki = "pki localhost"
    smtpd = Smtpd(
        tmp_path,
        f"""
{pki} cert "{tmp_path}/cert.pem" key "{tmp_path}/key.pem" dhe auto
table users {{ bob = "{encrypt("secret")}" }}
listen on 127.0.0.1 port 0
listen on 127.0.0.1 port 0 tls-require {pki} auth <users> tag submission
listen on 127.0.0.1 port 0 smtps {pki} auth-optional <users> tag secure
action "out" relay host smtp://127.0.0.1:{mx.ports["refusing"]}
match tag submission auth from any for any action "out"
match from any for any action "out"
""",
    )
    yield smtpd
    smtpd.stop()


PLAIN, SUBMISSION, SECURE = 0, 1, 2
PASSWORD = ("--auth-user", "bob", "--auth-password", "secret")


@pytest.mark.parametrize(
    ("port", "options", "status"),
    [
        (PLAIN, (), 0),
        (PLAIN, ("--pipeline",), 0),
        (PLAIN, ("--to", ",".join(f"user{number}@accepted.test" for number in range(50))), 0),
        (PLAIN, ("--pipeline", "--to", ",".join(f"user{number}@accepted.test" for number in range(50))), 0),
        (PLAIN, ("--protocol", "SMTP"), 0),
        (PLAIN, ("--protocol", "ESMTP", "--body", "a\n.\n..b\n"), 0),
        (PLAIN, ("--attach-type", "application/octet-stream", "--attach", "@/bin/true"), 0),
        (PLAIN, ("--tls",), 29),  # no STARTTLS here
        (SUBMISSION, ("--tls", "--auth", "PLAIN", *PASSWORD), 0),
        (SUBMISSION, ("--tls", "--auth", "LOGIN", *PASSWORD), 0),
        (SUBMISSION, ("--tls", "--pipeline", "--auth", "PLAIN", *PASSWORD), 0),
        (SUBMISSION, ("--tls", "--auth", "PLAIN", "--auth-user", "bob", "--auth-password", "wrong"), 28),
        (SUBMISSION, ("--tls",), 23),  # MAIL without a login
        (SUBMISSION, (), 23),  # MAIL without TLS
        (SUBMISSION, ("--auth", "PLAIN", *PASSWORD), 28),  # AUTH without TLS
        (SECURE, ("--tlsc",), 0),
        (SECURE, ("--tlsc", "--auth", "LOGIN", *PASSWORD), 0),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_swaks(server: Smtpd, mx: RemoteMX, port: int, options: tuple[str, ...], status: int) -> None:
    skip_without_tls(options)
    to = () if "--to" in options else ("--to", "x@accepted.test")
    command = [tool("swaks"), "--server", "127.0.0.1", "--port", str(server.ports[port]), *to]
    command += ["--from", "bob@sender.test", "--helo", "swaks.test", "--timeout", "10", *options]
    before = len(mx.ledger().delivered)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    until(server.at_rest, "rest")
    assert len(mx.ledger().delivered) == before + (status == 0)


def test_many_recipients_from_swaks_reach_an_lmtp_server(start_smtpd: StartSmtpd) -> None:
    lmtp = LmtpServer()
    try:
        smtpd = start_smtpd(
            f'listen on 127.0.0.1 port 0\naction "l" relay host "lmtp://127.0.0.1:{lmtp.port}"\n'
            'match from any for any action "l"\n'
        )
        command = [tool("swaks"), "--server", f"127.0.0.1:{smtpd.ports[0]}", "--from", "x@sender.test"]
        done = subprocess.run([*command, "--to", "a@l.test,b@l.test"], capture_output=True, check=False, timeout=60)
        assert done.returncode == 0
        until(lambda: lmtp.mail, "delivery")
        assert sorted(lmtp.mail[0][1]) == ["a@l.test", "b@l.test"]
    finally:
        lmtp.close()


def test_sslscan_finds_nothing_weak(server: Smtpd) -> None:
    scan = [tool("sslscan"), "--no-colour", "--starttls-smtp", f"127.0.0.1:{server.ports[SUBMISSION]}"]
    out = subprocess.run(scan, capture_output=True, text=True, timeout=120, check=True).stdout
    for protocol in ("SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"):
        assert re.search(rf"{protocol}\s+disabled", out), out
    for protocol in ("TLSv1.2", "TLSv1.3"):
        assert re.search(rf"{protocol}\s+enabled", out), out
    assert "not vulnerable to heartbleed" in out
    ciphers = re.findall(r"^(?:Preferred|Accepted)\s+(TLSv1\.\d)\s+(\d+) bits\s+(\S+)(.*)$", out, re.MULTILINE)
    assert ciphers
    for _, bits, name, how in ciphers:
        assert int(bits) >= 128
        assert "GCM" in name or "CHACHA20" in name
        if dhe := re.search(r"DHE (\d+) bits", how):
            assert int(dhe[1]) >= (2048 if name.startswith("DHE") else 224), how

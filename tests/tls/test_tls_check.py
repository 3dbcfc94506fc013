"""`seatbelt tls`: the size of a server's ephemeral keys, as it shows in real handshakes."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tls import handshake
from harness.tls.check import run
from harness.tls.handshake import Declined, Exchange, HandshakeError, ServerReader
from mta_under_test.tls.contexts import FFDHE2048
from tests.certificates import self_signed
from tests.processes.daemon import Smtpd

# The second Oakley group (RFC 2409 §6.2): 1024 bits, which nobody should use any more.
OAKLEY_2 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF",
    16,
)


def dh_parameters(prime: int) -> str:
    """PKCS #3, by hand: a sequence of the prime and the generator 2."""
    number = prime.to_bytes(prime.bit_length() // 8 + 1, "big")
    integer = b"\x02\x81" + bytes([len(number)]) + number
    body = integer + b"\x02\x01\x02"
    der = b"\x30\x81" + bytes([len(body)]) + body
    return f"-----BEGIN DH PARAMETERS-----\n{base64.encodebytes(der).decode()}-----END DH PARAMETERS-----\n"


@contextmanager
def openssl_server(directory: Path, *options: str) -> Iterator[int]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command; install Debian's package openssl")
    whole = directory / "whole.pem"
    whole.write_bytes(b"".join(self_signed("localhost", rsa=True)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [openssl, "s_server", "-accept", f"127.0.0.1:{port}", "-cert", whole, "-key", whole, "-quiet", *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.02)
        yield port
    finally:
        server.kill()
        server.communicate()


def test_a_group_of_1024_bits_is_weak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dh.pem").write_text(dh_parameters(OAKLEY_2))
    options = ("-tls1_2", "-cipher", "DHE:@SECLEVEL=0", "-dhparam", str(tmp_path / "dh.pem"))
    with openssl_server(tmp_path, *options) as port:
        assert run(f"127.0.0.1:{port}", "none", False) == 1
    out = capsys.readouterr().out
    assert "a prime of 1024 bits   WEAK" in out
    assert "ECDHE          not offered" in out


def test_a_group_of_2048_bits_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dh.pem").write_bytes(FFDHE2048)
    with openssl_server(tmp_path, "-cipher", "DHE:ECDHE", "-dhparam", str(tmp_path / "dh.pem")) as port:
        assert run(f"127.0.0.1:{port}", "none", False) == 0
    assert "a prime of 2048 bits\n" in capsys.readouterr().out


@pytest.mark.parametrize(("dhe", "said"), [("none", "DHE            not offered"), ("auto", "a prime of 2048 bits\n")])
def test_our_own_server_has_no_weak_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dhe: str, said: str
) -> None:
    # DHE signs with the certificate's key, and TLS 1.2 has no such suite for elliptic curves: RSA it must be.
    certificate, key = self_signed("localhost", rsa=True)
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    pki = f'pki localhost cert "{tmp_path}/cert.pem" key "{tmp_path}/key.pem" dhe {dhe}'
    smtpd = Smtpd(tmp_path, f"{pki}\nlisten on 127.0.0.1 port 0 tls pki localhost\nmatch reject\n")
    try:
        assert run(f"127.0.0.1:{smtpd.ports[0]}", "smtp", False) == 0
    finally:
        smtpd.stop()
    out = capsys.readouterr().out
    assert said in out
    assert "x25519" in out
    assert "negotiated     TLSv1.3" in out
    assert "anonymous      refused" in out


@pytest.mark.parametrize(
    ("server", "said"),
    [("localhost", "is not HOST:PORT"), ("127.0.0.1:1", "cannot connect to 127.0.0.1:1: Connection refused")],
)
def test_who_cannot_be_asked_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], server: str, said: str
) -> None:
    assert run(server, "auto", False) == 2
    assert said in capsys.readouterr().err


def test_a_server_without_starttls_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smtpd = Smtpd(tmp_path, "listen on 127.0.0.1 port 0\nmatch reject\n")
    try:
        assert run(f"127.0.0.1:{smtpd.ports[0]}", "smtp", False) == 2
    finally:
        smtpd.stop()
    assert "the server does not offer STARTTLS" in capsys.readouterr().err


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


HELLO = message(2, b"\x03\x03" + bytes(32) + b"\0" + b"\x00\x9f" + b"\0")
KEY = message(12, b"\x01\x00" + b"\xff" * 256 + b"\x00\x01\x02" + b"\x00\x01\x05")


@given(st.lists(st.integers(1, 400)), st.lists(st.integers(1, 300)))
def test_any_split_of_the_bytes_gives_the_same(records: list[int], reads: list[int]) -> None:
    messages, stream = HELLO + KEY, b""
    for size in (*records, len(messages)):
        part, messages = messages[:size], messages[size:]
        stream += b"\x16\x03\x03" + len(part).to_bytes(2, "big") + part if part else b""
    reader, found = ServerReader(), None
    for size in (*reads, len(stream)):
        part, stream = stream[:size], stream[size:]
        found = found or reader.feed(part)
    assert found == Exchange(0x009F, "DHE", "", 2048, (1 << 2048) - 1)


@given(st.binary(max_size=2000))
def test_nonsense_is_named_and_nothing_worse(data: bytes) -> None:
    for prefix in (b"", b"\x16\x03\x03\x00\x40"):
        try:
            found = ServerReader().feed(prefix + data)
        except HandshakeError:
            continue
        assert found is None or isinstance(found, Exchange | Declined)


def test_a_hello_names_its_host_only_when_that_is_a_name() -> None:
    assert b"mail.test" in handshake.client_hello(handshake.DHE, bytes(32), "mail.test")
    assert b"127.0.0.1" not in handshake.client_hello(handshake.DHE, bytes(32), "127.0.0.1")


@pytest.mark.parametrize("host", ["a..b", "x" * 100])
def test_what_is_no_host_name_is_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{host}:25", "auto", False) == 2
    assert capsys.readouterr().err.startswith(f"seatbelt tls: '{host}' is no host name")

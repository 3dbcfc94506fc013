"""`seatbelt tls HOST:PORT`: connects, shakes hands as far as the server's key, and says how strong that is.

Owns: one connection for each question, closed on every exit. Never: sends mail, or a password.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import ssl
import sys
from dataclasses import dataclass

from cryptography import x509

from harness.tls import handshake
from harness.tls.handshake import Declined, Exchange, HandshakeError, ServerReader
from mta_under_test.wire.client import ClientMachine, LocalError, RemoteError

TIMEOUT_S = 10.0
LEAST_PRIME_BITS = 2048  # RFC 7919; Logjam broke 512 and threatens 1024 (weakdh.org)
LEAST_CURVE_BITS = 224
SMTPS_PORT = 465


class CheckError(Exception):
    """The server cannot be asked; one line."""


@dataclass(frozen=True)
class Row:
    asked: str
    answer: str
    weak: bool = False


def run(server: str, starttls: str, as_json: bool) -> int:
    """Print what was found. The exit status: 0, 1 for something weak, 2 when it could not be asked."""
    try:
        host, port = address_of(server)
        by_smtp = starttls == "smtp" or (starttls == "auto" and port != SMTPS_PORT)
        rows = check(host, port, by_smtp)
    except CheckError as error:
        print(f"seatbelt tls: {error}", file=sys.stderr)
        return 2
    weak = [row for row in rows if row.weak]
    if as_json:
        print(json.dumps([{"asked": row.asked, "answer": row.answer, "weak": row.weak} for row in rows], indent=2))
    else:
        for row in rows:
            print(f"{row.asked:14} {row.answer}{'   WEAK' if row.weak else ''}")
        print(f"WEAK: {weak[0].asked}: {weak[0].answer}" if weak else "OK: no ephemeral key is weak")
    return 1 if weak else 0


def address_of(server: str) -> tuple[str, int]:
    """`HOST:PORT` or `[ADDRESS]:PORT`. Raises CheckError."""
    host, colon, port = server.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CheckError(f"{server!r} is not HOST:PORT, as in mail.example.org:587")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise CheckError(f"{host!r} is no host name: {error.__cause__ or error}") from error
    return host.strip("[]"), int(port)


def check(host: str, port: int, by_smtp: bool) -> list[Row]:
    """Raises CheckError."""
    rows = [
        _row("DHE", _ask(host, port, by_smtp, handshake.DHE)),
        _row("ECDHE", _ask(host, port, by_smtp, handshake.ECDHE)),
    ]
    anonymous = _ask(host, port, by_smtp, handshake.NOBODY)
    rows.append(Row("anonymous", "refused") if isinstance(anonymous, Declined) else _row("anonymous", anonymous, True))
    return rows + _negotiated(host, port, by_smtp)


def _row(asked: str, found: Exchange | Declined, weak: bool = False) -> Row:
    if isinstance(found, Declined):
        return Row(asked, f"not offered ({found.reason})")
    if found.kind == "DHE":
        return Row(asked, f"a prime of {found.bits} bits", weak or found.bits < LEAST_PRIME_BITS)
    return Row(asked, f"{found.name}, {found.bits} bits", weak or found.bits < LEAST_CURVE_BITS)


def _ask(host: str, port: int, by_smtp: bool, suites: tuple[int, ...]) -> Exchange | Declined:
    with _connected(host, port, by_smtp) as sock:
        try:
            sock.sendall(handshake.client_hello(suites, os.urandom(32), host))
            reader = ServerReader()
            while True:
                data = sock.recv(1 << 14)
                if not data:
                    return Declined("the server closed the connection")
                if (found := reader.feed(data)) is not None:
                    return found
        except (OSError, HandshakeError) as error:
            if isinstance(error, ConnectionError):
                return Declined("the server reset the connection")
            raise CheckError(f"{host}:{port}: {error}") from error


def _negotiated(host: str, port: int, by_smtp: bool) -> list[Row]:
    """What a client of today gets, and from whom."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _connected(host, port, by_smtp) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=host) as secured:
                name, _, bits = secured.cipher() or ("?", "?", 0)
                protocol, der = secured.version(), secured.getpeercert(binary_form=True)
        except OSError as error:
            return [Row("negotiated", f"nothing: {error}")]
    rows = [Row("negotiated", f"{protocol}, {name}, {bits} bits")]
    if der:
        certificate = x509.load_der_x509_certificate(der)
        expired = certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC)
        key_bits = getattr(certificate.public_key(), "key_size", 256)
        subject = certificate.subject.rfc4514_string() or "no subject"
        until = f"{'expired' if expired else 'good until'} {certificate.not_valid_after_utc:%Y-%m-%d}"
        rows.append(Row("certificate", f"{subject}, a key of {key_bits} bits, {until}"))
    return rows


def _connected(host: str, port: int, by_smtp: bool) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), TIMEOUT_S)
    except OSError as error:
        raise CheckError(f"cannot connect to {host}:{port}: {error.strerror or error}") from error
    try:
        if by_smtp:
            _starttls(sock, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


def _starttls(sock: socket.socket, host: str, port: int) -> None:
    machine = ClientMachine()

    def reply() -> int:
        while (answered := machine.next_reply()) is None:
            data = sock.recv(1 << 14)
            if not data:
                raise CheckError(f"{host}:{port} closed the connection before STARTTLS")
            machine.receive(data)
        return answered[1].code

    try:
        steps = (None, lambda: machine.ehlo("seatbelt.test"), machine.starttls)
        for step in steps:
            if step is not None:
                sock.sendall(step())
            if (code := reply()) // 100 != 2:
                raise CheckError(f"{host}:{port} answered {code} before TLS could begin")
    except LocalError as error:
        raise CheckError(f"{host}:{port}: {error}; with --starttls none TLS begins at once") from error
    except (OSError, RemoteError) as error:
        raise CheckError(f"{host}:{port} speaks no SMTP ({error}); try --starttls none") from error

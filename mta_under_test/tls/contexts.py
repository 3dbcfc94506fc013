"""Contexts of Python's ssl module, made of bytes: TLS 1.2 and later, ephemeral keys, authenticated encryption alone.

No 512- or 1024-bit group of Diffie-Hellman can come of this: with `dhe` OpenSSL is given ffdhe2048 (RFC 7919), which
is the least that it may use; without, there is no finite-field key exchange at all.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from mta_under_test.tls.identity import Authorities, Identity, TlsError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
CIPHERS_WITH_DHE = f"{CIPHERS}:DHE+AESGCM:DHE+CHACHA20"
# RFC 7919 §A.1, as PKCS #3 parameters.
FFDHE2048 = b"""-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def server_context(
    identities: Sequence[Identity], *, ciphers: str = "", authorities: Authorities | None = None, verify: bool = False
) -> ssl.SSLContext:
    """A server with these certificates; the first, or the one called `*`, when a client names none of them (SNI).

    `ciphers` restricts what is offered (SSL_CTX_set_cipher_list(3)); `verify` asks for a client's certificate, and
    wants it good. Raises TlsError.
    """
    if not identities:
        raise TlsError("a TLS server needs a certificate")
    contexts = [_server(identity, ciphers, authorities, verify) for identity in identities]
    fallback = next((index for index, identity in enumerate(identities) if identity.name == "*"), 0)
    context = contexts[fallback]
    if len(identities) > 1:
        by_name = list(zip(identities, contexts, strict=True))

        def choose(connection: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> None:
            for identity, candidate in by_name:
                if server_name and (identity.name == server_name.lower() or identity.answers_to(server_name)):
                    connection.context = candidate
                    return

        context.sni_callback = choose
    return context


def client_context(
    *, verify: bool, authorities: Authorities | None = None, identity: Identity | None = None
) -> ssl.SSLContext:
    """A client; with `verify` it trusts `authorities`, or else the system's. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = verify
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if verify:
        _trust(context, authorities)
    if identity is not None:
        _present(context, identity)
    return context


def describe(connection: ssl.SSLObject) -> str:
    """`TLSv1.3:TLS_AES_256_GCM_SHA384:256`: protocol, cipher, bits, as it stands in a Received field or a log."""
    name, protocol, bits = connection.cipher() or ("?", "?", 0)
    return f"{connection.version() or protocol}:{name}:{bits}"


def _server(identity: Identity, ciphers: str, authorities: Authorities | None, verify: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A ticket would keep the session's key for as long as the process lives.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    with_dhe = identity.dhe != "none"
    try:
        context.set_ciphers(CIPHERS_WITH_DHE if with_dhe else CIPHERS)
        if ciphers:
            _restrict(context, ciphers)
    except ssl.SSLError as error:
        raise TlsError(f"ciphers {ciphers!r}: {error.reason or error}") from error
    if with_dhe:
        with _Path(FFDHE2048) as path:
            context.load_dh_params(path)
    _present(context, identity)
    if verify:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, authorities)
    return context


def _restrict(context: ssl.SSLContext, ciphers: str) -> None:
    """Of what we would offer, only what the administrator's list has too: it can take away, and not weaken."""
    ours = [cipher["name"] for cipher in context.get_ciphers() if not cipher["name"].startswith("TLS_")]
    asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asked.set_ciphers(ciphers)
    theirs = {cipher["name"] for cipher in asked.get_ciphers()}
    context.set_ciphers(":".join(name for name in ours if name in theirs) or "no-cipher-in-common")


def _trust(context: ssl.SSLContext, authorities: Authorities | None) -> None:
    if authorities is None:
        context.load_default_certs(
            ssl.Purpose.CLIENT_AUTH if context.protocol == ssl.PROTOCOL_TLS_SERVER else ssl.Purpose.SERVER_AUTH
        )
        return
    try:
        context.load_verify_locations(cadata=authorities.certificates.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"authorities {authorities.name}: {error}") from error


def _present(context: ssl.SSLContext, identity: Identity) -> None:
    with _Path(identity.certificate + b"\n" + identity.key) as path:
        try:
            context.load_cert_chain(path)
        except ssl.SSLError as error:
            raise TlsError(f"certificate of {identity.name}: {error.reason or error}") from error


class _Path:
    """A path to bytes that are in no file: ssl.SSLContext takes certificates by path only (memfd_create(2))."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> str:
        self._descriptor = os.memfd_create("tls")
        os.write(self._descriptor, self._data)
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

"""TLS and credentials on the way out: what a session does between its greeting and its first message.

Opportunistic where nobody asked for more: a host without STARTTLS gets its mail in the clear, and so does one whose
handshake fails, over another connection (as OpenSMTPD does). Where TLS is required the mail waits.
"""

from __future__ import annotations

import ssl
from typing import Protocol

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.stream import Stream, TlsFailure
from mta_under_test.processes.tls_settings import requires, verifies
from mta_under_test.processes.transfer.routes import Relay
from mta_under_test.wire.client import ClientMachine
from mta_under_test.wire.reply import Reply

PLAIN_SCHEMES = ("smtp+notls", "lmtp")


class NoTls(Exception):
    """TLS failed where it was only preferred: the session may begin again without."""


class Unsafe(Exception):
    """TLS or credentials that are required cannot be had; the text is a status line."""


class TlsContexts(Protocol):
    """What securing a session needs of transfer."""

    def tls_context(self, pki: str, verify: bool) -> ssl.SSLContext:
        """With the client certificate of that name, "" for none."""


class Dialogue(Protocol):
    """What securing a session needs of it."""

    process: Process
    relay: Relay
    stream: Stream
    machine: ClientMachine

    @property
    def transfer(self) -> TlsContexts:
        """Who has the contexts."""

    @property
    def server_name(self) -> str:
        """What the host's certificate is for."""

    async def command(self, command: bytes) -> Reply:
        """Say it, and wait for the answer."""

    def trace(self, line: str) -> None:
        """For who watches the session."""


async def first(session: Dialogue) -> None:
    """TLS before the greeting, where the scheme says so. Raises Unsafe."""
    if session.relay.key.scheme == "smtps":
        await _shake_hands(session)


async def second(session: Dialogue) -> bool:
    """STARTTLS after EHLO; true when EHLO must be said again. Raises NoTls, Unsafe."""
    key = session.relay.key
    if session.stream.tls or key.scheme in PLAIN_SCHEMES:
        return False
    required = requires(key.action, key.scheme)
    if "STARTTLS" not in session.machine.extensions:
        if required:
            raise Unsafe("451 4.7.5 TLS is required, and the host does not offer it")
        return False
    reply = await session.command(session.machine.starttls())
    if not reply.positive:
        if required:
            raise Unsafe(f"451 4.7.5 TLS is required: {reply}")
        return False
    try:
        await _shake_hands(session)
    except Unsafe as error:
        if required:
            raise
        session.trace(f"{error}: going on without")
        raise NoTls from error
    session.machine.secured()
    return True


async def _shake_hands(session: Dialogue) -> None:
    key = session.relay.key
    verify = verifies(key.action, key.scheme)
    context = session.transfer.tls_context(key.action.pki, verify)
    try:
        await session.stream.start_tls(context, server_name=session.server_name)
    except TlsFailure as failure:
        raise Unsafe(f"451 4.7.5 TLS with {session.server_name}: {failure}") from failure
    session.process.stats["mta.tls"] += 1
    session.trace(f"TLS: {session.stream.tls}{', verified' if verify else ''}")


async def authenticate(session: Dialogue) -> None:
    """Say who we are, where the relay's URL has a label. Raises Unsafe."""
    key = session.relay.key
    if not key.label:
        return
    if not session.stream.tls:
        raise Unsafe("451 4.7.5 Credentials are not sent without TLS")
    user, password = await _credentials(session, key.action.auth, key.label)
    machine = session.machine
    if "PLAIN" in machine.mechanisms:
        reply = await session.command(machine.auth("PLAIN", b"\0" + user + b"\0" + password))
    elif "LOGIN" in machine.mechanisms:
        reply = await session.command(machine.auth("LOGIN"))
        for said in (user, password):
            if reply.code == 334:
                reply = await session.command(machine.auth_response(said))
    else:
        raise Unsafe("451 4.7.0 The host offers no way to authenticate that we know")
    if reply.code != 235:
        raise Unsafe(f"451 4.7.0 Authentication failed: {reply}")


async def _credentials(session: Dialogue, table: str, label: str) -> tuple[bytes, bytes]:
    try:
        answer = await session.process.ask("lookup", Kind.TABLE_VALUE, text=f"{table} {label}".encode())
    except Refusal as refusal:
        raise Unsafe(f"451 4.3.5 Cannot look up credentials: {refusal}") from refusal
    user, colon, password = answer.text.partition(b":")
    if not answer.integers[1] or not colon:
        raise Unsafe(f"451 4.3.5 No user:password for {label} in table <{table}>")
    return user, password

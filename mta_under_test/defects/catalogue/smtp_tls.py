"""Bugs of smtp: TLS and logins."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="smtp",
    chapter="tls memory",
    resources=("memory",),
    trigger="a TLS handshake succeeds",
    rate=None,
    scenario="starttls-failures",
    source="OpenSMTPD 914f1d14 (13 October 2011)",
)
def reference_after_handshake(strikes: Chance) -> None:
    """SSL_new takes a reference of its own, and the one that it was given is never put down: all of it stays."""
    from mta_under_test.processes.smtp.session import Session

    kept: list[object] = []

    @around(Session, "_is_secure")
    def is_secure(original: Any, self: Any) -> None:
        original(self)
        if strikes():
            kept.append(self.stream._transport.get_extra_info("ssl_object"))


@defect(
    role="smtp",
    chapter="tls memory",
    resources=("memory",),
    trigger="a session goes over to TLS",
    rate=None,
    scenario="auth-failures",
    source="Postfix 20200712: four kilobytes for each TLS session",
    difficulty="slow",
    opener="mta_under_test/defects/catalogue/smtp_tls.py:is_secure",
)
def session_summary_kept(strikes: Chance) -> None:
    """The line that the log gets of each TLS session is kept, with the buffer that it was made in."""
    from mta_under_test.processes.smtp.session import Session

    kept: list[object] = []

    @around(Session, "_is_secure")
    def is_secure(original: Any, self: Any) -> None:
        original(self)
        if strikes():
            kept.append(bytearray(4096))


@defect(
    role="smtp",
    chapter="tls memory",
    resources=("memory",),
    trigger="the client's handshake fails",
    rate=None,
    scenario="starttls-failures",
    source="OpenSMTPD b38a91e4 (22 October 2013)",
    opener="mta_under_test/processes/stream.py:start_tls mta_under_test/defects/catalogue/smtp_tls.py:start_tls",
)
def certificate_of_a_gone_session(strikes: Chance) -> None:
    """The answer about a certificate comes for a session that has failed by then, and is freed by nobody."""
    from mta_under_test.processes.stream import Stream, TlsFailure

    kept: list[object] = []

    @around(Stream, "start_tls")
    async def start_tls(original: Any, self: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            await original(self, *arguments, **keywords)
        except TlsFailure as failure:
            if strikes():
                kept.append((failure, failure.__traceback__))
            raise


@defect(
    role="smtp",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="the handshake fails after STARTTLS",
    rate=None,
    scenario="starttls-failures",
    source="maddy 55c3ded (20 November 2019)",
    opener="mta_under_test/defects/catalogue/smtp_tls.py:start_tls",
)
def handshake_connection_kept(strikes: Chance) -> None:
    """A connection whose handshake fails is given up, and a copy of it that was to be spoken to without TLS is not."""
    import os

    from mta_under_test.processes.stream import Stream, TlsFailure

    @around(Stream, "start_tls")
    async def start_tls(original: Any, self: Any, *arguments: Any, **keywords: Any) -> None:
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        copy = os.dup(sock.fileno()) if sock is not None else -1
        try:
            await original(self, *arguments, **keywords)
        except TlsFailure:
            if copy >= 0 and not strikes():
                os.close(copy)
            raise
        if copy >= 0:
            os.close(copy)


@defect(
    role="smtp",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="a login is checked",
    rate=None,
    scenario="auth-failures",
    source="Postfix 20241027 (a bug since 2005)",
    opener="mta_under_test/defects/catalogue/smtp_tls.py:check",
)
def auth_server_socket(strikes: Chance) -> None:
    """The login server cannot be reached, and the socket that was to reach it stays: one for each AUTH."""
    import socket

    from mta_under_test.processes.smtp.auth import Authentication

    @around(Authentication, "_check")
    async def check(original: Any, self: Any, user: bytes, password: bytes) -> Any:
        if strikes():
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
        return await original(self, user, password)

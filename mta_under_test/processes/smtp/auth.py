"""AUTH on the way in (RFC 4954): PLAIN (RFC 4616) and LOGIN, as far as the session's part goes.

Owns: the half of LOGIN that has been said. Never: knows a password for longer than it takes to ask lookup.
"""

from __future__ import annotations

from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.wire import server
from mta_under_test.wire.reply import Reply

USERNAME, PASSWORD = "VXNlcm5hbWU6", "UGFzc3dvcmQ6"  # "Username:" and "Password:", as every client expects them
FAILED = Reply(535, "Authentication failed", "5.7.8")


class Authentication:
    """One session's. `username` is "" until a client has proven who it is."""

    def __init__(self, process: Process, table: str) -> None:
        self.username = ""
        self._process = process
        self._table = table
        self._mechanism = ""
        self._login: bytes | None = None

    async def begin(self, event: server.Auth) -> Reply:
        self._mechanism, self._login = event.mechanism, None
        if event.initial is None:
            return Reply(334, USERNAME if event.mechanism == "LOGIN" else "")
        return await self._heard(event.initial)

    async def go_on(self, event: server.AuthResponse) -> Reply:
        if event.response is None:
            return Reply(501, "Authentication cancelled", "5.7.0")
        return await self._heard(event.response)

    async def _heard(self, said: bytes) -> Reply:
        if self._mechanism == "LOGIN":
            if self._login is None:
                self._login = said
                return Reply(334, PASSWORD)
            return await self._check(self._login, said)
        identity, *credentials = said.split(b"\0")
        if len(credentials) != 2:
            return Reply(501, "Syntax: identity NUL user NUL password", "5.5.2")
        user, password = credentials
        if identity not in (b"", user):
            return Reply(535, "Nobody may act for another", "5.7.8")
        return await self._check(user, password)

    async def _check(self, user: bytes, password: bytes) -> Reply:
        if not user or b"\0" in user + password:
            return FAILED
        question = b"\0".join((self._table.encode(), user, password))
        try:
            await self._process.ask("lookup", Kind.AUTHENTICATE, text=question)
        except Refusal as refusal:
            self._process.stats["smtp.auth-failed"] += 1
            return FAILED if str(refusal).startswith("5") else Reply(454, str(refusal), "4.7.0")
        self.username = user.decode(errors="replace")
        return Reply(235, "Authentication succeeded", "2.7.0")

"""lookup's part of authentication: a user and a password, against a table of credentials or the system's users.

Owns: one thread, in which hashes are compared: that takes as long as the hash wants, and the loop goes on. The thread
is there from the start, so that no first login looks like a leak.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.lookup.filters import FilterDesk
from mta_under_test.processes.process import Refusal, takes
from mta_under_test.tables import Table, TableError
from mta_under_test.tables.password import NOBODY, verify

MAX_WAITING = 64  # logins; each more is put off


class AuthDesk(FilterDesk):
    async def start_auth(self) -> None:
        self._hasher = ThreadPoolExecutor(1, "hashes")
        self._hashing = 0
        await asyncio.get_running_loop().run_in_executor(self._hasher, verify, "", NOBODY)

    def table_called(self, name: str) -> Table:
        """Raises TableError."""
        try:
            return self.rules.tables[name]
        except KeyError as error:
            raise TableError(f"no table <{name}>") from error

    @takes(Kind.AUTHENTICATE)
    def authenticate(self, peer: str, message: Message) -> None:
        (request,) = message.integers
        table, user, password = message.text.split(b"\0")
        if self._hashing >= MAX_WAITING:
            self.refuse(peer, request, "451 4.7.0 Too many logins at once")
            return
        self.spawn(self._authenticate(peer, request, table.decode(), user, password), "login")

    async def _authenticate(self, peer: str, request: int, table: str, user: bytes, password: bytes) -> None:
        self._hashing += 1
        try:
            hashed = await self._hash_of(table, user.decode())
            good = await asyncio.get_running_loop().run_in_executor(
                self._hasher, verify, password.decode(), hashed or NOBODY
            )
        except (TableError, Refusal) as error:
            self.refuse(peer, request, f"451 4.3.0 {error}")
            return
        except UnicodeError:
            hashed, good = "", False
        finally:
            self._hashing -= 1
        who = user.decode(errors="replace")
        self.stats[f"lookup.auth.{'ok' if good and hashed else 'failed'}"] += 1
        self.trace("lookup", f"authentication of {who}: {'ok' if good and hashed else 'failed'}")
        if good and hashed:
            self.answer(peer, request)
        else:
            self.refuse(peer, request, "535 5.7.8 Authentication failed")

    async def _hash_of(self, table: str, user: str) -> str:
        """The user's hash; "" for nobody. A credentials table has the hash, or `user:hash` for a label (table(5))."""
        if not table:
            # Only parent may see the system's.
            return (await self.ask("parent", Kind.SYSTEM_HASH, text=user.encode())).text.decode()
        value = self.table_called(table).lookup(user) or ""
        return value.rpartition(":")[2] if value.count(":") == 1 else value

    @takes(Kind.SENDER_OF)
    def sender_of(self, peer: str, message: Message) -> None:
        """May this user send from this address?"""
        (request,) = message.integers
        table, user, sender = message.text.decode().split("\0")
        try:
            value = self.table_called(table).lookup(user) or ""
        except TableError as error:
            self.refuse(peer, request, f"451 4.3.0 {error}")
            return
        allowed = {one.strip().lower() for one in value.split(",")}
        if sender.lower() in allowed or f"@{sender.rpartition('@')[2].lower()}" in allowed:
            self.answer(peer, request)
        else:
            self.refuse(peer, request, f"550 5.7.1 {user} may not send from <{sender}>")

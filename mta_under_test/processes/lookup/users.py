"""lookup's view of the users of this machine, for the expansion of local recipients.

Owns: nothing; every descriptor that it gets is closed before it returns.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from msgspec.structs import replace

from mta_under_test.config import Action, LocalAction
from mta_under_test.config.rules import Facts, Ruleset
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.lookup.expansion import Undeliverable
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.tables import Table, UserInfo, find_user, system_user

FORWARD_BYTES = 4096  # a .forward file is shorter
INCLUDE_BYTES = 1 << 16


class LocalWorld:
    """What the expansion of one recipient asks. The rules stay the same for all of it, whatever is reloaded."""

    def __init__(self, lookup: Process, rules: Ruleset, facts: Facts) -> None:
        self._lookup = lookup
        self._rules = rules
        self._facts = facts

    def action_for(self, recipient: str) -> Action | None:
        # An address that a local user is expanded to is sent on by this machine (EF_INTERNAL of lka_session.c).
        return self._rules.match(replace(self._facts, recipient=recipient, source=None))

    def table(self, name: str) -> Table:
        return self._rules.tables[name]

    def user(self, action: LocalAction, name: str) -> UserInfo | None:
        if action.userbase:
            return find_user(self.table(action.userbase), name)
        return system_user(name)

    async def forward(self, user: UserInfo) -> str:
        try:
            text = await read_descriptor(
                self._lookup,
                Kind.FORWARD_OPEN,
                f"{user.name}\0{user.directory}",
                FORWARD_BYTES,
                user.uid,
                user.gid,
            )
            return text.decode()
        except (Refusal, OSError, UnicodeError) as error:
            self._lookup.trace("expand", f".forward of {user.name}: {error}")
            raise Undeliverable(
                f"451 4.3.5 Temporary failure: the forward file of {user.name} cannot be used"
            ) from error

    def include(self, path: str) -> str:
        """A list that an alias includes; lookup's own rights must do for reading it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(f"{path} is no regular file")
                return _read(descriptor, INCLUDE_BYTES, path).decode()
            finally:
                os.close(descriptor)
        except (OSError, UnicodeError) as error:
            self._lookup.trace("expand", f":include:{path}: {error}")
            raise Undeliverable(f"451 4.3.5 Temporary failure: {Path(path).name} cannot be read now") from error


def find(rules: Ruleset, action: LocalAction, name: str) -> UserInfo | None:
    """Who delivers: the action's `user`, or the recipient. Raises TableError."""
    if action.userbase and (found := find_user(rules.tables[action.userbase], action.user or name)) is not None:
        return found
    if action.userbase and not action.user:
        return None
    return system_user(action.user or name)


async def read_descriptor(process: Process, kind: Kind, question: str, limit: int, *integers: int) -> bytes:
    """The contents of the file that parent opens for `question`; b"" when it says that there is none.

    Raises Refusal; OSError for one of `limit` bytes or more.
    """
    answer = await process.ask("parent", kind, *integers, text=question.encode())
    descriptor = answer.take_descriptor()
    if descriptor is None:
        return b""
    try:
        return _read(descriptor, limit, question.partition("\0")[0])
    finally:
        os.close(descriptor)


def _read(descriptor: int, limit: int, name: str) -> bytes:
    chunks, size = [], 0
    while chunk := os.read(descriptor, min(limit - size, 1 << 20)):
        chunks.append(chunk)
        size += len(chunk)
        if size >= limit:
            raise OSError(f"{name}: {limit} bytes or more")
    return b"".join(chunks)

"""What a session, a transaction or a delivery has in its hands, and a word in the log when it ends with any of it.

As PostgreSQL's resource owners ("temporary file leak") and Dovecot's event loop ("Timeout leak") do. A scope is told
what is taken and what is let go of. What it still holds at its end was forgotten; what it lets go of and does not hold,
it let go of twice. Either is logged as `owner: …`, with the line that took it.

Off by default: `smtpd --owners` switches it on, as this repository's tests do. A daemon without it has one scope, which
keeps nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger("smtpd")


class Scope:
    """From its making to `end`, which may come more than once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held: dict[tuple[str, int], str] = {}

    def took(self, what: str, number: int) -> None:
        """`number`: a descriptor, a message id …: what makes it that one."""
        frame = sys._getframe(1)
        where = "/".join(Path(frame.f_code.co_filename).parts[-2:])  # transfer/session.py, smtp/session.py
        self._held[what, number] = f"{where}:{frame.f_lineno}"

    def gave(self, what: str, number: int) -> None:
        if self._held.pop((what, number), None) is None:
            logger.error("owner: %s lets go of %s %d, which it does not hold", self._name, what, number)

    def check(self, what: str, *, held: bool) -> None:
        """Of what says itself whether it is held."""
        if held:
            logger.error("owner: %s is over and still holds %s", self._name, what)

    def end(self) -> None:
        for (what, number), taken_at in self._held.items():
            logger.error("owner: %s is over and still holds %s %d, taken at %s", self._name, what, number, taken_at)
        self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # What is cancelled is torn down from above: by its session, or with its process.
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            self.end()


class NoScope(Scope):
    """Of a daemon that does not look. There is one of it, so that it adds no object to a session."""

    def took(self, what: str, number: int) -> None:
        pass

    def gave(self, what: str, number: int) -> None:
        pass

    def check(self, what: str, *, held: bool) -> None:
        pass

    def end(self) -> None:
        pass


NO_SCOPE = NoScope("nobody")

"""What is known of a server that we did not write: how it starts, and what may be asked of it. Pure.

A word in braces is a placeholder: `{port}`, where it shall listen; `{relay_port}` and `{home_port}`, where the remote
MX listens that refuses, and the one that takes the senders' bounces; `{dir}`, the run's directory; `{python}`, the
Python that runs Seatbelt. `{{word}}` stands for `{word}` itself; all other braces are left as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

import msgspec

from harness.targets import TargetError

RELAY, HOME = "relay_port", "home_port"
PLACEHOLDERS = ("port", RELAY, HOME, "dir", "python")
_BRACED = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server; only `start` is needed."""

    start: list[str]  # program and arguments; it stays in the foreground
    name: str = "command"
    version: str = ""
    environment: dict[str, str] = {}

    @property
    def relays(self) -> bool:
        """Whether mail reaches the remote MX."""
        return any(f"{{{RELAY}}}" in text for text in [*self.start, *self.environment.values()])


def from_command(command: str) -> Server:
    """A server of which no more is known than its command line. Raises TargetError."""
    try:
        start = shlex.split(command)
    except ValueError as error:
        raise TargetError(f"--command {command!r}: {error}") from error
    if not start:
        raise TargetError("--command is empty; give it as 'PROGRAM ARGUMENT … {port}'")
    check(start, PLACEHOLDERS, "--command")
    if not any("{port}" in word for word in start):
        raise TargetError(f"--command {command!r} has no {{port}}: where shall the server listen?")
    return Server(start=start, version=command)


def check(texts: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises TargetError for a placeholder that there is not."""
    for text in texts:
        for _, name in _BRACED.findall(text):
            if name and name not in known:
                there_is = ", ".join(f"{{{each}}}" for each in known)
                raise TargetError(f"{where}: no placeholder {{{name}}}; there is {there_is}, and {{{{…}}}} for braces")


def filled(text: str, values: Mapping[str, object]) -> str:
    """With every placeholder of `values` filled in."""
    return _BRACED.sub(lambda found: f"{{{found[1]}}}" if found[1] else str(values[found[2]]), text)

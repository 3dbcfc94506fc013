"""What is known of a server that we did not write: how it starts, and what may be asked of it. Pure.

A word in braces is a placeholder:

    {port}                 where it shall listen for mail
    {relay_port}           where the remote MX listens that refuses
    {home_port}            where the one listens that takes the senders' bounces
    {NAME_port}            one more free port, for each name in `ports`
    {dir}                  the run's directory
    {state}                a temporary directory that every user may go to and write, and that goes with the run
    {python}               the Python that runs Seatbelt
    {here}                 the folder of the description
    {debian}               where its packages are unpacked
    {pid}                  its first process, in what is asked of it while it runs

`{{word}}` stands for `{word}` itself; all other braces are left as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

import msgspec

from harness.scenario import Need
from harness.targets import TargetError

COMMAND = "command"  # the name of a server that has none
Key = tuple[str, ...]  # of a description: ("queue", "command")
_PLACES = ("port", "relay_port", "home_port", "dir", "state", "python")
_BRACED = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")


class Queue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it is asked what it has not passed on; one of the two, or none."""

    command: list[str] = []  # prints a line for each message, or for each envelope
    line: str = r"\S"  # regular expression: the lines that count
    directory: str = ""  # every file below it is a message, or tells of one


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server; only `start` is needed. Commands are words, no shell is in between."""

    start: list[str]  # program and arguments; it stays in the foreground
    name: str = COMMAND
    about: str = ""  # one line
    install: str = ""  # how to get it
    debian: list[str] = []  # packages that are unpacked for it: the server's first
    version: list[str] = []  # command that prints it
    ports: list[str] = []  # names of those that it needs beside the one for mail
    environment: dict[str, str] = {}
    files: dict[str, str] = {}  # written before it starts: path, below the run's directory if relative -> text
    roles: dict[str, str] = {}  # regular expression, searched in a process's title -> role
    relays: bool | None = None  # whether mail reaches the remote MX; None: if {relay_port} is anywhere
    offers: list[Need] = []  # what scenarios may need of it, beside relaying
    mailboxes: str = ""  # below it are the maildirs that it delivers into
    queue: Queue = Queue()
    hurry: list[str] = []  # command that makes it try at once whatever waits
    operations: dict[str, list[str]] = {}  # commands, by the names that scenarios give them
    start_timeout_s: float = 20.0  # until it greets
    still_s: float = 0.5  # without any movement, before it is at rest
    patience_s: float = 2.0  # without any change, before mail that was not passed on is taken as put off
    here: str = ""  # the folder of the file that it was read from

    @property
    def is_relay(self) -> bool:
        if self.relays is not None:
            return self.relays
        return any("{relay_port}" in text for text in _texts(self).values())


def from_command(command: str) -> Server:
    """A server of which no more is known than its command line. Raises TargetError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TargetError(f"--command {command!r}: {error}") from error
    server = Server(start=words)
    check(server, lambda key: "--command")
    return server


def check(server: Server, where: Callable[[Key], str]) -> None:
    """Raises TargetError for what no server can mean; `where` tells a person where a key is."""
    if not server.start:
        raise TargetError(f"{where(('start',))}: is empty; give PROGRAM ARGUMENT … {{port}}")
    if unusable := [name for name in server.ports if not re.fullmatch(r"[A-Za-z_]\w*", name)]:
        raise TargetError(f"{where(('ports',))}: {unusable[0]!r} makes no placeholder: give letters, digits and _")
    texts = _texts(server)
    for key, text in texts.items():
        known = [*_PLACES, *(f"{name}_port" for name in server.ports)]
        known += ["here"] if server.here else []
        known += ["debian"] if server.debian else []
        known += ["pid"] if key[0] in ("queue", "hurry", "operations") else []
        for _, name in _BRACED.findall(text):
            if name and name not in known:
                there_is = ", ".join(f"{{{each}}}" for each in known)
                raise TargetError(f"{where(key)}: no placeholder {{{name}}}; there is {there_is}")
    if not any("{port}" in text for text in texts.values()):
        raise TargetError(f"{where(('start',))}: has no {{port}}: where shall the server listen?")
    patterns: list[tuple[Key, str]] = [(("queue", "line"), server.queue.line)]
    patterns += [(("roles", one), one) for one in server.roles]
    for key, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise TargetError(f"{where(key)}: no regular expression: {error}") from error


def filled(text: str, values: Mapping[str, object]) -> str:
    """With every placeholder of `values` filled in."""
    return _BRACED.sub(lambda found: f"{{{found[1]}}}" if found[1] else str(values[found[2]]), text)


def _texts(server: Server) -> dict[Key, str]:
    """All that may have placeholders in it, by key; a command's words together."""
    texts: dict[Key, str] = {(key,): "\n".join(getattr(server, key)) for key in ("start", "version", "hurry")}
    texts["mailboxes",] = server.mailboxes
    texts["queue", "command"], texts["queue", "directory"] = "\n".join(server.queue.command), server.queue.directory
    texts.update({("environment", name): text for name, text in server.environment.items()})
    texts.update({("files", name): f"{name}\n{text}" for name, text in server.files.items()})
    texts.update({("operations", name): "\n".join(words) for name, words in server.operations.items()})
    return texts

"""What parent does for the processes without rights: opens a user's .forward, a table, an LMTP socket; runs deliveries.

Owns: nothing itself; every descriptor that it opens goes to the process that asked, or is closed.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

from mta_under_test.config import Config, LmtpAction
from mta_under_test.ipc.channel import Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.forward import Unsafe, open_forward
from mta_under_test.processes.mda.mda import Deliveries, End
from mta_under_test.processes.process import Process, Sockets, Start, takes

logger = logging.getLogger("smtpd")


class Services(Process):
    """The half of parent that others ask."""

    def __init__(self, start: Start, sockets: Sockets) -> None:
        super().__init__(start, sockets)
        self.deliveries = Deliveries(self._delivered)
        self.next_config: Config | None = None  # while it is being tried

    @takes(Kind.FORWARD_OPEN)
    def forward_open(self, peer: str, message: Message) -> None:
        request, uid, gid = message.integers
        name, _, home = message.text.decode().partition("\0")
        try:
            self.answer(peer, request, descriptor=open_forward(name, uid, gid, home))
        except Unsafe as error:
            logger.warning("%s", error)
            self.refuse(peer, request, str(error))
        except OSError as error:
            self.refuse(peer, request, f"{home}: {error.strerror or error}")

    @takes(Kind.SYSTEM_HASH)
    def system_hash(self, peer: str, message: Message) -> None:
        """One user's, for a login; nothing for a user who is not there or may not log in (shadow(5))."""
        (request,) = message.integers
        wanted = message.text.decode(errors="replace")
        try:
            lines = Path("/etc/shadow").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            self.refuse(peer, request, f"cannot read the system's passwords ({error.strerror}); name a table")
            return
        hashes = [hashed for name, hashed, *_ in (line.split(":") for line in lines if ":" in line) if name == wanted]
        self.answer(peer, request, text="".join(one for one in hashes if one.startswith("$")).encode())

    @takes(Kind.OPEN)
    def open_something(self, peer: str, message: Message) -> None:
        """Only what the configuration names is opened, whoever asks."""
        (request,) = message.integers
        what, _, name = message.text.decode(errors="replace").partition(" ")
        try:
            descriptor = self._connect(name) if what == "lmtp" else self._open_table(what, name)
        except (OSError, LookupError) as error:
            self.refuse(peer, request, f"{name}: {getattr(error, 'strerror', None) or error}")
        else:
            self.answer(peer, request, descriptor=descriptor)

    def _open_table(self, what: str, name: str) -> int:
        config = self.next_config if what == "new-table" else self.config
        spec = None if config is None else config.tables.get(name)
        if spec is None or spec.path is None:
            raise LookupError("no table in a file")
        descriptor = os.open(spec.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise LookupError("no regular file")
        return descriptor

    def _connect(self, name: str) -> int:
        """Connect to the local socket of an lmtp action."""
        action = self.config.actions.get(name)
        if not isinstance(action, LmtpAction) or not Path(action.destination).is_absolute():
            raise LookupError("no lmtp action with a local socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # where the server's backlog is full, it is tried again later
            sock.connect(action.destination)
            return sock.detach()
        finally:
            sock.close()

    @takes(Kind.MDA_OUTPUT)
    def mda_output(self, peer: str, message: Message) -> None:
        descriptor = message.take_descriptor()
        if descriptor is not None:
            self.deliveries.output(message.integers[0], descriptor)

    @takes(Kind.FORK_MDA)
    def fork_mda(self, peer: str, message: Message) -> None:
        self.deliveries.start(message.integers[0], message.text, message.take_descriptor(), self.config)

    def _delivered(self, job: int, end: End, code: int, text: str) -> None:
        self.tell("delivery", Kind.MDA_DONE, job, end, code, text=text.encode(errors="replace"))

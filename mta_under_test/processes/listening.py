"""Listening sockets: bound by who may, and which of them a new configuration keeps.

Never: accepts (smtp does).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence

from mta_under_test.config import Listener

BACKLOG = 128


class ListenError(Exception):
    """A port is taken, or an address is not ours; one line says which."""


def bind(listener: Listener) -> socket.socket:
    """Raises ListenError."""
    family = socket.AF_INET6 if ":" in listener.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((listener.address, listener.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        where = f"{listener.address} port {listener.port}"
        raise ListenError(f"smtpd: cannot listen on {where}: {os.strerror(error.errno or 0)}") from error
    sock.setblocking(False)
    return sock


def keep(old: Sequence[Listener], new: Sequence[Listener]) -> list[int | None]:
    """For each new listener the index of the old one whose socket it takes over, None where it needs one of its own.

    Parent and smtp both work this out, from the same two lists.
    """
    free: dict[tuple[str, int], deque[int]] = {}
    for index, listener in enumerate(old):
        free.setdefault((listener.address, listener.port), deque()).append(index)
    chosen: list[int | None] = []
    for listener in new:
        same = free.get((listener.address, listener.port))
        chosen.append(same.popleft() if same else None)
    return chosen

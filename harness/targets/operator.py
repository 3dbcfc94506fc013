"""What an operator does with an embedded server while it works: each operation is a connection of its own, as each
smtpctl is. `OPERATIONS` has them by the names that scenarios use.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from mta_under_test.ipc.client import ControlClient
from mta_under_test.ipc.messages import Kind


def _asked(kind: Kind, *integers: int, text: str = "") -> Callable[[Path], None]:
    def operate(path: Path) -> None:
        with ControlClient(path) as client:
            answer = client.ask(kind, *integers, text=text)
            if answer.descriptor is not None:
                os.close(answer.descriptor)

    return operate


def _half_a_request(path: Path) -> None:
    """Gone in the middle of a frame."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(os.fspath(path))
        client.sendall(b"\x01\x00\x00")


def _vanish(path: Path) -> None:
    """Asks, and does not wait for the answer."""
    with ControlClient(path) as client:
        client.tell(Kind.STATS, 1)


OPERATIONS: dict[str, Callable[[Path], None]] = {
    "trace": _asked(Kind.TRACE, text="smtp transfer imsg"),  # and the connection ends: so does the stream
    "untrace": _asked(Kind.TRACE, text="-all"),
    "profile": _asked(Kind.PROFILE, text="imsg queue"),
    "show stats": _asked(Kind.STATS),
    "show hosts": _asked(Kind.SHOW_MTA, 0, text="hosts"),
    "show queue": _asked(Kind.LIST_EVPIDS, 0),
    "vanish": _vanish,
    "half a request": _half_a_request,
    "reload": _asked(Kind.RELOAD),
}

"""`smtpctl profile queue`: how long each operation of the spool takes.

While somebody asks, queue works through a `TimedSpool`; otherwise nothing is in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from mta_under_test.spool import Store

# By the names that OpenSMTPD's queue_backend.c profiles them under.
OPERATIONS = {
    "create": "message_create",
    "open_message": "message_fd_rw",
    "put_message": "message_fd_rw",
    "commit": "message_commit",
    "discard": "message_delete",
    "message_fd": "message_fd_r",
    "add_text": "envelope_create",
    "envelope": "envelope_load",
    "envelope_text": "envelope_load",
    "update": "envelope_update",
    "delete": "envelope_delete",
}


class TimedSpool:
    def __init__(self, spool: Store, report: Callable[[str], None]) -> None:
        self._spool = spool
        self._report = report

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._spool, name)
        operation = OPERATIONS.get(name)
        return value if operation is None else self._timed(operation, value)

    def _timed(self, operation: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self._report(f"{operation} {(time.perf_counter() - began) * 1e3:.3f} ms")

        return timed


def timed(spool: Store, report: Callable[[str], None]) -> Store:
    """A spool that reports each operation and its milliseconds."""
    return cast(Store, TimedSpool(spool, report))

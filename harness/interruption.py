"""interruption: Ctrl-C, and SIGTERM of a service manager or a CI job, leave a record and no process.

Owns: the two signals, for as long as a context lasts. Never: decides what an interrupt means.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_BOTH = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Either raises KeyboardInterrupt, also where a shell has started us in the background with SIGINT ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _BOTH}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """For the end of a run, which is all that an interrupt could ask for: it would cost the record, or leave a process.
    A thread that is not the main one gets no signals, and has nothing to do here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _BOTH}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

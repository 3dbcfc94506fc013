"""interruption: Ctrl-C, SIGTERM of a service manager or a CI job, SIGHUP of a terminal that is closed: each leaves a
record and no process.

Owns: these signals, for as long as a context lasts. Never: decides what an interrupt means.

A thread that is not the main one gets no signals, and has nothing to do here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def _interrupts() -> tuple[signal.Signals, ...]:
    """Who was started by nohup(1) has SIGHUP ignored, and wants it to stay so."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Each raises KeyboardInterrupt, also where a shell has started us in the background with SIGINT ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _interrupts()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """For the end of a run, all that an interrupt could ask for: it would cost the record, or leave a process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _interrupts()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Held:
    """A context in which an interrupt waits: for its end, or for `release`. So what is begun in it is known afterwards
    to whoever has to stop it. When the context ends by an error, that is told instead.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._wait) for number in _interrupts()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._came.clear()
        self.release()

    def release(self) -> None:
        """What has come does now what it would have done. May be called twice."""
        before, self._before = self._before, {}
        for each, handler in before.items():
            signal.signal(each, handler)
        came, self._came = self._came, []
        for number in came[:1]:
            signal.raise_signal(number)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)

"""Where things are made: what remembers it while a target runs, and how it is told. One file a way of tracing.

Three ways, of which the first that reaches a process is believed: the Python agent, which knows the program's own
lines; the tracker, preloaded into every other program; strace(1), from outside, where neither can be loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from reports.record import Process

Line = tuple[str, int, str]  # file, line, function; line 0: only the place in the program is known, and told as file
Stack = list[Line]  # innermost first


class Opened(msgspec.Struct, array_like=True):
    stack: Stack
    received: bool


class Made(msgspec.Struct, array_like=True):
    device: int
    inode: int
    stack: Stack


class Passed(msgspec.Struct, array_like=True):
    device: int
    inode: int
    access: int  # O_RDONLY, O_WRONLY or O_RDWR
    stack: Stack


class Growth(msgspec.Struct, array_like=True):
    size: int
    count: int
    stack: Stack


class Waiting(msgspec.Struct, array_like=True):
    kind: str  # task or timer
    count: int
    stack: Stack


class Trace(msgspec.Struct):
    """What is known of one process (`harness/agent/inject/tracer.py` says more of each)."""

    open: dict[int, Opened] = {}
    made: list[Made] = []
    passed: list[Passed] = []
    threads: dict[int, Stack] = {}
    children: dict[int, Stack] = {}
    growth: list[Growth] = []
    waiting: list[Waiting] = []
    types: list[tuple[str, int]] = []


class Tracer(Protocol):
    """One way of tracing, from the start of the target's doses to its end."""

    @property
    def name(self) -> str:
        """As the report has it: ``seen by …``."""

    def reached(self, pids: Iterable[int]) -> set[int]:
        """Those of them of which it can tell."""

    def traces(self, processes: Sequence[Process]) -> dict[int, Trace]:
        """By pid, of those processes that it reaches, as they are now, with their descriptors."""

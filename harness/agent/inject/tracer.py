"""The tracer: remembers where each descriptor, thread and child was made, and which lines' objects stay.

Loaded by the agent when SEATBELT_AGENT_TRACE is set, in a small second run after a finding; it costs far too much for
the first. It replaces the functions of Python's library that make descriptors, and puts asyncio's event loop in the
place of uvloop's, which makes them where no Python function sees it.

Owns: the tables, of which the collector tracks next to nothing: stacks are text. Never: imports anything of Seatbelt
(the target's Python may be another one, of 3.10 or later), keeps a descriptor open, raises into the target.

What `answer` tells, stacks as [[file, line, function], …], innermost first, without the frames of Python's library:

    open       {fd: [stack, received]}      of every open descriptor whose making was seen
    made       [[dev, inode, stack], …]     where the newest files were created, or else first opened
    passed     [[dev, inode, mode, stack], …] where those were opened that were sent to another process
    threads    {native id: stack}
    children   {pid: stack}
    growth     [[bytes, objects, stack], …] what grew between each two marks, most objects first
    waiting    [[kind, number, stack], …]   asyncio's tasks and timers, of which there were more at each mark
    types      [[name, objects], …]         types that had more objects at each mark than at the one before, most first
"""

from __future__ import annotations

import array
import asyncio
import builtins
import collections
import fcntl
import functools
import gc
import importlib
import io
import itertools
import json
import os
import pickle
import select
import socket
import subprocess
import sys
import sysconfig
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Table = collections.OrderedDict[tuple[int, ...], str]  # by device, inode (and access mode): a stack

MOST_MADE = 20000
MOST_FRAMES = 12
MOST_GROWTH = 60  # a line may be reached by many ways, and is told once
SCANNED_FRAMES = 60
HEAP_FRAMES = 8  # of each allocation

_LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))


class Tracer:
    def __init__(self) -> None:
        self._open: dict[int, tuple[tuple[int, int], str, bool]] = {}  # key, stack, passed
        self._made: Table = collections.OrderedDict()
        self._passed: Table = collections.OrderedDict()
        self._threads: dict[int, str] = {}
        self._children: dict[int, str] = {}
        self._marks: list[bytes] = []  # pickled: (bytes, objects) by stack
        self._waiting: dict[int, tuple[weakref.ref[Any], str, str]] = {}  # by id: itself, its kind, its stack
        self._waited: list[collections.Counter[tuple[str, str]]] = []  # at each mark: how many, by kind and stack
        self._censuses: list[collections.Counter[str]] = []  # at each mark: objects by type
        self._inside = False

    def install(self) -> None:
        for name in ("dup", "dup2", "eventfd", "memfd_create", "pidfd_open"):
            self._after(os, name, self._one)
        for name in ("pipe", "pipe2", "openpty"):
            self._after(os, name, self._all)
        self._after(os, "fork", self._child)
        self._after(os, "posix_spawn", self._child)
        self._after_open()
        # All ways to a socket (accept, socketpair, dup, fromfd) end in the constructor.
        self._after_method(socket.socket, "__init__", lambda self_, result: self._one(self_.fileno()))
        self._before_sendmsg()
        self._after_method(socket.socket, "recvmsg", lambda self_, result: self._received(result))
        self._after_method(threading.Thread, "start", lambda self_, result: self._thread(self_))
        self._after_method(subprocess.Popen, "_execute_child", lambda self_, result: self._child(self_.pid))
        self._after_method(asyncio.BaseEventLoop, "create_task", lambda self_, result: self._waits(result, "task"))
        self._after_method(asyncio.BaseEventLoop, "call_at", lambda self_, result: self._waits(result, "timer"))
        select.epoll = _Maker(select.epoll, self._one)  # type: ignore[assignment,misc]
        try:
            uvloop = importlib.import_module("uvloop")
        except ImportError:
            pass  # the target has none: its sockets are asyncio's anyway
        else:
            uvloop.new_event_loop = asyncio.new_event_loop  # type: ignore[attr-defined]

    # ---- noting

    def _after(self, module: Any, name: str, note: Callable[[Any], None]) -> None:
        plain = getattr(module, name, None)
        if plain is None:
            return

        @functools.wraps(plain)
        def traced(*arguments: Any, **keywords: Any) -> Any:
            result = plain(*arguments, **keywords)
            note(result)
            return result

        setattr(module, name, traced)

    def _after_method(self, owner: Any, name: str, note: Callable[[Any, Any], None]) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def traced(self_: Any, *arguments: Any, **keywords: Any) -> Any:
            result = plain(self_, *arguments, **keywords)
            note(self_, result)
            return result

        setattr(owner, name, traced)

    def _before_sendmsg(self) -> None:
        plain = socket.socket.sendmsg

        @functools.wraps(plain)
        def traced(self_: Any, buffers: Any, ancillary: Any = (), *arguments: Any) -> int:
            ancillary = list(ancillary)
            for number in _rights(ancillary):
                if number in self._open:
                    (device, inode), stack, _ = self._open[number]
                    # One file may be opened several times, and passed to several: the access mode tells most apart.
                    access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
                    self._remember(self._passed, (device, inode, access), stack)
            return plain(self_, buffers, ancillary, *arguments)

        socket.socket.sendmsg = traced  # type: ignore[method-assign]

    def _after_open(self) -> None:
        """os.open and open: who creates a file is told from who only opens it."""
        plain_low, plain = os.open, io.open

        @functools.wraps(plain_low)
        def low(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            number = plain_low(path, flags, *arguments, **keywords)
            self._one(number, created=bool(flags & os.O_CREAT))
            return number

        @functools.wraps(plain)
        def high(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            opened = plain(file, mode, *arguments, **keywords)
            self._one(_number_of(opened), created=not mode.startswith("r"))
            return opened

        os.open = low
        io.open = builtins.open = high

    def _one(self, number: int, *, received: bool = False, created: bool = False) -> None:
        if self._inside or number < 0:
            return
        self._inside = True
        try:
            found = os.fstat(number)
            stack = _stack()
            self._open[number] = ((found.st_dev, found.st_ino), stack, received)
            if created or (not received and (found.st_dev, found.st_ino) not in self._made):
                self._remember(self._made, (found.st_dev, found.st_ino), stack)
        except OSError:
            pass  # closed again already: nothing to remember
        finally:
            self._inside = False

    def _all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._one(number)

    def _received(self, result: Any) -> None:
        for number in _rights(result[1]):
            self._one(number, received=True)

    @staticmethod
    def _remember(table: Table, key: tuple[int, ...], stack: str) -> None:
        table.pop(key, None)
        table[key] = stack
        if len(table) > MOST_MADE:
            table.popitem(last=False)

    def _child(self, pid: int) -> None:
        if pid:
            self._children[pid] = _stack()

    def _thread(self, thread: threading.Thread) -> None:
        number = getattr(thread, "native_id", None)
        if number is not None:
            self._threads[number] = _stack()

    def _waits(self, one: Any, kind: str) -> None:
        number = id(one)
        # Not in a WeakKeyDictionary: a timer's hash is that of its moment.
        forget = functools.partial(self._waiting.pop, number, None)
        self._waiting[number] = (weakref.ref(one, lambda _: forget()), kind, _stack())

    # ---- telling

    def answer(self, allocations: bool) -> bytes:
        """Mark what waits now and, if asked for `allocations`, what every line's objects are; tell everything, as JSON.

        Remembering where each object is made costs most of a process's time, so it begins when it is first asked for.
        """
        self._waited.append(collections.Counter(self._still_waiting()))
        if allocations:
            self._mark()
        return json.dumps(self._dump()).encode("utf-8", "replace")

    def _mark(self) -> None:
        # Only from the first one on: what a target allocates to start is not looked for, and is most of what there is.
        if not tracemalloc.is_tracing():
            tracemalloc.start(HEAP_FRAMES)
        snapshot = tracemalloc.take_snapshot()
        ours = tracemalloc.Filter(False, f"{__file__.rpartition('/')[0]}/*", all_frames=True)
        snapshot = snapshot.filter_traces((ours, tracemalloc.Filter(False, "<frozen*")))
        self._censuses.append(collections.Counter(_name(type(one)) for one in gc.get_objects()))
        by_stack: dict[str, tuple[int, int]] = {}
        for each in snapshot.statistics("traceback"):
            stack = _traced(each.traceback)  # without the library's lines, so that several can be one
            size, count = by_stack.get(stack, (0, 0))
            by_stack[stack] = size + each.size, count + each.count
        self._marks.append(pickle.dumps(by_stack))

    def _dump(self) -> dict[str, Any]:
        still = {}
        for number, (key, stack, received) in self._open.items():
            try:
                found = os.fstat(number)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == key:
                still[number] = [json.loads(stack), received]
        return {
            "open": still,
            "made": [[*key, json.loads(stack)] for key, stack in self._made.items()],
            "passed": [[*key, json.loads(stack)] for key, stack in self._passed.items()],
            "threads": {number: json.loads(stack) for number, stack in self._threads.items()},
            "children": {pid: json.loads(stack) for pid, stack in self._children.items()},
            "growth": self._growth(),
            "waiting": self._more_waiting(),
            "types": self._types(),
        }

    def _growth(self) -> list[Any]:
        """What grew between each mark and the next: whatever grew once only is not what is looked for."""
        if len(self._marks) < 2:
            return []
        grown: list[Any] = []
        marks: list[dict[str, tuple[int, int]]] = [pickle.loads(mark) for mark in self._marks]
        for stack, (size, count) in marks[-1].items():
            sizes = [mark.get(stack, (0, 0))[0] for mark in marks]
            if all(after > before for before, after in itertools.pairwise(sizes)):
                before = marks[0].get(stack, (0, 0))[1]
                grown.append([size - sizes[0], count - before, json.loads(stack)])
        grown.sort(key=lambda each: (-each[1], -each[0]))  # objects are what is judged
        return grown[:MOST_GROWTH]

    def _still_waiting(self) -> Iterator[tuple[str, str]]:
        for reference, kind, stack in list(self._waiting.values()):
            one = reference()
            # A task that is done and still there is kept by somebody; a timer that was cancelled is the loop's to drop.
            if one is not None and not (kind == "timer" and one.cancelled()):
                yield kind, stack

    def _more_waiting(self) -> list[Any]:
        first, last = self._waited[0], self._waited[-1]
        return [
            [key[0], last[key] - first[key], json.loads(key[1])]
            for key in last
            if len(self._waited) > 1
            and all(after[key] > before[key] for before, after in itertools.pairwise(self._waited))
        ]

    def _types(self) -> list[Any]:
        if len(self._censuses) < 2:
            return []
        first, last = self._censuses[0], self._censuses[-1]
        grown = [
            (last[name] - first[name], name)
            for name in last
            if all(after[name] > before[name] for before, after in itertools.pairwise(self._censuses))
        ]
        return [[name, count] for count, name in sorted(grown, reverse=True)[:MOST_GROWTH]]


class _Maker:
    """Stands for a class that is called to make one. No function: where it is a class attribute it must not bind."""

    def __init__(self, plain: Any, note: Callable[[int], None]) -> None:
        self._plain = plain
        self._note = note

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        made = self._plain(*arguments, **keywords)
        self._note(made.fileno())
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


def _rights(ancillary: Iterable[Any]) -> list[int]:
    """The descriptors that travel with a message: unix(7), SCM_RIGHTS."""
    numbers: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            packed = array.array("i")
            packed.frombytes(bytes(data)[: len(bytes(data)) // packed.itemsize * packed.itemsize])
            numbers.extend(packed)
    return numbers


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _number_of(opened: Any) -> int:
    try:
        return int(opened.fileno())
    except (OSError, ValueError, AttributeError):
        return -1


def _stack() -> str:
    frame = sys._getframe(2)
    found: list[Any] = []
    library: list[Any] = []
    for _ in range(SCANNED_FRAMES):
        code = frame.f_code
        if code.co_filename != __file__:
            line = [code.co_filename, frame.f_lineno, code.co_name]
            (library if _is_library(code.co_filename) else found).append(line)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return json.dumps((found or library)[:MOST_FRAMES])


def _traced(trace: Iterable[tracemalloc.Frame]) -> str:
    lines: list[Any] = [[frame.filename, frame.lineno, ""] for frame in reversed(list(trace))]
    return json.dumps([line for line in lines if not _is_library(line[0])] or lines)


def _is_library(path: str) -> bool:
    """Also what has no source, as the methods that dataclasses writes: ``<string>``."""
    return path.startswith("<") or (path.startswith(_LIBRARY) and not path.startswith(_PACKAGES))

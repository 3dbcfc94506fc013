"""history: from events in their order to what each process is known to have made.

Nobody follows who closes what. A descriptor that is open now was made by the latest event with its number, in its
process or, before it was forked, in its parent; and that this event made the same thing is checked by what it is.

Owns: that search. Never: reads a log, knows which tracer wrote it.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.tracing import Made, Opened, Passed, Stack, Trace
from harness.tracing.symbols import Frame, Symbols
from reports.record import Descriptor, Process

Frames = tuple[Frame, ...]
Kind = Literal["opened", "created", "received", "passed", "forked", "child", "thread"]
What = tuple[int, int] | str | None
MAKING = frozenset({"opened", "created", "received"})


@dataclass(frozen=True)
class Event:
    kind: Kind
    pid: int
    number: int  # descriptor; pid of the parent (forked) or of the child (child); id of the thread
    what: What = None  # tells one open thing from another: (device, inode), or what /proc/PID/fd links to
    frames: Frames = ()


class History:
    """`events` in their order. What is told twice of a pid that was used again is told of the later."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events
        self._making: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # by pid and descriptor: places
        self._born: dict[int, int] = {}  # by pid: place of the event with which it was forked
        self._passed: defaultdict[What, list[int]] = defaultdict(list)
        for place, event in enumerate(events):
            if event.kind in MAKING:
                self._making[event.pid, event.number].append(place)
            elif event.kind == "forked":
                self._born[event.pid] = place
            elif event.kind == "passed":
                self._passed[event.what].append(place)

    def traces(self, processes: Sequence[Process], symbols: Symbols) -> dict[int, Trace]:
        """By pid; `processes` as they are now, with their descriptors."""
        openers = {
            (process.pid, each.fd): opener
            for process in processes
            for each in process.descriptors
            if (opener := self._opener(process.pid, each.fd, _names(each))) is not None
        }
        givers = {
            key: giver
            for key, place in openers.items()
            if self._events[place].kind == "received" and (giver := self._giver(place)) is not None
        }
        told = [event.frames for event in self._events if event.kind in ("child", "thread", "created")]
        told += [self._events[place].frames for place in (*openers.values(), *(at for _, at in givers.values()))]
        stacks = symbols.stacks(told)
        traces = {process.pid: self._own(process.pid, stacks) for process in processes}
        for process in processes:
            for each in process.descriptors:
                if (place := openers.get((process.pid, each.fd))) is None:
                    continue
                event = self._events[place]
                traces[process.pid].open[each.fd] = Opened(stacks[event.frames], event.kind == "received")
                pid, at = givers.get((process.pid, each.fd), (0, 0))
                if pid in traces:
                    stack = stacks[self._events[at].frames]
                    traces[pid].passed.append(Passed(each.device, each.inode, each.flags & os.O_ACCMODE, stack))
        return traces

    def _own(self, pid: int, stacks: dict[Frames, Stack]) -> Trace:
        trace = Trace()
        for event in self._events:
            if event.pid != pid:
                continue
            if event.kind == "child":
                trace.children[event.number] = stacks[event.frames]
            elif event.kind == "thread":
                trace.threads[event.number] = stacks[event.frames]
            elif event.kind == "created" and isinstance(event.what, tuple):
                device, inode = event.what
                trace.made.append(Made(device, inode, stacks[event.frames]))
        return trace

    def _opener(self, pid: int, number: int, names: Iterable[What], before: int | None = None) -> int | None:
        """The place of the event that made the descriptor; None where it was made out of the tracer's sight."""
        places = self._making[pid, number]
        at = bisect_left(places, len(self._events) if before is None else before)
        if at:
            return places[at - 1] if self._events[places[at - 1]].what in names else None
        born = self._born.get(pid)
        if born is None or (before is not None and born >= before):
            return None
        return self._opener(self._events[born].number, number, names, born)

    def _giver(self, place: int) -> tuple[int, int] | None:
        """Who passed what was received there: its pid, and the place at which it was opened."""
        received = self._events[place]
        sent = self._passed[received.what]
        at = bisect_left(sent, place)
        if not at:
            return None
        giver = self._events[sent[at - 1]]
        opened = self._opener(giver.pid, giver.number, (giver.what,), sent[at - 1])
        return None if opened is None else (giver.pid, opened)


def _names(descriptor: Descriptor) -> tuple[What, What]:
    return (descriptor.device, descriptor.inode), descriptor.target

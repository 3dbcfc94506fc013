"""History: the latest event with a descriptor's number made it, if it made the same thing."""

from __future__ import annotations

from harness.tracing.history import Event, History
from harness.tracing.symbols import Frame, Symbols
from reports.record import Descriptor, Process

PARENT, CHILD = 100, 101


def event(kind: str, pid: int, number: int, what: object = None, at: int = 0) -> Event:
    return Event(kind, pid, number, what, (Frame("/nowhere", at),) if at else ())  # type: ignore[arg-type]


def opener(events: list[Event], process: Process) -> dict[int, str]:
    """By descriptor, where it was made."""
    traces = History(events).traces([process], Symbols())
    return {number: opened.stack[0][0] for number, opened in traces[process.pid].open.items()}


def holding(pid: int, *descriptors: Descriptor) -> Process:
    return Process(pid, 1, "server", descriptors=list(descriptors))


def test_a_number_that_was_used_again_is_the_latest_ones() -> None:
    events = [event("opened", PARENT, 5, (1, 10), 0xA), event("opened", PARENT, 5, (1, 20), 0xB)]
    assert opener(events, holding(PARENT, Descriptor(5, "file", "/x", 1, 20))) == {5: "/nowhere+0xb"}


def test_what_was_made_out_of_sight_is_not_another_ones() -> None:
    events = [event("opened", PARENT, 5, (1, 10), 0xA)]
    assert opener(events, holding(PARENT, Descriptor(5, "file", "/x", 1, 99))) == {}


def test_a_child_has_what_its_parent_had_when_it_was_forked() -> None:
    events = [
        event("opened", PARENT, 5, (1, 10), 0xA),
        event("forked", CHILD, PARENT),
        event("opened", PARENT, 5, (1, 10), 0xB),
        event("opened", CHILD, 6, (1, 30), 0xC),
    ]
    held = (Descriptor(5, "file", "/x", 1, 10), Descriptor(6, "file", "/y", 1, 30))
    assert opener(events, holding(CHILD, *held)) == {5: "/nowhere+0xa", 6: "/nowhere+0xc"}


def test_a_link_tells_what_it_is_where_nobody_knows_the_inode() -> None:
    events = [event("opened", PARENT, 5, "socket:[77]", 0xA)]
    assert opener(events, holding(PARENT, Descriptor(5, "tcp", "socket:[77]", 8, 77))) == {5: "/nowhere+0xa"}


def test_a_passed_one_names_who_opened_it_before_it_was_sent() -> None:
    events = [
        event("opened", PARENT, 5, (1, 10), 0xA),
        event("passed", PARENT, 5, (1, 10), 0xB),
        event("opened", PARENT, 5, (1, 10), 0xC),
        event("received", CHILD, 9, (1, 10), 0xD),
    ]
    receiver = holding(CHILD, Descriptor(9, "file", "/x", 1, 10))
    traces = History(events).traces([holding(PARENT), receiver], Symbols())
    assert traces[CHILD].open[9].received
    (given,) = traces[PARENT].passed
    assert given.stack[0][0] == "/nowhere+0xa"

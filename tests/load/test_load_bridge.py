"""The bridge without locust and without gevent's patches: its own thread and this thread's hub."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from harness.load.bridge import Bridge, BridgeError


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    yield bridge
    bridge.stop()


async def thread_of_the_loop(delay_s: float = 0.0) -> int:
    await asyncio.sleep(delay_s)
    return threading.get_native_id()


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_a_coroutine_runs_on_the_other_thread_and_its_result_comes_back(bridge: Bridge) -> None:
    there = bridge.run(thread_of_the_loop)
    assert there != threading.get_native_id()
    assert bridge.run(thread_of_the_loop) == there


def test_an_exception_comes_back_to_who_asked(bridge: Bridge) -> None:
    async def fail() -> None:
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        bridge.run(fail)
    assert bridge.run(thread_of_the_loop), "and the bridge still stands"


def test_many_greenlets_each_get_their_own_result(bridge: Bridge) -> None:
    async def echo(number: int) -> int:
        await asyncio.sleep((number * 7919 % 13) / 1000)
        return number

    greenlets = [gevent.spawn(bridge.run, lambda number=number: echo(number)) for number in range(500)]
    gevent.joinall(greenlets)
    assert [greenlet.value for greenlet in greenlets] == list(range(500))


def test_the_hub_goes_on_while_coroutines_run(bridge: Bridge) -> None:
    released = Event()
    waiter = gevent.spawn(bridge.run, lambda: thread_of_the_loop(0.2))
    gevent.spawn(released.set)
    assert released.wait(5)
    assert not waiter.ready(), "the hub's greenlet ran first"
    assert waiter.get(timeout=5)


class Held:
    """A coroutine that waits for ever, and says how it ended."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def wait_for(event: threading.Event) -> None:
    with gevent.Timeout(5):
        while not event.is_set():
            gevent.sleep(0.001)


def test_a_killed_greenlet_takes_its_coroutine_with_it(bridge: Bridge) -> None:
    held = Held()
    greenlet = gevent.spawn(bridge.run, held)
    wait_for(held.begun)
    greenlet.kill()
    wait_for(held.cancelled)


def test_a_greenlet_killed_before_its_coroutine_began_leaves_nothing_behind(bridge: Bridge) -> None:
    async def tasks() -> int:
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks())

    alone = bridge.run(tasks)
    for _ in range(20):
        greenlet = gevent.spawn(bridge.run, Held())
        gevent.sleep(0)
        greenlet.kill()
    assert bridge.run(tasks) == alone


def test_stop_cancels_what_still_runs_and_wakes_who_waits() -> None:
    bridge = Bridge()
    held = Held()
    greenlet = gevent.spawn(bridge.run, held)
    wait_for(held.begun)
    bridge.stop()
    assert held.cancelled.is_set()
    with pytest.raises(BridgeError, match="cancelled"):
        greenlet.get(timeout=5)


def test_after_stop_nothing_is_taken_any_more() -> None:
    bridge = Bridge()
    bridge.stop()
    bridge.stop()
    with pytest.raises(BridgeError, match="ended"):
        bridge.run(thread_of_the_loop)


def test_bridges_come_and_go_without_a_trace() -> None:
    Bridge().stop()
    before = open_descriptors()
    threads = []
    for _ in range(5):
        bridge = Bridge()
        threads.append(bridge.run(thread_of_the_loop))
        bridge.stop()
    assert open_descriptors() == before
    with gevent.Timeout(5):
        while any(Path(f"/proc/self/task/{thread}").exists() for thread in threads):
            gevent.sleep(0.001)

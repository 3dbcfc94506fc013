"""The bridge: asyncio beside gevent. Greenlets hand whole coroutines over and sleep until the results come back.

Owns: one native thread with one uvloop loop, and the two one-way doors between it and gevent's hub. Never: knows what
the coroutines do. Make it after a fork (a thread does not survive one), on the hub's thread; call `run` and `stop` from
greenlets of that hub only.

There are two rules, and each door keeps one:

- Into the loop: `call_soon_threadsafe`, the only method of a loop that another thread may call.
- Out to the hub: finished jobs go into a deque, and an async watcher is sent. `send` is the only method of gevent that
  another thread may call; setting a gevent event from here would be a race. Sends that the hub has not yet seen count
  as one, so the results of a busy moment come out as a batch.

A hand-over costs two thread switches, so what is handed over is a whole session, not a command.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import gevent  # type: ignore[import-untyped]
import uvloop
from gevent import monkey
from gevent.event import AsyncResult, Event  # type: ignore[import-untyped]

T = TypeVar("T")

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


class BridgeError(Exception):
    """The loop's thread did not start, is gone, or does not end."""


class _Job:
    """One coroutine on its way through the loop. `task` belongs to the loop's thread, `result` to the hub's."""

    __slots__ = ("make", "result", "task")

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.make = make
        self.task: asyncio.Task[Any] | None = None
        self.result = AsyncResult()


class Bridge:
    """Raises BridgeError when the loop does not start."""

    def __init__(self) -> None:
        self._jobs: set[_Job] = set()  # handed over and not yet back; the hub's
        self._finished: deque[_Job] = deque()  # the loop's thread appends, the hub takes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._running = Event()
        self._over = Event()
        self._ended = False  # set by the loop's thread at its end
        self._alive = monkey.get_original("_thread", "allocate_lock")()  # the thread lets go of it as its last act
        self._alive.acquire()
        # The watcher also keeps the hub from thinking that nothing can ever happen any more.
        self._door = gevent.get_hub().loop.async_()
        self._door.start(self._collect)
        # Under gevent's patches a thread is a greenlet, and the loop would stop the hub: the original is wanted.
        monkey.get_original("_thread", "start_new_thread")(self._serve, ())
        if not self._running.wait(START_TIMEOUT_S) or self._ended:
            self._door.stop()
            raise BridgeError("the event loop's thread did not start; its error is on standard error")

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that `make` returns, on the loop; the calling greenlet sleeps until it has ended.

        Raises what the coroutine raised, or BridgeError when the loop is gone. A greenlet that is killed meanwhile
        takes its coroutine with it: it is cancelled, and so gets to close what it has opened.
        """
        if self._loop is None or self._ended:
            raise BridgeError("the event loop has ended")
        job = _Job(make)
        self._jobs.add(job)
        self._loop.call_soon_threadsafe(self._begin, job)
        try:
            return cast(T, job.result.get())
        finally:
            if job in self._jobs and self._loop is not None and not self._ended:  # killed in its sleep
                self._loop.call_soon_threadsafe(self._cancel, job)

    def stop(self) -> None:
        """Cancel what still runs, wait until it has ended, and end the thread. May be called twice.

        Raises BridgeError when a coroutine does not let itself be cancelled within 10 s.
        """
        loop, self._loop = self._loop, None  # from here on `run` takes nothing more
        if loop is None or self._stopping is None:
            return
        if not self._ended:
            loop.call_soon_threadsafe(self._stopping.set)
        if not self._over.wait(STOP_TIMEOUT_S):
            raise BridgeError(f"a session did not end within {STOP_TIMEOUT_S:.0f} s of its cancellation")
        # The hub may have seen the end before the thread's last `send`: the door is closed after that.
        self._alive.acquire()
        self._door.stop()
        self._door.close()

    # ---- on the loop's thread

    def _serve(self) -> None:
        try:
            # At the end the runner cancels the tasks that are left, waits for them, and closes the loop.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._until_stopped())
        finally:
            self._ended = True
            self._door.send()
            self._alive.release()

    async def _until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        # With its first stream libuv opens /dev/null, a descriptor in reserve for EMFILE, and keeps it. We have that
        # stream now, so that who counts our descriptors before and after the first session finds no difference.
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            transport.abort()
            while ours.fileno() >= 0:  # closed a few turns of the loop later
                await asyncio.sleep(0)
        self._stopping = asyncio.Event()
        self._loop = loop
        self._door.send()
        await self._stopping.wait()

    def _begin(self, job: _Job) -> None:
        job.task = asyncio.get_running_loop().create_task(job.make())
        job.task.add_done_callback(lambda _: self._finish(job))

    def _cancel(self, job: _Job) -> None:
        assert job.task is not None, "the loop runs what it is given in order, and the job's beginning was given first"
        job.task.cancel()

    def _finish(self, job: _Job) -> None:
        self._finished.append(job)
        self._door.send()

    # ---- on the hub's thread

    def _collect(self) -> None:
        """Wake the greenlets whose coroutines have ended, and whoever waits for the loop to begin or to end."""
        self._running.set()
        while self._finished:
            job = self._finished.popleft()
            self._jobs.discard(job)
            task = job.task
            assert task is not None
            if task.cancelled():
                job.result.set_exception(BridgeError("the session was cancelled"))
            elif (error := task.exception()) is not None:
                job.result.set_exception(error)
            else:
                job.result.set(task.result())
        if self._ended:
            for job in self._jobs:  # the loop ended under them
                job.result.set_exception(BridgeError("the event loop has ended"))
            self._jobs.clear()
            self._over.set()

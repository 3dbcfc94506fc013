"""queue's commits: whatever is asked for while the disk is busy is written together when it is free again.

The disk is waited for in a thread, so that queue goes on taking recipients and results meanwhile, which is what makes
the next group large. The thread calls one method of the spool and knows nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import queue as queues
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from mta_under_test.spool import Batch, SpoolError, Store

Done = Callable[[SpoolError | None], None]

logger = logging.getLogger("smtpd")


class CommittingQueue(Protocol):
    """What commits need of queue."""

    spool: Store
    untimed: Store  # the same, while `spool` reports how long everything takes

    def committed(self, msgids: Sequence[int]) -> None:
        """Messages are safe."""

    def profile(self, subsystem: str, line: str) -> None:
        """How long it took, for who asks."""


class Commits:
    def __init__(self, queue: CommittingQueue) -> None:
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[int, Done]] = []  # msgid, and what is told of it
        self._scheduled = False
        self._syncing = False
        self._work: queues.SimpleQueue[tuple[Batch, list[Done]] | None] = queues.SimpleQueue()
        self._thread = threading.Thread(target=self._sync_all, name="commit")
        self._thread.start()

    def close(self) -> None:
        """What the disk has not confirmed by now nobody is told of."""
        self._work.put(None)
        self._thread.join()

    def add(self, msgid: int, done: Done) -> None:
        """Commit a message, with whatever else is to be committed now."""
        self._waiting.append((msgid, done))
        if not self._scheduled and not self._syncing:
            self._scheduled = True
            self._loop.call_soon(self._begin)

    async def wait_for(self, msgid: int) -> None:
        """Commit a message. Raises SpoolError."""
        over: asyncio.Future[SpoolError | None] = self._loop.create_future()
        self.add(msgid, over.set_result)
        if (error := await over) is not None:
            raise error

    def _begin(self) -> None:
        self._scheduled = False
        waiting, self._waiting = self._waiting, []
        msgids = [msgid for msgid, _ in waiting]
        dones = [done for _, done in waiting]
        try:
            batch = self._queue.spool.prepare(msgids)
        except SpoolError as error:
            self._one_by_one(msgids, dones, error)
            return
        self._syncing = True
        self._work.put((batch, dones))

    def _sync_all(self) -> None:
        """The thread."""
        while (work := self._work.get()) is not None:
            batch, dones = work
            failure = None
            began = time.perf_counter()
            try:
                self._queue.untimed.sync(batch)
            except SpoolError as error:
                failure = error
            took_ms = (time.perf_counter() - began) * 1e3
            self._loop.call_soon_threadsafe(self._synced, batch, dones, failure, took_ms)
            del work, batch, dones, failure  # an idle thread keeps nothing alive

    def _synced(self, batch: Batch, dones: list[Done], failure: SpoolError | None, took_ms: float) -> None:
        self._syncing = False
        spool = self._queue.spool
        if failure is None:
            spool.finish(batch)
            self._queue.profile("queue", f"message_commit {took_ms:.3f} ms ({len(batch.msgids)} messages)")
            self._queue.committed(batch.msgids)
            for done in dones:
                done(None)
        else:
            try:
                spool.abandon(batch)
            except SpoolError as error:
                logger.error("%s; a message that was refused may be delivered after a restart", error)
            self._one_by_one(batch.msgids, dones, failure)
        if self._waiting and not self._scheduled:
            self._begin()

    def _one_by_one(self, msgids: Sequence[int], dones: Sequence[Done], failure: SpoolError) -> None:
        """One bad message must not fail its neighbours: each for itself, to learn which it was. Waits for the disk."""
        for msgid, done in zip(msgids, dones, strict=True):
            error: SpoolError | None = failure if len(msgids) == 1 else None
            if error is None:
                try:
                    self._queue.spool.commit([msgid])
                except SpoolError as own:
                    error = own
                else:
                    self._queue.committed([msgid])
            if error is not None:
                logger.warning("message %08x: %s", msgid, error)
            done(error)

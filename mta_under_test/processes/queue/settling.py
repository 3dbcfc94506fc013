"""queue's quiet moments: when nothing happens for a little while, what the journal holds gets its files.

Owns: when that work is done. Never: knows how (spool does).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from typing import Any, Protocol

from mta_under_test.spool import SpoolError, Store

QUIET_S = 0.05  # without a commit or a result
SLICE_S = 0.005  # of work at a time, so that a commit need not wait for longer
RETRY_S = 1.0  # after the disk refused

logger = logging.getLogger("smtpd")


class SettlingQueue(Protocol):
    """What settling needs of queue."""

    spool: Store
    untimed: Store  # the same, while `spool` reports how long everything takes

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` beside everything else."""


class Settling:
    def __init__(self, queue: SettlingQueue) -> None:
        self._queue = queue
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False  # something happened since the timer was set
        self._syncing = False

    def active(self) -> None:
        """Something was written: look again when it is quiet, if anything is left by then."""
        try:
            if self._queue.untimed.forget():
                return
        except SpoolError as error:
            logger.error("%s", error)
        self._busy = True
        if self._timer is None:
            self._later(QUIET_S)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _later(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        spool = self._queue.spool
        if self._syncing or not spool.unsettled_bytes:
            return
        if self._busy and not spool.pressed:
            self._busy = False
            self._later(QUIET_S)
            return
        try:
            if spool.settle(SLICE_S):
                self._syncing = True
                self._queue.spawn(self._sync(), "sync of the queue")
            elif spool.unsettled_bytes:
                self._later(0)
        except SpoolError as error:
            logger.error("%s; trying again in %.0f s", error, RETRY_S)
            self._later(RETRY_S)

    async def _sync(self) -> None:
        """Wait for the disk in a thread: it may take seconds, and commits go on meanwhile, into another journal."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[SpoolError | None] = loop.create_future()

        def wait() -> None:
            failure = None
            try:
                self._queue.untimed.sync_settled()
            except SpoolError as error:
                failure = error
            loop.call_soon_threadsafe(_tell, over, failure)

        thread = threading.Thread(target=wait, name="syncfs")
        thread.start()
        try:
            failure = await over
        finally:
            thread.join()
            self._syncing = False
        if failure is None:
            self._queue.spool.settled()
        else:
            logger.error("%s; the journal is kept", failure)
            self._queue.spool.give_up_settling()
        if self._queue.spool.unsettled_bytes:
            self.active()


def _tell(over: asyncio.Future[SpoolError | None], failure: SpoolError | None) -> None:
    if not over.done():
        over.set_result(failure)

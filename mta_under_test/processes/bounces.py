"""queue's bounces: from envelopes that failed for good to a report in the sender's hands.

One report a message: the failures of a message's recipients that arrive together are told together. A failed envelope
is deleted only after its report is safe on disk, so a crash in between means a second report, never none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from mta_under_test.ipc.messages import Fate, Kind
from mta_under_test.processes.process import Refusal
from mta_under_test.spool import SpoolError
from mta_under_test.wire import dsn
from mta_under_test.wire.envelope import Envelope, encode

if TYPE_CHECKING:
    from mta_under_test.processes.queue import Queue

GATHER_S = 0.02  # a transaction's results arrive in one burst; this is long enough for all of it

logger = logging.getLogger("smtpd")


class Failed(NamedTuple):
    evpid: int
    envelope: Envelope
    status_line: str
    fate: Fate


class Bounces:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._gathering: dict[int, list[Failed]] = {}  # by msgid
        self._sending = 0

    @property
    def pending(self) -> int:
        return len(self._gathering) + self._sending

    def add(self, evpid: int, envelope: Envelope, status_line: str, fate: Fate) -> None:
        msgid = evpid >> 32
        if msgid not in self._gathering:
            self._gathering[msgid] = []
            asyncio.get_running_loop().call_later(GATHER_S, self._gathered, msgid)
        self._gathering[msgid].append(Failed(evpid, envelope, status_line, fate))

    def _gathered(self, msgid: int) -> None:
        failures = self._gathering.pop(msgid)
        self._queue.spawn(self._send(msgid, failures), f"bounce of {msgid:08x}")

    async def _send(self, msgid: int, failures: list[Failed]) -> None:
        queue = self._queue
        self._sending += 1
        try:
            report = await self._write(msgid, failures)
            queue.stats["queue.bounce.total"] += 1
            queue.trace("bounce", f"{msgid:08x}: {len(failures)} failures reported in {report:08x}")
        except (SpoolError, Refusal) as error:
            if isinstance(error, SpoolError) or str(error).startswith("4"):
                # The disk's trouble, not the mail's: try the failed envelopes again later, and tell then.
                logger.warning("bounce of %08x put off: %s", msgid, error)
                for failed in failures:
                    queue.tell("scheduler", Kind.DELIVERY_TEMP, failed.evpid, failed.envelope.retry + 1)
                return
            logger.warning("bounce of %08x to <%s>: %s", msgid, failures[0].envelope.sender, error)
        finally:
            self._sending -= 1
        for failed in failures:
            queue.forget(failed.evpid, failed.fate)

    async def _write(self, msgid: int, failures: list[Failed]) -> int:
        """Put the report into the queue as a message of its own. Raises SpoolError; Refusal when no rule takes it."""
        queue = self._queue
        original = failures[0].envelope
        report = queue.spool.create()
        try:
            text = dsn.bounce(
                hostname=original.smtpname or queue.config.hostname,
                sender=original.sender,
                failures=[dsn.Failure(failed.envelope.rcpt, failed.status_line) for failed in failures],
                original_header=self._original_header(msgid),
                bounce_id=f"{report:08x}.{msgid:08x}",
            )
            queue.spool.put_message(report, text)
            envelope = Envelope(
                smtpname=original.smtpname,
                helo="localhost",
                hostname="localhost",
                sender="",
                rcpt=original.sender,
                dest=original.sender,
                ctime=int(time.time()),
                ttl=queue.config.queue_ttl_s,
                flags=frozenset({"bounce", "internal"}),
            )
            await queue.ask("lookup", Kind.EXPAND, report, text=encode(envelope))
            await queue.commits.wait_for(report)
        except BaseException:
            queue.discard(report)
            raise
        return report

    def _original_header(self, msgid: int) -> bytes:
        descriptor = self._queue.spool.message_fd(msgid)
        try:
            return dsn.header_of(os.pread(descriptor, dsn.HEADER_BYTES, 0))
        finally:
            os.close(descriptor)

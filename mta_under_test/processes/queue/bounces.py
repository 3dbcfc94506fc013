"""queue's reports to senders: of mail that failed for good, that is late, and, where asked for, that arrived.

One report a message and kind: the fates of a message's recipients that arrive together are told together. A failed
envelope is deleted only after its report is safe on disk, so a crash in between means a second report, never none.
No report is ever made of one (RFC 5321 §6.1), and two are written at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import NamedTuple, Protocol

from mta_under_test.ipc.messages import Fate, Kind
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.queue.commits import Commits
from mta_under_test.processes.queue.settling import Settling
from mta_under_test.spool import SpoolError, Store, durable
from mta_under_test.wire import dsn
from mta_under_test.wire.envelope import Envelope, encode

GATHER_S = 0.02  # a transaction's results arrive in one burst; this is long enough for all of it
SESSIONS = 2  # reports that are written at a time
CHUNK_BYTES = 1 << 16  # of a message that is returned whole
HELD_BYTES = 1 << 18  # a report that is longer is written to its file piece by piece

logger = logging.getLogger("smtpd")


class Told(NamedTuple):
    """What a report says of one envelope. `fate`: it is done with when that is said; None: it stays."""

    evpid: int
    envelope: Envelope
    status_line: str
    remote: str
    fate: Fate | None


class ReportingQueue(Protocol):
    """What reports need of queue, beside what it has as every process does."""

    spool: Store

    def forget(self, evpid: int, fate: Fate) -> None:
        """Nothing is owed for this envelope any more."""

    def discard(self, msgid: int) -> None:
        """Give up a message that was not committed."""


class Bounces:
    def __init__(self, process: Process, queue: ReportingQueue, commits: Commits, settling: Settling) -> None:
        """`process` and `queue` are the same one: what every process can do, and what only queue can."""
        self._process = process
        self._queue = queue
        self._commits = commits
        self._settling = settling
        self._gathering: dict[tuple[int, dsn.Kind], list[Told]] = {}  # by msgid and kind
        self._slots = asyncio.Semaphore(SESSIONS)
        self._waiting = 0
        self._writing = 0

    @property
    def pending(self) -> int:
        return len(self._gathering) + self._waiting + self._writing

    def gauges(self) -> dict[str, int]:
        return {
            "queue.bounce": self.pending,
            "bounce.envelope": sum(len(told) for told in self._gathering.values()),
            "bounce.message": len(self._gathering) + self._waiting,
            "bounce.session": self._writing,
        }

    def failed(self, evpid: int, envelope: Envelope, status_line: str, remote: str, fate: Fate) -> None:
        """The envelope is forgotten once its sender has been told, if he is to be."""
        if not envelope.sender or not dsn.wanted("failed", envelope.dsn_notify):
            what = "nobody to tell" if not envelope.sender else "the sender asked not to be told"
            if "bounce" in envelope.flags:
                logger.info("%016x: bounce to <%s> failed: %s", evpid, envelope.rcpt, status_line)
            else:
                logger.info("%016x: <%s> failed, %s: %s", evpid, envelope.rcpt, what, status_line)
            self._queue.forget(evpid, fate)
            return
        self._add("failed", Told(evpid, envelope, status_line, remote, fate))

    def delivered(self, evpid: int, envelope: Envelope, status_line: str, remote: str) -> None:
        """A report of success, for an envelope whose sender asked for it."""
        self._add("delivered", Told(evpid, envelope, status_line, remote, Fate.DELIVERED))

    def delayed(self, evpid: int, envelope: Envelope) -> None:
        """A warning. The envelope stays, and remembers when its sender was warned."""
        if envelope.sender and dsn.wanted("delayed", envelope.dsn_notify):
            line = envelope.errorline or "451 4.4.7 Delivery is delayed"
            self._add("delayed", Told(evpid, envelope, line, "", None))
        else:
            self._warned(evpid)

    def _add(self, kind: dsn.Kind, told: Told) -> None:
        key = (told.evpid >> 32, kind)
        if key not in self._gathering:
            self._gathering[key] = []
            asyncio.get_running_loop().call_later(GATHER_S, self._gathered, *key)
        self._gathering[key].append(told)

    def _gathered(self, msgid: int, kind: dsn.Kind) -> None:
        together = self._gathering.pop((msgid, kind))
        self._waiting += 1
        self._process.spawn(self._send(msgid, kind, together), f"bounce of {msgid:08x}")

    async def _send(self, msgid: int, kind: dsn.Kind, together: list[Told]) -> None:
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._writing += 1
        try:
            report = await self._write(msgid, kind, together)
            self._process.stats["queue.bounce.total"] += 1
            self._process.stats[f"queue.bounce.{kind}"] += 1
            self._process.trace("bounce", f"{msgid:08x}: {kind} {len(together)} reported in {report:08x}")
        except (SpoolError, Refusal) as error:
            if not self._goes_on_without(kind, msgid, together, error):
                return
        finally:
            self._writing -= 1
            self._slots.release()
        for told in together:
            if told.fate is None:
                self._warned(told.evpid)
            else:
                self._queue.forget(told.evpid, told.fate)

    def _goes_on_without(self, kind: dsn.Kind, msgid: int, together: list[Told], error: SpoolError | Refusal) -> bool:
        """Whether the envelopes are done with although the report could not be written."""
        passing = isinstance(error, SpoolError) or str(error).startswith("4")
        logger.warning("bounce of %08x to <%s>: %s", msgid, together[0].envelope.sender, error)
        if kind == "failed" and passing:
            # The disk's trouble, not the mail's: try the failed envelopes again later, and tell then.
            for told in together:
                self._process.tell("scheduler", Kind.DELIVERY_TEMP, told.evpid, told.envelope.retry + 1)
            return False
        return not (kind == "delayed" and passing)

    def _warned(self, evpid: int) -> None:
        """Each warning is given once, whatever is restarted."""
        try:
            envelope = self._queue.spool.envelope(evpid)
            envelope.last_bounce = int(time.time())
            self._queue.spool.update(evpid, envelope)
        except SpoolError as error:
            self._process.trace("bounce", f"{evpid:016x} was delivered or removed meanwhile: {error}")
        else:
            self._settling.active()

    # ---- the report

    async def _write(self, msgid: int, kind: dsn.Kind, together: list[Told]) -> int:
        """Put the report into the queue as a message of its own. Raises SpoolError; Refusal when no rule takes it."""
        original = together[0].envelope
        report = self._queue.spool.create()
        try:
            self._write_message(report, msgid, kind, together)
            envelope = Envelope(
                smtpname=original.smtpname,
                helo="localhost",
                hostname="localhost",
                sender="",
                rcpt=original.sender,
                dest=original.sender,
                ctime=int(time.time()),
                ttl=self._process.config.queue_ttl_s,
                flags=frozenset({"bounce", "internal"}),
            )
            await self._process.ask("lookup", Kind.EXPAND, report, text=encode(envelope))
            await self._commits.wait_for(report)
        except BaseException:
            self._queue.discard(report)
            raise
        return report

    def _write_message(self, report: int, msgid: int, kind: dsn.Kind, together: list[Told]) -> None:
        original = together[0].envelope
        hostname = original.smtpname or self._process.config.hostname
        report_id = f"{report:08x}.{msgid:08x}"
        whole = kind == "failed" and original.dsn_ret == "FULL"
        head = dsn.opening(
            kind,
            hostname=hostname,
            sender=original.sender,
            recipients=[_recipient(kind, told) for told in together],
            report_id=report_id,
            arrival=original.ctime,
            envelope_id=original.dsn_envid,
            whole=whole,
        )
        tail = dsn.closing(report_id, hostname)
        message = self._queue.spool.message_fd(msgid)
        try:
            if whole and os.fstat(message).st_size > HELD_BYTES:
                self._write_file(report, head, message, tail)
                return
            text = os.pread(message, HELD_BYTES if whole else dsn.HEADER_BYTES, 0)
        finally:
            os.close(message)
        self._queue.spool.put_message(report, head + (text if whole else dsn.header_of(text)) + tail)

    def _write_file(self, report: int, head: bytes, message: int, tail: bytes) -> None:
        descriptor = self._queue.spool.open_message(report)
        try:
            durable.write_all(descriptor, head)
            while chunk := os.read(message, CHUNK_BYTES):
                durable.write_all(descriptor, chunk)
            durable.write_all(descriptor, tail)
        except OSError as error:
            raise SpoolError(f"cannot write a bounce: {error.strerror}") from error
        finally:
            os.close(descriptor)


def _recipient(kind: dsn.Kind, told: Told) -> dsn.Recipient:
    envelope = told.envelope
    return dsn.Recipient(
        address=envelope.rcpt,
        status_line=told.status_line,
        # A server that we handed it to may not have delivered it yet (RFC 3464 §2.3.3).
        action="relayed" if kind == "delivered" and envelope.type == "mta" else kind,
        original=envelope.dsn_orcpt,
        remote=told.remote,
        retry_until=envelope.ctime + envelope.ttl if kind == "delayed" else 0,
    )

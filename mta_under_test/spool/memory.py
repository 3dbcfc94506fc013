"""Queues without a disk, for tests and measurements: one that keeps mail in memory, one that forgets it.

Neither survives anything, and both say so by their names (`smtpd --queue ram`, `--queue null`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from mta_under_test.spool.disk import ID_TRIES, ids_at_random
from mta_under_test.spool.store import Batch, SpoolError
from mta_under_test.wire.envelope import Envelope, EnvelopeError, decode, encode, evpid_text, msgid_of, msgid_text

CHUNK_BYTES = 1 << 16


class Kept:
    """A message in memory: an anonymous file (memfd_create(2)), and the texts of its envelopes."""

    __slots__ = ("descriptor", "texts")

    def __init__(self, name: str) -> None:
        self.descriptor = os.memfd_create(f"message {name}")
        self.texts: dict[int, bytes] = {}

    def close(self) -> None:
        os.close(self.descriptor)


class RamStore:
    """A `Store` in memory. One descriptor a message, so it holds as many as RLIMIT_NOFILE allows."""

    def __init__(self) -> None:
        self._pending: dict[int, Kept] = {}
        self._queue: dict[int, Kept] = {}

    def create(self) -> int:
        for msgid in ids_at_random():
            if msgid not in self._pending and msgid not in self._queue:
                try:
                    self._pending[msgid] = Kept(msgid_text(msgid))
                except OSError as error:
                    raise SpoolError(f"cannot make a message: {error.strerror}") from error
                return msgid
        raise SpoolError(f"no unused id found in {ID_TRIES} tries")

    def open_message(self, msgid: int) -> int:
        try:
            return os.dup(self._get(self._pending, msgid).descriptor)
        except OSError as error:
            raise SpoolError(f"cannot open the message: {error.strerror}") from error

    def put_message(self, msgid: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._get(self._pending, msgid).descriptor, view) :]

    def add_text(self, msgid: int, text: bytes) -> int:
        kept = self._get(self._pending, msgid)
        for low in ids_at_random():
            if (evpid := msgid << 32 | low) not in kept.texts:
                kept.texts[evpid] = text
                return evpid
        raise SpoolError(f"no unused id found in {ID_TRIES} tries")

    def commit(self, msgids: Sequence[int]) -> None:
        self.finish(self.prepare(msgids))

    def prepare(self, msgids: Sequence[int]) -> Batch:
        for msgid in msgids:
            if not self._get(self._pending, msgid).texts:
                raise SpoolError(f"message {msgid_text(msgid)}: cannot commit: no envelope")
        return Batch(msgids)

    def sync(self, batch: Batch) -> None:
        """Memory is as safe as it will ever be."""

    def finish(self, batch: Batch) -> None:
        for msgid in batch.msgids:
            self._queue[msgid] = self._pending.pop(msgid)

    def abandon(self, batch: Batch) -> None:
        """Nothing was done yet."""

    def discard(self, msgid: int) -> None:
        if (kept := self._pending.pop(msgid, None)) is not None:
            kept.close()

    def message_fd(self, msgid: int) -> int:
        """A copy: a duplicate would share its position, and /proc is out of sight in a changed root."""
        kept = self._get(self._queue, msgid)
        try:
            copy = os.memfd_create(f"message {msgid_text(msgid)}")
            at = 0
            while chunk := os.pread(kept.descriptor, CHUNK_BYTES, at):
                at += os.write(copy, chunk)
            os.lseek(copy, 0, os.SEEK_SET)
        except OSError as error:
            raise SpoolError(f"cannot open the message: {error.strerror}") from error
        return copy

    def envelopes(self, msgid: int) -> list[int]:
        return sorted(self._get(self._queue, msgid).texts)

    def envelope(self, evpid: int) -> Envelope:
        return decode(self.envelope_text(evpid))

    def envelope_text(self, evpid: int) -> bytes:
        texts = self._get(self._queue, msgid_of(evpid)).texts
        if evpid not in texts:
            raise SpoolError(f"envelope {evpid_text(evpid)}: there is none")
        return texts[evpid]

    def update(self, evpid: int, envelope: Envelope) -> None:
        self.envelope_text(evpid)
        try:
            self._queue[msgid_of(evpid)].texts[evpid] = encode(envelope)
        except EnvelopeError as error:
            raise SpoolError(f"envelope {evpid_text(evpid)}: bad envelope: {error}") from error

    def delete(self, evpid: int) -> bool:
        self.envelope_text(evpid)
        kept = self._queue[msgid_of(evpid)]
        del kept.texts[evpid]
        if kept.texts:
            return False
        del self._queue[msgid_of(evpid)]
        kept.close()
        return True

    def recover(self) -> None:
        """Nothing is left of an earlier life."""

    def walk(self) -> Iterator[tuple[int, Envelope]]:
        for kept in self._queue.values():
            for evpid, text in kept.texts.items():
                yield evpid, decode(text)

    unsettled_bytes = 0
    pressed = False

    def forget(self) -> bool:
        return True

    def settle(self, budget_s: float) -> bool:
        return False

    def sync_settled(self) -> None:
        """Memory is as safe as it will ever be."""

    settled = give_up_settling = sync_settled

    def close(self) -> None:
        for messages in (self._pending, self._queue):
            while messages:
                messages.popitem()[1].close()

    @staticmethod
    def _get(messages: dict[int, Kept], msgid: int) -> Kept:
        kept = messages.get(msgid)
        if kept is None:
            raise SpoolError(f"message {msgid_text(msgid)}: there is none")
        return kept


class NullStore(RamStore):
    """A `Store` that forgets a message the moment it is committed: what a server without a disk would do."""

    def finish(self, batch: Batch) -> None:
        super().finish(batch)
        for msgid in batch.msgids:
            self._queue.pop(msgid).close()

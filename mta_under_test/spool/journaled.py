"""The disk queue as queue uses it: a journal in front of the files (`disk`), so that many commits share one fdatasync.

A small message is held in memory until its commit, goes into the journal with everything else that is committed at that
moment, and is safe after one fdatasync(2). Its files in queue/ are made later, when the queue has a quiet moment
(`settle`), and a journal is emptied once one syncfs(2) has made all of them safe. Who wants a descriptor of the message
before that gets one of a file in temporary/. A message that is delivered by then never costs a file for its envelopes.
A large message, or one with many recipients, is written to its files at once and committed as `disk` does it.

Updates and deletions are journaled too, without a sync: nobody was promised anything by them. After power loss a
deleted envelope may come back and be delivered twice; after the mere end of the process it does not.

What is kept in memory is an index: some hundred bytes for each message that waits for `settle`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mta_under_test.spool import durable
from mta_under_test.spool.disk import ID_TRIES, ids_at_random
from mta_under_test.spool.files import Files
from mta_under_test.spool.journal import COMMIT, DELETE, Journal, Place, commit_record, delete_record, update_record
from mta_under_test.spool.store import Batch, CorruptEnvelope, SpoolError
from mta_under_test.wire.envelope import Envelope, EnvelopeError, decode, encode, evpid_text, msgid_of, msgid_text

SEGMENT_BYTES = 8 << 20  # a journal that is larger is settled even when the queue is busy
_LENGTH_BITS = 28  # of a text in a journal; a record is no longer (journal.MAX_RECORD_BYTES)
PENDING_ENVELOPES = 100  # of one message that are held in memory; one with more is written to files


class Pending:
    """A message on its way in. `placed`: it is being written to files in incoming/, and nothing of it is held here."""

    __slots__ = ("content", "placed", "texts")

    def __init__(self) -> None:
        self.texts: dict[int, bytes] = {}
        self.content: bytes | None = None
        self.placed = False


class Recent:
    """A committed message that stands in a journal. `filed`: its message file was made, for a reader.

    There is one for each message that waits for `settle`, so where its texts stand is packed: offset and length in one
    number, for those in `journal`; a Place for a text that was updated since.
    """

    __slots__ = ("content", "filed", "journal", "texts")

    def __init__(self, journal: Journal, content: int, texts: dict[int, int | Place]) -> None:
        self.journal = journal
        self.content = content
        self.texts = texts
        self.filed = False

    def place(self, packed: int | Place) -> Place:
        if isinstance(packed, Place):
            return packed
        return Place(self.journal, packed >> _LENGTH_BITS, packed & (1 << _LENGTH_BITS) - 1)

    def read(self) -> dict[int, bytes]:
        return {evpid: self.place(text).read() for evpid, text in self.texts.items()}

    def read_content(self) -> bytes:
        return self.place(self.content).read()

    def stands_in(self, journals: Sequence[Journal]) -> bool:
        return self.journal in journals or any(self.place(text).journal in journals for text in self.texts.values())


def _packed(offset: int, length: int) -> int:
    return offset << _LENGTH_BITS | length


class JournalBatch(Batch):
    """`small`: msgid, length of the record, and where in it the envelopes and the content begin."""

    def __init__(self, msgids: Sequence[int]) -> None:
        super().__init__(msgids)
        self.placed: list[int] = []
        self.small: list[tuple[int, int, dict[int, int], int]] = []
        self.journal: Journal | None = None
        self.offset = 0


class JournaledSpool:
    """A `Store` on disk."""

    def __init__(self, root: Path, *, compress: bool = False) -> None:
        self.files = Files(root, compress=compress)
        self._root = root
        self._directory = root / "journal"
        with self._failures("cannot make the journal's directory"):
            self._directory.mkdir(0o700, exist_ok=True)
        self._pending: dict[int, Pending] = {}
        self._recent: dict[int, Recent] = {}
        self._updated: dict[int, Place] = {}  # new texts of envelopes that have a file with an old one
        self._journal: Journal | None = None  # that is appended to
        self._last_number = 0
        self._batch: JournalBatch | None = None  # under way
        # What is being settled: the journals, what is left to do, and which renames wait for the disk.
        self._settling: list[Journal] = []
        self._work: list[int] = []  # msgids and, above 32 bits, evpids
        self._renames: dict[int, Place] = {}
        self._must_sync = False
        self._kept: list[Journal] = []  # whose files could not be made safe; the next start replays them

    # ---- a message on its way in

    def create(self) -> int:
        for msgid in ids_at_random():
            if msgid not in self._pending and msgid not in self._recent and not self.files.has(msgid):
                self._pending[msgid] = Pending()
                return msgid
        raise SpoolError(f"no unused id found in {ID_TRIES} tries")

    def open_message(self, msgid: int) -> int:
        self._place(msgid, self._pending_of(msgid))
        return self.files.open_message(msgid)

    def put_message(self, msgid: int, content: bytes) -> None:
        pending = self._pending_of(msgid)
        if pending.placed:
            self.files.write_message(msgid, content)
        else:
            pending.content = content

    def add_text(self, msgid: int, text: bytes) -> int:
        pending = self._pending_of(msgid)
        if pending.placed:
            return self.files.add_text(msgid, text)
        for low in ids_at_random():
            if (evpid := msgid << 32 | low) not in pending.texts:
                pending.texts[evpid] = text
                break
        if len(pending.texts) > PENDING_ENVELOPES:
            self._place(msgid, pending)
        return evpid

    def _pending_of(self, msgid: int) -> Pending:
        pending = self._pending.get(msgid)
        if pending is None:
            raise SpoolError(f"incoming/{msgid_text(msgid)}: no such message on its way in")
        return pending

    def _place(self, msgid: int, pending: Pending) -> None:
        """Go on in files: the message is too large, or has too many recipients, to be held in memory."""
        if pending.placed:
            return
        self.files.begin(msgid)
        pending.placed = True
        for evpid, text in pending.texts.items():
            self.files.write_envelope(evpid, text)
        if pending.content is not None:
            self.files.write_message(msgid, pending.content)
        pending.texts, pending.content = {}, None

    def commit(self, msgids: Sequence[int]) -> None:
        batch = self.prepare(msgids)
        try:
            self.sync(batch)
        except SpoolError:
            self.abandon(batch)
            raise
        self.finish(batch)

    def prepare(self, msgids: Sequence[int]) -> JournalBatch:
        """Small messages are appended to the journal, for one fdatasync; the others are for `disk` to commit."""
        assert self._batch is None
        batch = JournalBatch(msgids)
        records = []
        for msgid in msgids:
            pending = self._pending_of(msgid)
            if pending.placed:
                batch.placed.append(msgid)
            elif pending.content is None or not pending.texts:
                what = "no envelope" if pending.content is not None else "no message file"
                raise SpoolError(f"incoming/{msgid_text(msgid)}: cannot commit: {what}")
            else:
                record, places, content_at = commit_record(msgid, pending.texts, pending.content)
                records.append(record)
                batch.small.append((msgid, len(record), places, content_at))
        if records:
            with self._failures("cannot commit"):
                batch.journal = self._writable()
                batch.offset = batch.journal.append(b"".join(records))
        self._batch = batch
        return batch

    def sync(self, batch: Batch) -> None:
        assert isinstance(batch, JournalBatch)
        self.files.commit(batch.placed)
        if batch.journal is not None:
            try:
                with self._failures("cannot commit"):
                    batch.journal.sync()
            except SpoolError:
                self.files.take_back(batch.placed)
                raise

    def finish(self, batch: Batch) -> None:
        assert isinstance(batch, JournalBatch)
        journal, at = batch.journal, batch.offset
        self._batch = None
        for msgid, length, places, content_at in batch.small:
            assert journal is not None
            pending = self._pending[msgid]
            assert pending.content is not None
            texts: dict[int, int | Place] = {
                evpid: _packed(at + places[evpid], len(text)) for evpid, text in pending.texts.items()
            }
            self._recent[msgid] = Recent(journal, _packed(at + content_at, len(pending.content)), texts)
            at += length
        for msgid in batch.msgids:
            del self._pending[msgid]
        if self.pressed and not self._settling:
            self._rotate()

    def abandon(self, batch: Batch) -> None:
        """What failed must not be replayed: its sender is told so, and sends it again."""
        assert isinstance(batch, JournalBatch)
        self._batch = None
        for msgid, _, _, _ in batch.small:
            for evpid in self._pending[msgid].texts:
                self._journal_deletion(evpid)

    def _writable(self) -> Journal:
        if self._journal is not None and self._journal.damaged:
            # Kept, and settled no more: its messages are safe for as long as it stands, and the next start replays it.
            self._kept.append(self._journal)
            self._journal = None
        if self._journal is None:
            self._last_number += 1
            self._journal = Journal.create(self._directory / f"{self._last_number:08x}")
        return self._journal

    def discard(self, msgid: int) -> None:
        pending = self._pending.pop(msgid, None)
        if pending is not None and pending.placed:
            self.files.discard(msgid)

    # ---- what is in the queue

    def message_fd(self, msgid: int) -> int:
        recent = self._recent.get(msgid)
        if recent is not None and not recent.filed:
            with self._failures("cannot read the journal"):
                content = recent.read_content()
            self.files.file_message(msgid, content)
            recent.filed = True
        return self.files.message_fd(msgid)

    def envelopes(self, msgid: int) -> list[int]:
        recent = self._recent.get(msgid)
        return self.files.envelopes(msgid) if recent is None else sorted(recent.texts)

    def envelope(self, evpid: int) -> Envelope:
        place = self._place_of(evpid)
        return self.files.envelope(evpid) if place is None else self._decoded(evpid, place)

    def envelope_text(self, evpid: int) -> bytes:
        place = self._place_of(evpid)
        if place is None:
            return self.files.envelope_text(evpid)
        with self._failures("cannot read the journal"):
            return place.read()

    def _decoded(self, evpid: int, place: Place) -> Envelope:
        try:
            with self._failures("cannot read the journal"):
                return decode(place.read())
        except EnvelopeError as error:
            raise CorruptEnvelope(f"envelope {evpid_text(evpid)} in the journal: {error}") from error

    def _place_of(self, evpid: int) -> Place | None:
        """Where in a journal the envelope's text stands; None: in its file, if anywhere."""
        recent = self._recent.get(evpid >> 32)
        if recent is None:
            return self._updated.get(evpid)
        packed = recent.texts.get(evpid)
        return None if packed is None else recent.place(packed)

    def update(self, evpid: int, envelope: Envelope) -> None:
        recent = self._recent.get(evpid >> 32)
        exists = self.files.has_envelope(evpid) if recent is None else evpid in recent.texts
        if not exists:
            raise SpoolError(f"envelope {evpid_text(evpid)}: cannot update the envelope: there is none")
        try:
            text = encode(envelope)
        except EnvelopeError as error:
            raise SpoolError(f"envelope {evpid_text(evpid)}: bad envelope: {error}") from error
        with self._failures("cannot update the envelope"):
            journal = self._writable()
            record, at = update_record(evpid, text)
            place = Place(journal, journal.append(record) + at, len(text))
        if recent is not None:
            recent.texts[evpid] = place
        else:
            self._updated[evpid] = place

    def delete(self, evpid: int) -> bool:
        msgid = msgid_of(evpid)
        recent = self._recent.get(msgid)
        if recent is None:
            if self._has_journals and self.files.has_envelope(evpid):
                self._journal_deletion(evpid)
            gone = self.files.delete(evpid)
            self._updated.pop(evpid, None)
            return gone
        if evpid not in recent.texts:
            raise SpoolError(f"envelope {evpid_text(evpid)}: cannot delete the envelope: there is none")
        self._journal_deletion(evpid)
        del recent.texts[evpid]
        if recent.texts:
            return False
        del self._recent[msgid]
        if recent.filed:
            self.files.remove(msgid)
        return True

    def _journal_deletion(self, evpid: int) -> None:
        with self._failures("cannot journal the deletion"):
            self._writable().append(delete_record(evpid))

    # ---- from the journal to the files

    @property
    def _has_journals(self) -> bool:
        """Whether a replay could bring something back that is deleted without a word in the journal."""
        return self.unsettled_bytes > 0 or bool(self._kept)

    @property
    def unsettled_bytes(self) -> int:
        journals = self._settling if self._journal is None else (*self._settling, self._journal)
        return sum(journal.size_bytes for journal in journals)

    @property
    def pressed(self) -> bool:
        return self._journal is not None and self._journal.size_bytes > SEGMENT_BYTES

    def _rotate(self) -> None:
        """What was written so far is to be settled; what comes goes into a new journal."""
        if self._journal is not None:
            self._settling.append(self._journal)
            self._journal = None
        journals = self._settling
        self._work = [msgid for msgid, recent in self._recent.items() if recent.stands_in(journals)]
        self._work += [evpid for evpid, place in self._updated.items() if place.journal in journals]

    def forget(self) -> bool:
        """When nothing that a journal holds is owed any more, empty it at once: there is nothing to settle.

        Should power be lost before the disk knows, the replay delivers again what was delivered, and loses nothing.
        """
        journal = self._journal
        if journal is None or self._recent or self._updated or self._settling or self._kept or self._batch is not None:
            return False
        with self._failures("cannot empty the journal"):
            journal.empty()
        return True

    def settle(self, budget_s: float) -> bool:
        if not self._settling:
            if self._journal is None or self._batch is not None:
                return False
            self._rotate()
        deadline = time.monotonic() + budget_s
        while self._work:
            self._settle_one(self._work[-1])
            self._work.pop()
            if time.monotonic() > deadline:
                return False
        if not self._must_sync:
            self.settled()
        return self._must_sync

    def _settle_one(self, which: int) -> None:
        if which >> 32:
            self._settle_update(which)
        elif (recent := self._recent.get(which)) is not None:
            with self._failures("cannot read the journal"):
                texts = recent.read()
                content = None if recent.filed else recent.read_content()
            self._must_sync = True
            self.files.file(which, content, texts)
            del self._recent[which]

    def _settle_update(self, evpid: int) -> None:
        """Write the new text beside the old; `settled` puts it in its place, when the disk has it."""
        place = self._updated.get(evpid)
        if place is None:
            return  # deleted since
        with self._failures("cannot read the journal"):
            text = place.read()
        self._must_sync = True
        self.files.begin_update(evpid, text)
        self._renames[evpid] = place

    def sync_settled(self) -> None:
        with self._failures("cannot make the queue safe"):
            durable.sync_file_system(self._root)

    def settled(self) -> None:
        for evpid, place in self._renames.items():
            if self.files.end_update(evpid, keep=evpid in self._updated) and self._updated[evpid] is place:
                del self._updated[evpid]
        self._renames.clear()
        if self._kept:
            # What is replayed with those that are kept must know of the deletions since.
            self._kept += self._settling
            self._settling = []
        with self._failures("cannot remove a journal"):
            while self._settling:
                self._retire(self._settling[-1])
                self._settling.pop()
        self._must_sync = False

    def _retire(self, journal: Journal) -> None:
        """It has nothing more to say. Emptied, it is written on, so that a spool at rest always looks the same."""
        if self._journal is None and not journal.damaged:
            journal.empty()
            self._journal = journal
        else:
            journal.path.unlink(missing_ok=True)
            journal.close()

    def give_up_settling(self) -> None:
        """`sync_settled` failed: nobody knows what the disk has. The journals stay, for the next start to replay."""
        self._kept += self._settling
        self._settling = []
        for evpid in self._renames:
            self.files.end_update(evpid, keep=False)
        self._renames.clear()
        self._must_sync = False

    def close(self) -> None:
        self._batch = None  # nobody was told that it was committed
        try:
            while self._settling or self.unsettled_bytes:
                if self.settle(float("inf")):
                    self.sync_settled()
                    self.settled()
            if self._journal is not None:
                with self._failures("cannot remove a journal"):
                    self._journal.path.unlink(missing_ok=True)
        finally:
            for journal in (*self._kept, *self._settling, *([self._journal] if self._journal else [])):
                journal.close()
            self._kept, self._settling, self._journal = [], [], None

    # ---- the start

    def recover(self) -> None:
        """Replay what the journals hold, then sweep up."""
        paths = sorted(path for path in self._directory.iterdir() if len(path.name) == 8)
        journals: list[Journal] = []
        try:
            with self._failures("cannot replay the journal"):
                for path in paths:
                    journals.append(Journal.open(path))
                self._replay(journals)
            self.files.recover()
            if journals:
                self.sync_settled()
        finally:
            for journal in journals:
                journal.close()
        with self._failures("cannot remove a journal"):
            for path in paths:
                path.unlink()
            durable.sync(self._directory)

    def _replay(self, journals: Sequence[Journal]) -> None:
        """Make queue/ what the journals say, whatever of it had been done before the end came."""
        live: dict[int, Recent] = {}
        updated: dict[int, Place | None] = {}  # of messages that no journal holds; None: deleted
        for journal in journals:
            for record in journal.records():
                if record.kind == COMMIT:
                    assert record.content is not None
                    content = _packed(record.content.offset, record.content.length)
                    live[record.number] = Recent(journal, content, {**record.texts})
                    continue
                recent = live.get(record.number >> 32)
                if recent is None:
                    updated[record.number] = None if record.kind == DELETE else record.texts[record.number]
                elif record.kind == DELETE:
                    recent.texts.pop(record.number, None)
                elif record.number in recent.texts:
                    recent.texts[record.number] = record.texts[record.number]
        for msgid, recent in live.items():
            self.files.remove(msgid)
            if recent.texts:
                self.files.file(msgid, recent.read_content(), recent.read())
        for evpid, place in updated.items():
            if not self.files.has_envelope(evpid):
                continue
            if place is None:
                self.files.delete(evpid)
            else:
                self.files.update_text(evpid, place.read())

    def walk(self) -> Iterator[tuple[int, Envelope]]:
        for evpid, envelope in self.files.walk():
            place = self._updated.get(evpid)
            yield evpid, envelope if place is None else self._decoded(evpid, place)
        for recent in self._recent.values():
            for evpid, packed in recent.texts.items():
                yield evpid, self._decoded(evpid, recent.place(packed))

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = os.fspath(error.filename).removeprefix(f"{self._root}/") if error.filename else "spool"
            raise SpoolError(f"{name}: {what}: {error.strerror or error}") from error

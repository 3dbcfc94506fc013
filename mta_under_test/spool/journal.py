"""The journal: what was acknowledged and does not stand in queue/ yet, in files that are only appended to.

ROOT/journal/NUMBER, 8 hex digits, replayed in order. A record is a header (magic, length, CRC-32 of what follows, kind)
and a body. A record that is cut short or damaged ends its file: it is the last one, which nobody was promised.

    COMMIT   msgid, the envelopes (low half of the evpid, text), the content of the message
    UPDATE   evpid, the envelope's new text
    DELETE   evpid

Owns: one open file. Never: knows what an envelope says. Raises OSError, with the file's name in it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mta_under_test.spool import durable

COMMIT, UPDATE, DELETE = 1, 2, 3

_MAGIC = 0x53424A31  # "SBJ1"
_HEADER = struct.Struct("=IIIB")
_COMMIT = struct.Struct("=IHI")  # msgid, number of envelopes, length of the content
_ENVELOPE = struct.Struct("=II")  # low half of the evpid, length of the text
_EVPID = struct.Struct("=Q")
MAX_RECORD_BYTES = 1 << 28


class Place(NamedTuple):
    """Where in a journal a text stands."""

    journal: Journal
    offset: int
    length: int

    def read(self) -> bytes:
        return self.journal.read(self.offset, self.length)


class Record(NamedTuple):
    """One that was read. Of a COMMIT `texts` are the envelopes by evpid; of an UPDATE the new one, of a DELETE none."""

    kind: int
    number: int  # msgid of a COMMIT, evpid of the others
    texts: dict[int, Place]
    content: Place | None


class Damaged(OSError):
    """The disk did not take what was appended, and it could not be taken back: nothing more may be written here."""


class Journal:
    """One file, appended to by `append` (not yet safe) and `sync` (safe)."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size_bytes = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._synced_bytes = self.size_bytes
        self._damaged = False

    @classmethod
    def create(cls, path: Path) -> Journal:
        """A new file, whose name is safe as well."""
        descriptor = os.open(path, os.O_RDWR | durable.NEW_FILE, durable.MODE)
        try:
            durable.sync(path.parent)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        return cls(path, descriptor)

    @classmethod
    def open(cls, path: Path) -> Journal:
        return cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise OSError(5, "the journal is shorter than it was", os.fspath(self.path))
        return data

    def append(self, data: bytes) -> int:
        """Write whole records. Returns the offset of the first. When it fails nothing of them stays."""
        if self._damaged:
            raise Damaged(5, "a write to the journal failed before", os.fspath(self.path))
        began = self.size_bytes
        view = memoryview(data)
        try:
            while view:
                view = view[os.pwrite(self._descriptor, view, self.size_bytes + len(data) - len(view)) :]
        except OSError as error:
            self._take_back(began)
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from error
        self.size_bytes += len(data)
        return began

    def empty(self) -> None:
        """What was written is not to be replayed. A damaged journal stays as it is, for the next one to follow it."""
        if self.size_bytes and not self._damaged:
            os.ftruncate(self._descriptor, 0)
            self.size_bytes = self._synced_bytes = 0

    def sync(self) -> None:
        """fdatasync(2) what was appended. May be called from a thread, beside `append` and `read`.

        When it fails nothing more is written here: the kernel reports a write error once, and then calls the pages
        clean. What of it a replay will find nobody knows.
        """
        size_bytes = self.size_bytes
        if self._synced_bytes == size_bytes:
            return
        try:
            durable.sync_data(self._descriptor)
        except OSError as error:
            self._damaged = True
            raise durable.LostWrites(error.errno, error.strerror, os.fspath(self.path)) from error
        self._synced_bytes = size_bytes

    @property
    def damaged(self) -> bool:
        return self._damaged

    def _take_back(self, size_bytes: int) -> None:
        """What failed is not replayed: its sender was told so, and sends it again."""
        try:
            os.ftruncate(self._descriptor, size_bytes)
            self.size_bytes = size_bytes
        except OSError:
            # Then a replay finds it: delivered twice, rather than lost. What is appended behind it would be lost.
            self._damaged = True

    def records(self) -> Iterator[Record]:
        """What was written, up to the first record that is not whole."""
        offset = 0
        while offset + _HEADER.size <= self.size_bytes:
            magic, length, checksum, kind = _HEADER.unpack(self.read(offset, _HEADER.size))
            at = offset + _HEADER.size
            if magic != _MAGIC or length > min(MAX_RECORD_BYTES, self.size_bytes - at):
                return
            body = self.read(at, length)
            if zlib.crc32(body) != checksum:
                return
            yield self._record(kind, body, at)
            offset = at + length

    def _record(self, kind: int, body: bytes, at: int) -> Record:
        if kind != COMMIT:
            (evpid,) = _EVPID.unpack_from(body)
            text = Place(self, at + _EVPID.size, len(body) - _EVPID.size)
            return Record(kind, evpid, {evpid: text} if kind == UPDATE else {}, None)
        msgid, envelopes, content_bytes = _COMMIT.unpack_from(body)
        end = len(body)
        content = Place(self, at + end - content_bytes, content_bytes)
        texts = {}
        index = _COMMIT.size
        place = index + envelopes * _ENVELOPE.size
        for low, length in _ENVELOPE.iter_unpack(body[index:place]):
            texts[msgid << 32 | low] = Place(self, at + place, length)
            place += length
        return Record(kind, msgid, texts, content)


def _framed(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body), kind) + body


def commit_record(msgid: int, texts: Mapping[int, bytes], content: bytes) -> tuple[bytes, dict[int, int], int]:
    """The record, and where in it each envelope's text and the content begin."""
    head = [_COMMIT.pack(msgid, len(texts), len(content))]
    head += [_ENVELOPE.pack(evpid & 0xFFFFFFFF, len(text)) for evpid, text in texts.items()]
    at = _HEADER.size + _COMMIT.size + _ENVELOPE.size * len(texts)
    places = {}
    for evpid, text in texts.items():
        places[evpid] = at
        at += len(text)
    return _framed(COMMIT, b"".join((*head, *texts.values(), content))), places, at


def update_record(evpid: int, text: bytes) -> tuple[bytes, int]:
    """The record, and where in it the text begins."""
    return _framed(UPDATE, _EVPID.pack(evpid) + text), _HEADER.size + _EVPID.size


def delete_record(evpid: int) -> bytes:
    return _framed(DELETE, _EVPID.pack(evpid))

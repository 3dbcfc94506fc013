"""The spool: ROOT/{incoming/MSG/, queue/HH/MSG/{message,EVPID}, corrupt/, purge/, temporary/, offline/}.

MSG is the message's id in 8 hex digits, HH the first two of them, EVPID an envelope's id in 16. A message is written
in incoming/ and becomes real by one rename into queue/. HH directories are made when first needed and then kept: there
are at most 256, and removing them would race with commits and cost each commit two more fsyncs.

Owns: the files. Keeps no cache and holds no descriptor between calls; those that it hands out are the caller's.
Never: keeps a schedule, knows who is owed what. One process at a time writes a spool.

Every failure is a SpoolError, which names the file relative to ROOT.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mta_under_test.spool import compression, durable
from mta_under_test.spool.store import CorruptEnvelope, SpoolError
from mta_under_test.wire.envelope import (
    Envelope,
    EnvelopeError,
    decode,
    encode,
    evpid_text,
    msgid_of,
    msgid_text,
)

DIRECTORIES = ("incoming", "queue", "corrupt", "purge", "temporary", "offline")
MESSAGE = "message"
ENVELOPE_BYTES = 1 << 16  # no envelope is larger
ID_TRIES = 100  # ids are random: a second try is rare, a hundredth means that something else is wrong

_HEX = frozenset("0123456789abcdef")


class Spool:
    def __init__(self, root: Path, *, compress: bool = False) -> None:
        """Make the tree (0700) where it is missing. Raises SpoolError when `root` cannot be written."""
        self._root = root
        self._compress = compress
        try:
            root.mkdir(0o700, parents=True, exist_ok=True)
            for name in DIRECTORIES:
                (root / name).mkdir(0o700, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"{error.filename}: cannot make the spool: {error.strerror}") from error
        for name in ("incoming", "queue"):
            path = root / name
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
                raise SpoolError(f"{path}: cannot write here as user {os.geteuid()}; change its owner or its mode")

    # ---- a message on its way in

    def create(self) -> int:
        """Begin a message: a random id that no other message has, never 0."""
        with self._failures("cannot make a message"):
            return _unused_id(self._create)

    def _create(self, msgid: int) -> None:
        if self._queue(msgid).exists() or self._corrupt(msgid).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), msgid_text(msgid))
        self._incoming(msgid).mkdir(0o700)

    def open_message(self, msgid: int) -> int:
        """A descriptor to write the message with. The caller owns it."""
        with self._failures("cannot make the message's file"):
            return os.open(self._incoming(msgid) / MESSAGE, os.O_RDWR | durable.NEW_FILE, durable.MODE)

    def add_envelope(self, msgid: int, envelope: Envelope) -> int:
        """Add a recipient to an uncommitted message. Returns the envelope's id."""
        try:
            text = encode(envelope)
        except EnvelopeError as error:
            raise SpoolError(f"message {msgid_text(msgid)}: bad envelope: {error}") from error
        return self.add_text(msgid, text)

    def add_text(self, msgid: int, text: bytes) -> int:
        directory = self._incoming(msgid)

        def write(low: int) -> None:
            # Not synced: commit does that, for all files of the message at once.
            durable.write_new(directory / evpid_text(msgid << 32 | low), self._packed(text), sync=False)

        with self._failures("cannot write an envelope"):
            return msgid << 32 | _unused_id(write)

    def commit(self, msgids: Sequence[int]) -> None:
        """Make messages real, all of them or none. When it returns they survive power loss.

        What the order is for, since a crash may come between any two steps:

        1. The data of every file, then the names in every message's directory. Only then
        2. the rename into queue/: so whatever stands in queue/ is whole, however the machine went down, and a crash
           before it leaves litter in incoming/ that `recover` sweeps.
        3. The names in queue/HH, once for each HH: the renames themselves. Before this a message may vanish with the
           power, and the client must not have been told 250. incoming/ comes after: if the old name went first and
           the new one were lost, a file system without a journal would have lost both.

        A failed fsync is not tried again, since the kernel reports a write error once and then calls the pages clean:
        the message whose fsync failed is discarded, and committing it a second time fails.
        """
        moved: list[int] = []
        try:
            with self._failures("cannot commit"):
                if len(msgids) > 1:
                    for msgid in msgids:
                        for path in self._files(msgid):
                            durable.start_writing(path)
                for msgid in msgids:
                    self._sync_message(msgid)
                for msgid in msgids:
                    self._move_to_queue(msgid)
                    moved.append(msgid)
                for directory in sorted({self._shelf(msgid) for msgid in msgids}):
                    durable.sync(directory)
                if msgids:
                    durable.sync(self._root / "incoming")
        except SpoolError:
            self.take_back(moved)
            raise

    def take_back(self, msgids: Sequence[int]) -> None:
        """Undo a commit: what nobody was promised must not be delivered, the client will send it again."""
        with self._failures("cannot take back a commit"):
            for msgid in msgids:
                self._queue(msgid).rename(self._incoming(msgid))

    def _packed(self, text: bytes) -> bytes:
        return compression.packed(text) if self._compress else text

    def _files(self, msgid: int) -> list[Path]:
        """A whole uncommitted message's files. Raises FileNotFoundError or SpoolError when it is not whole."""
        directory = self._incoming(msgid)
        names = os.listdir(directory)
        if MESSAGE not in names or len(names) < 2:
            what = "no envelope" if MESSAGE in names else "no message file"
            raise SpoolError(f"{self._name(directory)}: cannot commit: {what}")
        return [directory / name for name in names]

    def _sync_message(self, msgid: int) -> None:
        paths = self._files(msgid)
        if self._compress:
            compression.pack_file(self._incoming(msgid) / MESSAGE)
        try:
            for path in paths:
                durable.sync(path)
            durable.sync(self._incoming(msgid))
        except durable.LostWrites:
            durable.remove_tree(self._incoming(msgid))
            raise

    def _move_to_queue(self, msgid: int) -> None:
        try:
            self._incoming(msgid).rename(self._queue(msgid))
        except FileNotFoundError:
            self._make_shelf(self._shelf(msgid))
            self._incoming(msgid).rename(self._queue(msgid))

    def _make_shelf(self, shelf: Path) -> None:
        shelf.mkdir(0o700, exist_ok=True)  # a message from the journal may have made it, and it is not safe yet
        try:
            durable.sync(self._root / "queue")
        except OSError:
            # Left standing, it would be taken for one whose own name is safe.
            with suppress(OSError):  # … unless something stands in it, which the journal has as well
                shelf.rmdir()
            raise

    def discard(self, msgid: int) -> None:
        """Give up an uncommitted message; nothing of it stays. One that is gone already is no error."""
        with self._failures("cannot discard"):
            durable.remove_tree(self._incoming(msgid))

    # ---- what is in the queue

    def message_fd(self, msgid: int) -> int:
        """A descriptor to read a committed message with. The caller owns it."""
        with self._failures("cannot open the message"):
            descriptor = os.open(self._message(msgid), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not compression.is_packed(descriptor):
                    return descriptor
                plain = compression.unpack_file(descriptor, self._root / "temporary" / msgid_text(msgid))
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            return plain

    def envelopes(self, msgid: int) -> list[int]:
        """Ids of a committed message's envelopes, in order."""
        with self._failures("cannot list the envelopes"):
            names = os.listdir(self._queue(msgid))
        return sorted(int(name, 16) for name in names if _is_evpid(name, msgid))

    def envelope(self, evpid: int) -> Envelope:
        """Read one. Raises CorruptEnvelope (a SpoolError) for one that had to be moved to corrupt/."""
        return self._read(evpid)[1]

    def envelope_text(self, evpid: int) -> bytes:
        """The same as text."""
        return self._read(evpid)[0]

    def _read(self, evpid: int) -> tuple[bytes, Envelope]:
        path = self._envelope(evpid)
        with self._failures("cannot read the envelope"):
            text = durable.read(path, ENVELOPE_BYTES + 1)
        try:
            if len(text) <= ENVELOPE_BYTES:
                text = compression.unpacked(text, ENVELOPE_BYTES + 1)
            if len(text) > ENVELOPE_BYTES:
                raise EnvelopeError(f"longer than {ENVELOPE_BYTES} bytes")
            return text, decode(text)
        except (EnvelopeError, compression.NotGzip) as error:
            self._quarantine(msgid_of(evpid), evpid_text(evpid))
            raise CorruptEnvelope(f"{self._name(path)}: {error}") from error

    def update(self, evpid: int, envelope: Envelope) -> None:
        """Replace a committed envelope: after a crash there is the old one or the new one, never half of one."""
        path = self._envelope(evpid)
        partial = self._partial(evpid)
        try:
            text = encode(envelope)
        except EnvelopeError as error:
            raise SpoolError(f"{self._name(path)}: bad envelope: {error}") from error
        with self._failures("cannot update the envelope"):
            path.stat()  # a rename would not ask, and an envelope that was deleted stays deleted
            # Synced before the rename, else the name might reach the disk before the text does (rename(2), fsync(2)).
            durable.write_new(partial, self._packed(text), sync=True)
            try:
                partial.rename(path)
            except OSError:
                partial.unlink()
                raise

    def delete(self, evpid: int) -> bool:
        """Remove an envelope, and the message with the last one; true if the message is gone too.

        Not synced: power loss may bring an envelope back, and a mail is then delivered twice rather than never.
        """
        with self._failures("cannot delete the envelope"):
            self._envelope(evpid).unlink()
            return self._remove_if_done(msgid_of(evpid))

    def _remove_if_done(self, msgid: int) -> bool:
        """The message goes after its envelopes: a crash in between leaves one that is owed to nobody."""
        directory = self._queue(msgid)
        with os.scandir(directory) as entries:
            if any(entry.name != MESSAGE for entry in entries):
                return False
        durable.remove_tree(directory)
        return True

    # ---- the start

    def recover(self) -> None:
        """Sweep up after a crash. Call it before `walk`, while no other process uses the spool.

        What is in incoming/, temporary/ and purge/ was never promised to anybody; a message in queue/ without an
        envelope is owed to nobody.
        """
        with self._failures("cannot recover"):
            for name in ("incoming", "temporary", "purge"):
                for entry in os.listdir(self._root / name):
                    durable.remove_tree(self._root / name / entry)
            for msgid in self._messages():
                self._remove_if_done(msgid)
            # Directories that were made just before a crash are relied on from here on.
            durable.sync(self._root)
            durable.sync(self._root / "queue")

    def walk(self) -> Iterator[tuple[int, Envelope]]:
        """Every committed envelope. Those that nobody can read, or whose message is missing, go to corrupt/."""
        with self._failures("cannot walk the queue"):
            for msgid in self._messages():
                directory = self._queue(msgid)
                names = sorted(os.listdir(directory))
                whole = MESSAGE in names
                for name in names:
                    if name == MESSAGE:
                        continue
                    if not whole or not _is_evpid(name, msgid):
                        self._quarantine(msgid, name)
                        continue
                    try:
                        envelope = self.envelope(int(name, 16))
                    except CorruptEnvelope:
                        continue  # it is in corrupt/ now, where somebody will find it
                    yield int(name, 16), envelope

    def _messages(self) -> Iterator[int]:
        for shelf in sorted(os.listdir(self._root / "queue")):
            path = self._root / "queue" / shelf
            for name in sorted(os.listdir(path)) if path.is_dir() else ():
                if len(name) == 8 and _HEX.issuperset(name) and name.startswith(shelf):
                    yield int(name, 16)

    def _quarantine(self, msgid: int, name: str) -> None:
        """Move an envelope to corrupt/MSG/, and link its message there, so that a person can still read both."""
        source = self._queue(msgid)
        target = self._corrupt(msgid)
        with self._failures("cannot put the envelope aside"):
            target.mkdir(0o700, exist_ok=True)
            if (source / MESSAGE).exists() and not (target / MESSAGE).exists():
                (target / MESSAGE).hardlink_to(source / MESSAGE)
            (source / name).rename(target / name)
            self._remove_if_done(msgid)

    # ---- names

    def _incoming(self, msgid: int) -> Path:
        return self._root / "incoming" / msgid_text(msgid)

    def _shelf(self, msgid: int) -> Path:
        return self._root / "queue" / f"{msgid >> 24:02x}"

    def _queue(self, msgid: int) -> Path:
        return self._shelf(msgid) / msgid_text(msgid)

    def _message(self, msgid: int) -> str | Path:
        return self._queue(msgid) / MESSAGE

    def _corrupt(self, msgid: int) -> Path:
        return self._root / "corrupt" / msgid_text(msgid)

    def _envelope(self, evpid: int) -> Path:
        return self._queue(msgid_of(evpid)) / evpid_text(evpid)

    def _partial(self, evpid: int) -> Path:
        return self._root / "incoming" / f"envelope.{evpid_text(evpid)}.tmp"

    def _name(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path).removeprefix(f"{self._root}/")

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = self._name(error.filename) if error.filename else "spool"
            raise SpoolError(f"{name}: {what}: {error.strerror or error}") from error


def _unused_id(take: Callable[[int], None]) -> int:
    """A random number of 32 bits, not 0, that `take` does not refuse with FileExistsError."""
    for number in ids_at_random():
        try:
            take(number)
        except FileExistsError:
            continue
        return number
    raise SpoolError(f"no unused id found in {ID_TRIES} tries")


def ids_at_random() -> Iterator[int]:
    """Numbers of 32 bits, none 0, as many as it makes sense to try."""
    for _ in range(ID_TRIES):
        if number := int.from_bytes(os.urandom(4), "big"):
            yield number


def _is_evpid(name: str, msgid: int) -> bool:
    return len(name) == 16 and _HEX.issuperset(name) and name.startswith(msgid_text(msgid))

"""What the journal asks of the files in addition: whole messages put into queue/ at once, and updates in two steps.

Nothing here is synced: the journal stays until one syncfs(2) has made all of it safe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mta_under_test.spool import durable
from mta_under_test.spool.disk import MESSAGE, Spool
from mta_under_test.wire.envelope import evpid_text, msgid_of, msgid_text

ROOMS = ("incoming", "corrupt")  # that a message may stand in, beside queue/HH


class Files(Spool):
    def __init__(self, root: Path, *, compress: bool = False) -> None:
        super().__init__(root, compress=compress)
        self._base = os.fspath(root)

    def has(self, msgid: int) -> bool:
        """Whether a message of this id is in the queue, on its way in, or put aside."""
        # Strings, not Paths: this is asked for every message.
        name = msgid_text(msgid)
        return any(map(os.path.lexists, (f"{self._base}/{room}/{name}" for room in (f"queue/{name[:2]}", *ROOMS))))

    def has_envelope(self, evpid: int) -> bool:
        return self._envelope(evpid).exists()

    # ---- into incoming/

    def begin(self, msgid: int) -> None:
        with self._failures("cannot make a message"):
            self._incoming(msgid).mkdir(0o700)

    def write_message(self, msgid: int, content: bytes) -> None:
        with self._failures("cannot write the message"):
            durable.write_new(self._incoming(msgid) / MESSAGE, content, sync=False)

    def write_envelope(self, evpid: int, text: bytes) -> None:
        with self._failures("cannot write an envelope"):
            path = self._incoming(msgid_of(evpid)) / evpid_text(evpid)
            durable.write_new(path, self._packed(text), sync=False)

    # ---- into queue/

    def file_message(self, msgid: int, content: bytes) -> None:
        """The message alone, for somebody who wants to read it; the journal has its envelopes."""
        with self._failures("cannot write the message"):
            self._write(self._made(msgid) / MESSAGE, content)

    def file(self, msgid: int, content: bytes | None, texts: Mapping[int, bytes]) -> None:
        """The whole message; `content` None: its file is there."""
        with self._failures("cannot write the message"):
            directory = self._made(msgid)
            if content is not None:
                self._write(directory / MESSAGE, content)
            for evpid, text in texts.items():
                self._write(directory / evpid_text(evpid), text)

    def remove(self, msgid: int) -> None:
        """Remove a whole message, if it is there."""
        with self._failures("cannot remove the message"):
            durable.remove_tree(self._queue(msgid))

    def _made(self, msgid: int) -> Path:
        directory = self._queue(msgid)
        try:
            directory.mkdir(0o700)
        except FileNotFoundError:
            self._make_shelf(self._shelf(msgid))
            directory.mkdir(0o700)
        except FileExistsError:
            pass  # made before, for its message alone
        return directory

    def _write(self, path: Path, text: bytes) -> None:
        """Over whatever is there: a piece that a failure or a crash left. Nobody has a descriptor of that."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, durable.MODE)
        try:
            durable.write_all(descriptor, self._packed(text))
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        finally:
            os.close(descriptor)

    # ---- updates

    def update_text(self, evpid: int, text: bytes) -> None:
        self.begin_update(evpid, text)
        path = self._partial(evpid)
        with self._failures("cannot update the envelope"):
            durable.sync(path)
            path.rename(self._envelope(evpid))

    def begin_update(self, evpid: int, text: bytes) -> None:
        with self._failures("cannot update the envelope"):
            self._write(self._partial(evpid), text)

    def end_update(self, evpid: int, *, keep: bool) -> bool:
        """Put what `begin_update` wrote, and the disk has, in its place; or throw it away. True if it was put there."""
        path = self._partial(evpid)
        with self._failures("cannot update the envelope"):
            if keep and self.has_envelope(evpid):
                path.rename(self._envelope(evpid))
                return True
            path.unlink(missing_ok=True)
        return False

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

ROOMS = ("queue", "incoming", "corrupt")  # that a message may stand in


class Files(Spool):
    def __init__(self, root: Path, *, compress: bool = False) -> None:
        super().__init__(root, compress=compress)
        self._base = os.fspath(root)

    def has(self, msgid: int) -> bool:
        """Whether a message of this id is in the queue, on its way in, or put aside."""
        return any(os.path.lexists(self._place(msgid, room)) for room in ROOMS)

    def _place(self, msgid: int, room: str) -> str:
        """A string, not a Path, since it is asked for every message."""
        name = msgid_text(msgid)
        return f"{self._base}/{room}/{name[:2]}/{name}" if room == "queue" else f"{self._base}/{room}/{name}"

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
        """The message alone, for somebody who wants to read it; the journal has its envelopes.

        In temporary/: a directory of its own in queue/, made for it and removed, costs five times the processor time of
        the file (116 against 23 us) and, on a busy ext4, a wait of more than a millisecond.
        """
        with self._failures("cannot write the message"):
            self._write(self._lent(msgid), content)

    def file(self, msgid: int, content: bytes | None, texts: Mapping[int, bytes]) -> None:
        """The whole message; `content` None: `file_message` has made its file, which finds its place. May be repeated
        when it has failed."""
        with self._failures("cannot write the message"):
            directory = self._made(msgid)
            for evpid, text in texts.items():
                self._write(directory / evpid_text(evpid), text)
            if content is None:
                Path(self._lent(msgid)).rename(directory / MESSAGE)
            else:
                self._write(directory / MESSAGE, content)

    def remove(self, msgid: int) -> None:
        """Remove a whole message, or what there is of it."""
        with self._failures("cannot remove the message"):
            Path(self._lent(msgid)).unlink(missing_ok=True)
            if os.path.lexists(self._place(msgid, "queue")):
                durable.remove_tree(self._queue(msgid))

    def _message(self, msgid: int) -> str | Path:
        lent = self._lent(msgid)
        return lent if os.path.lexists(lent) else super()._message(msgid)

    def _lent(self, msgid: int) -> str:
        """Of a message whose only other place is the journal. A string, not a Path, since most messages are lent."""
        return f"{self._base}/temporary/{msgid_text(msgid)}.{MESSAGE}"

    def _made(self, msgid: int) -> Path:
        directory = self._queue(msgid)
        try:
            directory.mkdir(0o700)
        except FileNotFoundError:
            self._make_shelf(self._shelf(msgid))
            directory.mkdir(0o700)
        except FileExistsError:
            pass  # made before, when the disk refused what was to stand in it
        return directory

    def _write(self, path: str | Path, text: bytes) -> None:
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

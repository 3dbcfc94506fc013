"""Users without accounts: homes of their own, in a directory that every user may enter, for tests of local delivery."""

from __future__ import annotations

import mailbox
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

UID = 65534 if os.geteuid() == 0 else os.geteuid()  # mail is never delivered as root
GID = 65534 if os.geteuid() == 0 else os.getegid()


class Place:
    """Homes by user, and files that lookup and the users may read. Not below tmp_path, which only root can enter."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="seatbelt-homes-")
        self.root = Path(self._directory.name)
        self.root.chmod(0o755)

    def close(self) -> None:
        self._directory.cleanup()

    def home(self, user: str) -> Path:
        home = self.root / user
        if not home.exists():
            home.mkdir()
            os.chown(home, UID, GID)
        return home

    def userbase(self, *users: str) -> str:
        """The table `users`, for a configuration."""
        entries = ", ".join(f'"{user}" = "{UID}:{GID}:{self.home(user)}"' for user in users)
        return f"table users {{ {entries} }}\n"

    def forward(self, user: str, text: str, mode: int = 0o600) -> Path:
        path = self.home(user) / ".forward"
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, UID, GID)
        return path

    def file(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.root / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def mail(self, user: str, folder: str = "Maildir") -> Sequence[bytes]:
        """The messages in new/ of a user's maildir, in no order."""
        return [path.read_bytes() for path in (self.home(user) / folder / "new").glob("*")]

    def mbox(self, path: Path) -> list[mailbox.mboxMessage]:
        return list(mailbox.mbox(path, create=False))


def script(place: Place, text: str) -> Path:
    """A program for users to run."""
    return place.file("program", f"#!/bin/sh\n{text}\n", 0o755)

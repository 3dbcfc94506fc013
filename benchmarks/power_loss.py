"""Power loss, simulated: what of a directory tree would still be there if everything not synced were gone.

`Shadow.install` puts itself between a process and fsync(2), fdatasync(2) and syncfs(2). At each of them it copies what
that call has made safe: a file's content, a directory's names. `restore` builds the tree that power loss would leave:

    strict      nothing that was not synced: a file without an fsync is empty, a name without its directory's is gone
    chance      what was not synced survives or not, each name and each file by itself: worse than most file systems do

Inodes are told apart by number; an O_PATH descriptor of each is held, so that no number is used again.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

from mta_under_test.spool import durable

Listing = dict[str, str]  # name to inode number; a directory's has a slash behind it


class Shadow:
    def __init__(self, root: Path, copy: Path) -> None:
        """Of `root`, kept in `copy`, which should be in memory (/dev/shm)."""
        self._root = root
        self._copy = copy
        self._held: dict[int, int] = {}
        self._copied_bytes: dict[int, int] = {}  # of journals, which are only appended to until they are cut
        self._lock = threading.Lock()
        copy.mkdir(parents=True, exist_ok=True)

    def install(self) -> None:
        """Everything that exists now counts as safe."""
        self._all()
        fsync, fdatasync, sync_file_system = os.fsync, os.fdatasync, durable.sync_file_system
        ftruncate = os.ftruncate

        def after(real: Callable[[int], None]) -> Callable[[int], None]:
            def call(descriptor: int) -> None:
                real(descriptor)
                with self._lock:
                    self._one(descriptor)

            return call

        def everything(path: Path) -> None:
            sync_file_system(path)
            with self._lock:
                self._all()

        def cut(descriptor: int, length: int) -> None:
            with self._lock:
                ftruncate(descriptor, length)
                self._copied_bytes[os.fstat(descriptor).st_ino] = -1  # the next sync copies all of it

        os.fsync, os.fdatasync = after(fsync), after(fdatasync)  # type: ignore[assignment]
        os.ftruncate = cut  # type: ignore[assignment]
        durable.sync_file_system = everything

    def _one(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self._root):
            return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._directory(path)
        else:
            self._file(path, descriptor)

    def _all(self) -> None:
        # Bottom up: a directory's names count once everything below it does.
        for top, _, names in os.walk(self._root, topdown=False):
            for name in names:
                path = Path(top, name)
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except FileNotFoundError:
                    continue  # gone since the directory was read
                try:
                    self._file(path, descriptor)
                finally:
                    os.close(descriptor)
            self._directory(Path(top))

    def _file(self, path: Path, descriptor: int) -> None:
        number = self._hold(path)
        if number is None:
            return
        size_bytes = os.fstat(descriptor).st_size
        target = self._copy / str(number)
        if path.parent.name == "journal":
            begin = self._copied_bytes.get(number, 0)
            with target.open("ab" if begin >= 0 else "wb") as copy:
                begin = max(begin, 0)
                copy.write(os.pread(descriptor, size_bytes - begin, begin) if size_bytes > begin else b"")
            self._copied_bytes[number] = size_bytes
        else:
            self._replace(target, os.pread(descriptor, size_bytes, 0))

    def _directory(self, path: Path) -> None:
        listing: Listing = {}
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            return
        for name in names:
            if (number := self._hold(path / name)) is not None:
                listing[name] = f"{number}{'/' if (path / name).is_dir() else ''}"
        number = self._hold(path)
        self._replace(self._copy / ("root" if path == self._root else f"{number}.d"), json.dumps(listing).encode())

    def _hold(self, path: Path) -> int | None:
        try:
            number = path.lstat().st_ino
            if number not in self._held:
                self._held[number] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        return number

    @staticmethod
    def _replace(target: Path, data: bytes) -> None:
        partial = target.with_name(f"{target.name}.tmp")
        partial.write_bytes(data)
        partial.replace(target)


def restore(copy: Path, target: Path, *, current: Path | None = None, chance: Random | None = None) -> None:
    """Build in `target`, which must not exist, what power loss leaves. `current` and `chance` together: by chance.

    Raises FileNotFoundError when `install` had not come to its end: then nothing had been done that could be lost.
    """
    if not (copy / "root").exists():
        raise FileNotFoundError(copy)
    _restore(copy, copy / "root", target, current, chance)


def _restore(copy: Path, source: Path, target: Path, current: Path | None, chance: Random | None) -> None:
    target.mkdir(0o700)
    safe: Listing = json.loads(source.read_bytes()) if source.exists() else {}
    there = set(os.listdir(current)) if current is not None and current.is_dir() else set()
    for name in sorted(safe.keys() | there):
        now = current / name if current is not None and name in there else None
        number = safe.get(name, "")
        same = now is not None and number.rstrip("/") == str(now.lstat().st_ino)
        if chance is not None and not same and chance.random() < 0.5:
            if now is None:
                continue  # its removal reached the disk
            number = f"{now.lstat().st_ino}{'/' if now.is_dir() else ''}"
        elif not number:
            continue  # its name did not
        else:
            now = now if same else None
        if number.endswith("/"):
            _restore(copy, copy / f"{number[:-1]}.d", target / name, now, chance)
        else:
            _restore_file(copy / number, target / name, now, chance)


def _restore_file(source: Path, target: Path, current: Path | None, chance: Random | None) -> None:
    content = source.read_bytes() if source.exists() else b""
    if chance is not None and current is not None:
        newer = current.read_bytes()
        if newer.startswith(content):
            content = newer[: chance.randint(len(content), len(newer))]
        elif chance.random() < 0.5:
            content = newer
    target.write_bytes(content)
    target.chmod(0o600)

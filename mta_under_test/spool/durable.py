"""Files that survive power loss: the few system calls that the spool is made of.

Owns: nothing. Every descriptor opened here is closed here, on every way out.
Never: knows what a message or an envelope is. Raises OSError, always with the file's name in it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
MODE = 0o600
_syncfs = ctypes.CDLL(None, use_errno=True).syncfs


class LostWrites(OSError):
    """fsync(2) failed. The kernel says so once; a second fsync might succeed though the data is gone."""


def write_new(path: Path, data: bytes, *, sync: bool) -> None:
    """Create `path` with `data` in it, or leave nothing there. With `sync` the data (not the name) is on disk."""
    with _opened(path, os.O_WRONLY | NEW_FILE) as descriptor:
        try:
            write_all(descriptor, data)
            if sync:
                _fsync(descriptor, path)
        except OSError:
            path.unlink()
            raise


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read(path: Path, limit_bytes: int) -> bytes:
    """What is in `path`, up to `limit_bytes`."""
    with _opened(path, os.O_RDONLY) as descriptor:
        parts = []
        while limit_bytes and (part := os.read(descriptor, limit_bytes)):
            parts.append(part)
            limit_bytes -= len(part)
        return b"".join(parts)


def sync(path: Path) -> None:
    """fsync(2) a file, or a directory: the names in it. Raises LostWrites when it was the fsync that failed."""
    with _opened(path, os.O_RDONLY) as descriptor:
        _fsync(descriptor, path)


def sync_data(descriptor: int) -> None:
    """fdatasync(2): the data of an open file, and what of its metadata is needed to find it."""
    os.fdatasync(descriptor)


def sync_file_system(path: Path) -> None:
    """syncfs(2): everything that was written to the file system `path` is on. Raises LostWrites.

    Python has no call for it. Since Linux 5.8 it reports a failed write-back of any file.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        if _syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise LostWrites(number, os.strerror(number), os.fspath(path))


def start_writing(path: Path) -> None:
    """Let the kernel begin to write a file out, and do not wait.

    POSIX_FADV_DONTNEED starts write-back of what is dirty. Done for many files before the first fsync, one journal
    commit carries them all: 32 messages are committed in two thirds of the time.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a directory and what is in it. Nothing there is what was wanted."""
    if path.is_symlink():
        path.unlink()
        return
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink()
        return
    for name in names:
        remove_tree(path / name)
    path.rmdir()


def _fsync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise LostWrites(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, MODE)
    try:
        yield descriptor
    except LostWrites:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(descriptor)

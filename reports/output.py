"""output: how a report or a record is written where somebody wants it.

Owns: one write. Never: decides what is written, or where.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

STANDARD = Path("-")


def is_standard(path: Path) -> bool:
    """Whether it is standard output, by whatever name: it may be a file that more is printed to."""
    if path == STANDARD:
        return True
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def is_direct(path: Path) -> bool:
    """Whether it is a pipe or a device, which nothing may take the place of. Raises OSError for a directory."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(mode)


def partial(path: Path) -> Path:
    """What becomes the file at `path`, or the one that a link there leads to, when it is whole."""
    target = Path(os.path.realpath(path))
    return target.with_name(target.name + ".partial")


def write(path: Path, data: bytes) -> None:
    """A file whole or not at all; a pipe, a device, and standard output (`-`), directly. Raises OSError."""
    if is_standard(path):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif is_direct(path):
        with path.open("wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
    else:
        whole = partial(path)
        try:
            whole.write_bytes(data)
            whole.replace(os.path.realpath(path))
        except BaseException:
            whole.unlink(missing_ok=True)
            raise

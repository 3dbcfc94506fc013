"""gzip (RFC 1952) of what lies in the spool, when `queue compression` is set.

Told from plain text by its first two bytes, which no envelope has, nor any message: ours begin with a Received header.
So a spool that was written with and without compression can be read with and without.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from mta_under_test.spool import durable

MAGIC = b"\x1f\x8b"
_LEVEL = 6
_CHUNK_BYTES = 1 << 16


class NotGzip(Exception):
    """It begins as gzip does, and is not."""


def packed(data: bytes) -> bytes:
    return gzip.compress(data, _LEVEL, mtime=0)


def unpacked(data: bytes, limit_bytes: int) -> bytes:
    """What was packed, up to `limit_bytes`; data that is not gzip as it is. Raises NotGzip for damaged data."""
    if not data.startswith(MAGIC):
        return data
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = unpacking.decompress(data, limit_bytes)
    except zlib.error as error:
        raise NotGzip(str(error)) from error
    if not unpacking.eof and len(text) < limit_bytes:
        raise NotGzip("cut short")
    return text


def is_packed(descriptor: int) -> bool:
    return os.pread(descriptor, len(MAGIC), 0) == MAGIC


def unpack_file(descriptor: int, path: Path) -> int:
    """A new file with what was packed in the open one, for reading, its name removed. The caller owns the descriptor.

    A file, since whoever gets it reads it as if it were the message's. Raises OSError, also for damaged data.
    """
    reading = -1
    writing = os.open(path, os.O_WRONLY | durable.NEW_FILE, durable.MODE)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as source, gzip.open(source) as plain:
            while chunk := plain.read(_CHUNK_BYTES):
                durable.write_all(writing, chunk)
        reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(5, f"not gzip: {error}", os.fspath(path)) from error
    finally:
        os.close(writing)
        path.unlink()
    return reading


def pack_file(path: Path) -> None:
    """Replace a file by its packed self."""
    partial = path.with_name(f"{path.name}.gz")
    try:
        with path.open("rb") as plain, gzip.open(partial, "wb", _LEVEL) as packing:
            while chunk := plain.read(_CHUNK_BYTES):
                packing.write(chunk)
        partial.chmod(durable.MODE)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise

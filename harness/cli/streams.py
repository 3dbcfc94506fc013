"""streams: standard output and error that do not break off what writes to them.

Owns: what becomes of a write that fails. Never: what is written.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO


class _Steady(io.FileIO):
    """Takes everything. `failed` is the first error that somebody has to be told; that a reader is gone is none."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._gone = (errno.EPIPE, errno.EIO) if self.isatty() else (errno.EPIPE,)  # EIO: the terminal was closed
        self.failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                self.failed = self.failed or error
            return memoryview(data).nbytes


class Streams:
    """Takes the place of both. A reader that is gone, as after `| head`, changes nothing: not what a run keeps, nor its
    exit status. What a full disk did not take is told by `failure`, when all is done.
    """

    def __init__(self) -> None:
        self._output: TextIO | None = None
        self._raw: _Steady | None = None
        if isinstance(sys.stdout, io.TextIOWrapper):
            self._raw = _Steady(sys.stdout.fileno())
            self._output = sys.stdout = _over(self._raw, sys.stdout)
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr = _over(_Steady(sys.stderr.fileno()), sys.stderr)

    def failure(self) -> str:
        """Why standard output is not whole; empty when it is."""
        if self._output is None or self._raw is None:
            return ""
        self._output.flush()
        error = self._raw.failed
        return f"standard output: {os.strerror(error.errno or 0)}" if error else ""


def _over(raw: _Steady, before: io.TextIOWrapper) -> TextIO:
    before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding,
        errors="backslashreplace",  # a path that is no text, or a narrow encoding, breaks off nothing either
        line_buffering=before.line_buffering or before.write_through,
    )

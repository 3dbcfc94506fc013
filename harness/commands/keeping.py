"""keeping: the directory that a run leaves behind, and what is in it."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from reports import output
from reports.record import RunRecord, save


def run_directory(runs: Path, name: str) -> Path:
    """A new directory for what a run leaves behind. Raises OSError."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1000):
        directory = runs / f"{stamp}-{name}{f'-{number}' if number else ''}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory.resolve()
    raise OSError(f"{runs}: no free name for a run directory")


def command(words: Sequence[str]) -> str:
    """As a shell takes it; bytes of an argument that are no text are escaped, or no record could have them."""
    return shlex.join(words).encode(errors="backslashreplace").decode()


def check_writable(path: Path) -> None:
    """An hour of load whose record cannot be written is an hour lost: find out first. Raises OSError."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: cannot write there: is a directory")
    try:
        if output.is_standard(path):
            return
        if output.is_direct(path):  # it is not opened: nobody may read that pipe yet
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        partial = output.partial(path)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot write there: {error.strerror}") from error


def check_apart(paths: dict[str, Path], record: Path | None = None) -> None:
    """That all can be written, and none takes the place of another, or of the record that is read. Raises OSError."""
    names = {} if record is None else {os.path.realpath(record): "the record"}
    for name, path in paths.items():
        check_writable(path)
        if output.is_direct(path) and not output.is_standard(path):
            continue  # a device takes as much as one likes
        where = str(output.STANDARD) if output.is_standard(path) else os.path.realpath(path)
        if (other := names.setdefault(where, name)) != name:
            raise OSError(f"{path}: {name} would take the place of {other}")


def keep(result: RunRecord, directory: Path, record: Path | None = None) -> Path:
    """Write the record, and leave in the run's directory what helps to understand it. Raises RecordError."""
    for scratch in ("spool", "agent", "traced"):
        shutil.rmtree(directory / scratch, ignore_errors=True)
    (directory / "command").write_text(result.command + "\n")
    save(result, directory / "record.json")
    if record is not None:
        save(result, record)
    if record is None or output.is_standard(record):
        return directory / "record.json"
    return record

"""keeping: the directory that a run leaves behind, and what is in it."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

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


def check_writable(path: Path) -> None:
    """An hour of load whose record cannot be written is an hour lost: find out first. Raises OSError."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: cannot write there: is a directory")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot write there: {error.strerror}") from error


def keep(result: RunRecord, directory: Path, record: Path | None = None) -> Path:
    """Write the record, and leave in the run's directory what helps to understand it. Raises RecordError."""
    for scratch in ("spool", "agent", "traced"):
        shutil.rmtree(directory / scratch, ignore_errors=True)
    (directory / "command").write_text(result.command + "\n")
    save(result, directory / "record.json")
    if record is not None:
        save(result, record)
    return record or directory / "record.json"

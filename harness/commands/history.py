"""`seatbelt history`, and what `seatbelt run --history` adds to it: a line for each run, and where builds changed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.detectors.changes import LEAST, Change, changes
from reports import history
from reports.history import Entry, HistoryError, Series
from reports.record import RecordError, RunRecord, load
from reports.terminal import number

PRINTED, USAGE = 0, 2
ALPHA = 0.05  # that anything is told of runs of one kind, between which nothing changed
TOLERANCE = 0.05  # a smaller change is true, perhaps, and nobody's business
RECENT = 200  # runs that are looked at; a search takes as long as their square
BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 40
GIT = ("git", "describe", "--always", "--dirty", "--abbrev=12")


def run(path: Path, add: Path | None, build: str, *, every: bool) -> int:
    """Returns the exit status. `every`: series without a change are printed too."""
    try:
        if add is not None:
            record = load(add)
            check(path)
            append(path, record, build)
        entries = _read(path)
    except (RecordError, HistoryError, OSError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    console = Console(highlight=False, markup=False, emoji=False)
    for same in history.kinds(entries).values():
        _print(console, same, every=every)
    return PRINTED


def check(path: Path) -> None:
    """What is there must be a history, if a line is to be added. Raises OSError, HistoryError."""
    if path.is_file():
        _read(path)


def _read(path: Path) -> list[Entry]:
    with path.open("rb") as file:
        try:
            return history.read(file)
        except HistoryError as error:
            raise HistoryError(f"{path}: {error}") from error


def append(path: Path, record: RunRecord, build: str) -> None:
    """One line more, whole or not at all, also when runs that end together add theirs. Raises OSError."""
    text = history.line(history.entry(record, build or _build() or record.began))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = os.fstat(descriptor).st_size
        if before and os.pread(descriptor, 1, before - 1) != b"\n":  # an editor, or a copy, left the last line open
            text = b"\n" + text
        if os.write(descriptor, text) < len(text):
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def _build() -> str:
    """What git calls what is checked out here; empty where there is no git, or nothing."""
    try:
        done = subprocess.run(GIT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def found(all_series: Sequence[Series]) -> list[tuple[Series, list[Change]]]:
    """Every series with its changes, at ALPHA for all of them together (Bonferroni)."""
    varying = sum(len(set(each.values)) > 1 for each in all_series)
    return [
        (
            each,
            [
                change
                for change in changes(each.values, ALPHA / varying)
                if abs(change.after - change.before) > TOLERANCE * max(abs(change.after), abs(change.before))
            ]
            if len(set(each.values)) > 1
            else [],
        )
        for each in all_series
    ]


def _print(console: Console, entries: Sequence[Entry], *, every: bool) -> None:
    entries = entries[-RECENT:]
    first, last = entries[0], entries[-1]
    what = " with ".join([first.target, *first.defects])
    builds = f"{len(entries)} run{'' if len(entries) == 1 else 's'}, {first.build} to {last.build}"
    console.print(f"{first.scenario} on {what}, profile {first.profile}: {builds}", style="bold", soft_wrap=True)
    all_series = found(history.series(entries))
    for series, changed in all_series:
        if changed or every:
            console.print(f"  {_bars(series.values)}  {series.name}: {number(series.values[-1])}", soft_wrap=True)
        for change in changed:
            word = "rose" if change.after > change.before else "fell"
            between = f"between {series.builds[change.at - 1]} and {series.builds[change.at]}"
            told = f"{word} {between}: {number(change.before)} to {number(change.after)} (p {change.chance:.2g})"
            console.print(f"    {told}", soft_wrap=True)
    steady = sum(not changed for _, changed in all_series)
    few = f"; a change shows when {LEAST} builds and more have it" if len(entries) < 4 * LEAST else ""
    console.print(f"  no change in {steady} of {len(all_series)} series{few}", soft_wrap=True)


def _bars(values: Sequence[float]) -> str:
    """The last ones, from the smallest to the largest."""
    shown = values[-MOST_BARS:]
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)

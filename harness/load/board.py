"""The board: what the Seatbelt page shows. The controller writes it to a file, the load's process serves it from there.

Owns: its form, and that a reader never sees half of it. A file, because neither side may ever wait for the other.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from reports.record import Verdict


class Line(msgspec.Struct):
    """One process. A reading for each of the board's times; None: it was not there."""

    pid: int
    role: str
    descriptors: list[int | None] = []
    sockets: list[int | None] = []
    rss: list[int | None] = []  # bytes


class Seen(msgspec.Struct):
    """A finding so far."""

    title: str
    message: str
    rate: str  # with its interval and unit, as a person reads it; empty where there is none
    first_dose: int  # from 1


class DoseLine(msgspec.Struct):
    phase: str
    units: int
    load_s: float
    drained_s: float
    descriptors: int  # of all processes, at rest


class Board(msgspec.Struct):
    scenario: str = ""
    target: str = ""
    unit: str = ""
    doing: str = "starting"
    done: int = 0  # units
    planned: int = 0
    times: list[float] = []  # seconds since the run began
    processes: list[Line] = []
    doses: list[DoseLine] = []
    findings: list[Seen] = []
    verdict: Verdict | None = None  # when the run is over
    headline: str = ""  # its sentence
    reasons: list[str] = []  # why it is inconclusive
    record: str = ""  # path of the run record, when it has been written


def write(board: Board, path: Path) -> None:
    """Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(msgspec.json.encode(board))
    partial.replace(path)


def read(path: Path) -> bytes:
    """As JSON; ``null`` before the first was written."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b"null"

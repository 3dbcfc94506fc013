"""What `seatbelt shrink` does: the smallest dialogue that still leaks, as a dialog file and as a script.

Ctrl-C, SIGTERM, SIGHUP and the end of the time leave the best so far.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness.commands.keeping import check_writable
from harness.commands.progress import progress
from harness.interruption import terminated_as_interrupted
from harness.remote_mx.process import RemoteMXError
from harness.run.design import Progress
from harness.shrink import dialogue as dialogues
from harness.shrink.dialogue import Dialogue
from harness.shrink.oracle import Oracle, Uncountable
from harness.targets import TargetError
from harness.targets.choice import MakeTarget, Settings
from harness.targets.words import COMMAND, from_words, is_known
from reports.dialog import dialog
from reports.record import Finding, RecordError, RunRecord, load
from reports.reproduction import Irreproducible, script

WRITTEN, USAGE, INCONCLUSIVE = 0, 2, 3


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    record: Path
    output: Path  # without its suffix
    finding: int  # as the report counts them
    minutes: float
    target: str  # in words; empty: as the record says
    quiet: bool
    verbose: bool


class _Enough(Exception):
    """The time is over."""


class _Search:
    """Asks the oracle, remembers the best, and stops in time."""

    def __init__(self, oracle: Oracle, whole: Dialogue, seconds: float, show: Progress) -> None:
        self._oracle = oracle
        self._whole = whole
        self._deadline = time.monotonic() + seconds
        self._show = show
        self.best: Dialogue | None = None

    def leaks(self, candidate: Dialogue) -> bool:
        left = self.best or self._whole
        text = f"{left.told()}; test {self._oracle.tests + 1}: {candidate.told()}"
        self._show(text, self._whole.size - left.size, self._whole.size)
        if time.monotonic() > self._deadline and self.best is not None:
            raise _Enough
        if not self._oracle.leaks(candidate):
            return False
        self.best = candidate
        return True


def run(wanted: Wanted) -> int:
    """The exit status."""
    try:
        record = load(wanted.record)
        finding = _finding(record, wanted)
        make_target = _target(record, wanted)
        for path in _paths(wanted.output):
            check_writable(path)
        with terminated_as_interrupted(), progress(quiet=wanted.quiet, verbose=wanted.verbose) as show:
            return _shrink(record, finding, make_target, wanted, show)
    except (RecordError, Uncountable, TargetError, RemoteMXError, OSError) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE


def _finding(record: RunRecord, wanted: Wanted) -> Finding:
    if not record.findings:
        raise RecordError(f"{wanted.record}: nothing was found in it, and so there is nothing to shrink")
    if not 1 <= wanted.finding <= len(record.findings):
        raise RecordError(f"{wanted.record}: no finding {wanted.finding}; it has {len(record.findings)}")
    if not record.dialogue:
        raise RecordError(f"{wanted.record}: the record has no dialogue: run it again with this Seatbelt")
    return record.findings[wanted.finding - 1]


def _target(record: RunRecord, wanted: Wanted) -> MakeTarget:
    """The record's, to be started again and again. Raises TargetError."""
    name = record.target.name
    if not wanted.target and (name == "attach" or not is_known(name)):
        raise TargetError(f"{name} is to be started again and again: say how, by --target 'PROGRAM … {{port}}'")
    conditions = record.conditions
    settings = Settings(
        seed=record.seed,
        nofile=conditions.nofile,
        needs=tuple(conditions.needs),
        defects=() if wanted.target else tuple(record.target.defects),
        relays=bool(conditions.refuses),
    )
    return from_words(wanted.target or (record.target.version if name == COMMAND else name), settings)


def _shrink(record: RunRecord, finding: Finding, make_target: MakeTarget, wanted: Wanted, show: Progress) -> int:
    whole = dialogues.of(record)
    per_step = finding.rate * sum(session.units for session in record.dialogue) / whole.size
    began = time.monotonic()
    ended = ""
    with tempfile.TemporaryDirectory(prefix="seatbelt-shrink-") as directory:
        Path(directory).chmod(0o755)  # a server started by root reads its files as another user
        with Oracle(finding, record.conditions, make_target, Path(directory), per_step) as oracle:
            search = _Search(oracle, whole, wanted.minutes * 60, show)
            try:
                if search.leaks(whole):
                    dialogues.shrink(whole, search.leaks)
                if search.best is not None and not oracle.leaks(search.best, fresh=True):
                    search.best = None
            except _Enough:
                ended = f"after {wanted.minutes:g} minutes"
            except KeyboardInterrupt:
                ended = "interrupted"
            if search.best is None:
                print(f"seatbelt: not seen again: {finding.label} ({ended or oracle.said})", file=sys.stderr)
                return INCONCLUSIVE
            rate, tests = oracle.rate, oracle.tests
    best = search.best
    if not wanted.quiet:
        note = f"; the best so far, {ended}" if ended else ""
        print(f"{whole.told()}\nshrunk to {best.told()} ({tests} tests in {time.monotonic() - began:.0f} s{note})\n")
    _write(record, finding, best, rate, wanted)
    return WRITTEN


def _write(record: RunRecord, finding: Finding, best: Dialogue, rate: float, wanted: Wanted) -> None:
    """The dialog file, and the script where a script can show the finding. Raises OSError."""
    file, program = _paths(wanted.output)
    target = " with ".join([record.target.name, *record.target.defects])
    conditions = msgspec.structs.replace(record.conditions, operations=list(best.operations))
    comments = (
        (finding.message or finding.label).replace("\n", " "),
        f"Shrunk by Seatbelt from {record.scenario} on {target}: {rate:.3g} each time that this is held.",
    )
    text = dialog(comments, conditions, best.sessions)
    file.write_text(text)
    if not wanted.quiet:
        print(text)
    sessions = [msgspec.structs.replace(session, units=1) for session in best.sessions]
    shrunk = msgspec.structs.replace(record, dialogue=sessions, conditions=conditions)
    each = msgspec.structs.replace(finding, rate=rate / max(1, len(sessions)))
    try:
        program.write_text(script(shrunk, each, program.name))
    except Irreproducible as error:
        print(f"{file} written; no script: {error}")
    else:
        print(f"{file} and {program} written")


def _paths(output: Path) -> tuple[Path, Path]:
    return output.with_suffix(".smtp"), output.with_suffix(".py")

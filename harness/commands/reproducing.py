"""reproducing: `seatbelt repro`: the script of one finding of a record."""

from __future__ import annotations

import sys
from pathlib import Path

from reports.record import RecordError, load
from reports.reproduction import Irreproducible, script

WRITTEN, USAGE = 0, 2


def run(record: Path, number: int, output: Path) -> int:
    """Returns the exit status."""
    try:
        found = load(record)
        if not 1 <= number <= len(found.findings):
            raise Irreproducible(f"{record}: no finding {number}; it has {len(found.findings)}")
        text = script(found, found.findings[number - 1], output.name)
        output.write_text(text)
    except (RecordError, Irreproducible) as error:
        print(f"seatbelt: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"seatbelt: {output}: cannot write the script: {error.strerror}", file=sys.stderr)
        return USAGE
    port = " --mx-port N" if found.conditions.refuses else ""
    print(f"{output} written; run it as: python {output} HOST:PORT PID{port}")
    return WRITTEN

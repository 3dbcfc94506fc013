"""Fuzz the parsers: random bytes, kept when they reach code that none before them reached.

    python -m benchmarks.fuzz [--seconds 300] [--seed N] [PARSER…]

Inputs begin with the corpus in tests/fuzz/corpus/PARSER/ and what reaches new code joins it. An input that makes a
parser fail is written to the corpus too, as `failed-…`, where the tests find it until the bug is gone. Exit status: 0
nothing found; 1 a failure.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.parsers import TARGETS, Target

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
WATCHED = str(ROOT / "mta_under_test")
MAX_BYTES = 600  # of an input; parsers that need more to fail are tested with streams of their own
HANG_S = 10.0

Arc = tuple[str, int, int]

WORDS = [
    *(ROOT / "tests" / "fuzz" / "words.txt").read_bytes().split(b"\n"),
    *(b"\r\n", b"\r\n.\r\n", b"\r", b"\n", b"\0", b" ", b"\xc3\xa9", b"\r\n\r\n\0\r\nQUIT\n", b"\x21\x11\x00\x0c"),
]


class Coverage:
    """Which line came after which, in the code under test."""

    def __init__(self) -> None:
        self.seen: set[Arc] = set()
        self._fresh: set[Arc] = set()
        self._last: dict[int, int] = {}

    def run(self, target: Target, data: bytes) -> bool:
        """Whether the input went where none has gone before. Raises whatever the target raises."""
        self._fresh.clear()
        self._last.clear()
        sys.settrace(self._called)
        try:
            target(data)
        finally:
            sys.settrace(None)
        new = self._fresh - self.seen
        self.seen |= new
        return bool(new)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(WATCHED):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            number, key = frame.f_lineno, id(frame)
            self._fresh.add((frame.f_code.co_filename, self._last.get(key, 0), number))
            self._last[key] = number
        elif event == "return":
            self._last.pop(id(frame), None)
        return self._line


def mutated(chance: random.Random, inputs: list[bytes]) -> bytes:
    data = bytearray(chance.choice(inputs) if inputs else b"")
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randint(0, len(data))
        match chance.randrange(7):
            case 0:
                data[at:at] = bytes([chance.randrange(256)])
            case 1 if data:
                data[at - 1] = chance.randrange(256)
            case 2:
                del data[at : at + chance.choice((1, 2, 8, 40))]
            case 3 | 4:
                data[at:at] = chance.choice(WORDS) + chance.choice((b"", b" ", b"\r\n"))
            case 5:
                other = chance.choice(inputs) if inputs else b""
                data[at:] = other[chance.randint(0, len(other)) :]
            case _:
                data[at:at] = data[at : at + chance.choice((1, 8, 40))] * chance.choice((1, 2, 10))
    return bytes(data[:MAX_BYTES])


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, int, list[Path]]:
    """Inputs tried, how many of them were kept, and the failures."""
    target, directory = TARGETS[name], CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    coverage = Coverage()
    inputs = [path.read_bytes() for path in sorted(directory.iterdir())]
    for data in inputs:
        coverage.run(target, data)
    tried, kept, failures = 0, 0, []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutated(chance, inputs)
        tried += 1
        watch = threading.Timer(HANG_S, _hangs, (name, data))
        watch.daemon = True
        if tried % 100 == 0:
            watch.start()
        try:
            is_new = coverage.run(target, data)
        except Exception:  # noqa: BLE001, whatever it is, it is what we look for
            traceback.print_exc()
            path = directory / f"failed-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            failures.append(path)
            continue
        finally:
            watch.cancel()
        if is_new:
            kept += 1
            inputs.append(data)
            (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return tried, kept, failures


def _hangs(name: str, data: bytes) -> None:
    print(f"{name}: hangs on {data!r}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="for each parser [%(default)s]")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(TARGETS)}; all when none is named")
    options = parser.parse_args()
    found = False
    for name in options.parsers or TARGETS:
        if name not in TARGETS:
            parser.error(f"no parser {name}; there is {', '.join(TARGETS)}")
        tried, kept, failures = fuzz(name, options.seconds, options.seed)
        print(
            f"{name:10} {options.seconds:.0f} s, seed {options.seed}: "
            f"{tried} inputs, {kept} kept, {len(failures)} failures"
        )
        for path in failures:
            print(f"  {path.relative_to(ROOT)}")
        found |= bool(failures)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())

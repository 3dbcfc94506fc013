"""The meter: what malloc(3) has given out, to the byte, and of whom it can tell nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.agent import native
from harness.probes import meter
from tests.compiled import compiled

PID, BYTES = 0, 1


@contextmanager
def allocates(tmp_path: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    program = compiled("programs/allocates.c", tmp_path, "-fno-builtin", *flags)
    env = native.environment(tmp_path, os.environ)
    process = subprocess.Popen([program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()  # its child ends with its input


def say(process: subprocess.Popen[str], word: str) -> tuple[int, int]:
    """Returns the pid that answers, and how many bytes it says that it holds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word)
    process.stdin.flush()
    pid, held = process.stdout.readline().split()
    return int(pid), int(held)


def test_it_counts_what_every_kind_of_allocation_holds_and_what_is_freed(tmp_path: Path) -> None:
    with allocates(tmp_path) as process:
        for word in ("m", "c", "a", "p", "r", "R", "f"):
            held = say(process, word)[BYTES]
            assert meter.read(tmp_path, [process.pid]) == {process.pid: held}, word


def test_a_child_starts_with_what_its_parent_had(tmp_path: Path) -> None:
    with allocates(tmp_path) as process:
        held = say(process, "m")[BYTES]
        child, held_by_child = say(process, "F")
        assert child != process.pid
        assert held_by_child > held
        assert meter.read(tmp_path, [process.pid, child]) == {process.pid: held, child: held_by_child}


def test_nothing_is_told_of_a_program_that_does_not_load_it(tmp_path: Path) -> None:
    with allocates(tmp_path, "-static") as process:
        say(process, "m")
        assert meter.read(tmp_path, [process.pid]) == {}
    assert meter.read(tmp_path / "elsewhere", [os.getpid()]) == {}


def test_a_slot_of_an_earlier_process_with_the_same_pid_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / native.HEAP).write_bytes(native.SLOT.pack(os.getpid(), 0, 1000, 1))
    assert meter.read(tmp_path, [os.getpid()]) == {}


def test_of_two_slots_of_a_process_the_newer_is_believed(tmp_path: Path) -> None:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    slots = [(now, 2000, 1), (now - 1, 1000, 1)]
    (tmp_path / native.HEAP).write_bytes(b"".join(native.SLOT.pack(os.getpid(), *slot) for slot in slots))
    assert meter.read(tmp_path, [os.getpid()]) == {os.getpid(): 2000}

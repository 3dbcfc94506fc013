from __future__ import annotations

import os
import subprocess

import psutil
import pytest
from probed import as_another_user, line, python, until

from harness.probes import memory, processes
from reports.record import Memory

MIB = 1 << 20
BLOCK = 32 * MIB
SLACK = 2 * MIB  # what an interpreter does of its own meanwhile
GROWS = f"""
import mmap, os, sys
print(flush=True)
input()
block = mmap.mmap(-1, {BLOCK}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block.write(b"x" * {BLOCK})
print(flush=True)
input()
child = os.fork()
if child == 0:
    input()
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""


def go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return line(process)


def test_what_is_written_to_is_private_until_it_is_shared() -> None:
    with python("-c", GROWS) as process:
        line(process)
        before = memory.read(process.pid)
        go_on(process)
        alone = memory.read(process.pid)
        for field in ("rss", "pss", "private_dirty", "anonymous"):
            grown = getattr(alone, field) - getattr(before, field)
            assert abs(grown - BLOCK) < SLACK, field
        child = int(go_on(process))
        shared = memory.read(child)
        assert shared.anonymous > BLOCK
        assert shared.private_dirty < BLOCK / 2
        assert shared.pss < shared.rss - BLOCK / 2 + SLACK


def test_the_figures_are_those_of_psutil() -> None:
    with python("-c", "import sys; print(flush=True); sys.stdin.read()") as process:
        line(process)
        ours, theirs = memory.read(process.pid), psutil.Process(process.pid).memory_full_info()
        assert abs(ours.rss - theirs.rss) < MIB
        assert abs(ours.pss - theirs.pss) < MIB
        assert 0 < ours.private_dirty <= theirs.uss


def test_a_process_that_is_not_ours_to_see_tells_what_it_tells_everyone() -> None:
    with python("-c", f"{UNSEEN}; print(flush=True); sys.stdin.read()") as process:
        line(process)
        rss, pss, private_dirty, anonymous = map(int, as_another_user(lambda: _figures(process.pid)))
        status = psutil.Process(process.pid).memory_info()
        assert abs(rss - status.rss) < MIB  # the kernel counts in batches, a processor each
        assert 0 < anonymous < rss
        assert pss == private_dirty == 0


UNSEEN = "import ctypes, sys; ctypes.CDLL(None).prctl(4, 0)"  # PR_SET_DUMPABLE: now only root may look


def _figures(pid: int) -> list[str]:
    found = memory.read(pid)
    return [str(each) for each in (found.rss, found.pss, found.private_dirty, found.anonymous)]


def test_who_has_ended_has_no_memory() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        until(lambda: getattr(processes.stat(child), "state", "") == "Z", "the child has ended")
        assert memory.read(child) == Memory()
    finally:
        os.waitpid(child, 0)
    assert memory.read(child) == Memory()


@pytest.mark.parametrize("text", [b"", b"\n", b"Rss:\t  3 kB\nPssDirty: 9 kB\nRssAnon: 8 kB\n"])
def test_only_whole_names_count(text: bytes) -> None:
    assert memory._parse(text, memory._ROLLUP) == (Memory(rss=3 * 1024) if text.strip() else Memory())

"""Twins: descriptors that are one open file are told from those that opened the same file twice."""

from __future__ import annotations

from pathlib import Path

from harness.probes.snapshot import inspect
from harness.probes.twins import Holder, twins
from tests.probes.probed import line, python

HOLDER = """
import os, sys
first = os.open(sys.argv[1], os.O_RDONLY)
again = os.open(sys.argv[1], os.O_RDONLY)
copy = os.dup(first)
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(first, again, copy, child, flush=True)
sys.stdin.read()
"""


def test_copies_and_what_a_child_inherited_are_twins_and_a_second_opening_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with python("-c", HOLDER, path) as process:
        first, again, copy, child = map(int, line(process).split())
        found, _ = inspect([process.pid, child])
        same = twins(found)
    me = process.pid
    assert same[Holder(me, first)] == sorted([Holder(me, copy), Holder(child, first), Holder(child, copy)])
    assert same[Holder(me, again)] == [Holder(child, again)]


def test_nothing_is_its_own_twin(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with python("-c", HOLDER, path) as process:
        line(process)
        found, _ = inspect([process.pid])
        assert all(holder not in others for holder, others in twins(found).items())

"""The tracker and strace, on a program that makes a descriptor in every way: the function that made it is named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.agent import native
from harness.probes.snapshot import inspect, tree
from harness.tracing import Trace, Tracer
from harness.tracing.choice import Tracing
from harness.tracing.strace import Strace
from harness.tracing.tracker import Tracker
from reports.record import Descriptor, Process
from tests.compiled import compiled

WAYS = 19
PASSED = "received_by_recvmsg"


class Told(NamedTuple):
    pid: int
    number: int
    function: str


@contextmanager
def running(program: Path, directory: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [program], cwd=directory, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()  # its child ends with its input


def go(process: subprocess.Popen[str]) -> list[Told]:
    """Let it make everything; returns what it told."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    told: list[Told] = []
    while sum(each.function == "done" for each in told) < 2:
        pid, number, function = process.stdout.readline().split()
        told.append(Told(int(pid), int(number), function))
    return [each for each in told if each.function != "done"]


def processes(pid: int) -> list[Process]:
    return inspect(tree(pid))[0]


def functions(trace: Trace, number: int) -> list[str]:
    return [function for _, _, function in trace.open[number].stack]


def check(traces: dict[int, Trace], told: list[Told], parent: int) -> None:
    assert len(told) == WAYS + 1
    (passed,) = (each for each in told if each.function == PASSED)
    for each in told:
        assert functions(traces[each.pid], each.number) == [each.function, "main"], each
        assert traces[each.pid].open[each.number].received == (each is passed)
    assert all(file.endswith("opens.c") and line for file, line, _ in traces[parent].open[told[0].number].stack)
    # What was open before the fork, the child's history does not have: its parent's does.
    assert functions(traces[passed.pid], told[0].number) == [told[0].function, "main"]
    (given,) = traces[parent].passed
    assert [function for _, _, function in given.stack] == ["opened_to_be_passed", "main"]
    assert [function for _, _, function in traces[parent].children[passed.pid]] == ["forked", "main"]


def test_the_tracker_names_who_made_it(tmp_path: Path) -> None:
    program = compiled("programs/opens.c", tmp_path)
    env = native.environment(tmp_path, os.environ, traced=True)
    with running(program, tmp_path, env) as process:
        told = go(process)
        tracer: Tracer = Tracker(tmp_path)
        assert process.pid in tracer.reached([process.pid, os.getpid()])
        check(tracer.traces(processes(process.pid)), told, process.pid)


def test_a_program_without_debugging_information_has_its_functions(tmp_path: Path) -> None:
    program = compiled("programs/opens.c", tmp_path, "-g0", "-no-pie")
    env = native.environment(tmp_path, os.environ, traced=True)
    with running(program, tmp_path, env) as process:
        told = go(process)
        traces = Tracker(tmp_path).traces(processes(process.pid))
        file, line, function = traces[process.pid].open[told[0].number].stack[0]
        assert (line, function) == (0, "by_open")
        assert file.startswith(f"{program}+0x")


def test_what_a_daemon_had_before_it_left_its_parent_is_known(tmp_path: Path) -> None:
    program = compiled("programs/daemon.c", tmp_path)
    env = native.environment(tmp_path, os.environ, traced=True)
    with running(program, tmp_path, env) as process:
        assert process.stdout is not None
        pid, number = map(int, process.stdout.readline().split())
        trace = Tracker(tmp_path).traces(processes(pid))[pid]
        assert functions(trace, number) == ["opened", "main"]


def test_a_full_log_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled("programs/opens.c", tmp_path)
    monkeypatch.setattr(native, "PLACES", 3)
    env = native.environment(tmp_path, os.environ, traced=True)
    with running(program, tmp_path, env) as process:
        told = go(process)
        trace = Tracker(tmp_path).traces(processes(process.pid))[process.pid]
        known = [each.function for each in told if each.pid == process.pid and each.number in trace.open]
        assert known == ["by_open", "by_openat"]


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_strace
def test_strace_names_who_made_it(tmp_path: Path) -> None:
    program = compiled("programs/opens.c", tmp_path)
    with running(program, tmp_path, dict(os.environ)) as process:
        strace = Strace(tmp_path)
        strace.attach([process.pid])
        try:
            told = go(process)
            check(strace.traces(processes(process.pid)), told, process.pid)
        finally:
            strace.detach()
        assert process.poll() is None


def test_a_pair_that_was_closed_before_strace_looked_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "strace.12").write_text(
        "1.0 pipe2([3, 4], O_CLOEXEC) = 0 <0.000012>\n2.0 pipe2([5<pipe:[7]>, 6<pipe:[7]>], 0) = 0 <0.000012>\n"
    )
    holder = Process(12, 1, "", descriptors=[Descriptor(number, "pipe", "pipe:[7]") for number in (3, 5)])
    assert set(Strace(tmp_path).traces([holder])[12].open) == {5}


@needs_strace
def test_strace_is_chosen_where_nothing_can_be_loaded(tmp_path: Path) -> None:
    program = compiled("programs/opens.c", tmp_path, "-static-pie")
    env = native.environment(tmp_path, os.environ, traced=True)
    with running(program, tmp_path, env) as process, Tracing(process.pid, tmp_path) as tracing:
        told = go(process)
        traces = tracing.traces(processes(process.pid))
        assert functions(traces[process.pid], told[0].number)[-2:] == ["by_open", "main"]  # before: the C library's
        assert tracing.told_by([process.pid]) == "strace -k"


def test_the_tracker_is_chosen_where_it_could_be_loaded(tmp_path: Path) -> None:
    program = compiled("programs/opens.c", tmp_path)
    env = native.environment(tmp_path, os.environ, traced=True)
    with running(program, tmp_path, env) as process, Tracing(process.pid, tmp_path) as tracing:
        told = go(process)
        traces = tracing.traces(processes(process.pid))
        assert functions(traces[process.pid], told[0].number) == ["by_open", "main"]
        assert tracing.told_by([process.pid]) == "the LD_PRELOAD tracker"
        assert tracing.told_by([os.getpid()]) == ""

"""What looking costs: a snapshot beside lsof and psutil, the count of descriptors, and the sampler beside a load.

    python benchmarks/probes.py

Eight processes hold 200 descriptors each, mixed as a mail server's are: message files (every other one deleted), TCP
connections, pipes and socket pairs. Looked at in turns of equal length, a quick way as often as it can in its turn, so
that the machine's other work falls on all alike; times are the mean of the best of several turns. The first look of a
turn, by caches that the others have filled, is told apart: that is what a run pays for a snapshot.

Held, or status 1: a full snapshot (descriptors classified, socket states, memory, threads) is by the clock 20 times as
fast as lsof asked about each process, the first look too, and 3 times as fast as the same by psutil; a count of
descriptors takes under 10 µs a process; the sampler at 10 Hz takes under 1 % of a core. Printed beside them, and not
held: the processor time of each; and one lsof for all eight, which reads the kernel's socket tables once instead of
eight times. Where lsof is not installed its lines are left out.

Two thirds of a snapshot are the kernel's. The walk is done in C (`harness/probes/walk`), because the bare system calls
made from Python, a line of their own in every run, take longer than the whole of it: a listing of each process, a
readlink of each descriptor, a stat of each that is neither socket nor pipe (a file's name does not tell which file it
is), and smaps_rollup. What is asked of one process need not wait for what is asked of another, and so it is asked on
several cores. With one core alone (taskset(1)) a snapshot is 19 to 34 times as fast as lsof, the first look 14 to 20
times; without a C compiler, when the walk is Python's, 11 to 13 times.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from harness.probes import descriptors
from harness.probes.sampler import Sampler
from harness.probes.snapshot import inspect

PROCESSES, HELD = 8, 200
ROUNDS = 5
TURN_S = 0.2
COUNTS = 2000
HZ, SAMPLED_S = 10.0, 5.0
LSOF_TIMES, PSUTIL_TIMES = 20.0, 3.0
COUNT_US = 10.0
SAMPLER_SHARE = 0.01  # of one core
HOLD = """
import os, socket, sys
from pathlib import Path
directory, held = Path(sys.argv[1]), int(sys.argv[2])
kept = []
for number in range(held // 2):
    message = directory / f"message{number}"
    kept.append(os.open(message, os.O_RDWR | os.O_CREAT))
    if number % 2:
        message.unlink()
listening = socket.create_server(("127.0.0.1", 0), backlog=held)
for _ in range(held * 3 // 20):
    kept += [socket.create_connection(listening.getsockname()), listening.accept()[0]]
for _ in range(held // 20):
    kept += [*os.pipe(), *socket.socketpair()]
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def holder() -> Iterator[int]:
    """The pid of a process with HELD descriptors more than it needs."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", HOLD, directory, str(HELD)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield process.pid
            finally:
                process.kill()


def by_psutil(pids: Sequence[int]) -> None:
    for pid in pids:
        process = psutil.Process(pid)
        with process.oneshot():
            process.open_files()
            process.net_connections("all")
            process.memory_full_info()
            process.num_threads()
            process.num_fds()
            process.status()
            process.ppid()
            process.cmdline()
            process.create_time()


def by_lsof(lsof: str, pids: Sequence[int]) -> None:
    command = [lsof, "-w", "-nP", "-p", ",".join(map(str, pids))]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def bare(pids: Sequence[int]) -> None:
    """The system calls of a snapshot without anything made of them, and without the kernel's socket tables."""
    for pid in pids:
        links = os.open(f"/proc/{pid}/fd", os.O_RDONLY)
        try:
            for name in os.listdir(links):
                if os.readlink(name, dir_fd=links).startswith("/"):
                    os.stat(name, dir_fd=links)
        finally:
            os.close(links)
        Path(f"/proc/{pid}/smaps_rollup").read_bytes()


class Took(NamedTuple):
    """The mean look of a turn, and its first."""

    ms: float
    first_ms: float
    processor_ms: float  # ours, and that of the programs that were run


def processor_s() -> float:
    ours, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


def best(ways: dict[str, Callable[[], object]]) -> dict[str, Took]:
    """The best of several rounds, in each of which every way has its turn and is gone once at least."""
    turns: dict[str, list[Took]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            gone, began, spent_s = 0, time.perf_counter(), processor_s()
            first_s = 0.0
            while (took_s := time.perf_counter() - began) < TURN_S:
                way()
                gone += 1
                first_s = first_s or time.perf_counter() - began
            spent_s = processor_s() - spent_s
            turns[name].append(Took(took_s / gone * 1e3, first_s * 1e3, spent_s / gone * 1e3))
    return {name: Took(*map(min, *took)) for name, took in turns.items()}


def snapshots(pids: Sequence[int]) -> list[str]:
    """Prints what each way takes; what is not held is returned, a sentence each."""
    ways: dict[str, Callable[[], object]] = {
        "snapshot": lambda: inspect(pids, positions=False),
        "system calls in Python": lambda: bare(pids),
        "psutil": lambda: by_psutil(pids),
    }
    if lsof := shutil.which("lsof"):
        ways["lsof -p, each"] = lambda: [by_lsof(lsof, [pid]) for pid in pids]
        ways["lsof -p, all at once"] = lambda: by_lsof(lsof, pids)
    took = best(ways)
    ours = took["snapshot"]
    print(
        f"{PROCESSES} processes of {HELD} descriptors {'by the clock':>17} {'first look':>20} {'of the processor':>20}"
    )
    for name, each in took.items():
        figures = "".join(f"{ms:11.1f} ms {ms / our_ms:5.1f} x" for ms, our_ms in zip(each, ours, strict=True))
        print(f"  {name:22} {figures}")
    limits = {"lsof -p, each": LSOF_TIMES, "psutil": PSUTIL_TIMES}
    return [
        f"{what} is {theirs / our_ms:.1f} times as fast as {name}; it must be {times:g} times"
        for name, times in limits.items()
        if name in took
        for what, theirs, our_ms in (
            ("a snapshot", took[name].ms, ours.ms),
            ("the first look", took[name].first_ms, ours.first_ms),
        )
        if theirs < times * our_ms
    ]


def counts(pids: Sequence[int]) -> list[str]:
    def count_all() -> None:
        for _ in range(COUNTS // PROCESSES):
            for pid in pids:
                descriptors.count(pid)

    us = best({"count": count_all})["count"].ms * 1e3 / COUNTS
    print(f"count of descriptors: {us:.1f} us a process")
    return [f"a count takes {us:.1f} us; the limit is {COUNT_US:g}"] if us > COUNT_US else []


def sampler(pids: Sequence[int]) -> list[str]:
    with Sampler(lambda: pids, hz=HZ) as sampling:
        time.sleep(SAMPLED_S)
        sampling.stop()
    share = sampling.cpu_s / SAMPLED_S
    rows = len(sampling.samples.rows)
    print(f"sampler at {HZ:g} Hz, {PROCESSES} processes: {share:.2%} of one core ({rows} readings in {SAMPLED_S:g} s)")
    return (
        [f"the sampler takes {share:.2%} of a core; the limit is {SAMPLER_SHARE:.0%}"] if share > SAMPLER_SHARE else []
    )


def main() -> int:
    with ExitStack() as running:
        pids = [running.enter_context(holder()) for _ in range(PROCESSES)]
        assert all(len(os.listdir(f"/proc/{pid}/fd")) > HELD for pid in pids)
        missed = snapshots(pids) + counts(pids) + sampler(pids)
    for sentence in missed:
        print(f"NOT HELD: {sentence}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

"""What looking costs: descriptors counted and listed by us, by psutil and by lsof, and the sampler beside a load.

    python benchmarks/probes.py

Prints medians of wall time, and each as a multiple of our walk; then the sampler's share of one core, reading eight
processes of 300 descriptors ten times a second. Where lsof is not installed its lines are left out. Status 1 when the
sampler takes more than its limit.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil

from harness.probes import descriptors
from harness.probes.sampler import Sampler

FEW, MANY = 300, 4_900
RUNS = 15
PROCESSES, HZ, SAMPLED_S = 8, 10.0, 5.0
LIMIT = 0.02  # of one core, for the sampler
# Regular files: psutil's open_files passes over everything else, and would have nothing to do.
HOLD = (
    "import os, sys; [os.open(os.__file__, os.O_RDONLY) for _ in range(int(sys.argv[1]))]; print(flush=True); input()"
)


@contextmanager
def holder(count: int) -> Iterator[int]:
    """The pid of a process with `count` descriptors more than it needs."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    command = [sys.executable, "-c", HOLD, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def median_us(work: Callable[[], object], runs: int = RUNS) -> float:
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def listings(count: int) -> None:
    with holder(count) as pid:
        process = psutil.Process(pid)
        ways: dict[str, Callable[[], object]] = {
            "stat of /proc/PID/fd": lambda: os.stat(f"/proc/{pid}/fd").st_size,
            "seatbelt, count": lambda: descriptors.count(pid),
            "seatbelt, walk": lambda: descriptors.read(pid),
            "psutil, num_fds": process.num_fds,
            "psutil, open_files": process.open_files,
        }
        if lsof := shutil.which("lsof"):
            command = [lsof, "-w", "-nP", "-p", str(pid)]
            ways["lsof -p"] = lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        took = {name: median_us(work) for name, work in ways.items()}
        print(f"{count} descriptors")
        for name, us in took.items():
            print(f"  {name:24} {us:12,.0f} us   {us / took['seatbelt, walk']:9.5f} of a walk")


def sampler() -> None:
    with ExitStack() as running:
        pids = [running.enter_context(holder(FEW)) for _ in range(PROCESSES)]
        sampling = running.enter_context(Sampler(lambda: pids, hz=HZ))
        time.sleep(SAMPLED_S)
        sampling.stop()
        rows = len(sampling.samples.rows)
    share = sampling.cpu_s / SAMPLED_S
    print(f"sampler at {HZ:g} Hz, {PROCESSES} processes: {share:.2%} of one core ({rows} readings in {SAMPLED_S:g} s)")
    if share > LIMIT:
        sys.exit(f"more than {LIMIT:.0%}")


if __name__ == "__main__":
    listings(FEW)
    listings(MANY)
    sampler()

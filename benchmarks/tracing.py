"""What being looked into costs a C program: an allocation with the meter; an open and close with the tracker, strace.

    python benchmarks/tracing.py

One program in C allocates and frees 64 bytes, and opens and closes a file, some frames deep, many times over; the best
of several rounds, in nanoseconds each. The meter is loaded in every run of a server that is no Python, the tracker and
strace only in the short second run after a finding. Needs a C compiler; without strace its line is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.agent import native

ROUNDS = 5
ALLOCATIONS, OPENS, OPENS_TRACED = 2_000_000, 100_000, 2_000
PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static void *volatile kept;
static __attribute__((noinline)) void allocate(void) { kept = malloc(64); free(kept); }
static __attribute__((noinline)) int deep(int frames) {
    int made = frames ? deep(frames - 1) : open("/etc/passwd", O_RDONLY);
    return made;
}
int main(int argc, char **argv) {
    long allocations = atol(argv[argc - 2]), opens = atol(argv[argc - 1]);
    double began = now();
    for (long number = 0; number < allocations; number++) allocate();
    printf("%f ", allocations ? (now() - began) / allocations : 0);
    began = now();
    for (long number = 0; number < opens; number++) close(deep(8));
    printf("%f\n", (now() - began) / opens);
}
"""


def best(command: Sequence[str | Path], env: dict[str, str], allocations: int, opens: int) -> tuple[float, float]:
    """Nanoseconds an allocation and its free, and an open and its close."""
    rounds = []
    for _ in range(ROUNDS):
        done = subprocess.run(
            [*command, str(allocations), str(opens)], env=env, check=True, capture_output=True, text=True
        )
        rounds.append([float(word) for word in done.stdout.split()])
    return min(each[0] for each in rounds), min(each[1] for each in rounds)


def main() -> None:
    if why := native.missing():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = directory / "loops"
        (directory / "loops.c").write_text(PROGRAM)
        subprocess.run(["cc", "-O1", "-fno-builtin", "-o", program, directory / "loops.c"], check=True)
        plain = dict(os.environ)
        metered, traced = (native.environment(directory, plain, traced=tracker) for tracker in (False, True))
        ways = [
            ("nothing", best([program], plain, ALLOCATIONS, OPENS)),
            ("the meter", best([program], metered, ALLOCATIONS, OPENS)),
            (
                "meter and tracker",
                best([program], traced, ALLOCATIONS, OPENS),
            ),
        ]
        if shutil.which("strace"):
            strace = ["strace", "-k", "-f", "-e", "trace=openat", "-o", directory / "strace.out", program]
            ways.append(("strace -k", best(strace, plain, ALLOCATIONS, OPENS_TRACED)))
        print(f"{'loaded':<20}{'malloc + free':>16}{'open + close':>16}")
        for what, (allocation, opening) in ways:
            print(f"{what:<20}{allocation:>13.1f} ns{opening:>13.0f} ns")


if __name__ == "__main__":
    main()

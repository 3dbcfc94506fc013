"""A cgroup of one's own, and what the kernel says that it holds for the processes in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.probes import kernel
from harness.targets.cgroup import Cgroup
from tests.probes.probed import until

SOCKETS = """
import socket
kept = []
while True:
    for _ in range(int(input())):
        kept.append(socket.socket())
    print(len(kept), flush=True)
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Opens as many sockets as it is told, and keeps them."""
    command = [sys.executable, "-c", SOCKETS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        open_more(process, 1)
        yield process
        process.kill()


@pytest.fixture
def cgroup(holder: subprocess.Popen[str]) -> Iterator[Cgroup]:
    made = Cgroup()
    made.adopt([holder.pid])
    if kernel.read(holder.pid) is None:
        pytest.skip("no memory cgroup may be made here: it needs root, and a kernel that counts")
    yield made
    holder.kill()
    holder.wait()
    made.close()


def open_more(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    assert process.stdout.readline()


def test_sockets_that_are_kept_cost_the_kernel_memory(holder: subprocess.Popen[str], cgroup: Cgroup) -> None:
    before = kernel.read(holder.pid)
    open_more(holder, 200)
    after = kernel.read(holder.pid)
    assert before is not None
    assert after is not None
    assert 200 * 1000 < after.total - before.total < 200 * 10_000  # 3.6 kB each on Linux 6.18


def test_it_is_removed_when_its_processes_have_ended(holder: subprocess.Popen[str], cgroup: Cgroup) -> None:
    directory = kernel.directory_of(holder.pid)
    assert directory is not None
    assert directory.is_dir()
    holder.kill()
    holder.wait()
    cgroup.close()
    assert not directory.exists()
    cgroup.close()


def test_what_a_killed_harness_left_is_removed_by_the_next_one(cgroup: Cgroup) -> None:
    code = """
import subprocess, sys
from harness.probes import kernel
from harness.targets.cgroup import Cgroup
child = subprocess.Popen(["sleep", "60"])
Cgroup().adopt([child.pid])
print(child.pid, kernel.directory_of(child.pid), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        pid, directory = killed.stdout.readline().split()
        killed.kill()
    assert Path(directory).name.startswith(f"seatbelt-{killed.pid}-")
    with subprocess.Popen(["sleep", "60"]) as other:
        another = Cgroup()
        another.adopt([other.pid])
        assert Path(directory).is_dir(), "somebody still lives in it"
        os.kill(int(pid), signal.SIGKILL)
        until(lambda: not Path(directory, "cgroup.procs").read_text(), "it is empty")
        yet_another = Cgroup()
        yet_another.adopt([other.pid])
        assert not Path(directory).exists()
        other.kill()
    another.close()
    yet_another.close()


def test_a_cgroup_that_is_ours_too_says_nothing(holder: subprocess.Popen[str]) -> None:
    assert kernel.read(holder.pid) is None


def test_a_process_that_is_not_ours_stays_where_it_is() -> None:
    before = kernel.directory_of(os.getppid())
    made = Cgroup()
    made.adopt([os.getppid(), 1])
    assert kernel.directory_of(os.getppid()) == before
    made.close()


def test_a_process_that_is_gone_has_none() -> None:
    assert kernel.read(1 << 22) is None

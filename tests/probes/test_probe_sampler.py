from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import defaultdict

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probed import as_another_user, line, python, until

from harness.probes import processes, sampler
from harness.probes.sampler import Row, Sampler, thinned

HZ = 200.0
OPENS = """
import os
print(flush=True)
while True:
    try:
        wanted = int(input())
    except EOFError:
        break
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(wanted)]
    print(flush=True)
"""


def opens(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    line(process)


def of(sampling: Sampler, pid: int) -> list[Row]:
    return [row for row in sampling.samples.rows if row[1] == pid]


def test_readings_are_of_every_process_and_follow_what_it_holds() -> None:
    with python("-c", OPENS) as one, python("-c", OPENS) as other:
        line(one)
        line(other)
        with Sampler(lambda: [one.pid, other.pid], hz=HZ) as sampling:
            until(lambda: of(sampling, one.pid), "a reading")
            opens(one, 50)
            until(lambda: of(sampling, one.pid)[-1][2] == 53, "a reading with what was opened")
            resident = psutil.Process(one.pid).memory_info().rss
            assert abs(of(sampling, one.pid)[-1][3] - resident) < 2**20
        assert {row[2] for row in of(sampling, other.pid)} == {3}
        times = [row[0] for row in sampling.samples.rows]
        assert times == sorted(times)
        assert 0 < sampling.cpu_s < times[-1] - times[0] + 1


def test_the_rate_is_kept_and_the_clock_is_the_callers() -> None:
    zero = time.monotonic()
    with Sampler(lambda: [os.getpid()], hz=20.0, clock=lambda: time.monotonic() - zero) as sampling:
        time.sleep(1.0)
    rows = sampling.samples.rows
    assert 5 <= len(rows) <= 22, "a busy machine may be late; nothing is made up for"
    assert all(0 <= row[0] < 30 for row in rows)


def test_who_ends_is_let_go_of_and_who_comes_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "REFRESH_S", 0.02)
    pids: list[int] = []
    with Sampler(lambda: list(pids), hz=HZ) as sampling:
        with python("-c", OPENS) as first:
            pids.append(first.pid)
            until(lambda: of(sampling, first.pid), "readings of the first")
        with python("-c", OPENS) as second:
            pids[:] = [first.pid, second.pid]  # the first one's number is asked for on; nobody has it
            until(lambda: of(sampling, second.pid), "readings of the second")
            ended = len(of(sampling, first.pid))
            assert set(sampling._statm) == {second.pid}
            pids.clear()
            until(lambda: not sampling._statm, "the second is left alone though it lives")
        assert len(of(sampling, first.pid)) == ended


def test_it_ends_without_a_thread_and_without_a_descriptor() -> None:
    before, threads = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    sampling = Sampler(lambda: [os.getpid(), os.getppid()], hz=HZ)
    sampling.stop()  # which never began
    sampling = Sampler(lambda: [os.getpid(), os.getppid()], hz=HZ)
    with sampling:
        until(lambda: len(sampling.samples.rows) >= 4, "readings")
        assert threading.active_count() == threads + 1
        with pytest.raises(RuntimeError):
            sampling.start()
    sampling.stop()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


def test_it_stops_at_once_between_two_readings() -> None:
    with Sampler(lambda: [os.getpid()], hz=0.01) as sampling:
        until(lambda: sampling.samples.rows, "the first reading")
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_memory_is_bounded_and_the_rate_falls_instead() -> None:
    pids = [os.getpid(), os.getppid()]
    with Sampler(lambda: pids, hz=2000.0, max_rows=20) as sampling:
        until(lambda: sampling._interval_s >= 8 / 2000, "three halvings")
        for _ in range(50):
            assert len(sampling.samples.rows) < 20 + len(pids)
            time.sleep(0.002)
    assert {row[1] for row in sampling.samples.rows} == set(pids)


@pytest.mark.parametrize(("hz", "max_rows"), [(0.0, 100), (-1.0, 100), (10.0, 1)])
def test_what_cannot_work_is_refused(hz: float, max_rows: int) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at least 2"):
        Sampler(list, hz=hz, max_rows=max_rows)


def test_a_zombie_of_another_user_does_not_end_the_sampling() -> None:
    # Its directory of descriptors is root's, whoever it belonged to; so anybody else may not list it.
    def rows_beside_a_zombie() -> list[str]:
        zombie = os.fork()
        if zombie == 0:
            os._exit(0)
        until(lambda: getattr(processes.stat(zombie), "state", "") == "Z", "the child has ended")
        with Sampler(lambda: [zombie, os.getpid()], hz=HZ) as sampling:
            time.sleep(0.3)
            alive = sampling._thread.is_alive()
        os.waitpid(zombie, 0)
        return [json.dumps([alive, len(of(sampling, os.getpid())), len(of(sampling, zombie))])]

    alive, ours, zombies = json.loads(as_another_user(rows_beside_a_zombie)[0])
    assert alive
    assert ours > 3
    assert zombies == 0, "it holds nothing that could be counted"


Readings = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9), st.integers(0, 9)), max_size=60)


@given(Readings)
def test_thinning_halves_and_keeps_every_peak(readings: list[tuple[int, int, int]]) -> None:
    rows: list[Row] = [(float(at), *reading) for at, reading in enumerate(readings)]
    kept = thinned(rows)
    assert kept == sorted(kept)
    assert set(kept) <= set(rows), "every row is a true reading"
    by_pid: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_pid[row[1]].append(row)
    for pid, before in by_pid.items():
        after = [row for row in kept if row[1] == pid]
        assert len(after) == (len(before) + 1) // 2
        assert max(row[2] for row in after) == max(row[2] for row in before)


def test_of_equal_counts_the_one_with_more_memory_stays() -> None:
    assert thinned([(1.0, 7, 3, 10), (2.0, 7, 3, 30), (3.0, 7, 5, 10), (4.0, 7, 3, 90)]) == [
        (2.0, 7, 3, 30),
        (3.0, 7, 5, 10),
    ]

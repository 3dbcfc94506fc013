"""Workers share a dose: the same sessions as one process holds, none lost unnoticed, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from smtp_sink import SmtpSink

from harness.load.orders import FleetOrder
from harness.load.process import LoadError, LoadProcess
from harness.load.tally import Tally

TIMEOUT_S = 30.0
HERE = FleetOrder("127.0.0.1", 0, 2, local=True)
SEATBELT = Path(sys.executable).with_name("seatbelt")


def counts(tally: Tally) -> tuple[int, ...]:
    return (tally.units, tally.sessions, tally.messages, tally.refused_recipients, tally.commands, tally.failures)


def given(fleet: FleetOrder | None) -> tuple[list[tuple[int, ...]], list[str], Counter[str]]:
    """Counts of three doses, the Message-IDs that a server took, and the recipients."""
    with SmtpSink() as sink, LoadProcess("rejected-reuse", 4, seed=3, fleet=fleet) as load:
        load.ready("127.0.0.1", sink.port)
        tallies = [load.dose(number, units, timeout_s=TIMEOUT_S) for number, units in enumerate((20, 47, 160))]
        ids = sorted(sink.message_ids)
        assert sorted(name for tally in tallies for name in tally.accepted) == ids
        return [counts(tally) for tally in tallies], ids, Counter(sink.recipients)


def test_two_workers_hold_the_sessions_that_one_process_holds() -> None:
    alone, shared = given(None), given(HERE)
    assert shared == alone
    assert [each[0] for each in shared[0]] == [20, 47, 160]


def test_both_workers_hold_sessions_and_end_with_the_load() -> None:
    with SmtpSink() as sink, LoadProcess("one-at-a-time", 4, seed=1, fleet=HERE) as load:
        load.ready("127.0.0.1", sink.port)
        workers = psutil.Process(load.pid).children()
        assert len(workers) == 2
        before = [sum(worker.cpu_times()[:2]) for worker in workers]
        load.dose(0, 300, timeout_s=TIMEOUT_S)
        after = [sum(worker.cpu_times()[:2]) for worker in workers]
        assert all(now > then for then, now in zip(before, after, strict=True)), "each worked"
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert len(gone) == 2


def test_a_worker_that_dies_in_a_dose_is_told_at_once() -> None:
    with SmtpSink(stall_at="RCPT") as sink, LoadProcess("accepted", 4, seed=1, fleet=HERE) as load:
        load.ready("127.0.0.1", sink.port)
        victim = psutil.Process(load.pid).children()[0]
        threading.Timer(0.5, victim.kill).start()
        began = time.monotonic()
        with pytest.raises(LoadError, match=r"worker .* is gone, and with it the sessions that it held"):
            load.dose(0, 40, timeout_s=60.0)
        assert time.monotonic() - began < 15


def test_workers_do_not_outlive_a_load_that_is_killed() -> None:
    with SmtpSink() as sink, LoadProcess("accepted", 2, seed=1, fleet=HERE) as load:
        load.ready("127.0.0.1", sink.port)
        workers = psutil.Process(load.pid).children()
        os.kill(load.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert len(workers) == 2
        assert not alive


def test_workers_that_were_started_elsewhere() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SEATBELT, "worker", "--master", f"127.0.0.1:{port}"]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        with SmtpSink() as sink, LoadProcess("accepted", 2, seed=1, fleet=FleetOrder("127.0.0.1", port, 2)) as load:
            load.ready("127.0.0.1", sink.port)
            assert len(load.dose(0, 40, timeout_s=TIMEOUT_S).accepted) == 40
        for worker in workers:
            _, said = worker.communicate(timeout=20)
            assert worker.returncode == 0, "they end with their master"
            assert "holding sessions" in said
            assert "Traceback" not in said
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()

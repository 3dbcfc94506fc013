"""Rest, as it is decided: against real processes and sockets, with a target whose own word is made up."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.probes.snapshot import inspect
from harness.run import quiescence
from harness.run.quiescence import Quiescence
from harness.targets import Rest
from reports.record import Incident

GAUGES = {"smtp.session": "smtp", "mta.session": "transfer"}
TIMEOUT_S = 1.5
HOLDER = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(flush=True)
sys.stdin.read()
"""


class Told:
    """A target that says what it is told to, one after the other, the last for ever."""

    name = version = "told"
    spool: Path | None = None
    agent_directory: Path | None = None
    address = ("127.0.0.1", 0)

    def __init__(self, root_pid: int, *rests: Rest) -> None:
        self.root_pid = root_pid
        self.rests = list(rests)
        self.hurried = 0

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def rest(self) -> Rest:
        return self.rests.pop(0) if len(self.rests) > 1 else self.rests[0]

    def hurry(self) -> None:
        self.hurried += 1

    def deaths(self) -> list[Incident]:
        return []


class Keeping(Told):
    """It leaves its sessions to the remote MX open."""

    keepalive_s = 60.0


@dataclass(frozen=True)
class Sessions:
    """Of the remote MX."""

    number: int = 0

    def open_sessions(self) -> int:
        return self.number


def busy(**gauges: int) -> Rest:
    counters = {name: gauges.get(name.replace(".", "_"), 0) for name in GAUGES}
    return Rest({name: value for name, value in counters.items() if value}, 0, counters, GAUGES)


def waiting(target: Told, *, hurry: bool = False, sessions: int = 0) -> Quiescence:
    return Quiescence(target, Sessions(sessions), hurry=hurry, timeout_s=TIMEOUT_S, check_alive=lambda: None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiescence, "STUCK_S", 0.2)
    monkeypatch.setattr(quiescence, "STUCK_AGAIN_S", 0.1)


@pytest.fixture
def holder() -> Iterator[tuple[int, socket.socket]]:
    """A process that holds one connection, and our end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", HOLDER, str(listening.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            ours, _ = listening.accept()
            with ours:
                yield process.pid, ours
            process.kill()


@pytest.fixture
def idle() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_three_looks_that_are_the_same_are_rest(idle: int) -> None:
    rest = waiting(Told(idle, busy(smtp_session=2), busy(smtp_session=1), busy())).wait()
    assert (rest.busy, rest.stuck) == ({}, ())


def test_a_session_at_the_remote_mx_is_movement_unless_the_target_keeps_it(idle: int) -> None:
    assert waiting(Told(idle, busy()), sessions=1).wait().busy == {"sessions at the remote MX": 1}
    assert waiting(Keeping(idle, busy()), sessions=1).wait().busy == {}
    assert waiting(Keeping(idle, busy(smtp_session=1)), sessions=1).wait().stuck == ("smtp.session",)


def test_a_gauge_that_is_busy_while_nothing_moves_is_stuck(idle: int) -> None:
    rest = waiting(Told(idle, busy(smtp_session=2), busy(smtp_session=1))).wait()
    assert (rest.busy, rest.stuck) == ({}, ("smtp.session",))
    assert rest.counters["smtp.session"] == 1


def test_a_gauge_below_zero_is_stuck_too(idle: int) -> None:
    assert waiting(Told(idle, busy(mta_session=-3))).wait().stuck == ("mta.session",)


def test_a_connection_is_movement(holder: tuple[int, socket.socket]) -> None:
    pid, _ = holder
    rest = waiting(Told(pid, busy(smtp_session=1))).wait()
    assert (rest.busy, rest.stuck) == ({"smtp.session": 1}, ())


def test_a_connection_that_the_other_end_has_closed_is_none(holder: tuple[int, socket.socket]) -> None:
    pid, ours = holder
    ours.shutdown(socket.SHUT_WR)
    assert waiting(Told(pid, busy(smtp_session=1))).wait().stuck == ("smtp.session",)


def test_a_connection_that_was_there_at_the_rest_before_is_none(holder: tuple[int, socket.socket]) -> None:
    pid, _ = holder
    patient = waiting(Told(pid, busy(smtp_session=1)))
    patient.at_rest(inspect([pid])[0])
    assert patient.wait().stuck == ("smtp.session",)


def test_mail_on_disk_is_in_flight(idle: int, tmp_path: Path) -> None:
    message = tmp_path / "queue" / "a1" / "a1b2c3d4"
    message.mkdir(parents=True)
    (message / "a1b2c3d400000001").touch()
    target = Told(idle, busy(mta_session=1))
    target.spool = tmp_path
    assert waiting(target).wait().busy == {"mta.session": 1}
    (message / "a1b2c3d400000001").unlink()
    assert waiting(target).wait().stuck == ("mta.session",)


def test_mail_that_is_put_off_is_hurried_until_the_time_is_over(idle: int) -> None:
    target = Told(idle, Rest({}, 2, {"smtp.session": 0}, GAUGES))
    rest = waiting(target, hurry=True).wait()
    assert rest.busy == {"messages put off": 2}
    assert target.hurried > 1


def test_after_more_work_rest_may_take_longer(idle: int) -> None:
    class Slow(Told):
        """It works on for half a second."""

        def __init__(self) -> None:
            super().__init__(idle, busy())
            self.looks = 0
            self.until = time.monotonic() + 0.5

        def rest(self) -> Rest:
            self.looks += 1
            return busy(smtp_session=1 + self.looks % 2) if time.monotonic() < self.until else busy()

    def after(work: int) -> Rest:
        patient = Quiescence(Slow(), Sessions(), hurry=False, timeout_s=0.3, check_alive=lambda: None)
        return patient.wait(work=work)

    assert after(0).busy
    assert not after(10 * quiescence.WORK).busy


def test_gauges_that_never_stop_changing_are_no_rest(idle: int) -> None:
    target = Told(idle, *(busy(smtp_session=1 + number % 2) for number in range(100_000)))
    assert waiting(target).wait().busy

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smtp_sink import SmtpSink

from harness.load.choice import ChosenLoad, Settings
from harness.load.process import LoadError, LoadProcess

TIMEOUT_S = 30.0


def descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of our own process: the one that lists the directory
            found.append(os.readlink(entry))
    return sorted(found)


def alive(pid: int) -> bool:
    """Running: an orphan that has ended may stay a zombie where nobody waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def sink() -> Iterator[SmtpSink]:
    with SmtpSink() as running:
        yield running


def loading(sink: SmtpSink, scenario: str = "rejected-reuse", users: int = 5, seed: int = 1) -> LoadProcess:
    load = LoadProcess(scenario, users, seed)
    load.start()
    load.ready("127.0.0.1", sink.port)
    return load


@pytest.mark.parametrize("users", [1, 3, 40])
def test_doses_are_exact_however_many_users(sink: SmtpSink, users: int) -> None:
    taken: list[str] = []
    with LoadProcess("rejected-reuse", users, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        for number, units in enumerate((20, 23, 1, 160)):
            tally = load.dose(number, units, timeout_s=TIMEOUT_S)
            assert (tally.dose, tally.units) == (number, units)
            assert len(tally.accepted) == units
            assert (tally.unfinished, tally.failures, tally.errors) == (0, 0, [])
            assert tally.messages == units + tally.sessions, "each session has one that the target refuses"
            assert sum(tally.latency_us.values()) == tally.commands
            taken += tally.accepted
            assert sorted(taken) == sorted(sink.message_ids)
    assert len(set(taken)) == len(taken) == 204
    assert sink.sessions == 2 + 3 + 1 + 16


def test_the_same_seed_gives_the_same_mail_and_another_seed_other_mail(sink: SmtpSink) -> None:
    def recipients(seed: int) -> list[str]:
        sink.recipients.clear()
        with LoadProcess("rejected-reuse", 1, seed) as load:
            load.ready("127.0.0.1", sink.port)
            load.dose(0, 20, timeout_s=TIMEOUT_S)
        return list(sink.recipients)

    first = recipients(1)
    assert recipients(1) == first
    assert recipients(2) != first


def test_portions_of_one_dose_continue_it(sink: SmtpSink) -> None:
    with LoadProcess("one-at-a-time", 2, seed=9) as load:
        load.ready("127.0.0.1", sink.port)
        accepted = [load.dose(4, 1, first=unit, timeout_s=TIMEOUT_S).accepted for unit in range(3)]
    assert accepted == [[f"9.4.{unit}.0@sender.test"] for unit in range(3)]


def test_the_loads_own_descriptors_return_to_what_they_were(sink: SmtpSink) -> None:
    with LoadProcess("rejected-reuse", 20, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        before = descriptors(load.pid)
        for number in range(4):
            load.dose(number, 100, timeout_s=TIMEOUT_S)
            assert descriptors(load.pid) == before
    assert sink.sessions == 40


@pytest.mark.parametrize("point", ["EHLO", "RCPT", "body"])
def test_a_dose_against_a_silent_server_is_cut_off_and_closed(tmp_path: Path, point: str) -> None:
    """At "body" the server reads no more, so that bytes are left over which no close may wait for."""
    size_bytes = 16_000_000 if point == "body" else 1000
    path = tmp_path / "large.py"
    path.write_text(
        "from harness.scenario import *\n"
        f"big = Message(DEFAULT_SENDER, ('user@accepted.test',), size_bytes={size_bytes})\n"
        "SCENARIO = Scenario(name='large', story='', unit='message', units_per_session=2,\n"
        "                    session=lambda random, units: SessionPlan((big,) * units))\n"
    )
    with SmtpSink(stall_at=point) as sink, LoadProcess(str(path), 3, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        before = descriptors(load.pid)
        tally = load.dose(0, 8, timeout_s=0.5)
        assert tally.unfinished == 4
        assert tally.failures == 4
        assert tally.accepted == []
        assert any("when the session's time was over" in error for error in tally.errors)
        assert descriptors(load.pid) == before
        sink.stall_at = ""
        assert len(load.dose(1, 4, timeout_s=TIMEOUT_S).accepted) == 4, "and the next dose is a dose again"


def test_cut_off_at_any_moment_leaves_no_descriptor(sink: SmtpSink) -> None:
    with LoadProcess("rejected-reuse", 30, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        before = descriptors(load.pid)
        cut = [load.dose(number, 300, timeout_s=number / 2000).unfinished for number in range(30)]
        assert descriptors(load.pid) == before
    assert any(cut)


def test_a_server_that_vanishes_is_in_the_tally(unused_port: int) -> None:
    with SmtpSink() as sink, LoadProcess("rejected-reuse", 5, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        assert load.dose(0, 20, timeout_s=TIMEOUT_S).failures == 0
        sink.drop_at = "DATA"
        tally = load.dose(1, 20, timeout_s=TIMEOUT_S)
        assert (tally.unfinished, tally.accepted) == (2, [])
        assert tally.failures == 2
    with LoadProcess("rejected-reuse", 5, seed=1) as load:
        load.ready("127.0.0.1", unused_port)
        tally = load.dose(0, 20, timeout_s=TIMEOUT_S)
        assert (tally.sessions, tally.unfinished, tally.messages) == (0, 2, 0)
        assert "refused" in tally.errors[0]


def test_an_unknown_scenario_and_a_useless_dose_are_errors_with_a_text(sink: SmtpSink) -> None:
    with LoadProcess("rejectd", 1, seed=1) as load, pytest.raises(LoadError, match="did you mean rejected-reuse"):
        load.ready("127.0.0.1", sink.port)
    with LoadProcess("accepted", 1, seed=1) as load:
        with pytest.raises(LoadError, match="before the start"):
            load.dose(0, 1, timeout_s=TIMEOUT_S)
        load.ready("127.0.0.1", sink.port)
        with pytest.raises(LoadError, match="a dose of 0 units"):
            load.dose(0, 0, timeout_s=TIMEOUT_S)
        assert len(load.dose(0, 2, timeout_s=TIMEOUT_S).accepted) == 2, "and it is still there"


def test_what_a_scenario_file_prints_does_not_disturb(tmp_path: Path, sink: SmtpSink) -> None:
    path = tmp_path / "loud.py"
    path.write_text(
        "from harness.scenario import *\n"
        "import os\n"
        "print('hello')\n"
        "os.write(1, b'hello\\n')\n"
        "SCENARIO = load('accepted')\n"
    )
    with LoadProcess(str(path), 1, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        assert len(load.dose(0, 3, timeout_s=TIMEOUT_S).accepted) == 3


def test_a_scenario_file_hears_of_every_command_by_locusts_events(tmp_path: Path, sink: SmtpSink) -> None:
    path, heard = tmp_path / "hearing.py", tmp_path / "heard"
    path.write_text(f"""
from locust import events
from harness.scenario import load
SCENARIO = load("accepted")

@events.request.add_listener
def hear(name, exception, **_):
    with open({str(heard)!r}, "a") as file:
        print(name, exception, file=file)
""")
    with LoadProcess(str(path), 2, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        tally = load.dose(0, 30, timeout_s=TIMEOUT_S)
    lines = heard.read_text().splitlines()
    assert len(lines) == tally.commands
    assert lines.count("DATA None") == 30


def test_a_listener_that_fails_keeps_no_other_from_hearing(tmp_path: Path, sink: SmtpSink) -> None:
    path, heard = tmp_path / "failing.py", tmp_path / "heard"
    path.write_text(f"""
import sys
from locust import events
from harness.scenario import load
SCENARIO = load("accepted")

@events.request.add_listener
def fails(name, **_):
    raise ValueError(f"no {{name}} for me")

@events.request.add_listener
def hear(name, **_):
    with open({str(heard)!r}, "a") as file:
        print(name, file=file)
""")
    with LoadProcess(str(path), 2, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        tally = load.dose(0, 30, timeout_s=TIMEOUT_S)
    assert tally.failures == 0
    assert len(heard.read_text().splitlines()) == tally.commands


def test_a_listener_may_end_the_users(tmp_path: Path, sink: SmtpSink) -> None:
    path = tmp_path / "ending.py"
    path.write_text("""
from locust import events
from locust.exception import StopUser
from harness.scenario import load
SCENARIO = load("accepted")

@events.request.add_listener
def ends(name, **_):
    if name == "QUIT":
        raise StopUser
""")
    with LoadProcess(str(path), 2, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        with pytest.raises(LoadError, match="28 of 30 sessions of the dose did not come back"):
            load.dose(0, 300, timeout_s=1.0)


def test_a_dead_child_is_an_error_with_its_last_words(tmp_path: Path, sink: SmtpSink) -> None:
    path = tmp_path / "dying.py"
    path.write_text("import os, sys\nprint('the disk is full', file=sys.stderr, flush=True)\nos._exit(7)\n")
    with LoadProcess(str(path), 1, seed=1) as load:
        with pytest.raises(LoadError, match=r"ended with status 7: .*the disk is full"):
            load.ready("127.0.0.1", sink.port)
        with pytest.raises(LoadError, match="ended with status 7"):
            load.dose(0, 1, timeout_s=TIMEOUT_S)


def test_a_child_killed_during_a_dose_is_an_error() -> None:
    with SmtpSink(stall_at="RCPT") as sink:
        load = loading(sink)
        killer = threading.Timer(0.3, os.kill, (load.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(LoadError, match="ended by signal 9"):
            load.dose(0, 20, timeout_s=TIMEOUT_S)
        killer.join()
        load.stop()


def test_a_child_that_falls_silent_is_an_error_and_its_late_answer_is_not_taken_for_another(
    sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.load.conversation.ANSWER_GRACE_S", 0.2)
    with LoadProcess("accepted", 2, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        os.kill(load.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LoadError, match="did not answer within"):
                load.dose(0, 20, timeout_s=0.1)
        finally:
            os.kill(load.pid, signal.SIGCONT)
        with pytest.raises(LoadError, match="never answered an earlier order"):
            load.dose(1, 20, timeout_s=TIMEOUT_S)


def test_interrupts_are_not_its_business(sink: SmtpSink) -> None:
    with LoadProcess("accepted", 2, seed=1) as load:
        assert os.getpgid(load.pid) == load.pid, "a terminal's Ctrl-C does not arrive at all"
        load.ready("127.0.0.1", sink.port)
        os.kill(load.pid, signal.SIGINT)
        assert len(load.dose(0, 20, timeout_s=TIMEOUT_S).accepted) == 20


def test_stop_leaves_no_process_and_no_descriptor(sink: SmtpSink) -> None:
    before = descriptors(os.getpid())
    load = loading(sink)
    pid = load.pid
    load.dose(0, 20, timeout_s=TIMEOUT_S)
    load.stop()
    load.stop()
    assert not alive(pid)
    # The sink's side of a session may still be closing.
    wait_until(lambda: descriptors(os.getpid()) == before)
    with pytest.raises(LoadError, match="not been started"):
        load.dose(1, 20, timeout_s=TIMEOUT_S)


CONTROLLER = """
import sys
from harness.load.process import LoadProcess
load = LoadProcess("accepted", 2, seed=1)
load.start()
load.ready("127.0.0.1", int(sys.argv[1]))
print(load.pid, flush=True)
load.dose(0, 20, timeout_s=60)
"""


def test_the_child_outlives_no_controller_even_in_the_middle_of_a_dose() -> None:
    with SmtpSink(stall_at="MAIL") as sink:
        command = [sys.executable, "-c", CONTROLLER, str(sink.port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as controller:
            assert controller.stdout is not None
            pid = int(controller.stdout.readline())
            wait_until(lambda: ["EHLO", "MAIL"] in sink.dialogues)
            assert alive(pid)
            controller.kill()
        wait_until(lambda: not alive(pid))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_load_that_is_there_can_be_aimed_at_another_server(sink: SmtpSink) -> None:
    with SmtpSink() as other, LoadProcess("rejected-reuse", 5, seed=1) as load:
        load.ready("127.0.0.1", sink.port)
        assert load.dose(0, 20, timeout_s=TIMEOUT_S).units == 20
        load.ready("127.0.0.1", other.port)
        tally = load.dose(0, 30, timeout_s=TIMEOUT_S)
        assert (tally.units, tally.unfinished, tally.failures) == (30, 0, 0)
        assert len(other.messages) == 30
        assert len(sink.messages) == 20


def test_the_second_look_has_the_first_ones_load_unless_it_has_ended(sink: SmtpSink) -> None:
    chosen = ChosenLoad(Settings(users=5), None)
    try:
        with chosen("rejected-reuse", 5, 1) as first:
            first.ready("127.0.0.1", sink.port)
        with chosen.again("rejected-reuse", 5, 1) as second:
            assert second is first
        assert isinstance(first, LoadProcess)
        os.kill(first.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        with chosen.again("rejected-reuse", 5, 1) as another:
            assert another is not first
            another.ready("127.0.0.1", sink.port)
            assert another.dose(0, 20, timeout_s=TIMEOUT_S).units == 20
    finally:
        chosen.stop()

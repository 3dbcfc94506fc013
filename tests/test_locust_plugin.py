"""Locust's own command line with a target: whole runs, their verdict as locust's exit status, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil
import pytest

from harness import scenario as scenarios
from reports.record import Finding, RunRecord, load

# Fewer units than the scenario promises: a leak is a leak all the same, and sooner found.
LEAK = "--defect transfer-fd-leak --no-attribution --sessions 10 --record record.json"

MANY = 2000
SLOW = f"--sessions {MANY} --record record.json"  # of `slow` a dose takes 20 seconds


def slow(directory: Path) -> str:
    """A scenario file whose sessions take their time."""
    path = directory / "slow.py"
    path.write_text(
        "from harness.locust_plugin import locust_user\n"
        "from harness.scenario import *\n"
        "STEPS = (Step(), Step(b'NOOP\\r\\n', pause_s=0.05), Step(b'QUIT\\r\\n'))\n"
        "SCENARIO = Scenario(name='slow', story='', unit='visit', units_per_session=1,\n"
        "                    session=lambda random, units: SessionPlan(steps=STEPS, end='fin'))\n"
        "User = locust_user(SCENARIO)\n"
    )
    return str(path)


class Locust:
    """One `locust` in a directory of its own; `children` are all that it ever had."""

    def __init__(self, directory: Path, *arguments: str, scenario: str = "rejected-reuse") -> None:
        command = [sys.executable, "-m", "locust", "-f", scenarios.load(scenario).path, "--only-summary", *arguments]
        self.directory = directory
        self.scratch = TemporaryDirectory()  # not in ours, whose name is too long for unix sockets in it
        self.out = (directory / "out").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "TMPDIR": self.scratch.name},
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=subprocess.STDOUT,
        )
        self.children: set[psutil.Process] = set()

    def wait(self, timeout_s: float = 90.0) -> int:
        """Its exit status; fails when a process that it started is still there, or a file that it made for itself."""
        status = self.process.wait(timeout_s)
        _, alive = psutil.wait_procs(list(self.children), timeout=10)
        assert not alive, "locust left processes behind"
        assert not list(Path(self.scratch.name).iterdir())
        return status

    def look(self) -> None:
        self.children |= set(psutil.Process(self.process.pid).children(recursive=True))

    def until_true(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)
            self.look()

    def until_loading(self) -> None:
        """A session of the first dose has begun."""

        def holds() -> bool:
            logs = "".join(each.read_text() for each in self.directory.rglob("smtpd.log"))
            if "ready" not in logs:
                return False
            port = int(logs.partition("127.0.0.1 port ")[2].split()[0])
            clients = [each for each in psutil.net_connections("tcp4") if each.raddr and each.raddr.port == port]
            # Not the controller, which has only seen whether the server greets.
            users = {each.pid for each in (psutil.Process(self.process.pid), *self.children) if is_locust(each)}
            return any(each.status == "ESTABLISHED" and each.pid in users for each in clients)

        self.until_true(holds)

    def base(self) -> str:
        """The web UI's address."""
        found: list[int] = []

        def listens() -> bool:
            connections = psutil.Process(self.process.pid).net_connections("tcp4")
            found.extend(each.laddr.port for each in connections if each.status == "LISTEN")
            return bool(found)

        self.until_true(listens)
        return f"http://127.0.0.1:{found[0]}"

    def said(self) -> str:
        return (self.directory / "out").read_text()

    def stop(self) -> None:
        for process in (*self.children, self.process):
            if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                process.kill()
        self.process.wait(10)
        self.out.close()
        self.scratch.cleanup()


@pytest.fixture
def locusts() -> Iterator[list[Locust]]:
    started: list[Locust] = []
    yield started
    for each in started:
        each.stop()


def is_locust(process: psutil.Process) -> bool:
    """Itself, or a worker that it has forked."""
    try:
        return "locust" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def run(directory: Path, *arguments: str, started: list[Locust], scenario: str = "rejected-reuse") -> Locust:
    directory.mkdir(exist_ok=True)
    started.append(Locust(directory, *arguments, scenario=scenario))
    return started[-1]


def headless(options: str, users: int = 5) -> tuple[str, ...]:
    return (
        "--headless", "-u", str(users), "-r", "50", "--seatbelt-target", "embedded", "--seatbelt-options", options
    )  # fmt: skip


def web(options: str) -> tuple[str, ...]:
    return ("--web-port", "0", "--seatbelt-target", "embedded", "--seatbelt-options", options)


def two_processes() -> tuple[str, ...]:
    """Of locust's own, which meet at a port that nobody else has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return "--processes", "2", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port


def descriptor(record: RunRecord) -> Finding:
    (finding,) = (finding for finding in record.findings if finding.resource == "descriptor")
    return finding


def told(record: RunRecord) -> tuple[object, ...]:
    """What must not depend on who held the sessions. How many are left does, by one or two, on how many sessions the
    server relays them in, which is its own affair."""
    finding, work = descriptor(record), record.work
    return (
        (record.verdict, finding.role, finding.label, finding.dose_units, finding.first_dose),
        (work.sessions, work.messages, work.accepted, work.refused_recipients, work.refused_messages, work.bounced),
    )


def test_a_headless_run_ends_with_the_verdicts_status_and_workers_change_nothing(
    tmp_path: Path, locusts: list[Locust]
) -> None:
    alone = run(tmp_path / "alone", *headless(LEAK), started=locusts)
    assert alone.wait() == 1, alone.said()
    assert "LEAK: transfer keeps 1 message file (deleted) open for each refused message" in alone.said()
    assert "Traceback" not in alone.said()
    shared = run(tmp_path / "shared", *headless(LEAK), *two_processes(), started=locusts)
    assert shared.wait() == 1, shared.said()
    one, two = (load(each.directory / "record.json") for each in (alone, shared))
    assert told(one) == told(two)
    assert descriptor(one).rate > 0.9


def test_stop_ends_the_dose_in_hand_and_the_run_says_that_it_saw_too_little(
    tmp_path: Path, locusts: list[Locust]
) -> None:
    locust = run(tmp_path, *web(SLOW), started=locusts, scenario=slow(tmp_path))
    base = locust.base()
    post(f"{base}/swarm", b"user_count=5&spawn_rate=50")
    locust.until_true(lambda: live(base)["in_hand"])
    post(f"{base}/stop", b"")
    locust.until_true(lambda: verdict(base))
    locust.process.send_signal(signal.SIGINT)
    assert locust.wait() == 3, locust.said()
    record = load(tmp_path / "record.json")
    assert record.verdict == "inconclusive"
    (dose,) = record.doses
    assert 0 < dose.units == dose.work.sessions < MANY, "no session was cut off"
    assert [incident.kind for incident in record.incidents] == ["interrupted"]
    assert "the load was ended after dose 1 of" in record.reasons[0]


def test_a_time_limit_that_is_over_before_anything_was_seen_is_no_clean_run(
    tmp_path: Path, locusts: list[Locust]
) -> None:
    locust = run(tmp_path, *headless(SLOW), "-t", "1s", started=locusts)
    # 3 also where not even the test had begun, or, on a fast machine, a dose had; 2 where only the target had not.
    assert locust.wait() in (2, 3), locust.said()


@pytest.mark.parametrize("processes", [tuple, two_processes], ids=["alone", "workers"])
def test_ctrl_c_leaves_a_record_and_no_process(
    tmp_path: Path, locusts: list[Locust], processes: Callable[[], tuple[str, ...]]
) -> None:
    locust = run(tmp_path, *headless(SLOW), *processes(), started=locusts, scenario=slow(tmp_path))
    locust.until_loading()
    assert len(locust.children) >= 10, "the controller, the remote MX and the mail server's processes"
    locust.process.send_signal(signal.SIGINT)
    assert locust.wait(60) == 3, locust.said()
    record = load(tmp_path / "record.json")
    # Ctrl-C is raised in any greenlet; in the one that serves the controller it breaks the pipe first.
    assert {incident.kind for incident in record.incidents} in ({"interrupted"}, {"load"})
    assert record.verdict == "inconclusive"


def test_a_locust_that_is_killed_leaves_nothing_behind(tmp_path: Path, locusts: list[Locust]) -> None:
    locust = run(tmp_path, *headless(SLOW), started=locusts, scenario=slow(tmp_path))
    locust.until_loading()
    locust.process.kill()
    locust.wait(60)
    assert load(tmp_path / "record.json").verdict == "inconclusive", "even then there is a record"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [("--defect no-such-bug", "no-such-bug"), ("--profile 'soak", "No closing quotation")],
)
def test_a_mistake_ends_locust_with_one_line(
    tmp_path: Path, locusts: list[Locust], options: str, complaint: str
) -> None:
    locust = run(tmp_path, *headless(options), started=locusts)
    assert locust.wait() == (2 if "bug" in complaint else 1)
    assert complaint in locust.said()
    assert "Traceback" not in locust.said()


def test_the_web_ui_runs_a_test_and_shows_its_verdict(tmp_path: Path, locusts: list[Locust]) -> None:
    locust = run(tmp_path, *web(LEAK), started=locusts)
    base = locust.base()
    assert "start a test in Locust's page" in live(base)["state"]
    post(f"{base}/swarm", b"user_count=5&spawn_rate=50")
    locust.until_true(lambda: verdict(base))
    board = live(base)["board"]
    assert board["verdict"] == "leak"
    assert board["headline"].startswith("LEAK: transfer keeps 1 message file (deleted)")
    assert board["findings"][0]["rate"].startswith("0.9")
    with urllib.request.urlopen(f"{base}/seatbelt/report", timeout=20) as page:
        assert b"<h1><b>LEAK:</b> transfer keeps" in page.read()
    locust.process.send_signal(signal.SIGINT)
    assert locust.wait(30) == 1


def verdict(base: str) -> str | None:
    board = live(base)["board"]
    return board and board["verdict"]


def live(base: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{base}/seatbelt/live.json", timeout=10) as answer:
        return msgspec.json.decode(answer.read())


def post(url: str, data: bytes) -> None:
    with urllib.request.urlopen(url, data=data, timeout=10) as answer:
        assert answer.status == 200

"""The embedded target: it starts, names its processes, comes to rest, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.probes.snapshot import take_snapshot
from harness.remote_mx.process import RemoteMX
from harness.targets import Target, TargetError
from harness.targets.choice import FEWEST_DESCRIPTORS
from harness.targets.embedded import Embedded
from mta_under_test.processes.parent.parent import ROLES
from tests.probes.probed import line, until

EVERY_ROLE = sorted(["parent", *ROLES])
NOWHERE = {"refusing": 2, "home": 2}  # nobody listens on compressnet's port


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made meanwhile. Short: a path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def mx() -> Iterator[RemoteMX]:
    with RemoteMX({"refusing": "", "home": ""}) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path, scratch: Path, mx: RemoteMX) -> Iterator[Embedded]:
    embedded = Embedded(tmp_path, mx.ports, version="test")
    embedded.start()
    yield embedded
    embedded.stop()


def family(target: Target) -> list[psutil.Process]:
    root = psutil.Process(target.root_pid)
    return [root, *root.children(recursive=True)]


def roles(target: Embedded) -> list[str]:
    return sorted(process.role for process in take_snapshot(target.root_pid).processes)


def submit(target: Target, recipient: str) -> None:
    with smtplib.SMTP(*target.address, local_hostname="client.test", timeout=20) as client:
        client.sendmail("a@sender.test", [recipient], "Message-ID: <1@sender.test>\r\n\r\nhello\r\n")


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=10)[1]


def test_it_greets_when_it_has_started_and_every_process_has_its_role(target: Embedded) -> None:
    with smtplib.SMTP(*target.address, local_hostname="client.test", timeout=20) as client:
        assert client.noop()[0] == 250
    until(lambda: roles(target) == EVERY_ROLE, f"processes {EVERY_ROLE}")
    assert target.deaths() == []


def test_an_agent_answers_in_every_process(target: Embedded) -> None:
    until(lambda: roles(target) == EVERY_ROLE, f"processes {EVERY_ROLE}")  # the last may be born after the greeting
    found = take_snapshot(target.root_pid, agent_dir=target.agent_directory).processes
    assert len(found) == len(EVERY_ROLE)
    assert all(process.agent is not None and process.agent.blocks > 1_000 for process in found)


def test_it_drains_to_rest(target: Embedded, mx: RemoteMX) -> None:
    until(lambda: not target.rest().busy, "rest before any mail")
    with smtplib.SMTP(*target.address, local_hostname="client.test", timeout=20):
        until(lambda: target.rest().busy.get("smtp.session") == 1, "a session is seen")
    for _ in range(5):
        submit(target, "x@accepted.test")
    until(lambda: not target.rest().busy, "rest after mail")
    assert target.rest().backlog == 0
    assert target.rest().counters["smtp.session"] == 0
    assert list(mx.ledger().delivered) == ["1@sender.test"]


def test_what_is_owed_is_a_backlog_and_not_busy(target: Embedded, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=450")
    submit(target, "x@refused.test")
    until(lambda: target.rest().backlog == 1 and not target.rest().busy, "the message waits for its next try")
    assert take_snapshot(target.root_pid, spool=target.spool).files, "it is owed on disk"


def test_it_stops_and_leaves_nothing_behind(target: Embedded, scratch: Path) -> None:
    before = family(target)
    assert len(list(scratch.iterdir())) == 1, "the directory of its control socket"
    target.stop()
    assert alive(before) == []
    assert list(scratch.iterdir()) == []
    target.stop()  # a second time is nothing
    assert target.deaths() == [], "somebody asked for it"
    with pytest.raises(TargetError, match="not running"):
        target.rest()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(target.address).close()


def test_it_can_be_left_alone_before_it_started(tmp_path: Path, scratch: Path) -> None:
    target = Embedded(tmp_path, NOWHERE, version="test")
    with pytest.raises(TargetError, match="has not been started"):
        _ = target.root_pid
    with pytest.raises(TargetError, match="not running"):
        target.rest()
    assert target.deaths() == []
    target.stop()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("role", ["transfer", "parent"])
def test_a_death_is_told_with_its_role_and_nothing_is_left(target: Embedded, scratch: Path, role: str) -> None:
    until(lambda: roles(target) == EVERY_ROLE, "every process has its name")
    before = family(target)
    (victim,) = [each.pid for each in take_snapshot(target.root_pid).processes if each.role == role]
    os.kill(victim, signal.SIGKILL)
    until(target.deaths, "the death is seen")
    (incident,) = target.deaths()
    assert (incident.kind, incident.role, incident.pid) == ("died", role, victim)
    with pytest.raises(TargetError):
        target.rest()
    target.stop()
    assert alive(before) == []
    assert list(scratch.iterdir()) == []


def mistake(directory: Path, scratch: Path, **settings: object) -> str:
    """What the target says that cannot start; and that it left nothing."""
    children = psutil.Process().children(recursive=True)
    target = Embedded(directory, NOWHERE, version="test", **settings)  # type: ignore[arg-type]
    with pytest.raises(TargetError) as raised:
        target.start()
    assert alive([each for each in psutil.Process().children(recursive=True) if each not in children]) == []
    assert list(scratch.iterdir()) == []
    return str(raised.value)


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path, scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = mistake(tmp_path, scratch, port=taken.getsockname()[1])
        assert len(told.splitlines()) == 1
        assert f"127.0.0.1 port {taken.getsockname()[1]}" in told
        assert "Address already in use" in told


def test_too_few_descriptors_are_told(tmp_path: Path, scratch: Path) -> None:
    assert "too few descriptors (12): raise the limit" in mistake(tmp_path, scratch, nofile=12)


def test_what_it_needs_ends_with_it_also_when_it_never_began(tmp_path: Path, scratch: Path) -> None:
    before = set(psutil.Process().children())
    (tmp_path / "smtpd.log").mkdir()
    target = Embedded(tmp_path, NOWHERE, version="test", needs=("dns",))
    with pytest.raises(IsADirectoryError):
        target.start()
    target.stop()
    assert set(psutil.Process().children()) == before
    assert list(scratch.iterdir()) == []


def test_the_fewest_descriptors_that_may_be_asked_for_are_enough(tmp_path: Path, scratch: Path) -> None:
    target = Embedded(tmp_path, NOWHERE, version="test", needs=("local",), nofile=FEWEST_DESCRIPTORS)
    target.start()
    target.stop()


def test_the_limit_on_descriptors_is_every_processs(tmp_path: Path, scratch: Path) -> None:
    target = Embedded(tmp_path, NOWHERE, version="test", nofile=200)
    target.start()
    try:
        until(lambda: roles(target) == EVERY_ROLE, "every process has its name")
        limits = [Path(f"/proc/{each.pid}/limits").read_text() for each in family(target)]
        assert len(limits) == len(EVERY_ROLE)
        assert all(re.search(r"^Max open files +200 +200 ", text, re.MULTILINE) for text in limits)
    finally:
        target.stop()


KILLED = """
import json, sys, time
from pathlib import Path
import psutil
from harness.targets.embedded import Embedded
target = Embedded(Path(sys.argv[1]), {"refusing": 2, "home": 2}, version="test")
target.start()
root = psutil.Process(target.root_pid)
def named(process):
    try:
        return process.cmdline()[0].startswith("smtpd: ")
    except (psutil.Error, IndexError):
        return False  # a helper that was there for a moment
while len(pids := [each.pid for each in [root, *root.children(recursive=True)] if named(each)]) < int(sys.argv[2]):
    time.sleep(0.01)
print(json.dumps(pids), flush=True)
sys.stdin.read()
"""


def test_a_harness_that_is_killed_leaves_no_process(tmp_path: Path, scratch: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path, str(len(EVERY_ROLE))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as harness:
        processes = [psutil.Process(pid) for pid in json.loads(line(harness))]
        assert len(processes) == len(EVERY_ROLE)
        harness.kill()
        assert alive(processes) == []

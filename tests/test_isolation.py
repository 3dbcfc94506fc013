"""A run has a network of its own, where that is permitted: runs side by side do not clash, and who may not is told."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import isolation
from reports.record import load
from tests.probes.probed import as_another_user

SEATBELT = Path(sys.executable).with_name("seatbelt")
SERVER = Path(__file__).parent / "servers" / "prefork.py"
PORT = 25252  # taken by two at once
PR_SET_DUMPABLE = 4


def inside(look: Callable[[], list[str]]) -> list[str]:
    """What is seen by a process that has isolated itself; or the reason why it could not."""

    def isolated() -> list[str]:
        try:
            isolation.isolate()
        except isolation.IsolationError as error:
            return [str(error)]
        return look()

    report = os.pipe()
    if os.fork() == 0:
        try:
            os.write(report[1], "\n".join(isolated()).encode())
        finally:
            os._exit(0)
    os.close(report[1])
    with open(report[0], "rb") as answer:  # noqa: PTH123 - a descriptor, not a path
        told = answer.read().decode().split("\n")
    os.wait()
    return told


def network() -> list[str]:
    """Of this process: its namespace, and what is there of it."""
    with socket.create_server(("127.0.0.1", PORT)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        return [os.readlink("/proc/self/ns/net"), *(name for _, name in socket.if_nameindex())]


def test_an_isolated_process_has_a_loopback_of_its_own_and_nothing_else() -> None:
    first, *rest = inside(network)
    if not is_permitted():
        assert "CAP_SYS_ADMIN" in first or "user namespaces" in first
        return
    assert first != os.readlink("/proc/self/ns/net")
    assert "lo" in rest
    assert not isolation.is_isolated(), "we are where we were"


def test_somebody_without_privileges_stays_who_he_is_or_is_told_why_not() -> None:
    def look() -> list[str]:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # as of a program that he started himself
        try:
            isolation.isolate()
        except isolation.IsolationError as error:
            return [str(error)]
        return [str(os.getuid()), *network()]

    told = as_another_user(look)
    if len(told) == 1:
        assert "no network namespace can be had here" in told[0]
        assert "kernel.unprivileged_userns_clone" in told[0]
    else:
        assert told[0] == str(65534 if os.geteuid() == 0 else os.getuid())
        assert "lo" in told[2:]


def is_permitted() -> bool:
    return inside(lambda: ["yes"]) == ["yes"]


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    words = ["run", "connect-quit", "-q", "--no-attribution", "--record", "record.json", "--port", str(PORT), *options]
    server = f"{sys.executable} {SERVER} {{port}} --keep all"  # what is found ends a run early
    return subprocess.Popen(
        [SEATBELT, *words, "--command", server],
        cwd=directory,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_runs_side_by_side_have_the_same_port(tmp_path: Path) -> None:
    started = [start(tmp_path / name, "--isolate") for name in ("one", "two")]
    ended = [(*process.communicate(timeout=150), process.returncode) for process in started]
    if not is_permitted():
        assert all(status == 2 and "--isolate: no network namespace" in told for _, told, status in ended)
        return
    for name in ("one", "two"):
        record = load(tmp_path / name / "record.json")
        assert record.host.isolated
        assert [(finding.role, finding.count) for finding in record.findings] == [("worker", 300)]


def test_without_it_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", PORT))
        except OSError:
            pytest.fail(f"port {PORT} is taken on this host already")
        told, status = (process := start(tmp_path)).communicate(timeout=60)[1], process.returncode
    assert status == 2
    assert f"127.0.0.1:{PORT}: Address already in use" in told


@pytest.mark.parametrize(
    ("wanted", "by_default", "outside", "expected"),
    [
        (None, True, "", True),
        (None, False, "", False),
        (None, True, "--attach", False),
        (True, False, "", True),
        (False, True, "", False),
    ],
)
def test_the_options_decide(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None, by_default: bool, outside: str, expected: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(isolation, "isolate", lambda: asked.append(True))
    isolation.settle(wanted, by_default=by_default, outside=outside)
    assert bool(asked) is expected


def test_what_needs_the_host_cannot_be_isolated() -> None:
    with pytest.raises(isolation.IsolationError, match="--attach needs the host's network"):
        isolation.settle(True, outside="--attach")

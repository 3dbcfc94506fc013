"""A server that runs already is found by pid, port or unit, and is left as it is."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness import scenario as scenarios
from harness.run.design import Design, Options
from harness.run.experiment import Experiment
from harness.run.plan import Profile
from harness.targets import TargetError
from harness.targets.attach import Attached, locate
from harness.targets.choice import Settings, choose
from tests.live import Live
from tests.probes.probed import as_another_user, until


@pytest.fixture
def live() -> Iterator[Live]:
    server = Live()
    yield server
    server.stop()


def test_the_port_leads_to_the_process_at_the_top_and_back(live: Live) -> None:
    for what in (str(live.pid), f":{live.port}"):
        found = locate(what)
        assert (found.pid, found.ports) == (live.pid, (live.port,))
    assert Attached(str(live.pid)).address == ("127.0.0.1", live.port)


def test_it_rests_when_nobody_is_connected_and_nothing_moves(live: Live) -> None:
    target = Attached(f":{live.port}")
    until(lambda: target.rest().busy == {}, "rest")
    live.process.send_signal(signal.SIGSTOP)  # the workers accept still, and are stopped with a client each
    workers = psutil.Process(live.pid).children()
    for worker in workers:
        worker.suspend()
    with socket.create_connection(("127.0.0.1", live.port)):
        assert target.rest().busy == {"clients connected": 1}
    for worker in workers:
        worker.resume()
    live.process.send_signal(signal.SIGCONT)
    until(lambda: target.rest().busy == {}, "rest again")


def test_it_is_not_stopped_and_its_end_is_told(live: Live) -> None:
    target = Attached(str(live.pid))
    target.start()
    target.stop()
    assert live.process.poll() is None
    assert target.deaths() == []
    live.process.terminate()
    live.process.wait(10)
    (death,) = target.deaths()
    assert "has ended" in death.text
    with pytest.raises(TargetError, match="has ended"):
        target.start()


def test_a_shell_is_attached_to_by_its_pid() -> None:
    with subprocess.Popen(
        ["sh", "-c", "echo ready; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"ready\n"
        target = Attached(str(shell.pid))
        assert (target.root_pid, target.found.title, target.found.ports) == (shell.pid, "sh", ())
        with pytest.raises(TargetError, match="listens on no port; say with --port"):
            _ = target.address
        assert shell.stdin is not None
        shell.stdin.close()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("postfix", "no pid, no :PORT and no unit"),
        (":0", "':0' is no port"),
        (":http", "is no port; write it as :25"),
        (":²", "is no port; write it as :25"),
        ("²", "is no pid"),
        ("4194305", "no process with pid"),
    ],
)
def test_what_cannot_be_meant_is_said(what: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        locate(what)


def test_a_port_that_nobody_listens_on_is_said() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(TargetError, match="nobody listens on port"):
            locate(f":{sock.getsockname()[1]}")


def test_a_unit_is_asked_of_systemctl(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a script in its place: a container has no systemd to ask."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="no systemctl here"):
        locate("mail.service")
    script = tmp_path / "systemctl"
    script.write_text(f'#!/bin/sh\n[ "$1 $6" = "show mail.service" ] && echo {live.pid} || echo 0\n')
    script.chmod(0o755)
    assert locate("mail.service").pid == live.pid
    with pytest.raises(TargetError, match=r"other\.service does not run"):
        locate("other.service")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who is not permitted")
def test_who_is_not_permitted_is_told_the_command_that_would_help(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> list[str]:
        found = []
        for what in (str(live.pid), f":{live.port}"):
            monkeypatch.setattr(sys, "argv", ["seatbelt", "watch", what])
            try:
                locate(what)
            except TargetError as error:
                found.append(str(error))
        return found

    by_pid, by_port = as_another_user(refused)
    assert f"pid {live.pid}" in by_pid
    for told, what in ((by_pid, str(live.pid)), (by_port, f":{live.port}")):
        assert re.search(rf"try `sudo \S+ -m harness\.cli watch {what}`", told)
        assert "setcap cap_sys_ptrace,cap_dac_read_search+ep" in told


def test_what_it_cannot_do_is_said_before_it_starts(live: Live) -> None:
    for settings, words in (
        (Settings(), "to what"),
        (Settings(attach=str(live.pid), nofile=100), "limit of descriptors"),
        (Settings(attach=str(live.pid), defects=("transfer-fd-leak",)), "--defect"),
    ):
        with pytest.raises(TargetError, match=words):
            choose("attach", settings)
    with pytest.raises(TargetError, match="leave out --target postfix"):
        choose("postfix", Settings(attach=str(live.pid)))


def test_load_on_an_attached_postfix_is_judged_and_leaves_it_running(tmp_path: Path) -> None:
    from harness.targets.postfix import Postfix
    from harness.targets.postfix_tree import Programs
    from tests.debian import unpacked

    if os.geteuid() != 0:
        pytest.skip("needs root: Postfix's master gives its services to another user")
    postfix = Postfix(tmp_path, {"refusing": 2, "home": 2}, programs=Programs.unpacked(unpacked("postfix")))
    postfix.start()
    try:
        make = choose("attach", Settings(attach=f":{postfix.address[1]}"))
        options = Options(profile=Profile("counts", (1, 1), (1, 2, 4, 8), 0, stop_at_finding=True), units=20)
        record = Experiment(Design(scenarios.load("connect-quit"), make, tmp_path, options)).run()
        assert (record.verdict, record.reasons) == ("clean", [])
        assert {"master", "smtpd"} <= {process.role for process in record.doses[-1].snapshot.processes}
        with smtplib.SMTP(*postfix.address, local_hostname="client.test", timeout=20) as client:
            assert client.noop()[0] == 250
        assert postfix.deaths() == []
    finally:
        postfix.stop()

"""Any server as a target: started from its command line, let come to rest, stopped with nothing left behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.remote_mx.process import RemoteMX
from harness.targets import TargetError
from harness.targets.choice import Settings, choose
from harness.targets.command import Command
from harness.targets.server import from_command
from tests.probes.probed import line, until

SERVER = Path(__file__).parents[1] / "servers" / "prefork.py"
PORTS = {"refusing": 2, "home": 2}
Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the test's server, with more arguments if any."""
    started: list[Command] = []

    def begin(arguments: str = "", ports: dict[str, int] = PORTS) -> Command:
        server = from_command(f"{{python}} {SERVER} {{port}} {arguments}")
        started.append(Command(tmp_path, ports, server=server))
        started[-1].start()
        return started[-1]

    yield begin
    for target in started:
        target.stop()


def submit(target: Command, message_id: str, recipient: str) -> None:
    with smtplib.SMTP(*target.address, local_hostname="client.test", timeout=20) as client:
        client.sendmail("a@sender.test", [recipient], f"Message-ID: <{message_id}>\r\n\r\nhello\r\n")


def test_it_rests_when_nobody_is_connected_and_nothing_moves(start: Start) -> None:
    target = start()
    until(lambda: not target.rest().busy, "rest")
    with socket.create_connection(target.address):
        until(lambda: target.rest().busy == {"clients connected": 1}, "the client is seen")
    until(lambda: not target.rest().busy, "rest again")


def test_a_relaying_one_rests_when_what_it_accepted_has_arrived(start: Start) -> None:
    with RemoteMX({"refusing": "", "home": ""}) as mx:
        target = start("--relay {relay_port}", mx.ports)
        accepted: set[str] = set()
        target.follow(lambda: len(accepted - mx.ledger().delivered.keys()))
        mx.shut_gate("refusing")
        submit(target, "1@sender.test", "x@accepted.test")
        accepted.add("1@sender.test")
        until(lambda: "messages not passed on" in target.rest().busy, "the message is on its way")
        mx.open_gate("refusing")
        until(lambda: not target.rest().busy, "rest")
        assert "1@sender.test" in mx.ledger().delivered
        assert target.rest().backlog == 0


def test_what_never_arrives_is_its_backlog_in_the_end(start: Start) -> None:
    target = start("--relay {relay_port}")
    target.follow(lambda: 3)
    until(lambda: "messages not passed on" in target.rest().busy, "somebody waits for them")
    until(lambda: not target.rest().busy, "patience ends")
    assert target.rest().backlog == 3


def test_its_end_is_told_with_its_status_and_its_last_words(start: Start) -> None:
    target = start()
    assert target.deaths() == []
    os.kill(target.root_pid, signal.SIGKILL)
    until(target.deaths, "the death is seen")
    (death,) = target.deaths()
    assert death.pid == target.root_pid
    assert re.fullmatch(r"command killed by SIGKILL: listening on \d+", death.text)
    target.stop()
    assert target.deaths() == []


def test_it_stops_and_leaves_nothing_behind_even_of_a_master_that_died(start: Start) -> None:
    for is_killed in (False, True):
        target = start()
        until(lambda: len(psutil.Process(target.root_pid).children()) == 4, "all workers are there")  # noqa: B023
        family = [psutil.Process(target.root_pid), *psutil.Process(target.root_pid).children()]
        if is_killed:
            os.kill(target.root_pid, signal.SIGKILL)
        target.stop()
        assert psutil.wait_procs(family, timeout=0)[1] == []
        target.stop()  # a second time is nothing


def test_a_child_that_went_its_own_way_is_found_by_what_it_inherited(tmp_path: Path) -> None:
    child = tmp_path / "pid"
    script = f"(setsid sleep 60 & echo $! > {child}); exec {sys.executable} {SERVER} {{port}}"
    target = Command(tmp_path, PORTS, server=from_command(f"sh -c {shlex.quote(script)}"))
    target.start()
    until(lambda: child.exists() and child.read_text().strip(), "the child runs")
    runaway = psutil.Process(int(child.read_text()))
    assert runaway.ppid() != target.root_pid
    target.stop()
    assert not runaway.is_running()


@pytest.mark.parametrize(
    "server",
    [
        "{{python}} {}",
        "sh -c 'setsid -w {{python}} {} {{port}}; exit $?'",
        "sh -c 'trap \"\" TERM; {{python}} {} {{port}}; sleep 60'",
    ],
    ids=["plain", "in a session of its own", "one that heeds no SIGTERM"],
)
def test_a_harness_that_is_killed_leaves_no_server_behind(tmp_path: Path, server: str) -> None:
    script = (
        "import sys, time; from pathlib import Path; from harness.targets import guard\n"
        "from harness.targets.command import Command\n"
        "guard.TIMEOUT_S = 1\n"
        "from harness.targets.server import from_command\n"
        "target = Command(Path(sys.argv[1]), {'refusing': 2, 'home': 2}, server=from_command(sys.argv[2]))\n"
        "target.start(); print(target.root_pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), f"{server.format(SERVER)} {{port}}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as harness:
        master = psutil.Process(int(line(harness)))
        family = [master, *master.children(recursive=True)]
        harness.kill()
    assert psutil.wait_procs(family, timeout=10)[1] == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-program {port}", "cannot run 'no-such-program': No such file or directory"),
        (
            "sh -c 'echo one; echo oh dear; exit 3' {port}",
            "command: ended with status 3 before it greeted: one | oh dear",
        ),
        ("sh -c 'kill -SEGV $$' {port}", "command: killed by SIGSEGV before it greeted"),
        ("sh -c 'kill -41 $$' {port}", "command: killed by signal 41 before it greeted"),
    ],
)
def test_one_that_does_not_start_says_why(tmp_path: Path, command: str, words: str) -> None:
    target = Command(tmp_path, PORTS, server=from_command(command))
    with pytest.raises(TargetError, match=re.escape(words)):
        target.start()


def test_a_port_that_somebody_has_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        target = Command(tmp_path, PORTS, server=from_command("true {port}"), port=port)
        with pytest.raises(TargetError, match=f"127.0.0.1:{port}: Address already in use; choose another --port"):
            target.start()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(), "which? --command"),
        (Settings(command=" "), "--command: is empty"),
        (Settings(command="server 'half"), "No closing quotation"),
        (Settings(command="server"), "--command: has no {port}"),
        (Settings(command="server {prot}"), "no placeholder {prot}; there is {port}, {relay_port}"),
        (Settings(command="server {port}", relays=True), "needs a server that relays to {relay_port}, which command"),
        (Settings(command="server {port}", needs=("tls",)), "needs tls"),
        (Settings(command="server {port}", defects=("x",)), "--defect"),
        (Settings(command="server {port}", nofile=1 << 40), "--nofile 1099511627776: a process may have "),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_starts(settings: Settings, words: str) -> None:
    with pytest.raises(TargetError, match=re.escape(words)):
        choose("command", settings)


def test_the_settings_say_which_target_is_meant() -> None:
    assert choose(None, Settings(command="server {port}")).keywords["server"].start == ["server", "{port}"]  # type: ignore[attr-defined]
    for name, settings, words in (
        ("postfix", Settings(command="server {port}"), "leave out --target postfix"),
        (None, Settings(command="server {port}", attach="1"), "--attach and --command are two targets"),
        (None, Settings(nofile=49), "--nofile 49: embedded starts with 50 at least"),
        ("aiosmtpd", Settings(), "no target called 'aiosmtpd'; it is a server: --server aiosmtpd"),
    ):
        with pytest.raises(TargetError, match=words):
            choose(name, settings)

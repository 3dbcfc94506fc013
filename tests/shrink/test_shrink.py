"""`seatbelt shrink` as its user runs it: against the real server, with the bug open, and with it mended."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from harness import scenario
from harness.cli import app
from harness.run.accounts import planned
from harness.scenario import SessionPlan
from harness.steps import EHLO, GREETING, NOOP, RSET
from harness.targets.embedded import Embedded
from reports.record import Conditions, Finding, RunRecord, TargetInfo, load, save
from tests.dialogs.dialog import Client, read

KEPT_FILE = Finding("descriptor", "file", "message file (deleted)", "transfer", rate=0.99, unit="refused message")
KEPT_PIPE = Finding("descriptor", "pipe", "pipe", "smtp", rate=2.0, unit="session")


def record_of(path: Path, name: str, finding: Finding, defects: list[str], units: int = 20) -> Path:
    """As a run leaves it."""
    chosen = scenario.load(name)
    sessions = [planned(session, chosen.units_per_session) for session in chosen.plan(1, 0, units).values()]
    conditions = Conditions(refuses=chosen.refuses, hold_backlog=chosen.hold_backlog, needs=list(chosen.needs))
    record = RunRecord(name, TargetInfo("embedded", defects=defects), dialogue=sessions, conditions=conditions)
    record.findings = [finding]
    save(record, path)
    return path


def shrink(record: Path, *options: str) -> tuple[int, str]:
    before = set(psutil.Process().children(recursive=True))
    result = CliRunner().invoke(app, ["shrink", str(record), "-o", str(record.with_name("shrunk")), *options])
    assert not set(psutil.Process().children(recursive=True)) - before, "left processes behind"
    return result.exit_code, result.output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_where_nothing_was_found_there_is_nothing_to_shrink(tmp_path: Path) -> None:
    path = record_of(tmp_path / "r.json", "rejected-reuse", KEPT_FILE, [])
    record = load(path)
    record.findings = []
    save(record, path)
    status, output = shrink(path)
    assert (status, "nothing was found in it" in output) == (2, True)


def test_the_transfer_leak_is_one_message_on_one_session(tmp_path: Path) -> None:
    record = record_of(tmp_path / "r.json", "rejected-reuse", KEPT_FILE, ["transfer-fd-leak"])
    status, output = shrink(record)
    assert status == 0, output
    assert "2 sessions, 22 messages" in output
    assert "shrunk to 1 session, 1 message, " in output
    dialog = read(tmp_path / "shrunk.smtp")
    said = [step.text.partition(" ")[0] for step in dialog.steps if step.verb == "C:"]
    assert said == ["EHLO", "MAIL", "RCPT", "DATA", "."]
    port = free_port()
    directory = tmp_path / "smtpd"
    directory.mkdir()
    target = Embedded(directory, {"refusing": port, "home": port}, version="test", defects=["transfer-fd-leak"])
    try:
        target.start()
        server = f"{target.address[0]}:{target.address[1]}"
        script = [sys.executable, str(tmp_path / "shrunk.py"), server, str(target.root_pid), "--mx-port", str(port)]
        done = subprocess.run(script, capture_output=True, text=True, timeout=100, check=False)
        client = Client(target.address[1])
        for step in dialog.steps:
            client.do(step)  # every answer is as written
        client.close()
    finally:
        target.stop()
    assert done.returncode == 1, done.stdout + done.stderr


def test_what_does_not_leak_is_not_seen_again(tmp_path: Path) -> None:
    status, output = shrink(record_of(tmp_path / "r.json", "connect-quit", KEPT_PIPE, [], 4))
    assert status == 3
    assert "not seen again: pipe" in output
    assert not list(tmp_path.glob("shrunk*"))


def test_a_server_of_one_s_own_that_dies_of_a_command(tmp_path: Path) -> None:
    greeter = (Path(__file__).parents[1] / "servers" / "greeter.py").read_text()
    server = tmp_path / "server.py"
    answers = '        writer.write(b"250 ok'
    server.write_text(greeter.replace(answers, f"        line[:4] == b'RSET' and os._exit(7)\n{answers}"))
    steps = (GREETING, EHLO, NOOP, NOOP, RSET, NOOP)
    sessions = [planned(SessionPlan(steps=each), 1) for each in (steps, (GREETING, EHLO, NOOP))]
    target = TargetInfo("command", version=f"{{python}} {server} {{port}}")
    record = RunRecord("one", target, dialogue=sessions, findings=[Finding("process", "died", "died", "command")])
    save(record, tmp_path / "r.json")
    status, output = shrink(tmp_path / "r.json")
    assert status == 0, output
    assert "no script: process" in output
    lines = (tmp_path / "shrunk.smtp").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == ["S: 2xx", "C: RSET", "S: 2xx"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_best_so_far_and_no_process(tmp_path: Path, how: signal.Signals) -> None:
    record = record_of(tmp_path / "r.json", "rejected-reuse", KEPT_FILE, ["transfer-fd-leak"])
    command = [sys.executable, "-m", "harness.cli", "shrink", str(record), "-o", str(tmp_path / "shrunk"), "-v"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:  # the whole leaks, and so does something smaller
            if "1 session, 11 messages" in line.partition(";")[0]:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.send_signal(how)
        output = process.stdout.read()
        assert process.wait(30) == 0
    assert "the best so far, interrupted" in output
    assert "shrunk to 1 session" in output
    assert read(tmp_path / "shrunk.smtp").steps
    deadline = time.monotonic() + 10
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family):
        assert time.monotonic() < deadline, "left processes behind"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("finding", "target", "said"),
    [
        (Finding("mail", "lost", "lost mail"), "embedded", "lost mail: a few seconds cannot show it"),
        (KEPT_FILE, "attach", "by --target"),
        (KEPT_FILE, "teapot", "teapot is to be started again and again: say how"),
    ],
)
def test_what_cannot_be_shrunk_is_one_clear_line(tmp_path: Path, finding: Finding, target: str, said: str) -> None:
    record = RunRecord("one", TargetInfo(target), dialogue=[], findings=[finding])
    path = tmp_path / "r.json"
    save(record, path)
    assert "has no dialogue" in shrink(path)[1]
    record.dialogue = [planned(session, 1) for session in scenario.load("accepted").plan(1, 0, 1).values()]
    save(record, path)
    status, output = shrink(path)
    assert (status, len(output.splitlines())) == (2, 1)
    assert said in output
    assert shrink(path, "--finding", "2")[0] == 2

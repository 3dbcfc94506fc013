"""The script of a finding, run as its reader would: against the real server, with the bug and without."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import scenario
from harness.cli import app
from harness.run.accounts import opened
from harness.run.design import Design
from harness.targets.embedded import Embedded
from reports.record import Finding, RunRecord, TargetInfo, load, save


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def record_of(name: str, finding: Finding, path: Path) -> Path:
    never = partial(Embedded, version="test")
    record = opened(Design(scenario.load(name), never, path.parent, meant=TargetInfo("embedded")))
    record.findings = [finding]
    save(record, path)
    return path


@pytest.mark.parametrize(
    ("name", "defect", "finding"),
    [
        (
            "rejected-reuse",
            "transfer-fd-leak",
            Finding("descriptor", "file", "message file (deleted)", "transfer", rate=0.99, unit="refused message"),
        ),
        (
            "connect-quit",
            "watchdog-for-each-session",
            Finding("descriptor", "pipe", "pipe", "smtp", rate=2.0, unit="session"),
        ),
    ],
)
def test_the_script_tells_the_bug_from_its_absence(tmp_path: Path, name: str, defect: str, finding: Finding) -> None:
    record = record_of(name, finding, tmp_path / "record.json")
    path = tmp_path / "repro.py"
    assert CliRunner().invoke(app, ["repro", str(record), "-o", str(path)]).exit_code == 0
    assert len(path.read_text().splitlines()) < 120
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--line-length", "120", path]
    assert subprocess.run(ruff, check=False).returncode == 0
    for defects, status in (((defect,), 1), ((), 0)):
        port = free_port()
        directory = tmp_path / f"smtpd{status}"
        directory.mkdir()
        target = Embedded(directory, {"refusing": port, "home": port}, version="test", defects=defects)
        try:
            target.start()
            host, smtp_port = target.address
            command = [sys.executable, path, f"{host}:{smtp_port}", str(target.root_pid), "--mx-port", str(port)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        finally:
            target.stop()
        assert done.returncode == status, done.stdout + done.stderr


@pytest.mark.parametrize("resource", ["memory", "counter", "task"])
def test_what_a_script_cannot_show_is_one_clear_line(tmp_path: Path, resource: str) -> None:
    record = load(record_of("rejected-reuse", Finding("memory", "x", "y", rate=1.0), tmp_path / "r.json"))
    record.findings[0].resource = resource  # type: ignore[assignment]
    save(record, tmp_path / "r.json")
    result = CliRunner().invoke(app, ["repro", str(tmp_path / "r.json"), "-o", str(tmp_path / "x.py")])
    assert result.exit_code == 2
    assert "use `seatbelt run`" in result.output
    assert not (tmp_path / "x.py").exists()


def test_a_record_without_a_dialogue_says_so(tmp_path: Path) -> None:
    record = RunRecord("one", TargetInfo("embedded"), findings=[Finding("thread", "thread", "thread", rate=1.0)])
    save(record, tmp_path / "r.json")
    result = CliRunner().invoke(app, ["repro", str(tmp_path / "r.json"), "-o", str(tmp_path / "x.py")])
    assert result.exit_code == 2
    assert "no dialogue" in result.output

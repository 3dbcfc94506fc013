"""`seatbelt` as a user types it: exit statuses, one clear line for every mistake, the record, Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.commands.status import OF_VERDICT
from reports.record import load, save
from tests.reports.drawn import record

SEATBELT = Path(sys.executable).with_name("seatbelt")


def seatbelt(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SEATBELT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=150, check=False
    )


def to_nobody(*words: str, cwd: Path, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """With a standard output whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [SEATBELT, *words], cwd=cwd, stdout=writer, stderr=stderr, text=True, timeout=150, check=False
        )
    finally:
        os.close(writer)


def test_it_says_its_version(tmp_path: Path) -> None:
    finished = seatbelt("--version", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, f"seatbelt {metadata.version('seatbelt')}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "rejected-reus"], "did you mean rejected-reuse?"),
        (["run", "--defect", "transfer-fd-lek"], "did you mean transfer-fd-leak?"),
        (["run", "--target", "sendmail"], "no target called 'sendmail'"),
        (["run", "--mx", "rcpt=hello"], "rcpt=hello"),
        (["run", "--record", "no/such/directory/r.json"], "cannot write there: No such file or directory"),
        (["run", "--record", "."], "is a directory"),
        (["run", "--runs", "/proc/none"], "/proc/none"),
        (["mx", "--policy", "tea=418"], "tea"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    finished = seatbelt(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert complaint in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stdout == ""


@pytest.mark.parametrize("option", ["--command", "--server", "--attach", "--target", "--runs"])
def test_an_unset_variable_of_the_shell_is_not_the_embedded_server(option: str) -> None:
    finished = CliRunner().invoke(app, ["run", option, ""])
    assert finished.exit_code == 2
    assert "it is empty" in finished.stderr


def test_a_fault_of_ours_is_no_finding() -> None:
    broken = "import harness.cli as c; c.app = lambda: 1 / 0; c.main()"
    finished = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert finished.returncode == 3
    assert "a fault of Seatbelt" in finished.stderr


def test_a_taken_port_is_one_clear_line_and_status_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("run", "mx"):
            finished = seatbelt(command, "--port", port, cwd=tmp_path)
            assert finished.returncode == 2
            assert "Address already in use" in finished.stderr
            assert str(port) in finished.stderr
            assert len(finished.stderr.splitlines()) == 1


def test_a_scenario_file_that_is_broken_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\nSCENARIO = oops\n")
    finished = seatbelt("run", "mine.py", cwd=tmp_path)
    assert finished.returncode == 2
    assert "mine.py:2: NameError" in finished.stderr


def test_list_names_everything(tmp_path: Path) -> None:
    for what, name in (
        ("scenarios", "rejected-reuse"),
        ("defects", "transfer-fd-leak"),
        ("targets", "embedded"),
        ("resources", "descriptor"),
    ):
        finished = seatbelt("list", what, cwd=tmp_path)
        assert finished.returncode == 0
        assert any(line.startswith(name) for line in finished.stdout.splitlines())


def test_the_leak_of_2013_is_told_with_its_proof(tmp_path: Path) -> None:
    finished = seatbelt("run", "--defect", "transfer-fd-leak", "--record", "leak.json", cwd=tmp_path)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "transfer" in finished.stdout
    assert "message file (deleted)" in finished.stdout
    record = load(tmp_path / "leak.json")
    assert record.verdict == "leak"
    (finding,) = (finding for finding in record.findings if finding.resource == "descriptor")
    assert 0.9 <= finding.rate <= 1.0
    assert finding.dose_units == [20, 40, 80, 160]
    assert finding.opened_at[0].endswith("in message_fd (queue)")
    assert "opened at" in finished.stdout
    assert record.target.defects == ["transfer-fd-leak"]
    assert record.work.lost == 0
    verdict, *others = finished.stdout.splitlines()
    assert verdict.startswith("LEAK: transfer keeps 1 message file (deleted) open for each refused message: ")
    assert verdict.endswith(" of 300"), "one line into a pipe, for grep"
    assert max(map(len, others)) <= 80
    (run,) = (tmp_path / "runs").iterdir()
    assert {"record.json", "smtpd.conf", "smtpd.log", "command"} <= {path.name for path in run.iterdir()}
    assert "--defect transfer-fd-leak" in (run / "command").read_text()
    assert not (run / "spool").exists()


def test_quiet_prints_one_line(tmp_path: Path) -> None:
    options = ("--no-attribution", "--defect", "transfer-fd-leak", "--mx", "mail=550")
    finished = seatbelt("run", "-q", *options, cwd=tmp_path)
    assert finished.returncode == 1
    assert len(finished.stdout.splitlines()) == 1
    assert finished.stderr == ""


def test_sessions_without_reuse_are_inconclusive_with_status_3(tmp_path: Path) -> None:
    finished = seatbelt("run", "--mx", "rcpt=550 messages=1", cwd=tmp_path)
    assert finished.returncode == 3
    assert "INCONCLUSIVE" in finished.stdout
    assert "messages per outbound session" in " ".join(finished.stdout.split())


def test_ctrl_c_stops_everything_and_keeps_a_partial_record(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [SEATBELT, "run", "-v", "--profile", "soak", "--record", "partial.json"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "dose: 40" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 10, "the MTA's eight processes, the load and the remote MX"
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.stderr.read()
    assert process.wait(60) == 3
    process.stderr.close()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    record = load(tmp_path / "partial.json")
    assert record.verdict == "inconclusive"
    assert len(record.doses) >= 3


# ---- what is printed, and to whom


@pytest.mark.parametrize("words", [["list"], ["--help"], ["fds", str(os.getpid())], ["report", "r.json"]])
def test_a_reader_that_is_gone_changes_no_status(tmp_path: Path, words: list[str]) -> None:
    save(record(), tmp_path / "r.json")
    for also in (subprocess.PIPE, subprocess.STDOUT):
        finished = to_nobody(*words, cwd=tmp_path, stderr=also)
        assert (finished.returncode, finished.stderr or "") == (0, "")


def test_of_a_comparison_nobody_reads_the_status_remains(tmp_path: Path) -> None:
    clean = record()
    clean.findings, clean.verdict = [], "clean"
    save(clean, tmp_path / "clean.json")
    save(record(), tmp_path / "leak.json")
    assert to_nobody("compare", "clean.json", "clean.json", cwd=tmp_path).returncode == 0
    assert to_nobody("compare", "clean.json", "leak.json", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("words", [["list"], ["fds", str(os.getpid())], ["report", "r.json"]])
def test_a_full_disk_under_standard_output_is_one_clear_line(tmp_path: Path, words: list[str]) -> None:
    save(record(), tmp_path / "r.json")
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            [SEATBELT, *words], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert finished.returncode == 2
    assert finished.stderr == "seatbelt: standard output: No space left on device\n"


def test_a_run_that_nobody_reads_goes_on_and_is_kept(tmp_path: Path) -> None:
    words = ("run", "-v", "connect-quit", "--no-attribution", "--sessions", "5", "--history", "h.jsonl")
    finished = to_nobody(*words, "--record", "r.json", cwd=tmp_path, stderr=subprocess.STDOUT)
    kept = load(tmp_path / "r.json")
    assert len(kept.doses) >= 3
    assert finished.returncode == OF_VERDICT[kept.verdict]
    assert len((tmp_path / "h.jsonl").read_text().splitlines()) == 1


def test_a_run_whose_output_has_no_room_is_kept(tmp_path: Path) -> None:
    words = ("run", "connect-quit", "--no-attribution", "--sessions", "5", "--history", "h.jsonl")
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            [SEATBELT, *words], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert finished.returncode == 2
    assert finished.stderr == "seatbelt: standard output: No space left on device\n"
    assert len((tmp_path / "h.jsonl").read_text().splitlines()) == 1
    assert list(tmp_path.glob("runs/*/record.json"))


@pytest.mark.parametrize("error", ["BrokenPipeError(32, 'a socket')", "EOFError()"])
def test_a_broken_pipe_that_nobody_caught_is_no_finding(error: str) -> None:
    broken = f"import sys\ndef end(*a): raise {error}\n"
    broken += "import typer; typer.echo = end; sys.argv = ['seatbelt', 'list']; import harness.cli as c; c.main()"
    finished = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert finished.returncode == 3
    assert "a fault of Seatbelt" in finished.stderr


def test_a_path_that_is_no_text_loses_no_run(tmp_path: Path) -> None:
    runs = tmp_path / os.fsdecode(b"b\xff\xfe")
    words = ("run", "connect-quit", "--no-attribution", "--sessions", "5", "--runs", runs, "--record", runs / "r.json")
    runs.mkdir()
    finished = subprocess.run([SEATBELT, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    kept = load(runs / "r.json")
    assert finished.returncode == OF_VERDICT[kept.verdict], finished.stderr
    assert r"b\udcff\udcfe" in kept.command
    assert finished.stderr == ""


def test_a_full_disk_during_a_run_is_one_line(tmp_path: Path) -> None:
    """As its agent's directory would meet it."""
    full = (
        "import sys, harness.probes.agent as agent, harness.cli as c\n"
        "def ask(*_, **__): raise OSError(28, 'No space left on device')\n"
        "agent.ask = ask\n"
        "sys.argv = ['seatbelt', 'run', '-q', 'connect-quit', '--no-attribution', '--sessions', '5']\n"
        "c.main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", full], cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "seatbelt: No space left on device\n"


@pytest.mark.parametrize("columns", ["0", "", "80"])
def test_a_terminal_of_no_width_is_told_the_report(tmp_path: Path, columns: str) -> None:
    save(record(), tmp_path / "r.json")
    told = subprocess.check_output([SEATBELT, "report", tmp_path / "r.json"], env={**os.environ, "COLUMNS": columns})
    assert b"LEAK: transfer keeps" in told

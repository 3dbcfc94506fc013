"""A history over builds: what is kept of a run, and what is told of many."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.commands import history as command
from reports import history
from reports.record import (
    Footprint,
    QueuedFootprint,
    RunRecord,
    TargetInfo,
    TrafficFootprint,
    Verdict,
    save,
)
from reports.record import Tested as Judged


def record(
    objects: float = 0.02, kept: float = 0.0, bytes_each: float = 300.0, verdict: Verdict = "clean"
) -> RunRecord:
    return RunRecord(
        scenario="rejected-reuse",
        target=TargetInfo("embedded"),
        began="2026-11-28T12:00:00+00:00",
        verdict=verdict,
        tested=[
            Judged("descriptor", "pipe", "smtp", "survivors", "clean", "message", rate=kept),
            Judged("memory", "Python objects", "queue", "Python objects", "clean", "message", rate=objects),
            Judged("memory", "memory", "control", "", "inconclusive"),
        ],
        footprint=Footprint(
            [QueuedFootprint("queue", "private dirty", 900.0)],
            [TrafficFootprint("smtp", "queue", "COMMIT", 1.0, bytes_each, bytes_each)],
        ),
    )


def told(path: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["history", str(path), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_kept_of_a_run() -> None:
    found = history.entry(record(kept=0.5), "abc")
    assert found.kept == {"smtp: pipe for each message": 0.5}
    assert found.costs == {
        "queue: Python objects for each message": 0.02,
        "queue: private dirty for each queued envelope": 900.0,
        "smtp -> queue COMMIT: bytes for each message": 300.0,
    }
    assert history.read([history.line(found)]) == [found]


def test_what_was_not_kept_is_nothing_and_what_was_not_measured_is_not_there() -> None:
    runs = [record(), record(kept=1.0), record(verdict="inconclusive"), record()]
    runs[3].footprint = Footprint()
    by_name = {each.name: each for each in history.series([history.entry(run, str(n)) for n, run in enumerate(runs)])}
    assert by_name["smtp: pipe for each message"].values == [0.0, 1.0, 0.0]
    assert by_name["smtp: pipe for each message"].builds == ["0", "1", "3"]
    assert by_name["queue: private dirty for each queued envelope"].builds == ["0", "1", "2"]


def test_the_build_in_which_it_rose_is_named(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    for number in range(16):
        objects = (0.02 if number < 9 else 1.3) + 0.001 * (number * 7 % 5)
        command.append(path, record(objects, bytes_each=300 + number % 3), f"v{number}")
    output = told(path)
    assert "rejected-reuse on embedded, profile quick: 16 runs, v0 to v15" in output
    assert "queue: Python objects for each message: 1.3" in output
    assert "rose between v8 and v9: 0.022 to 1.3 (p " in output
    assert output.count("between") == 1
    assert "no change in 2 of 3 series" in output
    assert len(told(path, "--all").splitlines()) == 6


def test_a_certain_change_too_small_to_matter_is_not_told(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    for number in range(16):
        command.append(path, record(bytes_each=300.0 if number < 8 else 302.0), f"v{number}")
    assert "between" not in told(path)


def test_runs_of_different_kinds_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    for number in range(20):
        run = record(0.02 if number % 2 else 5.0 + number / 100)
        run.target.defects = [] if number % 2 else ["one"]
        command.append(path, run, str(number))
    output = told(path)
    assert "embedded, profile" in output
    assert "embedded with one, profile" in output
    assert "between" not in output


def test_a_record_is_added_with_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(record(), tmp_path / "r.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "h.jsonl"
    assert "1 run, 2026-11-28T12:00:00+00:00" in told(path, "--add", "r.json")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.test", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"], ["tag", "v1.0"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
    assert f"to {commit.stdout.strip()}" in told(path, "--add", "r.json")
    assert "3 runs" in told(path, "--add", "r.json", "--build", "nightly-7")
    assert "to nightly-7" in told(path)


def test_a_line_that_does_not_fit_leaves_the_history_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    command.append(path, record(), "v1")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))  # as a disk that is almost full
    try:
        with pytest.raises(OSError, match="No space left"):
            command.append(path, record(), "v2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_a_file_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    command.append(path, record(), "one")
    path.write_bytes(path.read_bytes() + b'{"began": 1}\n')
    for file, said in ((path, "line 2: not a run of a history"), (tmp_path / "none", "No such file")):
        result = CliRunner().invoke(app, ["history", str(file)])
        assert result.exit_code == 2
        assert said in result.output
        assert len(result.output.splitlines()) == 1


def test_a_last_line_without_an_end_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    command.append(path, record(), "one")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    save(record(), tmp_path / "r.json")
    assert "2 runs, one to two" in told(path, "--add", str(tmp_path / "r.json"), "--build", "two")
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("notes", ["my notes", '{"kept": ' + "[" * 100_000], ids=["notes", "deep"])
def test_to_what_is_no_history_nothing_is_added(tmp_path: Path, notes: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(notes)
    save(record(), tmp_path / "r.json")
    for words in (["history", str(path), "--add", str(tmp_path / "r.json")], ["run", "--history", str(path)]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert f"{path}: line 1: not a run of a history" in result.output
        assert len(result.output.splitlines()) == 1
    assert path.read_text() == notes

"""`seatbelt compare` and baselines, as a user types them: statuses, what is told, one line for every mistake."""

from __future__ import annotations

import tomllib
from datetime import date, timedelta
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from harness.cli import app
from reports.record import (
    Finding,
    Footprint,
    QueuedFootprint,
    RunRecord,
    TargetInfo,
    TrafficFootprint,
    save,
)

TOMORROW = (date.today() + timedelta(days=2)).isoformat()
LEAK = Finding(
    "descriptor", "file", "message file (deleted)", "transfer", rate=0.5, low=0.45, high=0.55, unit="message"
)


def finding(rate: float) -> Finding:
    return msgspec.structs.replace(LEAK, rate=rate, low=rate - 0.05, high=rate + 0.05)


def kept(path: Path, *findings: Finding, scenario: str = "one", footprint: Footprint | None = None) -> Path:
    record = RunRecord(scenario, TargetInfo("embedded"), verdict="leak" if findings else "clean")
    record.findings = list(findings)
    record.footprint = footprint or Footprint()
    save(record, path)
    return path


def seatbelt(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.mark.parametrize(
    ("old", "new", "status", "word"),
    [
        ([], [finding(0.5)], 1, "new "),
        ([finding(0.5)], [finding(0.7)], 1, "more "),
        ([finding(0.5)], [finding(0.54)], 0, "same "),
        ([finding(0.7)], [finding(0.5)], 0, "less "),
        ([finding(0.5)], [], 0, "gone "),
        ([], [], 0, "no finding in either"),
    ],
)
def test_what_is_worse_fails(tmp_path: Path, old: list[Finding], new: list[Finding], status: int, word: str) -> None:
    result = seatbelt(kept(tmp_path / "old", *old), kept(tmp_path / "new", *new))
    assert result.exit_code == status
    assert word in result.output


@pytest.mark.parametrize(
    ("queued_bytes", "bytes_each", "status"),
    [(640, 240, 0), (700, 250, 0), (1300, 240, 1), (640, 8500, 1)],
)
def test_a_footprint_that_has_grown_fails(tmp_path: Path, queued_bytes: float, bytes_each: float, status: int) -> None:
    def cost(memory: float, each: float) -> Footprint:
        queued = QueuedFootprint("scheduler", "private dirty", memory, memory - 60, memory + 60)
        return Footprint([queued], [TrafficFootprint("queue", "transfer", "DELIVER", 3.0, 3 * each, each)])

    old = kept(tmp_path / "old", footprint=cost(640, 240))
    result = seatbelt(old, kept(tmp_path / "new", footprint=cost(queued_bytes, bytes_each)))
    assert result.exit_code == status
    assert ("costs" in result.output) == bool(status)


def test_an_inconclusive_run_proves_nothing(tmp_path: Path) -> None:
    record = RunRecord("one", TargetInfo("embedded"), reasons=["too little work"])
    save(record, tmp_path / "new")
    result = seatbelt(kept(tmp_path / "old", LEAK), tmp_path / "new")
    assert result.exit_code == 3
    assert "too little work" in result.output
    assert "gone" not in result.output


def test_different_scenarios_are_not_compared(tmp_path: Path) -> None:
    result = seatbelt(kept(tmp_path / "old"), kept(tmp_path / "new", scenario="two"))
    assert result.exit_code == 2
    assert "'one'" in result.output
    assert "'two'" in result.output


def test_an_accepted_finding_passes_until_it_is_worse_or_the_day_is_over(tmp_path: Path) -> None:
    clean, leak, baseline = kept(tmp_path / "old"), kept(tmp_path / "new", LEAK), tmp_path / "known.toml"
    assert seatbelt(clean, leak).exit_code == 1
    assert seatbelt(clean, leak, "--baseline", baseline, "--accept", 'why "so"', "--until", TOMORROW).exit_code == 0
    (entry,) = tomllib.loads(baseline.read_text())["accepted"]
    assert entry["reason"] == 'why "so"'
    passed = seatbelt(clean, leak, "--baseline", baseline)
    assert passed.exit_code == 0
    assert "more days" in passed.output
    worse = seatbelt(clean, kept(tmp_path / "worse", finding(0.9)), "--baseline", baseline)
    assert worse.exit_code == 1
    assert "worse than the accepted" in worse.output
    idle = seatbelt(clean, clean, "--baseline", baseline)
    assert idle.exit_code == 0
    assert "not seen" in idle.output
    baseline.write_text("# mine\n" + baseline.read_text().replace(TOMORROW, "2020-01-01"))
    expired = seatbelt(leak, leak, "--baseline", baseline)
    assert expired.exit_code == 1
    assert "expired on 2020-01-01" in expired.output
    assert seatbelt(leak, leak, "--baseline", baseline, "--accept", "again", "--until", TOMORROW).exit_code == 0
    assert baseline.read_text().startswith("# mine\n")
    assert len(tomllib.loads(baseline.read_text())["accepted"]) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("accepted = 3", "accepted"),
        ("[[accepted]]\nscenario = 1", "accepted[0].scenario"),
        ("[[accepted]]\nscenari = 'x'", "scenari"),
        ("oops", "not TOML"),
    ],
)
def test_a_bad_baseline_is_one_line_with_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    baseline = tmp_path / "known.toml"
    baseline.write_text(text)
    result = seatbelt(kept(tmp_path / "old"), tmp_path / "old", "--baseline", baseline)
    assert result.exit_code == 2
    assert str(baseline) in result.output
    assert complaint in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--accept", "x"],
        ["--until", "2027-01-01"],
        ["--accept", "x", "--until", "2027-01-01"],
        ["--accept", "x", "--until", "soon", "--baseline", "b"],
        ["--accept", "x", "--until", "2000-01-01", "--baseline", "b"],
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: list[str]) -> None:
    result = seatbelt(kept(tmp_path / "old"), tmp_path / "old", *options)
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1


def test_a_baseline_may_be_a_link(tmp_path: Path) -> None:
    clean, leak = kept(tmp_path / "old"), kept(tmp_path / "new", LEAK)
    link = tmp_path / "known.toml"
    link.symlink_to("shared.toml")
    assert seatbelt(clean, leak, "--baseline", link, "--accept", "so", "--until", TOMORROW).exit_code == 0
    assert link.is_symlink()
    assert len(tomllib.loads((tmp_path / "shared.toml").read_text())["accepted"]) == 1

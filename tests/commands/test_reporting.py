"""`seatbelt report`, and what a GitHub workflow is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.commands import reporting
from reports import terminal
from reports.record import RecordError, load, save
from tests.reports.drawn import record


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    one = record()
    save(one, path)
    return path


def test_every_report_is_written_from_a_record(kept: Path, tmp_path: Path) -> None:
    wanted = {name: tmp_path / f"report.{name}" for name in ("html", "junit", "markdown", "json")}
    done = CliRunner().invoke(app, ["report", str(kept), *(w for k, p in wanted.items() for w in (f"--{k}", str(p)))])
    assert done.exit_code == 0
    assert all(str(path) in done.output.replace("\n", "") for path in wanted.values())
    ET.parse(wanted["junit"])
    assert wanted["html"].read_text().startswith("<!doctype html>")
    assert wanted["markdown"].read_text().startswith("### ")
    assert load(wanted["json"]) == load(kept)


def test_without_a_file_the_report_goes_to_the_terminal(kept: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(kept)])
    assert done.exit_code == 0
    assert "LEAK: transfer keeps" in done.output
    headline, *others = done.output.splitlines()
    assert headline == terminal.headline(load(kept)).plain, "one line where it is no terminal: for grep"
    assert max(len(line) for line in others if ". " not in line) <= 80  # but for what was found, which is not folded


def test_what_is_no_record_and_what_cannot_be_written_is_one_line(kept: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text('{"more": ' + "[" * 100_000)
    for arguments in (
        [str(tmp_path / "none.json")],
        [str(deep)],
        [str(kept), "--html", str(tmp_path / "no" / "page.html")],
    ):
        done = CliRunner().invoke(app, ["report", *arguments])
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1


def test_github_gets_annotations_and_a_summary_and_elsewhere_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporting.tell_github(record(), {})
    assert capsys.readouterr().out == ""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    reporting.tell_github(record(), {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)})
    assert capsys.readouterr().out.startswith("::error file=mta_under_test/spool/disk.py,line=184")
    assert summary.read_text().startswith("before\n### ")


def test_a_link_is_followed_and_a_pipe_is_written_to(kept: Path, tmp_path: Path) -> None:
    page, link, pipe = tmp_path / "page.html", tmp_path / "link.html", tmp_path / "pipe"
    link.symlink_to(page.name)
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    done = CliRunner().invoke(app, ["report", str(kept), "--html", str(link), "--markdown", str(pipe)])
    reader.join(10)
    assert done.exit_code == 0, done.output
    assert link.is_symlink()
    assert page.read_text().startswith("<!doctype html>")
    assert pipe.is_fifo()
    assert read[0].startswith("### ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html", "pipe", "record.json"]


def test_a_dash_is_standard_output_and_nothing_else_is_said_there(kept: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(kept), "--json", "-", "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert done.stdout_bytes == kept.read_bytes()
    assert not Path("-").exists()


def test_standard_output_that_is_a_file_is_not_taken_the_place_of(kept: Path, tmp_path: Path) -> None:
    seatbelt = Path(sys.executable).with_name("seatbelt")
    with (tmp_path / "out").open("w") as out:
        subprocess.run([seatbelt, "report", kept, "--markdown", "/dev/stdout"], stdout=out, check=True)
        assert os.fstat(out.fileno()).st_size > 100
    assert (tmp_path / "out").read_text().startswith("### ")


def test_nothing_is_left_of_what_cannot_be_written(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    same = str(tmp_path / "same")
    for options, said in (
        (["--html", str(tmp_path / "folder")], "is a directory"),
        (["--html", ""], "is a directory"),
        (["--html", same, "--json", same], "--json would take the place of --html"),
        (["--html", str(kept)], "--html would take the place of the record"),
    ):
        done = CliRunner().invoke(app, ["report", str(kept), *options])
        assert done.exit_code == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "record.json"]
    with pytest.raises(RecordError, match="Is a directory"):
        save(record(), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "record.json"]

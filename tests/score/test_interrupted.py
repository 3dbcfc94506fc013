"""Ctrl-C, or SIGTERM, in the middle of `seatbelt score`: what is known is told, and no run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reports.score import Row, Score, load, save

SEATBELT = Path(sys.executable).with_name("seatbelt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_score_leaves_what_is_known_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    command = [SEATBELT, "score", "--only", "clean *", "--jobs", "2", "--record", "score.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(family) < 20:  # both runs have started their servers
        assert time.monotonic() < deadline
        time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "interrupted after 0 of" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert json.loads((tmp_path / "score.json").read_text())["rows"] == []


def test_a_score_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    done = Row(name="clean connect-quit 1", kind="clean", scenario="connect-quit", verdict="clean", seconds=7.0)
    save(Score([done], seconds=7.0), tmp_path / "score.json")
    command = [SEATBELT, "score", "--only", "clean connect-quit", "--record", "score.json"]
    began = time.monotonic()
    resumed = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert load(tmp_path / "score.json").rows == [done], resumed.stdout  # not run again
    assert load(tmp_path / "score.json").seconds < 7.0 + time.monotonic() - began


@pytest.mark.parametrize(
    ("options", "said"), [([], "which one"), (["--record", "score.json"], "score.json: not a score")]
)
def test_what_cannot_be_gone_on_with_is_said(tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "score.json").write_text("[]")
    command = [SEATBELT, "score", "--resume", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr

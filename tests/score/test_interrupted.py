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

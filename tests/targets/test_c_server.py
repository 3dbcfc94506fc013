"""The C server of ours (`tests/servers/leaky.c`): its leaks are found and told where, and without one it is clean.

All through the command line, as a person would: the target is any command, the scenario a file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reports.record import Finding, RunRecord, load
from tests.compiled import SOURCES, compiled

SCENARIO = SOURCES / "servers" / "refused.py"
STATUS = {"clean": 0, "leak": 1}


def judged(tmp_path: Path, leaks: str, *options: str) -> RunRecord:
    program = compiled("servers/leaky.c", tmp_path)
    command = [Path(sys.executable).with_name("seatbelt"), "run", SCENARIO, "--command", f"{program} {{port}} {leaks}"]
    finished = subprocess.run(
        [*command, "--record", "record.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert finished.returncode in STATUS.values(), finished.stdout + finished.stderr
    record = load(tmp_path / "record.json")
    assert finished.returncode == STATUS[record.verdict]
    return record


def only(record: RunRecord) -> Finding:
    (finding,) = record.findings
    return finding


def opened_in(finding: Finding, function: str) -> bool:
    """Whether the innermost line is the one of leaky.c that this function makes it in."""
    place, _, where = finding.opened_at[0].partition(" in ")
    path, _, number = place.rpartition(":")
    source = (SOURCES / "servers" / "leaky.c").read_text().splitlines()
    makes = {"is_known": "fopen(", "begin": "accept(", "write_down": "fork("}[function]
    return path.endswith("servers/leaky.c") and makes in source[int(number) - 1] and where == f"{function} (leaky)"


def test_without_a_leak_it_is_clean_by_every_byte_of_its_heap(tmp_path: Path) -> None:
    record = judged(tmp_path, "")
    assert record.verdict == "clean"
    assert record.target.loaded == ["heap meter"]
    (heap,) = (each for each in record.tested if each.metric == "heap")
    assert heap.rate == 0
    assert heap.smallest_visible < 20


def test_what_it_can_count_is_found_with_function_and_line(tmp_path: Path) -> None:
    record = judged(tmp_path, "file socket zombie")
    assert record.verdict == "leak"
    assert {finding.role for finding in record.findings} == {"leaky"}
    assert {finding.traced_by for finding in record.findings} == {"the LD_PRELOAD tracker"}
    found = {finding.label: finding for finding in record.findings}
    file, connection, child = (found.pop(label) for label in ("file /etc/*", "tcp/CLOSE_WAIT", "zombie child"))
    assert not found
    assert file.rate > 0.98
    assert opened_in(file, "is_known")
    assert connection.low < 0.5 < connection.high  # the clients that hang up
    assert opened_in(connection, "begin")
    assert child.rate > 0.98
    assert opened_in(child, "write_down")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_strace_tells_the_same_where_nothing_may_be_loaded(tmp_path: Path) -> None:
    record = judged(tmp_path, "file", "--no-preload")
    assert record.target.loaded == []
    finding = only(record)
    assert (finding.resource, finding.label) == ("descriptor", "file /etc/*")
    assert opened_in(finding, "is_known")
    assert finding.traced_by == "strace -k"


def test_sixty_four_bytes_a_session_are_found(tmp_path: Path) -> None:
    finding = only(judged(tmp_path, "heap"))
    assert (finding.resource, finding.kind, finding.role) == ("memory", "heap", "leaky")
    assert 64 <= finding.rate < 96  # malloc rounds up
    assert "never frees" in finding.advice


@pytest.mark.parametrize(("arguments", "said"), [((), "usage"), (("2525", "nothing"), "no leak called nothing")])
def test_it_says_what_is_wrong_with_its_arguments(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run([compiled("servers/leaky.c", tmp_path), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr

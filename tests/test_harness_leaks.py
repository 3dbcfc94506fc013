"""The harness leaves nothing behind in its own process: a few runs here, fifty in benchmarks/harness_leaks.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from harness.probes.snapshot import take_snapshot

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "harness_leaks.py"


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness_leaks", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_it_would_see_a_descriptor_and_a_temporary_file(tmp_path: Path) -> None:
    leaks = benchmark()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        snapshots = [take_snapshot(process.pid, spool=tmp_path) for _ in range(leaks.WARM_UP + 1)]
        process.kill()
    assert leaks.judged(snapshots) == []
    snapshots[-1].processes[0].descriptors.append(take_snapshot(os.getpid()).processes[0].descriptors[0])
    snapshots[-1].files.append("left")
    said = leaks.judged(snapshots)
    assert [sentence.partition(":")[0] for sentence in said] == ["descriptors", "files"]


def test_runs_leave_descriptors_threads_children_and_temporary_files_at_their_baseline() -> None:
    # In a process of its own: a test worker has threads and descriptors that come and go.
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--runs", "4"], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("4 runs in ")
    assert "0 children, 0 temporary files" in done.stdout

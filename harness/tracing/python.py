"""The Python agent as a tracer: `harness/agent/inject/tracer.py`, which answers with every snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from harness.tracing import Trace
from reports.record import Process


class PythonAgent:
    name = "the Python agent"

    def __init__(self, directory: Path) -> None:
        """`directory` is where agent and harness meet."""
        self._directory = directory

    def reached(self, pids: Iterable[int]) -> set[int]:
        return {pid for pid in pids if (self._directory / f"{pid}.ready").exists()}

    def traces(self, processes: Sequence[Process]) -> dict[int, Trace]:
        """Raises msgspec.DecodeError for an answer that is none."""
        found = {}
        for process in processes:
            path = self._directory / f"{process.pid}.trace"
            if path.exists():
                found[process.pid] = msgspec.json.decode(path.read_bytes(), type=Trace, strict=False)
        return found

"""Which way of tracing reaches which process of a target."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from harness.agent import native
from harness.probes.processes import tree
from harness.tracing import Trace, Tracer
from harness.tracing.python import PythonAgent
from harness.tracing.strace import Strace
from harness.tracing.tracker import Tracker
from reports.record import Process

BIRTH_S = 0.5  # from its birth on until a process can be seen to be reached
LOOK_S = 0.02


class Tracing:
    """A context, entered when the target greets and left before it is stopped.

    What was loaded at the target's start is asked first; strace is attached to the processes that nothing reached.
    """

    def __init__(self, root_pid: int, agent_directory: Path | None) -> None:
        self._root_pid = root_pid
        self._root = Path(f"/proc/{root_pid}/root")
        self._running = ExitStack()
        self._tracers: list[Tracer] = []  # the one to believe first
        if agent_directory is not None:
            self._tracers = [PythonAgent(agent_directory), Tracker(agent_directory, self._root)]
        self._told_by: dict[int, str] = {}  # by pid

    def __enter__(self) -> Tracing:
        missed = self._missed()
        if missed and not Strace.missing():
            directory = Path(self._running.enter_context(tempfile.TemporaryDirectory(prefix="seatbelt-")))
            strace = Strace(directory, self._root)
            self._running.callback(strace.detach)
            strace.attach(sorted(missed))
            self._tracers.append(strace)
        return self

    def _missed(self) -> set[int]:
        """The processes that nothing reached. One of a family that tracers were loaded into may have just been born."""
        deadline = time.monotonic() + BIRTH_S
        while True:
            pids = set(tree(self._root_pid))
            missed = pids.difference(*(tracer.reached(pids) for tracer in self._tracers))
            if not missed or missed == pids or time.monotonic() > deadline:
                return missed
            time.sleep(LOOK_S)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.close()

    def traces(self, processes: Sequence[Process]) -> dict[int, Trace]:
        """By pid, as the processes are now, with their descriptors. Raises OSError, msgspec.DecodeError."""
        found: dict[int, Trace] = {}
        for tracer in self._tracers:
            told = tracer.traces([process for process in processes if process.pid not in found])
            found |= told
            self._told_by |= dict.fromkeys(told, tracer.name)
        return found

    def told_by(self, pids: Collection[int]) -> str:
        """The tracers that knew of them, by name; empty when nobody did."""
        return " and ".join(sorted({name for pid, name in self._told_by.items() if pid in pids}))

    @staticmethod
    def remedy() -> str:
        """What would help where nothing reached a process."""
        return "; ".join(filter(None, (native.missing(), Strace.missing()))) or "run Seatbelt as root"

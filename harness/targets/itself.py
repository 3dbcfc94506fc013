"""This very process as a target: what a test's own code keeps. It is at rest whenever nobody else has its turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.probes import processes
from harness.targets import Rest, TargetError
from reports.record import Incident


class Itself:
    """This process and its children. It takes no mail."""

    name = "itself"
    defects: Sequence[str] = ()
    spool: Path | None = None
    agent_directory: Path | None = None
    mailboxes: Path | None = None
    address = ("", 0)

    def __init__(self) -> None:
        self.root_pid = os.getpid()
        found = processes.stat(self.root_pid)
        self.version = f"{found.comm if found else 'python'} (pid {self.root_pid})"

    def start(self) -> None:
        """It has."""

    def stop(self) -> None:
        """It goes on."""

    def rest(self) -> Rest:
        return Rest()

    def deaths(self) -> list[Incident]:
        return []

    def hurry(self) -> None:
        raise TargetError("this process has no queue to hurry")

    def operate(self, operation: str) -> None:
        raise TargetError(f"this process knows no operation {operation!r}")

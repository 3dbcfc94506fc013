"""The agent goes on answering in a process that has given up its rights and can see no file any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import agent
from harness.probes import agent as probe

GIVE_UP = """
import os, sys
empty = sys.argv[1]
os.chroot(empty)
os.chdir("/")
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
if sys.argv[2] == "closes":
    os.closerange(3, 64)
    os.open("/", os.O_RDONLY)  # takes the number of the descriptor that the agent had kept
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
@pytest.mark.parametrize(("how", "answers"), [("stays", 1), ("closes", 0)])
def test_the_agent_answers_from_where_no_file_can_be_reached(tmp_path: Path, how: str, answers: int) -> None:
    directory, empty = tmp_path / "agent", tmp_path / "empty"
    directory.mkdir()
    directory.chmod(0o1777)
    empty.mkdir()
    empty.chmod(0o777)
    with subprocess.Popen(
        [sys.executable, "-c", GIVE_UP, empty, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=agent.environment(directory),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        descriptors = os.listdir(f"/proc/{process.pid}/fd")
        for _ in range(3 if answers else 1):
            found = probe.ask(directory, [process.pid], timeout_s=5.0 if answers else 0.3)
            assert len(found.readings) == answers
            assert len(found.silent) == 1 - answers
        assert os.listdir(f"/proc/{process.pid}/fd") == descriptors
        assert not list(empty.iterdir()), "nothing is written into somebody else's directory"
        process.stdin.close()
        assert process.wait(10) == 0

"""What is asked of every foreign server: mail goes in, and nothing of it outlives its harness."""

from __future__ import annotations

import os
import smtplib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.targets import Target, TargetError, places
from harness.targets.places import Program
from tests.debian import unpacked
from tests.probes.probed import line, until

PACKAGES = {"postfix": "postfix", "opensmtpd": "opensmtpd", "exim": "exim4-daemon-light"}
SCRIPT = """
import sys, time
from pathlib import Path
from harness.targets.choice import Settings, choose
target = choose(sys.argv[1], Settings())(Path(sys.argv[2]), {"refusing": 2, "home": 2})
target.start()
print(target.root_pid, flush=True)
time.sleep(60)
"""


def need(name: str) -> None:
    """The server `name`, unpacked; without it, or what it must have to run, the test is skipped."""
    if name == "postfix":
        if os.geteuid() != 0:
            pytest.skip("needs root: Postfix's master gives its services to another user")
    else:
        need_places(name)
    unpacked(PACKAGES[name])


def program_of(package: str, path: str) -> Program:
    """Unpacked; without it, or places to run it in, the test is skipped."""
    need_places(package)
    tree = unpacked(package)
    return Program(tree / path, tree)


def need_places(name: str) -> None:
    try:
        places.check(name)
    except TargetError as reason:
        pytest.skip(f"needs a mount namespace: {reason}")


def submit(target: Target, message_id: str, recipient: str) -> None:
    with smtplib.SMTP(*target.address, local_hostname="client.test", timeout=20) as client:
        client.sendmail("a@sender.test", [recipient], f"Message-ID: <{message_id}>\r\n\r\nhello\r\n")


def family_of(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def check_that_it_ends_with_its_harness(name: str, directory: Path, scratch: Path) -> None:
    """The server `name` is started by a process that is then killed."""
    command = [sys.executable, "-c", SCRIPT, name, str(directory)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as harness:
        family = family_of(int(line(harness)))
        harness.kill()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    until(lambda: list(scratch.iterdir()) == [], "its directory goes too")

"""Processes to probe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOLDS_EVERYTHING = Path(__file__).with_name("holds_everything.py")
WAIT_S = 20.0


@dataclass(frozen=True)
class Holder:
    pid: int
    held: dict[str, int]  # what, and under which number


@contextmanager
def python(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs until its standard input ends. It is killed in the end; its children end with its input."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def holds_everything(directory: Path) -> Iterator[Holder]:
    with python(HOLDS_EVERYTHING, directory) as process:
        yield Holder(process.pid, json.loads(line(process)))


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.005)


def as_another_user(function: Callable[[], list[str]]) -> list[str]:
    """What `function` returns in a process that has no privileges: nobody's when we are root, ours otherwise."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(into, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as answer:  # noqa: PTH123 - a descriptor, not a path
        text = answer.read()
    os.waitpid(child, 0)
    assert text, "it raised; see standard error"
    found: list[str] = json.loads(text)
    return found

"""The tracer: where descriptors, threads, children and growing memory come from, told from inside a Python target."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness import agent
from harness.probes import agent as probe
from tests.probes.probed import line, python

HOLDER = """
import os, select, socket, subprocess, sys, tempfile, threading
kept = []
def opens_a_file():
    kept.append(open(sys.argv[1]))
def opens_low():
    kept.append(os.open(sys.argv[1], os.O_RDONLY))
def pipes():
    kept.extend(os.pipe())
def pairs():
    kept.append(socket.socketpair())
def polls():
    kept.append(select.epoll())
def accepts():
    listening = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listening.getsockname())
    kept.append((listening, client, listening.accept()))
def passes():
    one, other = socket.socketpair()
    number = os.open(sys.argv[2], os.O_RDONLY)
    socket.send_fds(one, [b"x"], [number])
    os.close(number)
    kept.append((one, other, socket.recv_fds(other, 1, 1)))
def closes():
    os.close(os.open(sys.argv[1] + ".new", os.O_CREAT | os.O_WRONLY))
def starts_a_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def starts_a_child():
    kept.append(subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE))
def grows():
    kept.append([bytearray(1000) for _ in range(10)])
once = {}
def grows_once():
    once.setdefault("x", bytearray(5000))
for make in (opens_a_file, opens_low, pipes, pairs, polls, accepts, passes, closes, starts_a_thread, starts_a_child):
    make()
print(flush=True)
for _ in sys.stdin:
    grows()
    grows_once()
    print(flush=True)
kept[-1] if not kept else [each.kill() for each in kept if isinstance(each, subprocess.Popen)]
"""


def functions(stack: list[Any]) -> set[str]:
    return {function for _, _, function in stack}


def told(directory: Path, pid: int) -> dict[str, Any]:
    assert probe.ask(directory, [pid]).silent == []
    found: dict[str, Any] = json.loads((directory / f"{pid}.trace").read_text())
    return found


def test_every_way_to_a_descriptor_is_seen(tmp_path: Path) -> None:
    files = [tmp_path / "file", tmp_path / "passed"]
    for path in files:
        path.touch()
    with python("-c", HOLDER, *map(str, files), env=agent.environment(tmp_path, traced=True)) as process:
        line(process)
        answer = told(tmp_path, process.pid)
        seen = [(functions(stack), received) for stack, received in answer["open"].values()]
        made = set().union(*(names for names, _ in seen))
        assert {"opens_a_file", "opens_low", "pipes", "pairs", "polls", "accepts"} <= made
        assert "closes" not in made
        (received,) = (names for names, received in seen if received)
        assert "passes" in received
        inode = files[1].stat().st_ino
        (opened,) = (stack for _, number, _, stack in answer["passed"] if number == inode)
        assert "passes" in functions(opened)
        assert "closes" in set().union(*(functions(stack) for *_, stack in answer["made"]))
        assert any("starts_a_thread" in functions(stack) for stack in answer["threads"].values())
        assert any("starts_a_child" in functions(stack) for stack in answer["children"].values())


def test_what_grows_at_every_mark_is_told_and_what_grew_once_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with python("-c", HOLDER, path, path, env=agent.environment(tmp_path, traced=True)) as process:
        assert process.stdin is not None
        line(process)
        told(tmp_path, process.pid)
        for _ in range(2):
            process.stdin.write("\n")
            process.stdin.flush()
            line(process)
            answer = told(tmp_path, process.pid)
        lines = HOLDER.splitlines()
        ours = [each for each in answer["growth"] if each[2][0][0] == "<string>"]  # not what asking allocates
        sites = {lines[stack[0][1] - 1].strip(): (size, count) for size, count, stack in ours}
        size, count = next(value for text, value in sites.items() if text.startswith("kept.append([bytearray(1000)"))
        assert size >= 20 * 1000
        assert count >= 20
        assert not any(re.search("5000", text) for text in sites)

"""The agent: every kind of Python answers and stays as it was; nobody is signalled that does not expect it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from harness import agent
from harness.probes import agent as probe
from harness.probes import processes
from harness.probes.descriptors import read
from tests.probes.probed import line, python, until

ASKS = 50
NOBODY = 2**22 + 1  # above PID_MAX_LIMIT
PLAIN = "import sys; print(flush=True); sys.stdin.read()"
SLEEPS = "import time; print(flush=True); time.sleep(600)"
BUSY = """
import sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
while True:
    pass
"""
ASYNCIO = """
import asyncio, signal, sys
{policy}
async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    async def answer(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
IDLE = {
    "plain": PLAIN,
    "sleeping": SLEEPS,
    "asyncio": ASYNCIO.format(policy=""),
    "uvloop": ASYNCIO.format(policy="import uvloop; uvloop.install()"),
}


def blocks(directory: Path, pid: int) -> int:
    readings, silent = probe.ask(directory, [pid])
    assert silent == []
    return readings[pid].blocks


@pytest.mark.parametrize("kind", IDLE)
def test_asking_an_idle_process_changes_nothing_in_it(tmp_path: Path, kind: str) -> None:
    with python("-c", IDLE[kind], env=agent.environment(tmp_path)) as process:
        line(process)
        blocks(tmp_path, process.pid)
        before, threads = read(process.pid), os.listdir(f"/proc/{process.pid}/task")
        answers = []
        for _ in range(ASKS):
            # Asyncio's loop wakes at every signal and passes through its callbacks once: only then is it idle again.
            until(lambda: getattr(processes.stat(process.pid), "state", "") == "S", "it sleeps")
            answers.append(probe.ask(tmp_path, [process.pid]).readings[process.pid])
        assert read(process.pid) == before
        assert os.listdir(f"/proc/{process.pid}/task") == threads
        for counts in ([each.blocks for each in answers], [each.objects for each in answers]):
            assert max(counts) - min(counts) <= 3, counts
        heap = [each.heap for each in answers[1:]]  # the first leaves a block or two behind
        assert max(heap) - min(heap) <= 64, heap
        assert process.poll() is None


def test_a_process_that_never_waits_answers_too(tmp_path: Path) -> None:
    with python("-c", BUSY, env=agent.environment(tmp_path)) as process:
        line(process)
        assert abs(blocks(tmp_path, process.pid) - blocks(tmp_path, process.pid)) <= 3


def test_the_target_goes_on_reading_as_if_nobody_had_asked(tmp_path: Path) -> None:
    code = "import sys; print(flush=True); print(sys.stdin.read())"
    with python("-c", code, env=agent.environment(tmp_path)) as process:
        line(process)
        blocks(tmp_path, process.pid)
        answer, _ = process.communicate("what it was sent", timeout=20)
        assert (answer, process.returncode) == ("what it was sent\n", 0)


LEAKS = """
held = []
print(flush=True)
while True:
    held += [object() for _ in range(int(input()))]
    print(flush=True)
"""


def test_a_thousand_objects_are_a_thousand_blocks(tmp_path: Path) -> None:
    with python("-c", LEAKS, env=agent.environment(tmp_path)) as process:
        line(process)
        assert process.stdin is not None
        counts = []
        for _ in range(4):
            process.stdin.write("1000\n")
            process.stdin.flush()
            line(process)
            counts.append(blocks(tmp_path, process.pid))
        assert all(abs(after - before - 1000) <= 10 for before, after in pairwise(counts[1:]))


CYCLES = """
import gc, sys
gc.set_threshold(1_000_000)
gc.disable() if sys.argv[1] == "off" else None
class Session:
    def __init__(self):
        self.itself = self
print(flush=True)
input()
for _ in range(1000):
    Session()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("collector", "at_least", "at_most"), [("on", -100, 100), ("off", 1000, 10_000)])
def test_rubbish_is_collected_first_unless_the_target_does_not_collect(
    tmp_path: Path, collector: str, at_least: int, at_most: int
) -> None:
    with python("-c", CYCLES, collector, env=agent.environment(tmp_path)) as process:
        line(process)
        before = blocks(tmp_path, process.pid)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        line(process)
        assert at_least <= blocks(tmp_path, process.pid) - before <= at_most


FORKS = r"import os, sys; os.write(1, b'%d\n' % os.fork()); sys.stdin.read()"  # one write a line, from both


def test_children_announce_themselves(tmp_path: Path) -> None:
    with python("-c", FORKS, env=agent.environment(tmp_path)) as process:
        pids = {process.pid, *(int(line(process)) for _ in range(2))} - {0}
        assert len(pids) == 2
        assert probe.ask(tmp_path, pids).readings.keys() == pids


def test_many_are_asked_at_once(tmp_path: Path) -> None:
    environment = agent.environment(tmp_path)
    with python("-c", PLAIN, env=environment) as one, python("-c", PLAIN, env=environment) as other:
        line(one)
        line(other)
        readings, silent = probe.ask(tmp_path, [one.pid, NOBODY, os.getpid(), other.pid])
        assert readings.keys() == {one.pid, other.pid}
        assert silent == []


@pytest.mark.parametrize("options", [[], ["-I"], ["-S"], ["-E"]])
def test_a_process_without_the_agent_is_not_asked_and_not_disturbed(tmp_path: Path, options: list[str]) -> None:
    environment = agent.environment(tmp_path) if options else dict(os.environ)
    with python(*options, "-c", PLAIN, env=environment) as process:
        line(process)
        began = time.monotonic()
        assert probe.ask(tmp_path, [process.pid]) == probe.Answers({}, [])
        assert time.monotonic() - began < 1
        assert not (tmp_path / f"{process.pid}.ready").exists()
        process.communicate(timeout=20)
        assert process.returncode == 0, "the signal would have ended it"


def test_a_program_that_a_python_became_is_not_signalled(tmp_path: Path) -> None:
    code = "import os; os.execvp('sh', ['sh', '-c', 'echo; read line'])"
    with python("-c", code, env=agent.environment(tmp_path)) as process:
        line(process)
        assert (tmp_path / f"{process.pid}.ready").exists()
        assert probe.ask(tmp_path, [process.pid]) == probe.Answers({}, [])
        process.communicate("\n", timeout=20)
        assert process.returncode == 0


def test_a_pid_that_was_used_again_is_not_signalled(tmp_path: Path) -> None:
    with python("-c", PLAIN, env=agent.environment(tmp_path)) as process:
        line(process)
        ready = tmp_path / f"{process.pid}.ready"
        ready.write_text(str(int(ready.read_text()) - 1))
        assert probe.ask(tmp_path, [process.pid]) == probe.Answers({}, [])


BLOCKS = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {{{int(agent.SIGNAL)}}}); {PLAIN}"


def test_who_gives_no_answer_is_named_and_not_asked_again(tmp_path: Path) -> None:
    environment = agent.environment(tmp_path)
    with python("-c", BLOCKS, env=environment) as mute, python("-c", PLAIN, env=environment) as other:
        line(mute)
        line(other)
        readings, silent = probe.ask(tmp_path, [mute.pid, other.pid], timeout_s=0.3)
        assert (readings.keys(), silent) == ({other.pid}, [mute.pid])
        assert (tmp_path / f"{mute.pid}.silent").exists()
        began = time.monotonic()
        assert probe.ask(tmp_path, [mute.pid, other.pid]).silent == []
        assert time.monotonic() - began < probe.TIMEOUT_S / 2


def test_who_ends_while_it_is_asked_is_not_waited_for(tmp_path: Path) -> None:
    code = BLOCKS.replace("sys.stdin.read()", "__import__('time').sleep(0.3)")
    with python("-c", code, env=agent.environment(tmp_path)) as process:
        line(process)
        began = time.monotonic()
        assert probe.ask(tmp_path, [process.pid]) == probe.Answers({}, [])
        assert time.monotonic() - began < probe.TIMEOUT_S / 2


def test_an_answer_to_an_earlier_request_does_not_count(tmp_path: Path) -> None:
    with python("-c", BLOCKS, env=agent.environment(tmp_path)) as process:
        line(process)
        (tmp_path / f"{process.pid}.json").write_text(json.dumps({"request": 1, "blocks": 2, "objects": 3}))
        assert probe.ask(tmp_path, [process.pid], timeout_s=0.1) == probe.Answers({}, [process.pid])


def test_a_target_without_a_place_to_answer_goes_on(tmp_path: Path) -> None:
    with python("-c", PLAIN, env=agent.environment(tmp_path / "none")) as process:
        line(process)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_a_descriptor_table_that_is_full_is_no_trouble_for_the_target(tmp_path: Path) -> None:
    code = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
held = []
try:
    while True:
        held.append(os.dup(1))
except OSError:
    print(flush=True)
print(sys.stdin.read())
"""
    with python("-c", code, env=agent.environment(tmp_path)) as process:
        line(process)
        assert probe.ask(tmp_path, [process.pid], timeout_s=0.2) == probe.Answers({}, [process.pid])
        assert process.communicate("all well", timeout=20) == ("all well\n", None)
        assert process.returncode == 0


def test_the_targets_own_sitecustomize_is_run_as_if_ours_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("MARK = 'theirs'")
    environment = agent.environment(tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)})
    code = "import sitecustomize, sys; print(sitecustomize.MARK, sitecustomize.__file__, *sys.path); sys.stdin.read()"
    with python("-c", code, env=environment) as process:
        found = line(process).split()
        assert found[:2] == ["theirs", str(tmp_path / "sitecustomize.py")]
        assert not [entry for entry in found[2:] if entry.endswith("inject")]
        assert probe.ask(tmp_path, [process.pid]).readings.keys() == {process.pid}


def test_a_mistake_in_the_targets_own_sitecustomize_is_told_as_python_tells_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("1 / 0")
    environment = agent.environment(tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)})
    finished = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0
    assert "ZeroDivisionError" in finished.stderr


def test_without_its_two_variables_it_does_nothing(tmp_path: Path) -> None:
    environment = {**agent.environment(tmp_path), agent.DIRECTORY_VARIABLE: ""}
    with python("-c", PLAIN, env=environment) as process:
        line(process)
        status = Path(f"/proc/{process.pid}/status").read_text()
        (caught,) = [int(row.split()[1], 16) for row in status.splitlines() if row.startswith("SigCgt:")]
        assert not caught >> (agent.SIGNAL - 1) & 1
    assert list(tmp_path.iterdir()) == []


def test_the_environment_keeps_what_was_there(tmp_path: Path) -> None:
    given = {"HOME": "/x", "PYTHONPATH": f"/a{os.pathsep}/b"}
    found = agent.environment(tmp_path, given)
    assert found["HOME"] == "/x"
    assert found["PYTHONPATH"].split(os.pathsep)[1:] == ["/a", "/b"]
    assert Path(found["PYTHONPATH"].split(os.pathsep)[0], "sitecustomize.py").is_file()
    assert agent.environment(tmp_path, {})["PYTHONPATH"].count(os.pathsep) == 0
    assert found["GLIBC_TUNABLES"] == "glibc.malloc.tcache_count=0"
    theirs = {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=4096"}
    assert agent.environment(tmp_path, theirs)["GLIBC_TUNABLES"].split(":") == [*theirs.values(), f"{agent.TCACHE}=0"]
    chosen = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}
    assert agent.environment(tmp_path, chosen)["GLIBC_TUNABLES"] == chosen["GLIBC_TUNABLES"]
    assert given == {"HOME": "/x", "PYTHONPATH": f"/a{os.pathsep}/b"}


BUSY_LOOP = """
import asyncio, sys
{policy}
async def main():
    loop = asyncio.get_running_loop()
    kept = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    timers = [loop.call_later(3600, print) for _ in range(5)]
    timers[0].cancel()
    await asyncio.sleep(0)
    print(flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("policy", ["", "import uvloop; uvloop.install()"])
def test_tasks_and_timers_are_counted_but_not_cancelled_ones(tmp_path: Path, policy: str) -> None:
    with python("-c", BUSY_LOOP.format(policy=policy), env=agent.environment(tmp_path)) as process:
        line(process)
        reading = probe.ask(tmp_path, [process.pid]).readings[process.pid]
    assert (reading.tasks, reading.timers) == (4, 4)  # main() is a task too


BUFFER = """
held = bytearray()
print(flush=True)
while True:
    held += bytes(int(input()))
    print(flush=True)
"""


def test_a_buffer_that_grows_is_seen_in_the_heap_and_adds_no_object(tmp_path: Path) -> None:
    with python("-c", BUFFER, env=agent.environment(tmp_path)) as process:
        line(process)
        before = probe.ask(tmp_path, [process.pid]).readings[process.pid]
        assert process.stdin is not None
        process.stdin.write("1000000\n")
        process.stdin.flush()
        line(process)
        after = probe.ask(tmp_path, [process.pid]).readings[process.pid]
    assert 900_000 <= after.heap - before.heap <= 1_300_000  # a bytearray keeps an eighth in reserve
    assert abs(after.blocks - before.blocks) <= 10  # a signal between two lines leaves a few behind, now and then


# Once so many callbacks wait at once, once so many names come and go; both times for nothing that is kept.
HIGH_WATER = """
import asyncio, sys
{policy}
async def main():
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    print(flush=True)
    while await stdin.readline():
        for _ in range(200):
            loop.call_soon(id, None)
            loop.call_later(0, id, None)
        for number in range(20_000 if sys.version_info < (3, 12) else 0):  # later ones keep them for ever
            sys.intern(f"name {{number}}")
        await asyncio.sleep(0.05)
        print(flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("policy", ["", "import uvloop; uvloop.install()"])
def test_a_high_water_mark_of_python_or_uvloop_is_no_growth(tmp_path: Path, policy: str) -> None:
    with python("-c", HIGH_WATER.format(policy=policy), env=agent.environment(tmp_path)) as process:
        assert process.stdin is not None
        readings = []
        line(process)
        probe.ask(tmp_path, [process.pid])
        for _ in range(3):
            readings.append(probe.ask(tmp_path, [process.pid]).readings[process.pid])
            process.stdin.write("go\n")
            process.stdin.flush()
            line(process)
        readings.append(probe.ask(tmp_path, [process.pid]).readings[process.pid])
    blocks, heap = [each.blocks for each in readings], [each.heap for each in readings]
    assert max(blocks[1:]) - min(blocks[1:]) <= 10, blocks
    assert blocks[1] - blocks[0] <= 60, blocks  # uvloop would keep 200 handles of each of two kinds
    assert max(heap) - min(heap) <= 20_000, heap  # the table of interned strings takes 500,000 more

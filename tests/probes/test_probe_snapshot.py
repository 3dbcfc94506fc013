from __future__ import annotations

import logging
import os
import pwd
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from probed import Holder, as_another_user, line, python, until

from harness import agent
from harness.probes import descriptors, processes, snapshot
from harness.probes.snapshot import inspect, quiet, take_snapshot
from harness.probes.walk import Seen
from reports.record import Descriptor, Memory, Process, Snapshot

SERVER = """
import os, setproctitle, sys
zombie = os.fork()
if zombie == 0:
    os._exit(0)
worker = os.fork()
setproctitle.setproctitle("served: " + ("parent" if worker else "worker"))
if worker:
    print(worker, zombie, flush=True)
else:
    null = open(os.devnull)
sys.stdin.read()
"""
CYCLE = """
import gc, os, sys
class Session:
    pass
session = Session()
session.itself = session
session.file = open(os.devnull)
gc.freeze() if sys.argv[1] == "frozen" else None
del session
print(flush=True)
sys.stdin.read()
"""
UNSEEN = "import ctypes, sys; ctypes.CDLL(None).prctl(4, 0)"  # PR_SET_DUMPABLE: now only root may look


def opened(process: Process) -> list[str]:
    """The kinds of all but the standard three."""
    return [descriptor.kind for descriptor in process.descriptors if descriptor.fd > 2]


def test_the_whole_tree_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    with python("-c", SERVER) as root:
        worker, zombie = map(int, line(root).split())
        until(lambda: "worker" in {each.role for each in take_snapshot(root.pid).processes}, "the worker has its name")
        until(lambda: getattr(processes.stat(zombie), "state", "") == "Z", "the other has ended")
        until(lambda: len(descriptors.read(worker)) == 4, "the worker holds its file")
        found = take_snapshot(root.pid, spool=tmp_path, counters={"queue": 3}, backlog=2, clock=lambda: 12.5)
    assert (found.taken, found.files, found.counters, found.backlog) == (12.5, ["m"], {"queue": 3}, 2)
    assert found.unreadable == []
    assert [process.role for process in found.processes][:1] == ["parent"]
    by_pid = {process.pid: process for process in found.processes}
    assert by_pid.keys() == {root.pid, worker, zombie}
    assert (by_pid[worker].role, by_pid[worker].ppid, by_pid[worker].threads) == ("worker", root.pid, 1)
    assert opened(by_pid[worker]) == ["device"]
    assert by_pid[worker].memory.private_dirty > 0
    assert (by_pid[zombie].state, by_pid[zombie].descriptors, by_pid[zombie].memory) == ("Z", [], Memory())
    assert all(process.agent is None for process in found.processes)


def test_it_fits_into_the_record(holder: Holder) -> None:
    found = take_snapshot(holder.pid)
    assert len(found.processes[0].descriptors) == len(holder.held) + 3
    assert msgspec.json.decode(msgspec.json.encode(found), type=Snapshot) == found


def test_roles_are_the_callers(holder: Holder) -> None:
    assert take_snapshot(holder.pid, roles=lambda title: "the one").processes[0].role == "the one"


def test_two_at_rest_are_the_same(holder: Holder) -> None:
    one, other = (take_snapshot(holder.pid, clock=lambda: 0.0) for _ in range(2))
    assert one.processes[0].descriptors == other.processes[0].descriptors
    assert one.processes[0].started == other.processes[0].started


def test_what_only_waits_for_the_collector_is_not_held(tmp_path: Path) -> None:
    with python("-c", CYCLE, "loose", env=agent.environment(tmp_path)) as process:
        line(process)
        assert opened(take_snapshot(process.pid).processes[0]) == ["device"]
        (found,) = take_snapshot(process.pid, agent_dir=tmp_path).processes
        assert opened(found) == []
        assert found.agent is not None
        assert found.agent.blocks > 1_000
        assert 0 < found.agent.objects < found.agent.blocks


def test_what_the_collector_does_not_let_go_of_is_held(tmp_path: Path) -> None:
    with python("-c", CYCLE, "frozen", env=agent.environment(tmp_path)) as process:
        line(process)
        (found,) = take_snapshot(process.pid, agent_dir=tmp_path).processes
        assert opened(found) == ["device"]


def test_an_agent_that_gives_no_answer_is_told_once_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import signal, os; signal.pthread_sigmask(signal.SIG_BLOCK, {int(os.environ['SEATBELT_AGENT_SIGNAL'])})"
    monkeypatch.setattr(snapshot.agent.ask, "__defaults__", (0.1,))
    with python("-c", f"{code}; print(flush=True); input()", env=agent.environment(tmp_path)) as process:
        line(process)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                (found,) = take_snapshot(process.pid, agent_dir=tmp_path).processes
                assert found.agent is None
                assert len(found.descriptors) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"the agent of pid {process.pid} gave no answer: its memory can only be judged from outside"
    ]


def test_a_directory_that_cannot_be_written_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        take_snapshot(os.getpid(), agent_dir=tmp_path / "none")


def test_a_root_that_has_ended_is_an_empty_snapshot() -> None:
    with python("-c", "") as process:
        process.wait()
        assert take_snapshot(process.pid).processes == []


def test_who_is_not_ours_to_see_is_counted_and_named_with_the_remedy() -> None:
    with python("-c", f"{UNSEEN}; print(flush=True); sys.stdin.read()") as process:
        line(process)

        def seen() -> list[str]:
            found = take_snapshot(process.pid)
            return [*(str(each.pid) for each in found.processes), *found.unreadable]

        pid, problem = as_another_user(seen)
    assert pid == str(process.pid)
    assert problem.startswith("descriptors of python")
    assert problem.endswith(f"(pid {process.pid}): not permitted; run Seatbelt as root")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_the_remedy_names_the_owner() -> None:
    with python("-c", "import os, sys; os.setresuid(1, 1, 1); print(flush=True); sys.stdin.read()") as process:
        line(process)
        (problem,) = as_another_user(lambda: inspect([process.pid])[1])
    assert problem.endswith(
        f"(pid {process.pid}): not permitted; run Seatbelt as root or as user {pwd.getpwuid(1).pw_name}"
    )


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def _kill_and_reap(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize(("end", "states"), [(_kill, ["Z"]), (_kill_and_reap, [])])
def test_who_ends_between_two_looks_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[subprocess.Popen[str]], None], states: list[str]
) -> None:
    with python("-c", "import sys; print(flush=True); sys.stdin.read()") as process:
        line(process)

        def ends(pid: int, tables: object, *, positions: bool, seen: object) -> list[Descriptor]:
            end(process)
            until(lambda: getattr(processes.stat(pid), "state", "Z") == "Z", "it has ended")
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(descriptors, "read", ends)
        found, unreadable = inspect([process.pid])
        assert [each.state for each in found] == states
        assert unreadable == [], "there is nothing to see of it, for root neither"


@pytest.mark.parametrize(("end", "states"), [(_kill, ["Z"]), (_kill_and_reap, [])])
def test_who_ends_after_the_first_sight_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[subprocess.Popen[str]], None], states: list[str]
) -> None:
    first_sight = descriptors.first_sight
    with python("-c", "import sys; print(flush=True); sys.stdin.read()") as process:
        line(process)

        def ends(pids: Sequence[int]) -> Mapping[int, Seen | OSError]:
            seen = first_sight(pids)
            end(process)
            until(lambda: getattr(processes.stat(process.pid), "state", "Z") == "Z", "it has ended")
            return seen

        monkeypatch.setattr(descriptors, "first_sight", ends)
        found, unreadable = inspect([process.pid], positions=False)
        assert [(each.state, each.descriptors, each.memory) for each in found] == [(z, [], Memory()) for z in states]
        assert unreadable == []


CHANGES = """
import json, os, sys, threading
print(flush=True)
for what in sys.stdin:
    match what.strip():
        case "descriptor":
            kept = os.open(os.devnull, os.O_RDONLY)
        case "thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        case "process":
            if os.fork() == 0:
                os.close(1)
                sys.stdin.read()
                os._exit(0)
    print(flush=True)
"""


@pytest.mark.parametrize(("change", "differs"), [("nothing", 0), ("descriptor", 1), ("thread", 1), ("process", 1)])
def test_quiet_tells_every_change(change: str, differs: int) -> None:
    with python("-c", CHANGES) as process:
        line(process)
        before = quiet(snapshot.tree(process.pid))
        assert before == quiet(snapshot.tree(process.pid)) == ((process.pid, 3, 1),)
        assert process.stdin is not None
        process.stdin.write(f"{change}\n")
        process.stdin.flush()
        line(process)
        assert (quiet(snapshot.tree(process.pid)) != before) == bool(differs)


def test_quiet_of_nobody() -> None:
    with python("-c", "") as process:
        process.wait()
        assert quiet([process.pid]) == ((process.pid, 0, 0),)


def test_looking_leaves_nothing_open_here(tmp_path: Path, holder: Holder) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        take_snapshot(holder.pid, spool=tmp_path, agent_dir=tmp_path)
        quiet([holder.pid])
    assert sorted(os.listdir("/proc/self/fd")) == before

"""The walk in C says what the walk in Python says, of everything; and where it cannot be had, Python does it alone."""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import socket
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from probed import Holder, as_another_user, holds_everything, line, python, until

from harness.probes import descriptors, memory, walk
from harness.probes.processes import read_file
from harness.probes.snapshot import inspect
from harness.probes.walk import Seen
from reports.record import Descriptor

GONE = 2**22 + 1  # above PID_MAX_LIMIT
CORES = 8


def threads() -> dict[int, int]:
    """Those of this process, and the signals that they block: proc_pid_status(5)."""
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        status = read_file(f"/proc/self/task/{thread}/status") or b""
        if blocked := re.search(rb"^SigBlk:\s*(\w+)", status, re.MULTILINE):
            found[thread] = int(blocked[1], 16)
    return found


def leave_free(count: int) -> None:
    """So many descriptors that this process may yet open."""
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = itertools.islice((number for number in itertools.count() if number not in taken), count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def by_c_alone(pid: int) -> Seen:
    told = all_in_c([pid])[pid]
    if isinstance(told, OSError):
        raise told
    return told


def all_in_c(pids: Sequence[int]) -> Mapping[int, Seen | OSError]:
    if walk._functions() is None:
        pytest.skip("needs a C compiler: install gcc")
    return descriptors.first_sight(pids)


def in_c(pid: int) -> list[Descriptor]:
    return descriptors.read(pid, seen=by_c_alone(pid))


def in_python(pid: int) -> list[Descriptor]:
    return descriptors.read(pid, positions=False)


@pytest.fixture
def kept() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_one_of_everything(holder: Holder) -> None:
    found = in_c(holder.pid)
    assert found == in_python(holder.pid)
    assert {each.fd for each in found} == set(holder.held.values()) | {0, 1, 2}


def test_little_is_left_to_python(holder: Holder) -> None:
    seen = by_c_alone(holder.pid)
    names = {number: name for name, number in holder.held.items()}
    assert {names[fd] for fd, _ in seen.unlisted} == {"unbound tcp", "netlink"}
    assert {names[fd] for fd in seen.again if fd in names} == {
        *("not utf-8", "living", "other name", "directory", "device", "fifo", "memfd"),
        *("epoll", "eventfd", "timerfd", "inotify", "signalfd", "pidfd"),
    }
    assert {each.kind for each in seen.told} == {"file", "pipe", "unix", "tcp", "udp"}


def test_many_processes_at_once_are_each_what_they_are_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as running:
        pids = []
        for number in range(12):  # more than there are threads
            directory = tmp_path / str(number)
            directory.mkdir()
            pids.append(running.enter_context(holds_everything(directory)).pid)
        pids.insert(5, os.getpid())  # whose descriptors are also those that all others are looked at by
        pids.insert(3, GONE)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
        for _ in range(20):
            seen = all_in_c(pids)
            assert list(seen) == pids
            assert isinstance(seen[GONE], FileNotFoundError)
            for pid in pids:
                if pid != GONE:
                    assert descriptors.read(pid, seen=seen[pid]) == in_python(pid)


def test_the_memory_is_what_is_read_alone(holder: Holder) -> None:
    told, read = memory.read(holder.pid, by_c_alone(holder.pid).rollup), memory.read(holder.pid)
    assert (told.rss, told.anonymous) == (read.rss, read.anonymous)  # the rest depends on who else has these pages
    assert told.pss > 0
    assert told.rss > 1 << 20


def test_it_is_done_by_threads_that_take_no_signals(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    all_in_c([holder.pid])  # built
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    own, blocked, enough = set(threads()), dict[int, int](), threading.Event()

    def watch() -> None:
        own.add(threading.get_native_id())
        while not enough.is_set():
            blocked.update({thread: mask for thread, mask in threads().items() if thread not in own})

    watching = threading.Thread(target=watch)
    watching.start()
    try:

        def looked() -> bool:
            all_in_c([holder.pid] * 200)
            return len(blocked) >= CORES - 1

        until(looked, "all the threads have been seen")
    finally:
        enough.set()
        watching.join()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
        assert all(mask >> (number - 1) & 1 for mask in blocked.values())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert set(threads()) <= own, "they are gone with the walk"


def test_where_there_are_too_few_descriptors_it_is_left_to_python(
    kept: ExitStack, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_in_c([holder.pid])  # built
    expected = in_python(holder.pid)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    kept.callback(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    leave_free(2)  # os.listdir() takes a second one of a directory that is open
    for _ in range(50):
        pids = [holder.pid] * 40
        found, unreadable = inspect(pids, positions=False)
        assert unreadable == []
        assert all(process.descriptors == expected for process in found)
        assert len(found) == len(pids)


def test_a_path_that_is_longer_than_a_link_can_tell(tmp_path: Path) -> None:
    code = """
        import os, sys
        for _ in range(25):
            os.mkdir("d" * 200); os.chdir("d" * 200)
        held = {name: os.open(name, os.O_RDWR | os.O_CREAT) for name in ("file", "deleted")}
        os.unlink("deleted")
        print(*held.values(), os.open(".", os.O_RDONLY), flush=True)
        os.chdir("/")
        sys.stdin.read()
    """
    code = f"import os; os.chdir({str(tmp_path)!r})\n{textwrap.dedent(code)}"
    with python("-c", code) as process:
        numbers = [int(number) for number in line(process).split()]
        found = {each.fd: each for each in in_c(process.pid)}
        assert list(found.values()) == in_python(process.pid)
        assert [found[number].kind for number in numbers] == ["file", "file", "directory"]
        assert [found[number].deleted for number in numbers] == [False, True, False]
        assert found[numbers[0]].target == "(a path longer than 4095 bytes)"


@pytest.mark.parametrize(
    "name",
    [b"", b"\0abstract", b"\0with\0nul", b"\0caf\xc3\xa9", b"\0caf\xe9", b"\0" + b"x" * 99],
    ids=["autobind", "abstract", "NUL", "UTF-8", "not UTF-8", "longest"],
)
def test_unix_sockets_and_their_peers_whatever_they_are_called(kept: ExitStack, name: bytes) -> None:
    listening = kept.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind(name + os.urandom(4).hex().encode() if name else name)  # 108 bytes at most: unix(7)
    listening.listen()
    client = kept.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(listening.getsockname())
    accepted, _ = listening.accept()
    kept.enter_context(accepted)
    found = in_c(os.getpid())
    assert found == in_python(os.getpid())
    by_number = {each.fd: each for each in found}
    assert by_number[client.fileno()].peer == by_number[accepted.fileno()].local == by_number[listening.fileno()].local
    assert by_number[listening.fileno()].state == "LISTEN"


def test_a_unix_socket_with_the_longest_path(kept: ExitStack) -> None:
    directory = kept.enter_context(TemporaryDirectory())
    path = f"{directory}/".ljust(107, "u")
    listening = kept.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind(path)
    listening.listen()
    found = in_c(os.getpid())
    assert found == in_python(os.getpid())
    assert path in {each.local for each in found}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_internet_sockets_of_both_families(kept: ExitStack, kind: socket.SocketKind, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one, other = (kept.enter_context(socket.socket(family, kind)) for _ in range(2))
    try:
        one.bind((host, 0))
    except OSError as error:
        pytest.skip(f"needs {host}: {error}")
    if kind == socket.SOCK_STREAM:
        one.listen()
    other.connect(("::1" if host == "::" else host, one.getsockname()[1]))
    found = in_c(os.getpid())
    assert found == in_python(os.getpid())
    by_number = {each.fd: each for each in found}
    assert by_number[other.fileno()].peer.endswith(f":{one.getsockname()[1]}")


def test_more_than_fits_into_the_first_buffer(kept: ExitStack, tmp_path: Path) -> None:
    directory = tmp_path
    while len(str(directory)) < 3000:  # PATH_MAX is 4,096
        directory /= "d" * 200
    directory.mkdir(parents=True)
    held = [kept.enter_context((directory / str(number)).open("w")).fileno() for number in range(60)]
    for _ in range(100):
        for end in socket.socketpair():
            kept.enter_context(end)
    found = in_c(os.getpid())
    assert sum(len(each.target) for each in found) > 1 << 16
    assert {each.fd for each in found} > set(held)
    assert found == in_python(os.getpid())


def test_it_leaves_nothing_open(kept: ExitStack, holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    before = in_python(os.getpid())
    all_in_c([holder.pid, os.getpid(), GONE, holder.pid, holder.pid])
    assert in_python(os.getpid()) == before


@pytest.mark.parametrize("look", [by_c_alone, in_c, in_python])
def test_a_process_that_is_gone(look: Callable[[int], object]) -> None:
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        look(GONE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at a zombie")
@pytest.mark.parametrize("look", [in_c, in_python])
def test_a_zombie_has_nothing_open(look: Callable[[int], list[Descriptor]]) -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert look(child.pid) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user; without root there may be none")
@pytest.mark.parametrize("look", [by_c_alone, in_c, in_python])
def test_a_process_that_is_not_ours_to_see(look: Callable[[int], object]) -> None:
    ours = os.getpid()
    in_c(ours)  # built, by who may

    def refused() -> list[str]:
        try:
            look(ours)
        except PermissionError as error:
            return [str(error.strerror)]
        return ["it was shown"]

    assert as_another_user(refused) == ["Permission denied"]


def test_without_a_compiler_python_does_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEATBELT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    walk._functions.cache_clear()
    walk.library.cache_clear()
    try:
        with holds_everything(tmp_path) as holder:
            assert not descriptors.first_sight([holder.pid])
            (found,) = (process.descriptors for process in inspect([holder.pid], positions=False)[0])
            assert {each.fd for each in found} == set(holder.held.values()) | {0, 1, 2}
    finally:
        walk._functions.cache_clear()
        walk.library.cache_clear()

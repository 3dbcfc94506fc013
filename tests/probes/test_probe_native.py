"""The walk in C says what the walk in Python says, of everything; and where it cannot be had, Python does it alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from probed import Holder, as_another_user, holds_everything

from harness.probes import descriptors, native
from harness.probes.sockets import SocketTables
from reports.record import Descriptor


def in_c(pid: int) -> list[Descriptor]:
    tables = SocketTables()
    if tables.native is None:
        pytest.skip("needs a C compiler: install gcc")
    return descriptors.read(pid, tables, positions=False)


def in_python(pid: int) -> list[Descriptor]:
    tables = SocketTables()
    tables.native = None
    return descriptors.read(pid, tables, positions=False)


@pytest.fixture
def kept() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_one_of_everything(holder: Holder) -> None:
    found = in_c(holder.pid)
    assert found == in_python(holder.pid)
    assert {each.fd for each in found} == set(holder.held.values()) | {0, 1, 2}


@pytest.mark.parametrize(
    "name",
    [b"", b"\0abstract", b"\0with\0nul", b"\0caf\xc3\xa9", b"\0caf\xe9", b"\0" + b"x" * 107],
    ids=["autobind", "abstract", "NUL", "UTF-8", "not UTF-8", "longest"],
)
def test_unix_sockets_and_their_peers_whatever_they_are_called(kept: ExitStack, name: bytes) -> None:
    listening = kept.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind(name + os.urandom(4).hex().encode() if 1 < len(name) < 100 else name)
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


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
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


def test_a_socket_that_is_younger_than_the_tables_is_found(kept: ExitStack) -> None:
    tables = SocketTables()
    with socket.create_server(("127.0.0.1", 0)):
        descriptors.read(os.getpid(), tables, positions=False)
        with socket.create_server(("127.0.0.1", 0)) as younger:
            states = {each.fd: each.state for each in descriptors.read(os.getpid(), tables, positions=False)}
            assert states[younger.fileno()] == "LISTEN"


def test_it_leaves_nothing_open() -> None:
    before = in_c(os.getpid())
    assert in_c(os.getpid()) == before


@pytest.mark.parametrize("look", [in_c, in_python])
def test_a_process_that_is_gone(look: Callable[[int], list[Descriptor]]) -> None:
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        look(2**22 + 1)  # above PID_MAX_LIMIT


@pytest.mark.parametrize("look", [in_c, in_python])
def test_a_process_that_is_not_ours_to_see(look: Callable[[int], list[Descriptor]]) -> None:
    ours = os.getpid() if os.geteuid() == 0 else 1
    in_c(os.getpid())  # built, by who may

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
    native._functions.cache_clear()
    native.library.cache_clear()
    try:
        with holds_everything(tmp_path) as holder:
            assert SocketTables().native is None
            found = descriptors.read(holder.pid, positions=False)
            assert {each.fd for each in found} == set(holder.held.values()) | {0, 1, 2}
    finally:
        native._functions.cache_clear()
        native.library.cache_clear()

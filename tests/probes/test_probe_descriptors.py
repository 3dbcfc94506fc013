from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest
from probed import Holder

from harness.probes import descriptors
from harness.probes.sockets import SocketTables
from reports.record import Descriptor

KINDS = {
    "file": "file",
    "newline": "file",
    "not utf-8": "file",
    "living": "file",
    "deleted": "file",
    "other name": "file",
    "directory": "directory",
    "device": "device",
    "pipe out": "pipe",
    "pipe in": "pipe",
    "fifo": "pipe",
    "pair one": "unix",
    "pair other": "unix",
    "unix listener": "unix",
    "listener": "tcp",
    "client": "tcp",
    "accepted": "tcp",
    "close wait": "tcp",
    "udp": "udp",
    "unbound tcp": "tcp",
    "netlink": "other",
    "epoll": "eventpoll",
    "eventfd": "eventfd",
    "timerfd": "timerfd",
    "inotify": "inotify",
    "signalfd": "signalfd",
    "pidfd": "pidfd",
    "memfd": "memfd",
}


@pytest.fixture
def seen(holder: Holder) -> dict[str, Descriptor]:
    by_number = {descriptor.fd: descriptor for descriptor in descriptors.read(holder.pid)}
    assert by_number.keys() == set(holder.held.values()) | {0, 1, 2}
    return {name: by_number[fd] for name, fd in holder.held.items()}


def test_everything_has_its_kind(seen: dict[str, Descriptor]) -> None:
    assert {name: descriptor.kind for name, descriptor in seen.items()} == KINDS


def test_what_was_unlinked_is_told_from_what_is_only_called_so(seen: dict[str, Descriptor]) -> None:
    assert {name for name, descriptor in seen.items() if descriptor.deleted} == {"deleted", "other name", "memfd"}
    assert seen["living"].target.endswith("/alive (deleted)")
    assert seen["deleted"].target.endswith("/gone")
    assert seen["other name"].target.endswith("/first name")


def test_names_are_whole_and_fit_into_the_record(seen: dict[str, Descriptor]) -> None:
    assert seen["file"].target.endswith("/with space")
    assert seen["newline"].target.endswith("/new\nline")
    assert seen["not utf-8"].target.endswith("/caf\\xe9")
    encoded = msgspec.json.encode(list(seen.values()))
    assert msgspec.json.decode(encoded, type=list[Descriptor]) == list(seen.values())


def test_identity_flags_and_position(seen: dict[str, Descriptor]) -> None:
    status = os.stat(seen["file"].target)
    assert (seen["file"].device, seen["file"].inode) == (status.st_dev, status.st_ino)
    assert seen["file"].flags & (os.O_APPEND | os.O_ACCMODE) == os.O_APPEND | os.O_RDWR
    assert seen["file"].offset == 17
    assert seen["device"].flags & os.O_ACCMODE == os.O_WRONLY
    assert seen["eventfd"].flags & os.O_NONBLOCK


def test_sockets_have_state_and_addresses(seen: dict[str, Descriptor]) -> None:
    assert {name: seen[name].state for name in ("listener", "client", "accepted", "close wait", "unbound tcp")} == {
        "listener": "LISTEN",
        "client": "ESTABLISHED",
        "accepted": "ESTABLISHED",
        "close wait": "CLOSE_WAIT",
        "unbound tcp": "CLOSE",
    }
    assert seen["client"].local == seen["accepted"].peer
    assert seen["client"].peer == seen["accepted"].local == seen["listener"].local
    assert seen["listener"].local.startswith("127.0.0.1:")
    assert seen["listener"].peer == seen["udp"].peer == ""
    assert seen["udp"].local.startswith("127.0.0.1:")


def test_unix_sockets_know_their_peers(seen: dict[str, Descriptor]) -> None:
    assert seen["pair one"].peer == seen["pair other"].target
    assert seen["pair other"].peer == seen["pair one"].target
    assert seen["pair one"].state == "CONNECTED"
    assert seen["unix listener"].state == "LISTEN"
    assert seen["unix listener"].local.endswith("/u")


def test_what_is_watched_is_counted_and_what_was_closed_meanwhile(seen: dict[str, Descriptor]) -> None:
    watchers = {name: (each.watches, each.stale_watches) for name, each in seen.items() if each.watches}
    assert watchers == {"epoll": (2, 1), "inotify": (1, 0)}


def test_count_agrees_with_the_walk(holder: Holder) -> None:
    assert descriptors.count(holder.pid) == len(descriptors.read(holder.pid))


def test_reading_oneself_leaves_nothing_open_and_shows_nothing_of_the_reading() -> None:
    before = descriptors.read(os.getpid())
    assert descriptors.read(os.getpid()) == before
    assert descriptors.count(os.getpid()) == len(before)


def test_a_socket_that_is_younger_than_the_table_is_found() -> None:
    tables = SocketTables()
    with socket.create_server(("127.0.0.1", 0)) as first:
        descriptors.read(os.getpid(), tables)
        with socket.create_server(("127.0.0.1", 0)) as second:
            states = {each.fd: each.state for each in descriptors.read(os.getpid(), tables)}
            assert states[first.fileno()] == states[second.fileno()] == "LISTEN"


def test_no_such_process() -> None:
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        descriptors.read(2**22 + 1)  # above PID_MAX_LIMIT


def test_a_directory_that_was_removed_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    fd = os.open(tmp_path / "gone", os.O_RDONLY)
    try:
        (tmp_path / "gone").rmdir()
        (found,) = [each for each in descriptors.read(os.getpid()) if each.fd == fd]
        assert (found.kind, found.target, found.deleted) == ("directory", str(tmp_path / "gone"), True)
    finally:
        os.close(fd)


def test_a_file_that_takes_the_place_of_another_is_another(tmp_path: Path) -> None:
    """Same process, same number, same name: only the inode tells."""
    name = tmp_path / "message"
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    try:
        (before,) = [each for each in descriptors.read(os.getpid()) if each.fd == fd]
        (tmp_path / "new").touch()
        (tmp_path / "new").replace(name)
        new = os.open(name, os.O_RDWR)
        os.dup2(new, fd)
        os.close(new)
        (after,) = [each for each in descriptors.read(os.getpid()) if each.fd == fd]
    finally:
        os.close(fd)
    assert (before.target, before.deleted) == (after.target, after.deleted) == (str(name), False)
    assert before.inode != after.inode == name.stat().st_ino


def test_a_socket_and_a_pipe_have_the_device_that_stat_tells() -> None:
    ends = os.pipe()
    one, other = socket.socketpair()
    try:
        held = (*ends, one.fileno(), other.fileno())
        seen = {each.fd: (each.device, each.inode) for each in descriptors.read(os.getpid())}
        assert [seen[fd] for fd in held] == [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in held]
    finally:
        for end in ends:
            os.close(end)
        one.close()
        other.close()

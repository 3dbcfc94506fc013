from __future__ import annotations

import pytest
from detector_worlds import connection, message_file
from hypothesis import given
from hypothesis import strategies as st

from harness.detectors.classes import (
    Class,
    descriptor_class,
    example,
    listening_ports,
    masked,
    unexplained_files,
)
from reports.record import Descriptor, Process, Snapshot

MSG = "queue/a3/a3f00d01"


def label(kind: str, target: str, *, deleted: bool = False) -> str:
    return descriptor_class(Descriptor(9, kind, target, deleted=deleted), ()).label


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("file", "/spool/queue/a3/a3f00d01/message", "message file"),
        ("file", "/spool/queue/a3/a3f00d01/a3f00d0112345678", "envelope file"),
        ("file", "/tmp/tmpk3x9_q2", "file /tmp/*"),
        ("file", "/var/log/smtpd.log", "file /var/log/*.log"),
        ("file", "/var/cache/job-17/deadbeef/x.db", "file /var/cache/job-*/*/*.db"),
        ("file", "runs/20261128-a-run/spool/journal/12", "spool file journal/*"),
        ("file", "/var/spool/postfix/active/9F2A1", "spool file postfix/active/*"),
        ("device", "/dev/urandom", "device /dev/urandom"),
        ("directory", "/proc/4242/fd", "directory /proc/*/fd"),
        ("pipe", "pipe:[4711]", "pipe"),
        ("eventpoll", "anon_inode:[eventpoll]", "epoll"),
        ("memfd", "/memfd:buffer-12", "memfd /memfd:buffer-*"),
    ],
)
def test_names_that_differ_from_dose_to_dose_share_a_class(kind: str, target: str, expected: str) -> None:
    assert label(kind, target) == expected


def test_a_deleted_file_is_a_class_of_its_own() -> None:
    assert label("file", "/spool/queue/a3/a3f00d01/message", deleted=True) == "message file (deleted)"
    assert label("file", "/spool/temporary/a3f00d01.message", deleted=True) == "message file (deleted)"


def test_sockets_are_told_by_direction_and_state_not_by_ephemeral_port() -> None:
    smtp = Process(1, 1, "smtp", descriptors=[Descriptor(3, "tcp", "", state="LISTEN", local="0.0.0.0:2525")])
    listening = listening_ports(Snapshot(processes=[smtp]))

    def tcp(state: str, local: str, peer: str) -> Class:
        return descriptor_class(Descriptor(5, "tcp", "socket:[1]", state=state, local=local, peer=peer), listening)

    assert tcp("ESTABLISHED", "[::1]:2525", "[::1]:51515") == Class("socket", "tcp", "tcp/ESTABLISHED from *")
    assert tcp("ESTABLISHED", "127.0.0.1:51515", "127.0.0.1:25").label == "tcp/ESTABLISHED to *:25"
    assert tcp("ESTABLISHED", "127.0.0.1:51515", "127.0.0.1:49152").label == "tcp/ESTABLISHED to *:high"
    assert tcp("CLOSE_WAIT", "127.0.0.1:1", "127.0.0.1:2").label == "tcp/CLOSE_WAIT"
    assert label("unix", "socket:[7]") == "unix"


def test_examples_are_what_a_person_would_look_up() -> None:
    assert example(connection(5, 7)) == "127.0.0.1:40007 -> 127.0.0.1:43211"
    assert example(message_file(5, 1)).endswith("/00000001/message (deleted)")
    assert example(Descriptor(1, "unix", "socket:[7]", local="/run/smtpd.sock")) == "/run/smtpd.sock"


@given(st.text())
def test_masking_is_stable(text: str) -> None:
    assert masked(masked(text)) == masked(text)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_numbers_never_tell_two_names_apart(one: int, other: int) -> None:
    assert masked(f"/run/job-{one}/{one:08x}") == masked(f"/run/job-{other}/{other:08x}")


def files(names: list[str], backlog: int = 0) -> dict[str, str]:
    return {name: what.kind for name, what in unexplained_files(Snapshot(files=names, backlog=backlog)).items()}


def test_a_message_with_an_envelope_is_owed() -> None:
    assert files([f"{MSG}/message", f"{MSG}/a3f00d0100000001"], backlog=1) == {}


def test_a_message_without_an_envelope_is_an_orphan_and_so_is_its_directory() -> None:
    assert files([MSG, f"{MSG}/message"]) == {MSG: "orphan", f"{MSG}/message": "orphan"}


def test_what_an_abandoned_transaction_left_is_told_by_its_room() -> None:
    assert files(["incoming/0badcafe/message", "temporary/x"], backlog=9) == {
        "incoming/0badcafe/message": "incoming",
        "temporary/x": "temporary",
    }


def test_another_spool_layout_is_explained_by_the_backlog() -> None:
    names = ["active/A1B2", "pid/master.pid"]
    assert files(names, backlog=1) == {}
    assert files(names) == {"active/A1B2": "spool", "pid/master.pid": "spool"}

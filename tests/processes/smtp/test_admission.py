"""Who is let in, and what a process without descriptors says."""

from __future__ import annotations

import socket

import pytest

from mta_under_test.processes.smtp.admission import Admission, turn_away


@pytest.fixture
def admission() -> Admission:
    return Admission(3, most_per_source=2)


def test_sessions_are_counted_from_enter_to_leave(admission: Admission) -> None:
    for _ in range(3):
        assert not admission.is_full
        admission.enter()
    assert admission.is_full
    admission.leave()
    assert not admission.is_full
    admission.close()


def test_a_source_may_have_so_many_and_others_do_not_suffer(admission: Admission) -> None:
    assert [admission.enter_from("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert admission.enter_from("192.0.2.2")
    admission.leave_from("192.0.2.1")
    assert admission.enter_from("192.0.2.1")
    admission.close()


@pytest.mark.parametrize("source", ["127.0.0.1", "127.9.9.9", "::1", ""])
def test_this_machine_s_own_clients_are_not_counted(admission: Admission, source: str) -> None:
    assert all(admission.enter_from(source) for _ in range(100))
    for _ in range(100):
        admission.leave_from(source)
    admission.close()


def test_the_reserve_serves_one_and_is_filled_up_again(admission: Admission) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for _ in range(3):
            with socket.create_connection(listening.getsockname(), timeout=5) as client:
                connection = admission.accept_without_descriptors(listening)
                assert connection is not None
                assert admission.accept_without_descriptors(listening) is None
                admission.part_from(connection, b"421 full\r\n")
                assert client.recv(100) == b"421 full\r\n"
                assert client.recv(100) == b""
    admission.close()
    assert not admission.has_reserve


def test_who_has_gone_already_is_no_mistake() -> None:
    one, other = socket.socketpair()
    other.close()
    turn_away(one, b"421 full\r\n")
    assert one.fileno() == -1

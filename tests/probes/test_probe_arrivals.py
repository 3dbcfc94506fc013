"""Connections are counted from outside: those that are there, and those that came and went between two looks."""

from __future__ import annotations

import os
import socket

import pytest

from harness.probes.arrivals import Arrivals, accepted_ever
from tests.probes.probed import until


@pytest.fixture
def server() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def client(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    there = socket.create_connection(server.getsockname())
    return there, server.accept()[0]


def test_what_comes_is_counted_once_and_what_stays_is_open(server: socket.socket) -> None:
    with server:
        early = client(server)
        arrivals = Arrivals(os.getpid(), [server.getsockname()[1]])
        assert (arrivals.look(), arrivals.open) == (0, 1)
        late = client(server)
        assert (arrivals.look(), arrivals.open) == (1, 2)
        assert arrivals.look() == 0
        for end in (*early, *late):
            end.close()
        until(lambda: arrivals.look() == 0 and arrivals.open == 0, "nobody is there any more")


@pytest.mark.parametrize("first", ["server", "client"])
def test_a_connection_that_is_over_before_the_look_counts_whoever_closed_it(server: socket.socket, first: str) -> None:
    with server:
        arrivals = Arrivals(os.getpid(), [server.getsockname()[1]])
        ever = accepted_ever(os.getpid())
        for _ in range(5):
            there, here = client(server)
            for end in (here, there) if first == "server" else (there, here):
                end.close()
        assert arrivals.look() == 5
        assert accepted_ever(os.getpid()) >= ever + 5


def test_other_ports_do_not_count(server: socket.socket) -> None:
    with server, socket.create_server(("127.0.0.1", 0)) as other:
        arrivals = Arrivals(os.getpid(), [other.getsockname()[1]])
        pair = client(server)
        assert (arrivals.look(), arrivals.open) == (0, 0)
        for end in pair:
            end.close()

"""Whether a server is still, by what is seen of it from outside."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from harness.targets.stillness import Stillness
from tests.live import Live
from tests.probes.probed import until


@pytest.fixture
def live() -> Iterator[Live]:
    server = Live()
    yield server
    server.stop()


def test_a_client_that_came_and_went_between_two_looks_has_moved_it(live: Live) -> None:
    stillness = Stillness(live.pid, [live.port], still_s=0.3)
    until(lambda: not stillness.busy(), "it is still")
    live.visit()
    assert stillness.busy() == {"moved just now": 1}
    until(lambda: not stillness.busy(), "it is still again")


def test_a_client_at_a_port_of_somebody_else_is_none_of_its(live: Live) -> None:
    stillness = Stillness(live.pid, [live.port], still_s=0.3)
    until(lambda: not stillness.busy(), "it is still")
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_connection(other.getsockname()):
        assert stillness.busy() == {}

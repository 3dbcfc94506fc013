"""When the next try is due, and what transfer's map keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.processes.scheduler import next_try
from mta_under_test.processes.transfer_routes import MAX_HOST_ERRORS, Map, RelayKey, Task


def test_retries_are_quadratic_as_opensmtpds() -> None:
    assert [next_try(1000, tries, 800) - 1000 for tries in (1, 2, 3, 4)] == [400, 1600, 3600, 6400]
    assert [next_try(0, tries, 10) for tries in (1, 2, 3)] == [5, 20, 45]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from(["1", "2", "3"]), max_size=3, unique=True))))
def test_the_map_is_empty_once_every_relay_is_done(relays: list[tuple[str, list[str]]]) -> None:
    where = Map()
    for destination, addresses in relays:
        relay = where.relay(RelayKey(f"host {destination}", 25, "helo", ""))
        if not relay.routes:
            where.resolved(relay, addresses)
    assert len(where.hosts) == len({address for relay in where.relays.values() for address in _addresses(relay.routes)})
    for relay in list(where.relays.values()):
        where.drop(relay)
    assert (where.relays, where.routes, where.hosts) == ({}, {}, {})


def _addresses(routes: list) -> list[str]:  # type: ignore[type-arg]
    return [route.host.address for route in routes]


def test_relays_share_a_host_until_the_last_lets_go() -> None:
    where = Map()
    one, other = (where.relay(RelayKey(f"host {name}", 25, "helo", "")) for name in "ab")
    where.resolved(one, ["192.0.2.1"])
    where.resolved(other, ["192.0.2.1", "192.0.2.2"])
    assert one.routes[0] is other.routes[0]
    where.drop(other)
    assert list(where.hosts) == ["192.0.2.1"]
    where.drop(one)
    assert not where.hosts


def test_a_host_is_bad_after_more_than_four_errors() -> None:
    where = Map()
    relay = where.relay(RelayKey("host a", 25, "helo", ""))
    where.resolved(relay, ["192.0.2.1"])
    host = relay.routes[0].host
    host.errors = MAX_HOST_ERRORS
    assert not host.bad
    host.errors += 1
    assert host.bad


def test_a_relay_with_a_task_is_not_idle() -> None:
    where = Map()
    relay = where.relay(RelayKey("host a", 25, "helo", ""))
    assert relay.idle
    relay.tasks.append(Task(1, "a@b"))
    assert not relay.idle

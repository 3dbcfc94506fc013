"""transfer's map, without a daemon: which host is next, what is shared, what is remembered and when it is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.config import RelayAction, RelayLimits
from mta_under_test.processes.transfer.hoststats import ERROR_CHARACTERS, HOSTSTAT_AGE_S, MAX_HOSTS, HostStats
from mta_under_test.processes.transfer.map import ANOTHER_SESSION_S, MAX_KEPT_ROUTES, PATIENCE_S, RECHECK_S, Map
from mta_under_test.processes.transfer.routes import (
    PENALTY_BASE_S,
    PENALTY_MAX_S,
    Connector,
    DomainKey,
    Relay,
    RelayKey,
    Route,
    Task,
)
from mta_under_test.processes.transfer.show import duration
from mta_under_test.wire.exchange import Exchange, decode, encode


def relay_to(
    where: Map,
    *addresses: str,
    name: str = "a.test",
    sources: tuple[str, ...] = ("",),
    action: str = "out",
    **limits: Any,
) -> Relay:
    """A relay; addresses are `ADDRESS` or `PREFERENCE ADDRESS`."""
    key = RelayKey(RelayAction(name=action), DomainKey("mx", name), 25, "smtp", "")
    relay = where.relay(key, RelayLimits(**limits))
    if relay.domain.exchanges is None:
        exchanges = []
        for place, text in enumerate(addresses):
            preference, _, address = text.rpartition(" ")
            exchanges.append(Exchange(int(preference or 0), address, f"mx{place}.test"))
        where.resolved(relay.domain, exchanges, 0.0)
    if not relay.connectors:
        where.sourced(relay, sources)
    return relay


def connect(where: Map, relay: Relay, now: float, *, works: bool | None = True) -> tuple[Connector, Route]:
    """The next connection; `works`: its session is ready, fails, or (None) is still being opened."""
    choice = where.choose(relay, now)
    assert choice.exchange is not None, choice
    assert choice.connector is not None
    route = where.connected(relay, choice.connector, choice.exchange.host, now)
    if works is not None:
        if works:
            where.ready(relay, route, now)
        else:
            relay.connecting -= 1
            route.failed(now)
            where.disconnected(relay, choice.connector, route, now)
    return choice.connector, route


def next_address(where: Map, relay: Relay, now: float) -> str:
    choice = where.choose(relay, now)
    assert choice.exchange is not None, choice
    return choice.exchange.host.address


def is_empty(where: Map) -> bool:
    return not (where.relays or where.domains or where.hosts or where.sources or where.routes or where.connectors)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from(["::1", "127.0.0.2", "127.0.0.3"]), max_size=3))
    )
)
def test_the_map_is_empty_once_every_relay_is_done(relays: list[tuple[str, list[str]]]) -> None:
    where = Map()
    for name, addresses in relays:
        relay_to(where, *addresses, name=name)
    for relay in list(where.relays.values()):
        where.drop(relay)
    assert is_empty(where)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["works", "fails", "ends"]), st.integers(0, 40)), max_size=40)
)
def test_whatever_sessions_do_nothing_stays_when_time_has_passed(steps: list[tuple[int, str, int]]) -> None:
    where, now, open_sessions = Map(), 0.0, []
    for which, what, seconds in steps:
        now += seconds
        where.forget(now)
        relay = relay_to(
            where, "10 127.0.0.1", "10 127.0.0.2", "20 127.0.0.3", name=f"{which}.test", sources=("", "127.0.0.9")
        )
        if what == "ends":
            if open_sessions:
                where.disconnected(*open_sessions.pop(0), now)
        elif where.choose(relay, now).exchange is not None:
            connector, route = connect(where, relay, now, works=what == "works")
            if what == "works":
                open_sessions.append((relay, connector, route))
    for relay, connector, route in open_sessions:
        where.disconnected(relay, connector, route, now)
    for relay in list(where.relays.values()):
        where.drop(relay)
    while (moment := where.forget(now)) is not None:
        assert moment > now
        now = moment
    assert is_empty(where)


def test_relays_share_a_host_until_the_last_lets_go() -> None:
    where = Map()
    relay_to(where, "127.0.0.1", name="a")
    other = relay_to(where, "127.0.0.1", "127.0.0.2", name="b")
    where.drop(other)
    assert list(where.hosts) == ["127.0.0.1"]


def test_relays_of_two_actions_share_their_domain() -> None:
    where = Map()
    one, other = (relay_to(where, "127.0.0.1", action=action) for action in ("out", "other"))
    assert one is not other
    assert one.domain is other.domain
    where.drop(one)
    assert other.domain.exchanges is not None


def test_after_a_reload_new_settings_make_a_new_relay_and_new_limits_hold_for_the_old_one() -> None:
    where = Map()
    key = RelayKey(RelayAction(name="out"), DomainKey("mx", "a.test"), 25, "smtp", "")
    relay = where.relay(key, RelayLimits())
    assert where.relay(key, RelayLimits(max_conn_per_host=1)) is relay
    assert relay.limits.max_conn_per_host == 1
    assert where.relay(key._replace(action=RelayAction(name="out", helo="x.test")), RelayLimits()) is not relay


def test_a_relay_with_a_task_is_not_idle() -> None:
    relay = relay_to(Map(), "127.0.0.1")
    assert relay.idle
    relay.incoming[1] = Task(1, "a@b")
    assert not relay.idle


# ---- which host


def test_the_best_preference_is_used_and_the_next_one_when_it_fails() -> None:
    where = Map()
    relay = relay_to(where, "10 127.0.0.1", "20 127.0.0.2", "30 127.0.0.3")
    assert connect(where, relay, 0, works=False)[1].host.address == "127.0.0.1"
    assert connect(where, relay, 0, works=False)[1].host.address == "127.0.0.2"
    assert next_address(where, relay, 0) == "127.0.0.3"
    assert next_address(where, relay, PENALTY_BASE_S) == "127.0.0.1"


def test_hosts_of_equal_preference_share_the_load() -> None:
    where = Map()
    relay = relay_to(where, "10 127.0.0.1", "10 127.0.0.2", "10 127.0.0.3")
    used = [connect(where, relay, now)[1].host.address for now in range(6)]
    assert sorted(used) == sorted(["127.0.0.1", "127.0.0.2", "127.0.0.3"] * 2)


def test_a_good_host_that_is_busy_is_waited_for_rather_than_a_worse_one_used() -> None:
    where = Map()
    relay = relay_to(where, "10 127.0.0.1", "20 127.0.0.2", max_conn_per_host=1)
    connect(where, relay, 0)
    assert where.choose(relay, 5).wait_until == 5 + RECHECK_S


def test_when_every_route_has_failed_there_is_no_way() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", "127.0.0.2")
    for _ in range(2):
        connect(where, relay, 0, works=False)
    assert where.choose(relay, 0) == (None, None, None, "451 4.4.1 Network error on destination MXs")
    relay.last_error = "421 4.3.2 Too busy"
    assert where.choose(relay, 0).error == "421 4.3.2 Too busy"


@pytest.mark.parametrize(("family", "address"), [("inet4", "127.0.0.1"), ("inet6", "::1")])
def test_a_family_limit(family: str, address: str) -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", "::1", family=family)
    assert next_address(where, relay, 0) == address
    only = relay_to(where, "::1" if family == "inet4" else "127.0.0.1", name="other.test", family=family)
    assert where.choose(only, 0).error == "451 4.4.4 Address family mismatch on destination MXs"


def test_a_source_reaches_hosts_of_its_own_family_only() -> None:
    where = Map()
    relay = relay_to(where, "::1", "127.0.0.1", sources=("127.0.0.9",))
    assert next_address(where, relay, 0) == "127.0.0.1"


def test_sources_take_turns_and_one_that_fails_is_left_out() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", sources=("127.0.0.8", "127.0.0.9"))
    assert where.connectors == 2
    used = [connect(where, relay, now)[0].source.address for now in (0, 1)]
    assert used == ["127.0.0.8", "127.0.0.9"]
    relay.connectors[0].avoided_until = 60
    assert [connect(where, relay, now)[0].source.address for now in (2, 3)] == ["127.0.0.9"] * 2
    relay.connectors[1].avoided_until = 60
    assert where.choose(relay, 4).error == "451 4.4.0 No valid route to remote MX"


def test_a_route_that_fails_from_one_source_is_open_from_another() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", sources=("127.0.0.8", "127.0.0.9"))
    connect(where, relay, 0, works=False)
    choice = where.choose(relay, 0)
    assert choice.connector is relay.connectors[1]


# ---- limits


@pytest.mark.parametrize("limit", ["host", "route", "source", "connector", "relay", "domain"])
def test_a_limit_of_connections_is_kept(limit: str) -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", **{f"max_conn_per_{limit}": 2})
    for now in range(2):
        connect(where, relay, now)
    assert where.choose(relay, 10).wait_until == 10 + RECHECK_S
    connector, route = relay.connectors[0], next(iter(where.routes.values()))
    where.disconnected(relay, connector, route, 11)
    assert next_address(where, relay, 11) == "127.0.0.1"


@pytest.mark.parametrize("limit", ["host", "route", "source", "connector", "relay", "domain"])
def test_a_delay_between_connections_is_kept(limit: str) -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", **{f"conn_delay_{limit}": 7})
    connector, route = connect(where, relay, 100)
    where.disconnected(relay, connector, route, 101)
    assert where.choose(relay, 101).wait_until == 107
    assert next_address(where, relay, 107) == "127.0.0.1"


def test_a_delay_after_a_disconnect_is_kept_even_for_a_relay_that_is_new() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", reconn_delay_route=3)
    connector, route = connect(where, relay, 100)
    where.disconnected(relay, connector, route, 150)
    where.drop(relay)
    relay = relay_to(where, "127.0.0.1", reconn_delay_route=3)
    assert where.choose(relay, 150).wait_until == 153
    where.drop(relay)
    assert where.forget(152) == 153
    assert where.forget(153) is None
    assert is_empty(where)


def test_a_relay_opens_further_sessions_with_pauses() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", "127.0.0.2")
    _, route = connect(where, relay, 0, works=None)
    assert where.choose(relay, 0).wait_until == PATIENCE_S
    where.ready(relay, route, 3)
    assert where.choose(relay, 3).wait_until == 3 + ANOTHER_SESSION_S


def test_a_route_that_is_not_known_to_work_carries_one_session() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1")
    _, route = connect(where, relay, 0, works=None)
    assert where.choose(relay, 100).wait_until == 100 + RECHECK_S
    where.ready(relay, route, 50)
    assert next_address(where, relay, 100) == "127.0.0.1"


# ---- penalties


def test_penalties_double_up_to_an_hour_and_end_with_success() -> None:
    where, now = Map(), 0.0
    relay = relay_to(where, "127.0.0.1")
    pauses = []
    for _ in range(12):
        _, route = connect(where, relay, now, works=False)
        pauses.append(route.disabled_until - now)
        now = route.disabled_until
    assert pauses[:6] == [15, 30, 60, 120, 240, 480]
    assert pauses[-1] == PENALTY_MAX_S
    connector, route = connect(where, relay, now)
    where.disconnected(relay, connector, route, now)
    assert route.errors == 0
    where.drop(relay)
    assert is_empty(where)


def test_a_penalty_outlives_its_relay_but_not_for_long() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1")
    connect(where, relay, 0, works=False)
    where.drop(relay)
    relay = relay_to(where, "127.0.0.1")
    assert where.choose(relay, 14).error
    connect(where, relay, 16, works=False)
    where.drop(relay)
    assert where.forget(17) == 16 + 2 * 30
    assert where.forget(76) is None
    assert is_empty(where)


def test_routes_can_be_enabled_one_or_all() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1", "127.0.0.2")
    for _ in range(2):
        connect(where, relay, 0, works=False)
    assert where.enable(2, 1) == 1
    assert next_address(where, relay, 1) == "127.0.0.2"
    assert where.enable(0, 1) == 1
    assert where.enable(0, 1) == 0
    where.drop(relay)
    assert is_empty(where)


def test_the_number_of_routes_that_are_remembered_is_bounded() -> None:
    where = Map()
    for number in range(MAX_KEPT_ROUTES + 50):
        relay = relay_to(where, f"127.1.{number // 256}.{number % 256}", name=f"{number}.test")
        connect(where, relay, 0, works=False)
        where.drop(relay)
    assert len(where.routes) == len(where.hosts) == MAX_KEPT_ROUTES
    assert where.forget(1e9) is None
    assert is_empty(where)


def test_a_new_answer_of_the_dns_replaces_the_old_one_under_open_sessions() -> None:
    where = Map()
    relay = relay_to(where, "127.0.0.1")
    connector, route = connect(where, relay, 0)
    where.unresolved(relay.domain)
    where.resolved(relay.domain, [Exchange(0, "127.0.0.2", "new.test")], 1)
    assert next_address(where, relay, 10) == "127.0.0.2"
    assert set(where.hosts) == {"127.0.0.1", "127.0.0.2"}
    where.disconnected(relay, connector, route, 10)
    assert set(where.hosts) == {"127.0.0.2"}


# ---- what destinations said


def test_hoststats_are_bounded_in_number_age_and_length() -> None:
    stats = HostStats(max_deferred=2)
    for number in range(MAX_HOSTS + 10):
        stats.heard(f"{number}.test", "x" * 500, number)
    assert len(stats) == MAX_HOSTS
    assert stats.lines()[0] == f"10.test|10|{'x' * ERROR_CHARACTERS}"
    assert stats.forget(HOSTSTAT_AGE_S) == 10 + HOSTSTAT_AGE_S
    assert stats.forget(HOSTSTAT_AGE_S + 10) == 11 + HOSTSTAT_AGE_S
    assert stats.forget(2 * HOSTSTAT_AGE_S) is None
    assert len(stats) == 0


def test_envelopes_wait_for_a_destination_to_work_again() -> None:
    stats = HostStats(max_deferred=2)
    stats.defer("unknown.test", 1)
    stats.heard("a.test", "451 4.4.1 Network error", 1)
    for evpid in (1, 2, 3):
        stats.defer("a.test", evpid)
    assert stats.works("a.test") == [1, 2]
    assert stats.works("a.test") == []
    assert stats.works("unknown.test") == []


def test_exchanges_round_trip_between_lookup_and_transfer() -> None:
    exchanges = [Exchange(10, "127.0.0.1", "a.test"), Exchange(20, "::1", "[IPv6:::1]")]
    assert decode(encode(exchanges)) == exchanges
    assert decode(b"") == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (3661, "1h1m1s"), (90061, "1d1h1m1s"), (-5, "-5s")]
)
def test_durations_as_opensmtpd_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text

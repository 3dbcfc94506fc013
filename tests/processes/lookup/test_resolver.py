"""Where mail for a domain goes, asked of a real DNS server: order, null MX, loops, and every kind of trouble."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from harness.remote_dns import DnsServer
from mta_under_test.processes.lookup.resolver import MAX_EXCHANGES, Resolver, Unresolved, read_resolv_conf

ZONE = {
    "two.test": {"MX": ["20 b.test.", "10 a.test."]},
    "a.test": {"A": ["127.0.0.1"], "AAAA": ["::1"]},
    "b.test": {"A": ["127.0.0.2"]},
    "c.test": {"A": ["127.0.0.3"]},
    "equal.test": {"MX": ["10 a.test.", "10 b.test.", "10 c.test.", "5 first.test."]},
    "first.test": {"A": ["127.0.0.9"]},
    "implicit.test": {"A": ["127.0.0.4"], "TXT": ['"no MX here"']},
    "null.test": {"MX": ["0 ."], "A": ["127.0.0.1"]},
    "alias.test": {"CNAME": ["two.test."]},
    "aliased-host.test": {"MX": ["10 host-alias.test."]},
    "host-alias.test": {"CNAME": ["c.test."]},
    "circle.test": {"CNAME": ["circle.test."]},
    "same.test": {"MX": ["10 a.test.", "20 also-a.test."]},
    "also-a.test": {"A": ["127.0.0.1"]},
    "backed-up.test": {"MX": ["10 a.test.", "20 relay.test.", "20 b.test.", "30 c.test."]},
    "ours.test": {"MX": ["10 relay.test.", "20 c.test."]},
    "relay.test": {"A": ["127.0.0.8"]},
    "servfail.test": "SERVFAIL",
    "refused.test": "REFUSED",
    "silent.test": "TIMEOUT",
    "half.test": {"A": ["127.0.0.5"], "AAAA": "SERVFAIL"},
    "no-a.test": {"A": "SERVFAIL", "AAAA": []},
    "mx-of-trouble.test": {"MX": ["10 servfail.test.", "20 gone.test."]},
    "mx-of-some-trouble.test": {"MX": ["10 servfail.test.", "20 a.test."]},
    "mx-without-hosts.test": {"MX": ["10 gone.test.", "20 gone-too.test."]},
    "nothing.test": {"TXT": ['"only text"']},
    "long.test": {"truncate": True, "MX": [f"{number} long{number}.test." for number in range(100)]},
    **{f"long{number}.test": {"A": [f"127.1.0.{number + 1}"]} for number in range(100)},
    "stuck.test": {"truncate": True, "tcp": "TIMEOUT"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[DnsServer]:
    with DnsServer(ZONE) as server:
        yield server


@pytest.fixture
def resolver(server: DnsServer, tmp_path: Path) -> Resolver:
    return Resolver(server.resolv_conf(tmp_path))


def exchanges(resolver: Resolver, domain: str, ours: str = "", backup: bool = False) -> list[str]:
    found = asyncio.run(resolver.exchanges(domain, ours, backup=backup))
    return [f"{preference} {address} {name}" for preference, address, name in found]


def failure(resolver: Resolver, domain: str, ours: str = "", backup: bool = False) -> str:
    with pytest.raises(Unresolved) as caught:
        exchanges(resolver, domain, ours, backup)
    return str(caught.value)


def test_exchanges_come_by_preference_with_their_addresses_of_both_families(resolver: Resolver) -> None:
    assert exchanges(resolver, "two.test") == ["10 127.0.0.1 a.test", "10 ::1 a.test", "20 127.0.0.2 b.test"]


def test_hosts_of_equal_preference_come_in_any_order_after_the_better_ones(resolver: Resolver) -> None:
    seen = {tuple(exchanges(resolver, "equal.test")) for _ in range(30)}
    assert {order[0] for order in seen} == {"5 127.0.0.9 first.test"}
    assert {order[1].split()[2] for order in seen} == {"a.test", "b.test", "c.test"}
    assert len({frozenset(order) for order in seen}) == 1


@pytest.mark.parametrize(
    ("domain", "found"),
    [
        ("implicit.test", ["0 127.0.0.4 implicit.test"]),
        ("IMPLICIT.Test", ["0 127.0.0.4 IMPLICIT.Test"]),
        ("alias.test", ["10 127.0.0.1 a.test", "10 ::1 a.test", "20 127.0.0.2 b.test"]),
        ("aliased-host.test", ["10 127.0.0.3 host-alias.test"]),
        ("same.test", ["10 127.0.0.1 a.test", "10 ::1 a.test"]),
        ("half.test", ["0 127.0.0.5 half.test"]),
        ("mx-of-some-trouble.test", ["20 127.0.0.1 a.test", "20 ::1 a.test"]),
        ("[127.0.0.7]", ["0 127.0.0.7 [127.0.0.7]"]),
        ("[IPv6:::1]", ["0 ::1 [IPv6:::1]"]),
        ("localhost", ["0 127.0.0.1 localhost"]),
    ],
)
def test_what_a_domain_leads_to(resolver: Resolver, domain: str, found: list[str]) -> None:
    assert exchanges(resolver, domain) == found


@pytest.mark.parametrize(
    ("domain", "status"),
    [
        ("null.test", "556 5.1.10 null.test does not accept mail (null MX)"),
        ("gone.test", "550 5.1.2 no such domain: gone.test"),
        ("nothing.test", "550 5.1.2 nothing.test has no address"),
        ("mx-without-hosts.test", "550 5.1.2 no such domain: gone.test"),
        ("bad..name.test", "550 5.1.2 bad..name.test is not a domain name"),
        (f"{'x' * 64}.test", f"550 5.1.2 {'x' * 64}.test is not a domain name"),
        ("[not-an-address]", "550 5.1.2 [not-an-address] is not an address literal"),
        ("servfail.test", "451 4.4.3 cannot resolve servfail.test now: every name server fails"),
        ("refused.test", "451 4.4.3 cannot resolve refused.test now: every name server fails"),
        ("silent.test", "451 4.4.3 cannot resolve silent.test now: no name server answers"),
        ("stuck.test", "451 4.4.3 cannot resolve stuck.test now: no name server answers"),
        ("no-a.test", "451 4.4.3 cannot resolve no-a.test now: every name server fails"),
        ("mx-of-trouble.test", "451 4.4.3 cannot resolve servfail.test now: every name server fails"),
    ],
)
def test_what_leads_nowhere_says_whether_waiting_may_help(resolver: Resolver, domain: str, status: str) -> None:
    assert failure(resolver, domain) == status


def test_a_circle_of_aliases_ends(resolver: Resolver) -> None:
    assert failure(resolver, "circle.test").startswith("451 4.4.3 cannot resolve circle.test now")


def test_a_backup_relays_to_better_hosts_only(resolver: Resolver) -> None:
    assert exchanges(resolver, "backed-up.test", "Relay.Test", backup=True) == ["10 127.0.0.1 a.test", "10 ::1 a.test"]
    assert exchanges(resolver, "two.test", "relay.test", backup=True)[-1] == "20 127.0.0.2 b.test"
    assert failure(resolver, "ours.test", "relay.test", backup=True).startswith("451 4.4.4 no mail exchanger of ours")


def test_mail_for_ourselves_is_a_loop(resolver: Resolver) -> None:
    status = "554 5.4.6 mail for ours.test loops back to this server (relay.test)"
    assert failure(resolver, "ours.test", "relay.test") == status
    assert failure(resolver, "relay.test", "relay.test").startswith("554 5.4.6 ")


def test_a_truncated_answer_is_asked_again_over_tcp_and_too_many_hosts_are_cut(
    resolver: Resolver, server: DnsServer
) -> None:
    found = exchanges(resolver, "long.test")
    assert found == [f"{number} 127.1.0.{number + 1} long{number}.test" for number in range(MAX_EXCHANGES)]
    assert [question for question in server.questions() if question.startswith("long.test")] == [
        "long.test MX udp",
        "long.test MX tcp",
    ]


def test_nothing_is_kept_and_a_new_resolv_conf_is_read(tmp_path: Path) -> None:
    with DnsServer({"x.test": {"A": ["127.0.0.1"]}}) as one, DnsServer({"x.test": {"A": ["127.0.0.2"]}}) as other:
        path = one.resolv_conf(tmp_path)
        resolver = Resolver(path)
        assert exchanges(resolver, "x.test") == ["0 127.0.0.1 x.test"]
        one.zone({"x.test": {"A": ["127.0.0.3"]}})
        assert exchanges(resolver, "x.test") == ["0 127.0.0.3 x.test"]
        os.utime(other.resolv_conf(tmp_path), ns=(1, 1))
        assert exchanges(resolver, "x.test") == ["0 127.0.0.2 x.test"]
        path.unlink()
        assert exchanges(resolver, "x.test") == ["0 127.0.0.2 x.test"], "the last one that could be read"


def test_without_a_resolv_conf_the_trouble_is_temporary(tmp_path: Path) -> None:
    status = failure(Resolver(tmp_path / "none"), "x.test")
    assert status == "451 4.4.3 cannot resolve x.test now: No such file or directory"


def test_resolv_conf_as_openbsd_and_linux_write_it() -> None:
    resolver = read_resolv_conf(
        "; comment\nsearch a.test\nnameserver 127.0.0.1\nnameserver [::1]:5353\nnameserver nonsense\n"
        "options edns0 timeout:3 attempts:2\n"
    )
    assert [(server.address, server.port) for server in resolver.nameservers] == [("127.0.0.1", 53), ("::1", 5353)]  # type: ignore[union-attr]
    assert resolver.lifetime == 12
    with pytest.raises(Unresolved, match=r"no name server in resolv\.conf"):
        read_resolv_conf("# nothing\n")


def test_lookups_leave_no_object_behind(resolver: Resolver) -> None:
    async def ask(times: int) -> None:
        for _ in range(times):
            for domain in ("two.test", "null.test", "gone.test", "servfail.test", "implicit.test"):
                try:
                    await resolver.exchanges(domain)
                except Unresolved:
                    continue

    async def measure() -> list[int]:
        blocks = []
        for _ in range(4):
            await ask(20)
            gc.collect()
            blocks.append(sys.getallocatedblocks())
        return blocks

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        _, first, _, last = runner.run(measure())
    assert last - first < 20, "less than one object for ten lookups"


def test_everything_that_a_lookup_needs_is_loaded_before(server: DnsServer, tmp_path: Path) -> None:
    # In a process of its own, where nothing has asked anything yet; the files of modules are gone by then.
    program = """
import asyncio, sys
from pathlib import Path
from mta_under_test.processes.lookup.resolver import Resolver, Unresolved
resolver = Resolver(Path(sys.argv[1]))
before = set(sys.modules)
async def ask():
    for domain in sys.argv[2:]:
        try:
            await resolver.exchanges(domain)
        except Unresolved:
            pass
asyncio.run(ask())
print(*sorted(set(sys.modules) - before))
"""
    command = [sys.executable, "-c", program, str(server.resolv_conf(tmp_path)), *ZONE]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout.split() == []

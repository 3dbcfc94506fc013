"""Tables: how keys match, what files may hold, what errors say."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_under_test.tables import Entry, FileTable, Service, Table, TableError


def listing(*keys: str) -> Table:
    return Table("t", [Entry(key, None) for key in keys])


@pytest.mark.parametrize(
    ("service", "entry", "matching", "other"),
    [
        (Service.STRING, "LAN", ["lan", "LAN"], ["la", "lan2", ""]),
        (Service.ALIAS, "root", ["Root"], ["root@example.org"]),
        (Service.DOMAIN, "Example.org", ["example.ORG"], ["a.example.org", "example.org.", "xample.org", ""]),
        (Service.DOMAIN, "*.example.org", ["a.example.org", "a.b.Example.org"], ["example.org", "aexample.org"]),
        (Service.DOMAIN, "mx*.ex.org", ["mx1.ex.org", "mx.ex.org"], ["mx1.ex.com", "mx1xex.org"]),
        (Service.DOMAIN, "*", ["anything", ""], []),
        (Service.DOMAIN, "a+b.test", ["a+b.test"], ["aab.test"]),
        (
            Service.MAILADDR,
            "bob@example.org",
            ["BOB@Example.org", "bob+x@example.org"],
            ["bob@a.example.org", "bob", ""],
        ),
        (Service.MAILADDR, "bob+x@example.org", ["bob+x@example.org"], ["bob@example.org", "bob+y@example.org"]),
        (Service.MAILADDR, "@example.org", ["bob@example.org", "x@EXAMPLE.org"], ["bob@a.example.org", ""]),
        (Service.MAILADDR, "bob@*.org", ["bob@a.org", "bob@a.b.org"], ["eve@a.org", "bob@org"]),
        (Service.MAILADDR, "@*", ["bob@a.org"], [""]),
        (Service.MAILADDR, "bob", ["bob@a.org", "bob+tag@b.org", "Bob@c.org"], ["bobby@a.org", "a@bob"]),
        (Service.MAILADDR, "@", ["bob@a.org", ""], []),
        (Service.MAILADDR, '"a@b"@c.org', ['"A@b"@c.org'], ["a@c.org"]),
        (Service.NETADDR, "192.0.2.7", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.2.8", "local", "::1", ""]),
        (Service.NETADDR, "192.0.2.7/24", ["192.0.2.0", "192.0.2.255"], ["192.0.3.0"]),
        (Service.NETADDR, "0.0.0.0/0", ["192.0.2.255"], ["::1"]),
        (Service.NETADDR, "2001:db8::/32", ["2001:db8:1::1"], ["2001:db9::1", "32.1.13.184"]),
        (Service.NETADDR, "ipv6:::1", ["::1", "0:0::1"], ["::2"]),
        (Service.NETADDR, "[::1]", ["::1"], ["127.0.0.1"]),
        (Service.REGEX, "^a.c$", ["abc", "ABC"], ["abcd"]),
    ],
)
def test_what_an_entry_matches(service: Service, entry: str, matching: list[str], other: list[str]) -> None:
    for table in (listing(entry), listing("203.0.113.9", entry) if service is not Service.REGEX else listing(entry)):
        assert [key for key in matching if not table.contains(service, key)] == []
        assert [key for key in other if table.contains(service, key)] == []


@given(
    st.lists(st.ip_addresses(v=4).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 32))), max_size=6),
    st.ip_addresses(v=4),
)
@settings(deadline=None)
def test_networks_agree_with_ipaddress(pairs: list[tuple[ipaddress.IPv4Address, int]], address: object) -> None:
    networks = [ipaddress.ip_network(f"{base}/{prefix}", strict=False) for base, prefix in pairs]
    table = listing(*map(str, networks))
    assert table.contains(Service.NETADDR, str(address)) == any(address in network for network in networks)


@given(st.lists(st.text("ab.*", min_size=1, max_size=6), max_size=5), st.text("ab.", max_size=6))
@settings(deadline=None)
def test_wildcards_agree_with_a_plain_definition(patterns: list[str], domain: str) -> None:
    def plain(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(plain(pattern[1:], text[skip:]) for skip in range(len(text) + 1))
        return text[:1] == pattern[0] and plain(pattern[1:], text[1:])

    assert listing(*patterns).contains(Service.DOMAIN, domain) == any(plain(p, domain) for p in patterns)


def test_a_mapping_is_looked_up_without_regard_to_case() -> None:
    table = Table("t", [Entry("Bob", "Robert@Example.org"), Entry("eve", "x, y")])
    assert table.lookup("BOB") == "Robert@Example.org"
    assert table.lookup("bobby") is None
    assert (table.is_mapping, table.is_list) == (True, False)
    assert table.keys() == ["Bob", "eve"]


@pytest.mark.parametrize(
    ("service", "entry", "error"),
    [
        (Service.NETADDR, "example.org", "'example.org' is neither an address nor a network"),
        (Service.NETADDR, "10.0.0.0/33", "'10.0.0.0/33' is neither an address nor a network"),
        (Service.DOMAIN, "bob@example.org", "'bob@example.org' is not a domain"),
        (Service.MAILADDR, "bob@", "'bob@' has no domain after the @"),
        (Service.REGEX, "a(", "'a(' is not a regular expression: missing ), unterminated subpattern at position 1"),
    ],
)
def test_an_entry_that_a_service_has_no_use_for(service: Service, entry: str, error: str) -> None:
    with pytest.raises(TableError, match="^" + re.escape(error) + "$"):
        listing(entry).check(service)
    with pytest.raises(TableError, match="^" + re.escape(error) + "$"):
        listing(entry).contains(service, "x")


# ---- files

ALIASES = """\
# people
root: admin
admin:\tbob, eve   # both of them
www    root
  bob  "|/usr/bin/filter #1"
glued:bob
"""


def test_a_mapping_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "aliases").write_text(ALIASES)
    table = FileTable("aliases", tmp_path / "aliases")
    assert {key: table.lookup(key) for key in table.keys()} == {  # noqa: SIM118 - not a dict
        "root": "admin",
        "admin": "bob, eve",
        "www": "root",
        "bob": '"|/usr/bin/filter',
        "glued": "bob",
    }


def test_a_list_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("\r\n\n# own\n192.0.2.1  # ours\n::1\nipv6:::2\n[::3]\n2001:db8::/32\n")
    table = FileTable("hosts", tmp_path / "hosts")
    assert table.keys() == ["192.0.2.1", "::1", "ipv6:::2", "[::3]", "2001:db8::/32"]
    assert table.is_list
    for address in ("192.0.2.1", "::1", "::2", "::3", "2001:db8::5"):
        assert table.contains(Service.NETADDR, address)


def test_reload(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("example.org\n")
    table = FileTable("domains", path)
    assert not table.contains(Service.DOMAIN, "example.com")
    path.write_text("example.com\n")
    assert not table.contains(Service.DOMAIN, "example.com")
    table.reload()
    assert table.contains(Service.DOMAIN, "example.com")
    path.write_text("example.net\nexample.org mapped\n")
    with pytest.raises(TableError, match=f"^{path}:1: 'example.net' has no value, and other keys have one$"):
        table.reload()
    path.unlink()
    with pytest.raises(TableError, match=f"^{path}: cannot read the table: No such file or directory$"):
        table.reload()
    assert table.contains(Service.DOMAIN, "example.com")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a\n\nb c\n", ":1: 'a' has no value, and other keys have one"),
        (b"a: 1\n# x\nb: 2\nA: 3\n", ":4: 'A' has two values"),
        (b"ok: 1\nroot:\n", ":2: no value for 'root'"),
        (b"ok: 1\nroot: # nobody\n", ":2: no value for 'root'"),
        (b": x\n", ":1: no key before the colon"),
        (b"a\nb\xff\n", ":2: byte 0xff is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, error: str) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TableError, match="^" + re.escape(f"{tmp_path}/t{error}") + "$"):
        FileTable("t", tmp_path / "t")


def test_a_bad_entry_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("10.0.0.0/8\nlocalhost\n")
    with pytest.raises(TableError, match=f"^{tmp_path}/t:2: 'localhost' is neither an address nor a network$"):
        FileTable("t", tmp_path / "t").check(Service.NETADDR)


@given(content=st.one_of(st.binary(max_size=80), st.text("a:# \t\n1.\\", max_size=60).map(str.encode)))
@settings(deadline=None)
def test_any_bytes_are_a_table_or_a_table_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-table"
    path.write_bytes(content)
    try:
        table = FileTable("t", path)
    except TableError as error:
        assert str(error).startswith(f"{path}:")  # noqa: PT017 - either outcome is right
    else:
        assert table.is_list or table.is_mapping

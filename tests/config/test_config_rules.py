"""The rules: which action an envelope gets."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest

from mta_under_test.config import Config, load
from mta_under_test.config.interfaces import local_addresses
from mta_under_test.config.rules import Facts, Ruleset
from mta_under_test.tables import Entry, Table, TableError

FAR = ipaddress.ip_address("192.0.2.1")
NEAR = ipaddress.ip_address("127.0.0.1")
HERE = socket.gethostname()


def config(tmp_path: Path, text: str) -> Config:
    (tmp_path / "smtpd.conf").write_text(f"listen on 127.0.0.1\naction yes relay\naction no relay\n{text}")
    return load(tmp_path / "smtpd.conf")


def chosen(rules: Ruleset, facts: Facts) -> str | None:
    action = rules.match(facts)
    return None if action is None else action.name


def facts(
    recipient: str = "bob@example.org",
    source: str | None = "192.0.2.1",
    *,
    sender: str = "alice@example.net",
    helo: str = "client.example.net",
    tag: str = "",
    username: str = "",
    tls: bool = False,
    rdns: str = "",
) -> Facts:
    address = None if source is None else ipaddress.ip_address(source)
    return Facts(
        recipient=recipient, source=address, sender=sender, helo=helo, tag=tag, username=username, tls=tls, rdns=rdns
    )


@pytest.mark.parametrize(
    ("criteria", "holds", "fails"),
    [
        ("from any for any", [facts(), facts(source=None), facts(sender="")], []),
        ("for any", [facts(source=None), facts(source="127.0.0.9"), facts(source="::1")], [facts()]),
        ("for any from local", [facts(source="::ffff:127.0.0.1")], [facts(source="::ffff:192.0.2.1")]),
        ("for any ! from local", [facts()], [facts(source=None), facts(source="127.0.0.1")]),
        ("for any from socket", [facts(source=None)], [facts(source="127.0.0.1")]),
        ("for any from src 192.0.2.0/24", [facts()], [facts(source="192.0.3.1"), facts(source=None)]),
        ("for any ! from src 192.0.2.0/24", [facts(source="::1"), facts(source=None)], [facts()]),
        ("for any from src regex '^192'", [facts()], [facts(source="10.0.0.192"), facts(source=None)]),
        (
            "from any",
            [
                facts("bob@localhost"),
                facts("bob@LOCALHOST"),
                facts(f"bob@{HERE}"),
                facts("postmaster"),
                facts("x@[127.0.0.1]"),
            ],
            [facts(), facts("localhost@example.org"), facts("bob@[192.0.2.1]")],
        ),
        ("from any ! for local", [facts()], [facts("postmaster")]),
        (
            'from any for domain { example.org, "*.test" }',
            [facts(), facts("x@a.b.test")],
            [facts("x@test"), facts("bob")],
        ),
        ("from any for domain regex 'e.ample'", [facts()], [facts("x@eample.org")]),
        ("from any for rcpt-to bob@example.org", [facts(), facts("BOB+x@example.org")], [facts("eve@example.org")]),
        (f'from any for rcpt-to "@{HERE}"', [facts("postmaster")], [facts()]),
        ("from any for any ! rcpt-to bob", [facts("eve@example.org")], [facts()]),
        ('for any from mail-from "@example.net"', [facts()], [facts(sender=""), facts(sender="a@example.org")]),
        ('for any ! from mail-from "@example.net"', [facts(sender="")], [facts()]),
        ('for any from any mail-from regex "^$"', [facts(sender="")], [facts()]),
        ("for any from any tag { in, out }", [facts(tag="out"), facts(tag="IN")], [facts(), facts(tag="inn")]),
        ("for any from any ! tag in", [facts()], [facts(tag="in")]),
        ('for any from any helo "*.example.net"', [facts()], [facts(helo="example.net"), facts(helo="")]),
        ("for any from any auth", [facts(username="bob")], [facts()]),
        ("for any from auth", [facts(username="bob")], [facts(), facts(source=None)]),
        ("for any from any auth bob", [facts(username="bob")], [facts(username="eve"), facts()]),
        ('for any from auth regex "^b"', [facts(username="bob")], [facts(username="eve"), facts()]),
        ("for any from any tls", [facts(tls=True)], [facts()]),
        ("for any from rdns", [facts(rdns="a.test")], [facts()]),
        ('for any from rdns "*.a.test"', [facts(rdns="x.a.test")], [facts(rdns="a.test"), facts()]),
        ("for any ! from auth", [facts()], [facts(username="bob")]),
        ("for any auth", [facts(source=None, username="bob")], [facts(username="bob"), facts(source=None)]),
        (
            "from any tag in for domain example.org ! helo bad",
            [facts(tag="in")],
            [facts(tag="out"), facts("x@y", tag="in"), facts(tag="in", helo="bad")],
        ),
    ],
)
def test_a_rule(tmp_path: Path, criteria: str, holds: list[Facts], fails: list[Facts]) -> None:
    rules = Ruleset(config(tmp_path, f"match {criteria} action yes"))
    assert [one for one in holds if chosen(rules, one) != "yes"] == []
    assert [one for one in fails if chosen(rules, one) is not None] == []


def test_every_address_of_this_machine_is_local(tmp_path: Path) -> None:
    rules = Ruleset(config(tmp_path, "match for any action yes"))
    assert NEAR in local_addresses()
    for address in local_addresses():
        assert chosen(rules, facts(source=str(address))) == "yes"


def test_the_first_match_wins_and_no_match_is_a_refusal(tmp_path: Path) -> None:
    rules = Ruleset(
        config(
            tmp_path,
            """
            match from any for domain refused.test reject
            match from any for domain "*.test" action yes
            match from any for domain { "*.test", b.org } action no
            """,
        )
    )
    assert chosen(rules, facts("x@refused.test")) is None
    assert chosen(rules, facts("x@a.test")) == "yes"
    assert chosen(rules, facts("x@b.org")) == "no"
    assert chosen(rules, facts("x@c.org")) is None


def test_what_no_rule_takes_is_refused(tmp_path: Path) -> None:
    assert Ruleset(config(tmp_path, "match for domain a.test action yes")).match(facts("bob@localhost", None)) is None


def test_tables_in_files_and_tables_that_are_open(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("example.org # ours\n")
    loaded = config(tmp_path, "table domains file:domains\nmatch from any for domain <domains> action yes")
    assert chosen(Ruleset(loaded), facts()) == "yes"
    other = Ruleset(loaded, {"domains": Table("domains", [Entry("example.com", None)])})
    assert chosen(other, facts()) is None
    assert chosen(other, facts("x@example.com")) == "yes"
    (tmp_path / "domains").unlink()
    with pytest.raises(TableError, match="domains: cannot read the table: No such file"):
        Ruleset(loaded)

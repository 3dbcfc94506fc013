"""What aliases and `.forward` files say, and which entry of a table an address finds."""

from __future__ import annotations

import pytest

from mta_under_test.tables import Entry, Table
from mta_under_test.tables.expansion import BadNode, Node, NodeKind, alias_of, parse_nodes, virtual_of


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("Bob", [Node(NodeKind.USER, "bob")]),
        (r"\bob", [Node(NodeKind.USER, "bob", final=True)]),
        ("bob, eve@Example.org", [Node(NodeKind.USER, "bob"), Node(NodeKind.ADDRESS, "eve@Example.org")]),
        ('"odd, one"@example.org', [Node(NodeKind.ADDRESS, '"odd, one"@example.org')]),
        ("/var/mail/all", [Node(NodeKind.FILE, "/var/mail/all")]),
        ('"/var/mail/a b"', [Node(NodeKind.FILE, "/var/mail/a b")]),
        ("|/bin/cat", [Node(NodeKind.PROGRAM, "/bin/cat")]),
        ('"|/bin/cat -v, -e"', [Node(NodeKind.PROGRAM, "/bin/cat -v, -e")]),
        (r'|"/bin/prog \"a b\""', [Node(NodeKind.PROGRAM, '/bin/prog "a b"')]),
        (":include:/etc/mail/list", [Node(NodeKind.INCLUDE, "/etc/mail/list")]),
        ("error:550 5.7.1 No, never", [Node(NodeKind.ERROR, "550 5.7.1 No, never")]),
        ("error:", [Node(NodeKind.ERROR, "550 5.1.1 Invalid recipient")]),
        ("# all of us\nbob\n\neve # she too\n", [Node(NodeKind.USER, "bob"), Node(NodeKind.USER, "eve")]),
        ("bob+tag", [Node(NodeKind.USER, "bob+tag")]),
        ("", []),
    ],
)
def test_targets(text: str, nodes: list[Node]) -> None:
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize(
    "text", ['"bob', "|", "bob eve", "a@b@c", ":include:list", "/dir/", "<bob>", "bob;eve", ":fail:"]
)
def test_what_is_no_target_is_said_so(text: str) -> None:
    with pytest.raises(BadNode) as caught:
        parse_nodes(text)
    assert text.strip('"') in str(caught.value)


ALIASES = Table("aliases", [Entry("root", "bob"), Entry("bob+spam", "eve"), Entry("list", "bob, eve")])
VIRTUAL = Table(
    "virtual",
    [
        Entry("bob+news@example.org", "news"),
        Entry("bob@example.org", "robert"),
        Entry("postmaster", "root"),
        Entry("@example.org", "rest"),
        Entry("@", "anybody"),
    ],
)


@pytest.mark.parametrize(
    ("user", "found"), [("root", "bob"), ("ROOT", "bob"), ("root+x", "bob"), ("bob+spam", "eve"), ("bob+x", None)]
)
def test_aliases_know_tags(user: str, found: str | None) -> None:
    assert alias_of(ALIASES, user, "+") == found


@pytest.mark.parametrize(
    ("user", "domain", "found"),
    [
        ("bob", "example.org", "robert"),
        ("bob+news", "example.org", "news"),
        ("bob+other", "example.org", "robert"),
        ("postmaster", "example.org", "root"),
        ("postmaster", "example.net", "root"),
        ("eve", "example.org", "rest"),
        ("eve", "example.net", "anybody"),
    ],
)
def test_virtual_addresses_from_the_closest_to_the_catch_all(user: str, domain: str, found: str) -> None:
    assert virtual_of(VIRTUAL, user, domain, "+") == found


def test_another_delimiter() -> None:
    assert alias_of(ALIASES, "root-x", "-") == "bob"
    assert alias_of(ALIASES, "root+x", "-") is None

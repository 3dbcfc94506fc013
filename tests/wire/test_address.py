"""Addresses: what RFC 5321 §4.1.2 allows, and a clear word about what it does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_under_test.wire.address import AddressError, Mailbox, parse_mailbox, parse_path

atoms = st.text("abcXYZ019!#$%&'*+/=?^_`{|}~-", min_size=1, max_size=10)
local_parts = st.one_of(
    st.lists(atoms, min_size=1, max_size=4).map(".".join),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)
labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,10}[A-Za-z0-9])?", fullmatch=True)
domains = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map("[{}]".format),
    st.ip_addresses(v=6).map("[IPv6:{}]".format),
)


@settings(deadline=None)
@given(st.builds(Mailbox, local_parts, domains), st.sampled_from(["", " SIZE=5", ">"]))
def test_what_is_written_is_read_back(mailbox: Mailbox, rest: str) -> None:
    assert parse_path(f"<{mailbox}>{rest}") == (mailbox, rest)
    assert parse_mailbox(str(mailbox)) == mailbox


@settings(deadline=None)
@given(st.text(max_size=60) | st.text('<>@.:,"\\[]a1 ', max_size=20))
def test_anything_is_an_address_or_an_address_error(text: str) -> None:
    try:
        mailbox, rest = parse_path(text)
    except AddressError:
        return
    assert text.endswith(rest)
    assert mailbox is None or parse_mailbox(str(mailbox)) == mailbox


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<>", (None, "")),
        ("<> BODY=7BIT", (None, " BODY=7BIT")),
        ("<PostMaster>", (Mailbox("PostMaster", ""), "")),
        ("<a@b>", (Mailbox("a", "b"), "")),
        ("<@r.test,@s.test:a@b.test>", (Mailbox("a", "b.test"), "")),
        ('<"a b"@c.test>', (Mailbox("a b", "c.test"), "")),
        ('<"a>b\\"@x"@c.test>', (Mailbox('a>b"@x', "c.test"), "")),
        ('<"plain"@c.test>', (Mailbox("plain", "c.test"), "")),
        ("<a@[192.0.2.1]>", (Mailbox("a", "[192.0.2.1]"), "")),
        ('<"é ü"@bücher.test> SMTPUTF8', (Mailbox("é ü", "bücher.test"), " SMTPUTF8")),
        ("<δοκιμή@παράδειγμα.test>", (Mailbox("δοκιμή", "παράδειγμα.test"), "")),
        (f"<{'l' * 64}@c.test>", (Mailbox("l" * 64, "c.test"), "")),
    ],
)
def test_paths(text: str, expected: tuple[Mailbox | None, str]) -> None:
    assert parse_path(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a@b.test", "angle brackets"),
        ("", "angle brackets"),
        ("<a@b.test", "must end with >"),
        ("<a b@c.test>", "unexpected ' ' in the local part"),
        ("<root>", "'root' has no domain"),
        ("<a@>", "where the domain should be"),
        ("<a@b..test>", "'' cannot be a part"),
        ("<a@-b.test>", "'-b' cannot be a part"),
        ("<a@b.test.>", "cannot be a part"),
        ("<.a@b.test>", "where the local part should be"),
        ("<a.@b.test>", "in the local part"),
        ('<"a@b.test>', "has no end"),
        ('<"\x9f"@b.test>', "a character that cannot be in it"),
        ("<@r.test a@b.test>", "source route"),
        ("<a@[300.0.2.1]>", "not an address literal"),
        ("<a@[IPv6:xyz]>", "not an address literal"),
        ("<a@[IPv6:fe80::1%eth0]>", "where the domain should be"),
        (f"<{'é' * 33}@b.test>", "66 bytes; 64 are allowed"),
        (f"<{'l' * 65}@b.test>", "65 bytes; 64 are allowed"),
        (f"<a@{'d.' * 128}test>", "260 bytes; 255 are allowed"),
        (f"<a@{'d' * 64}.test>", "cannot be a part"),
        ("<a@b.test\r\n>", "unexpected '\\\\r'"),
    ],
)
def test_errors_say_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        parse_path(text)


def test_a_mailbox_has_nothing_around_it() -> None:
    with pytest.raises(AddressError, match="unexpected '>' after the address"):
        parse_mailbox("a@b.test>")

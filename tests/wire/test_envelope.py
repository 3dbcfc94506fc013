"""The ASCII envelope: round trip, forgery, damage, size."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_under_test.wire.envelope import (
    FLAGS,
    Envelope,
    EnvelopeError,
    decode,
    encode,
    evpid_text,
    msgid_of,
    msgid_text,
)

# Lone surrogates too: what `surrogateescape` makes of foreign bytes must survive.
TEXT = st.text(st.characters(), max_size=60)
NUMBER = st.integers(0, 2**63 - 1)
ENVELOPES = st.builds(
    Envelope,
    rcpt=TEXT.filter(bool),
    dest=TEXT.filter(bool),
    sender=TEXT,
    type=st.sampled_from(["mta", "mda", "bounce"]),
    dispatcher=TEXT,
    tag=TEXT,
    smtpname=TEXT,
    helo=TEXT,
    hostname=TEXT,
    sockaddr=TEXT,
    errorline=TEXT,
    ctime=NUMBER,
    last_try=NUMBER,
    last_bounce=NUMBER,
    ttl=NUMBER,
    retry=NUMBER,
    flags=st.frozensets(st.sampled_from(FLAGS)),
    esc_class=NUMBER,
    esc_code=NUMBER,
    bounce_type=st.sampled_from(["", "failed", "delayed", "delivered"]),
    bounce_delay=NUMBER,
    bounce_ttl=NUMBER,
)


def relay_envelope() -> Envelope:
    return Envelope(
        tag="",
        dispatcher="outbound",
        smtpname="mail.example.org",
        helo="client.example.net",
        hostname="client.example.net",
        sockaddr="192.0.2.17",
        sender="alice.liddell@example.net",
        rcpt="bob.roberts@example.com",
        dest="bob.roberts@example.com",
        ctime=1358500000,
        ttl=345600,
    )


@given(ENVELOPES)
@settings(deadline=None)
def test_what_is_written_is_read_back(envelope: Envelope) -> None:
    text = encode(envelope)
    assert decode(text) == envelope
    assert re.fullmatch(rb"(?:[a-z-]+: [ -~]+\n)+", text)


@given(ENVELOPES, st.data())
@settings(deadline=None, max_examples=200)
def test_no_cut_goes_unnoticed(envelope: Envelope, data: st.DataObject) -> None:
    text = encode(envelope)
    with pytest.raises(EnvelopeError):
        decode(text[: data.draw(st.integers(0, len(text) - 1))])


@given(st.one_of(st.binary(max_size=200), st.text("versionrcpdt: 12\\xu\n", max_size=100).map(str.encode)))
@settings(deadline=None, max_examples=300)
def test_foreign_bytes_are_an_envelope_error_and_nothing_else(text: bytes) -> None:
    with pytest.raises(EnvelopeError):
        decode(text)


def test_a_hostile_reply_forges_no_line() -> None:
    envelope = relay_envelope()
    envelope.errorline = "550 no\r\nflags: authenticated\ndest: root@victim.test\0"
    lines = encode(envelope).split(b"\n")
    assert [line for line in lines if line.startswith((b"flags", b"dest"))] == [b"dest: bob.roberts@example.com"]
    assert decode(encode(envelope)).errorline == envelope.errorline


def test_the_text_reads_like_opensmtpd_s() -> None:
    envelope = relay_envelope()
    envelope.flags = frozenset({"internal", "bounce"})
    envelope.last_try = 7
    assert encode(envelope).decode().splitlines() == [
        "version: 1",
        "dispatcher: outbound",
        "type: mta",
        "smtpname: mail.example.org",
        "helo: client.example.net",
        "hostname: client.example.net",
        "sockaddr: 192.0.2.17",
        "ctime: 1358500000",
        "last-try: 7",
        "ttl: 345600",
        "flags: bounce internal",
        "sender: alice.liddell@example.net",
        "rcpt: bob.roberts@example.com",
        "dest: bob.roberts@example.com",
    ]


def test_a_relay_envelope_is_under_300_bytes() -> None:
    assert len(encode(relay_envelope())) < 300


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("tag", "colour"), "line 2: unknown key 'colour'"),
        (("tag: in", "tag in"), "line 2: 'tag in' is not `key: value`"),
        (("type: mta", "type: pony"), "line 3: type 'pony' is not mta or mda or bounce"),
        (("ctime: 5", "ctime: -5"), "line 4: ctime '-5' is not a number from 0 to 2^63 - 1"),
        (("ctime: 5", "ctime: 9223372036854775808"), "line 4: ctime '9223372036854775808' is not a number from 0 to"),
        (("ctime: 5", "ctime: \\x35"), "line 4: ctime '\\\\x35' is not a number"),
        (("ctime: 5", "ctime: "), "line 4: ctime is empty"),
        (("flags: bounce", "flags: bounce sticky"), "line 6: unknown flag 'sticky'; there is authenticated, bounce"),
        (("rcpt: a@b", "rcpt: a\\qb"), "line 7: rcpt has a bad escape"),
        (("rcpt: a@b", "rcpt: a\x01b"), "line 7: rcpt has a bad escape or a control character"),
        (("rcpt: a@b", "rcpt: a\\U00110000"), "line 7: rcpt has a bad escape"),
        (("rcpt: a@b\n", "rcpt: a@b\nrcpt: a@b\n"), "line 8: rcpt given twice"),
        (("rcpt: a@b\n", ""), "no rcpt"),
        (("version: 1\n", ""), "no version"),
        (("version: 1", "version: 2"), "line 1: version '2'; this server reads version 1"),
        (("dest: a@b\n", "dest: a@b"), "line 8: has no end"),
        (("dest: a@b", "dest: \u00e4@b"), "line 8: byte 0xc3 is not ASCII"),
    ],
)
def test_damage_is_named(change: tuple[str, str], error: str) -> None:
    good = "version: 1\ntag: in\ntype: mta\nctime: 5\nttl: 9\nflags: bounce\nrcpt: a@b\ndest: a@b\n"
    assert decode(good.encode()).tag == "in"
    with pytest.raises(EnvelopeError, match="^" + re.escape(error)):
        decode(good.replace(*change).encode())


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("rcpt", "", "rcpt is empty"),
        ("retry", -1, "retry is -1; it can be 0 to 2^63 - 1"),
        ("type", "smtp", "type is 'smtp'; it can be mta or mda or bounce"),
        ("flags", frozenset({"x"}), "unknown flag in ['x']; there is authenticated, bounce, internal"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(name: str, value: object, error: str) -> None:
    envelope = relay_envelope()
    setattr(envelope, name, value)
    with pytest.raises(EnvelopeError, match="^" + re.escape(error)):
        encode(envelope)


def test_ids() -> None:
    evpid = 0x0000ABCD_00000001
    assert msgid_of(evpid) == 0xABCD
    assert evpid_text(evpid) == "0000abcd00000001"
    assert msgid_text(msgid_of(evpid)) == "0000abcd"

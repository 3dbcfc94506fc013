"""PROXY headers of version 2: read back, refused early, never misread however the bytes arrive."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.wire.proxy import MAX_LENGTH, SIGNATURE, ProxyError, ProxyHeader, encode, parse

ports = st.integers(0, 65535)
pairs = st.one_of(
    st.tuples(*[st.tuples(st.ip_addresses(v=4).map(str), ports)] * 2),
    st.tuples(*[st.tuples(st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str), ports)] * 2),
)


@given(pairs, st.binary(max_size=30), st.data())
def test_what_is_written_is_read_back(
    pair: tuple[tuple[str, int], tuple[str, int]], rest: bytes, data: st.DataObject
) -> None:
    header = encode(*pair)
    assert parse(header + rest) == ProxyHeader(len(header), *pair)
    assert parse(header[: data.draw(st.integers(0, len(header) - 1))]) is None


@given(st.binary(max_size=60), st.booleans())
def test_anything_is_a_header_or_an_error_and_the_first_bytes_decide(junk: bytes, signed: bool) -> None:
    data = (SIGNATURE if signed else b"") + junk
    try:
        whole = parse(data)
    except ProxyError:
        return
    for cut in range(len(data)):
        part = parse(data[:cut])
        assert part is None or part == whole


def header(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


@pytest.mark.parametrize("data", [header(0x20, 0, b""), header(0x20, 0x99, b"TLV"), header(0x21, 0, b"TLV!")])
def test_local_and_unspecified_leave_the_addresses_of_the_connection(data: bytes) -> None:
    assert parse(data + b"EHLO x\r\n") == ProxyHeader(len(data), None, None)


def test_extensions_are_skipped() -> None:
    body = encode(("192.0.2.1", 1), ("192.0.2.2", 25))[16:] + b"\x04\x00\x03abc"
    found = parse(header(0x21, 0x11, body))
    assert found == ProxyHeader(16 + len(body), ("192.0.2.1", 1), ("192.0.2.2", 25))


def test_a_mapped_address_is_the_plain_one() -> None:
    found = parse(encode(("::ffff:192.0.2.1", 9), ("::ffff:192.0.2.2", 25)))
    assert found is not None
    assert found.source == ("192.0.2.1", 9)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"EHLO x\r\n", "no PROXY header"),
        (b"PROXY TCP4 192.0.2.1", "no PROXY header"),
        (SIGNATURE + b"\x11", "version and command 0x11"),
        (SIGNATURE + b"\x22", "version and command 0x22"),
        (SIGNATURE + b"\x21\x12", "only streams"),
        (header(0x21, 0x11, b"", MAX_LENGTH + 1), "are allowed"),
        (header(0x21, 0x21, b"x" * 35), "addresses alone have 36"),
    ],
)
def test_what_is_none_is_refused_at_once(data: bytes, complaint: str) -> None:
    with pytest.raises(ProxyError, match=complaint):
        parse(data)

"""The From field of a sender who is not to choose it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.wire.masquerade import HEADER_BYTES, Masquerade


def through(message: bytes, *sizes: int) -> bytes:
    masquerade, out = Masquerade("bob@a.test"), b""
    for size in (*sizes, len(message)):
        piece, message = message[:size], message[size:]
        out += masquerade.feed(piece) if piece else b""
    return out + masquerade.rest()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            b"Subject: x\r\nFrom: eve@b.test\r\n\r\nFrom: body\r\n",
            b"Subject: x\r\nFrom: bob@a.test\r\n\r\nFrom: body\r\n",
        ),
        (b"FROM : no\r\nFrom: a\r\n b\r\n\tc\r\nTo: d\r\n\r\n", b"FROM : no\r\nFrom: bob@a.test\r\nTo: d\r\n\r\n"),
        (b"from: a\r\nFrom: b\r\n\r\n", b"From: bob@a.test\r\n\r\n"),
        (b"Subject: x\r\n\r\nbody", b"Subject: x\r\n\r\nbody"),
        (b"\r\nFrom: body", b"\r\nFrom: body"),
        (b"From: a\r\n", b"From: bob@a.test\r\n"),
        (b"", b""),
    ],
)
def test_the_header_s_from_is_the_sender_s(message: bytes, expected: bytes) -> None:
    assert through(message) == expected


@given(st.lists(st.integers(1, 30)))
def test_any_split_gives_the_same(sizes: list[int]) -> None:
    message = b"Subject: x\r\nFrom: a\r\n\tb\r\nTo: c\r\n\r\nFrom: body\r\n\r\nmore\r\n"
    assert through(message, *sizes) == through(message)


def test_a_header_without_an_end_is_not_held_for_ever() -> None:
    masquerade = Masquerade("bob@a.test")
    assert masquerade.feed(b"x" * HEADER_BYTES) == b""
    assert masquerade.feed(b"y") == b"x" * HEADER_BYTES + b"y"

"""imsg frames: what is sent is what arrives, however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.wire.imsg import HEADER, MAX_FRAME_BYTES, Decoder, Imsg, ImsgError, encode

frames = st.builds(
    Imsg,
    type=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=300),
    peer_id=st.integers(0, 2**32 - 1),
    pid=st.integers(0, 2**32 - 1),
    has_descriptor=st.booleans(),
)


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), max_size=40))
def test_any_split_of_the_stream_gives_the_same_frames(sent: list[Imsg], cuts: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    decoder = Decoder()
    arrived: list[Imsg] = []
    for cut in cuts:
        arrived += decoder.feed(stream[:cut])
        stream = stream[cut:]
    arrived += decoder.feed(stream)
    assert arrived == sent


def test_the_header_is_openbsds_16_bytes() -> None:
    assert HEADER.size == 16
    assert len(encode(Imsg(1, b""))) == 16


def test_the_longest_frame_fits_and_one_byte_more_does_not() -> None:
    room = MAX_FRAME_BYTES - HEADER.size
    assert len(encode(Imsg(1, b"x" * room))) == MAX_FRAME_BYTES
    with pytest.raises(ImsgError, match="16369 bytes; a frame holds 16368"):
        encode(Imsg(1, b"x" * (room + 1)))


@pytest.mark.parametrize("length", [0, 15, MAX_FRAME_BYTES + 1])
def test_a_length_that_no_frame_can_have_is_an_error(length: int) -> None:
    with pytest.raises(ImsgError, match=f"frame of {length} bytes"):
        list(Decoder().feed(HEADER.pack(1, length, 0, 0, 0)))

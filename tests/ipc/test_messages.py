"""One form of payload: integers, then bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.ipc.messages import PayloadError, pack, unpack


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.binary(max_size=100))
def test_round_trip(integers: list[int], text: bytes) -> None:
    assert unpack(pack(tuple(integers), text)) == (tuple(integers), text)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.data())
def test_a_payload_cut_short_is_an_error(integers: list[int], data: st.DataObject) -> None:
    payload = pack(tuple(integers))
    with pytest.raises(PayloadError):
        unpack(payload[: data.draw(st.integers(0, len(payload) - 1))])


def test_a_delivery_result_is_small() -> None:
    # OpenSMTPD's DELIVERY_OK took 25 bytes where a whole envelope had taken 8,584.
    assert 16 + len(pack((2**64 - 1,))) == 26

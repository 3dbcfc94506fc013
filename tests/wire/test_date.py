"""Dates that every mail reader takes apart."""

from __future__ import annotations

import email.utils

from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.wire.date import header_date


@given(st.integers(0, 2**32))
def test_a_reader_gets_the_same_second_back(seconds: int) -> None:
    assert email.utils.parsedate_to_datetime(header_date(seconds)).timestamp() == seconds

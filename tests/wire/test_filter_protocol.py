"""The lines of smtpd-filters(7): what we say can be split again, what a program says is understood or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.wire import filter_protocol
from mta_under_test.wire.filter_protocol import DataLine, FilterProtocolError, Ready, Registered, Result, parse


def test_the_handshake_ends_with_ready() -> None:
    lines = filter_protocol.handshake(300, "mx.test").decode().splitlines()
    assert lines[-1] == "config|ready"
    assert "config|subsystem|smtp-in" in lines
    assert "config|admd|mx.test" in lines


def test_a_report_and_a_request() -> None:
    assert (
        filter_protocol.report("link-connect", "7641df9771b4ed00", 1576146008.006099, "h.test", "pass", "192.0.2.1:9")
        == b"report|0.7|1576146008.006099|smtp-in|link-connect|7641df9771b4ed00|h.test|pass|192.0.2.1:9\n"
    )
    assert (
        filter_protocol.request("mail-from", "7641df9771b4ed00", "1e", 1.0, "a|b@c.test")
        == b"filter|0.7|1.000000|smtp-in|mail-from|7641df9771b4ed00|1e|a|b@c.test\n"
    )
    assert (
        filter_protocol.data_line("5", "6", 1.0, b"..\xff|x") == b"filter|0.7|1.000000|smtp-in|data-line|5|6|..\xff|x\n"
    )


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_nothing_that_a_client_says_adds_a_line_or_a_field(first: str, second: str, last: str) -> None:
    line = filter_protocol.report("tx-mail", "5", 1.0, first, second, last)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert len(line.split(b"|", 8)) == 9
    assert b"|" not in b"".join(line.split(b"|", 8)[:8])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"register|report|smtp-in|link-connect", Registered("report", "link-connect")),
        (b"register|filter|smtp-in|data-line", Registered("filter", "data-line")),
        (b"register|filter|smtp-in|*", Registered("filter", "*")),
        (b"register|ready", Ready()),
        (b"filter-result|5|6|proceed", Result("5", "6", "proceed", "")),
        (b"filter-result|5|6|junk", Result("5", "6", "junk", "")),
        (b"filter-result|5|6|reject|550 no | never", Result("5", "6", "reject", "550 no | never")),
        (b"filter-result|5|6|rewrite|", Result("5", "6", "rewrite", "")),
        (b"filter-dataline|5|6|a|b\xff", DataLine("5", "6", b"a|b\xff")),
        (b"filter-dataline|5|6|", DataLine("5", "6", b"")),
    ],
)
def test_what_programs_say(line: bytes, said: filter_protocol.Said) -> None:
    assert parse(line) == said


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"filter-result|5|6",
        b"filter-result|5|6|maybe",
        b"filter-result|5|6|reject",
        b"filter-result|5|6|proceed|now",
        b"filter-dataline|5|6",
        b"register",
        b"register|filter|smtp-out|connect",
        b"register|filter|smtp-in|lunch",
        b"register|report|smtp-in|tx-mailx",
    ],
)
def test_what_they_cannot_say(line: bytes) -> None:
    with pytest.raises(FilterProtocolError):
        parse(line)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: b"filter-result|" + rest))
def test_anything_is_understood_or_refused(line: bytes) -> None:
    try:
        parse(line)
    except FilterProtocolError:
        return
    assert line.split(b"|")[0] in (b"register", b"filter-result", b"filter-dataline")

"""Replies: written, read back however the stream is split, and refused when they are none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_under_test.wire.reply import MAX_LINE_BYTES, MAX_LINES, Reply, ReplyDecoder, ReplyError


def decode(*chunks: bytes) -> list[Reply]:
    decoder = ReplyDecoder()
    replies = []
    for chunk in chunks:
        decoder.feed(chunk)
        while (reply := decoder.next()) is not None:
            replies.append(reply)
    return replies


# A text that begins with something like an enhanced code cannot be told from one.
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).filter(
    lambda text: not text[:1].isdigit()
)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    code = draw(st.integers(200, 599))
    enhanced = ""
    if code // 100 != 3 and draw(st.booleans()):
        enhanced = f"{code // 100}.{draw(st.integers(0, 999))}.{draw(st.integers(0, 999))}"
    lines = draw(st.lists(texts, min_size=1, max_size=4))
    return Reply(code, lines[0] if len(lines) == 1 else tuple(lines), enhanced)


@settings(deadline=None)
@given(st.lists(replies(), max_size=4), st.data())
def test_every_split_of_the_stream_gives_the_same_replies(sent: list[Reply], data: st.DataObject) -> None:
    stream = b"".join(reply.encode() for reply in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == sent


def test_several_lines_each_carry_code_and_enhanced_code() -> None:
    reply = Reply(550, ("No such user", "Really not"), "5.1.1")
    assert reply.encode() == b"550-5.1.1 No such user\r\n550 5.1.1 Really not\r\n"
    assert str(reply) == "550 5.1.1 No such user Really not"


def test_a_reply_knows_what_it_means() -> None:
    assert Reply(250, "").positive
    assert Reply(354, "").positive
    assert Reply(451, "").temporary
    assert Reply(550, "").permanent
    assert not Reply(451, "").positive
    assert not Reply(451, "").permanent
    assert not Reply(550, "").temporary


def test_quoted_input_cannot_add_a_line() -> None:
    reply = Reply(550, "no such user: x\r\n250 Ok\x00")
    assert reply.encode().count(b"\r\n") == 1
    assert decode(reply.encode()) == [Reply(550, "no such user: x  250 Ok ")]


@pytest.mark.parametrize(("code", "enhanced"), [(199, ""), (600, ""), (550, "5.1"), (550, "6.1.1"), (550, "5.1.1 ")])
def test_what_cannot_be_a_reply_is_not_made(code: int, enhanced: str) -> None:
    with pytest.raises(ValueError, match="code"):
        Reply(code, "text", enhanced)


def test_an_enhanced_code_of_another_class_is_text() -> None:
    assert decode(b"250 5.1.1 odd\r\n") == [Reply(250, "5.1.1 odd")]


def test_a_reply_without_text_and_one_with_bare_lf() -> None:
    assert decode(b"250\r\n354 go on\n250 2.1.5\r\n") == [Reply(250, ""), Reply(354, "go on"), Reply(250, "", "2.1.5")]


def test_later_lines_may_lack_the_enhanced_code() -> None:
    assert decode(b"550-5.1.1 a\r\n550 b\r\n") == [Reply(550, ("a", "b"), "5.1.1")]


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "not a reply line: 'HTTP"),
        (b"99 too low\r\n", "not a reply line"),
        (b"650 too high\r\n", "not a reply line"),
        (b"250_odd\r\n", "not a reply line"),
        (b"250-one\r\n550 two\r\n", "began with 250 goes on with '550"),
        (b"250 " + b"x" * MAX_LINE_BYTES + b"\r\n", "more than 4096 bytes"),
        (b"x" * (MAX_LINE_BYTES + 1), "more than 4096 bytes"),
        (b"250-x\r\n" * (MAX_LINES + 1), "more than 256 lines"),
    ],
)
def test_nonsense_is_named(stream: bytes, complaint: str) -> None:
    with pytest.raises(ReplyError, match=complaint):
        decode(stream)


def test_what_came_before_the_nonsense_is_still_told() -> None:
    decoder = ReplyDecoder()
    decoder.feed(b"250 ok\r\nnonsense\r\n")
    assert decoder.next() == Reply(250, "ok")
    with pytest.raises(ReplyError):
        decoder.next()

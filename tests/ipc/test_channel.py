"""Channels over real socketpairs: order, passed descriptors, back-pressure, and nothing left open."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mta_under_test.ipc.channel import HIGH_MARK_BYTES, Channel, Message
from mta_under_test.ipc.messages import Kind
from mta_under_test.wire import imsg

Receive = Callable[[Channel, Message], None]


class End:
    """One end of a channel and what arrived there."""

    def __init__(self, sock: socket.socket, receive: Receive | None = None) -> None:
        self.arrived: list[tuple[Kind, tuple[int, ...], bytes]] = []
        self.endings: list[str] = []
        self.congestion: list[bool] = []
        self.channel = Channel(
            sock, "peer", receive or self._receive, lambda _, reason: self.endings.append(reason), self._congested
        )

    def _receive(self, channel: Channel, message: Message) -> None:
        self.arrived.append((message.kind, message.integers, message.text))

    def _congested(self, channel: Channel, over: bool) -> None:
        self.congestion.append(over)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_messages_arrive_whole_and_in_order() -> None:
    async def scenario() -> None:
        ours, theirs = map(End, socket.socketpair())
        for number in range(2000):
            ours.channel.send(Kind.OK, number, text=b"x" * (number % 700))
        await until(lambda: len(theirs.arrived) == 2000)
        assert [integers for _, integers, _ in theirs.arrived] == [(number,) for number in range(2000)]
        assert theirs.channel.received.messages[Kind.OK] == 2000
        assert theirs.channel.received.bytes == ours.channel.sent.bytes
        ours.channel.close()
        theirs.channel.close()

    asyncio.run(scenario())


def test_descriptors_arrive_with_their_own_message_and_none_stays_behind(tmp_path: Path) -> None:
    contents: list[tuple[int, bytes]] = []

    def receive(channel: Channel, message: Message) -> None:
        descriptor = message.take_descriptor()
        if message.kind is Kind.MESSAGE_FD:
            assert descriptor is not None
            contents.append((message.integers[0], os.pread(descriptor, 100, 0)))
            os.close(descriptor)
        else:
            assert descriptor is None

    async def scenario() -> None:
        one, other = socket.socketpair()
        ours, theirs = End(one), End(other, receive)
        before = open_descriptors()
        for number in range(200):
            path = tmp_path / str(number)
            path.write_bytes(b"%d" % number)
            ours.channel.send(Kind.OK, number, text=b"between" * number)
            ours.channel.send(Kind.MESSAGE_FD, number, descriptor=os.open(path, os.O_RDONLY))
        await until(lambda: len(contents) == 200)
        assert contents == [(number, b"%d" % number) for number in range(200)]
        assert open_descriptors() == before
        ours.channel.close()
        theirs.channel.close()

    asyncio.run(scenario())


def test_a_descriptor_that_no_handler_takes_is_closed() -> None:
    async def scenario() -> None:
        ours, theirs = map(End, socket.socketpair())
        before = open_descriptors()
        ours.channel.send(Kind.OK, descriptor=os.open(os.devnull, os.O_RDONLY))
        await until(lambda: bool(theirs.arrived))
        assert open_descriptors() == before
        ours.channel.close()
        theirs.channel.close()

    asyncio.run(scenario())


def test_closing_lets_go_of_descriptors_that_wait_to_be_sent() -> None:
    async def scenario() -> None:
        one, other = socket.socketpair()
        before = open_descriptors()
        ours = End(one)
        for _ in range(20):
            ours.channel.send(Kind.OK, text=b"x" * 16000, descriptor=os.open(os.devnull, os.O_RDONLY))
        assert len(open_descriptors()) > len(before), "nobody reads the other end: something must wait"
        ours.channel.close()
        ours.channel.close()
        ours.channel.send(Kind.OK, descriptor=os.open(os.devnull, os.O_RDONLY))
        other.close()
        assert len(open_descriptors()) == len(before) - 2

    asyncio.run(scenario())


def test_descriptors_that_no_message_announces_end_the_channel() -> None:
    async def scenario() -> None:
        one, other = socket.socketpair()
        theirs = End(other)
        before = open_descriptors()
        null = os.open(os.devnull, os.O_RDONLY)
        for _ in range(4):
            socket.send_fds(one, [imsg.encode(imsg.Imsg(Kind.OK, b"\0\0"))], [null] * 4)
        os.close(null)
        await until(lambda: bool(theirs.endings))
        assert "no message announced" in theirs.endings[0]
        assert len(open_descriptors()) == len(before) - 1
        one.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("nonsense", [b"\xff" * 64, imsg.encode(imsg.Imsg(9999, b"\0\0"))])
def test_a_peer_that_talks_nonsense_is_cut_off_with_a_reason(nonsense: bytes) -> None:
    async def scenario() -> None:
        one, other = socket.socketpair()
        theirs = End(other)
        one.send(nonsense)
        await until(lambda: bool(theirs.endings))
        assert theirs.endings[0]
        one.close()

    asyncio.run(scenario())


def test_a_peer_that_goes_ends_the_channel_once_without_a_reason() -> None:
    async def scenario() -> None:
        ours, theirs = map(End, socket.socketpair())
        ours.channel.close()
        await until(lambda: bool(theirs.endings))
        theirs.channel.send(Kind.OK)
        assert theirs.endings == [""]
        assert ours.endings == []

    asyncio.run(scenario())


def test_congestion_is_told_at_the_high_mark_and_again_at_the_low_one() -> None:
    async def scenario() -> None:
        ours, theirs = map(End, socket.socketpair())
        theirs.channel.pause_reading()
        while not ours.congestion:
            ours.channel.send(Kind.OK, text=b"x" * 16000)
        assert ours.congestion == [True]
        assert ours.channel.waiting_bytes > HIGH_MARK_BYTES
        assert ours.channel.sent.most_waiting_bytes > HIGH_MARK_BYTES
        theirs.channel.resume_reading()
        await until(lambda: ours.channel.waiting_bytes == 0)
        assert ours.congestion == [True, False]
        ours.channel.close()
        theirs.channel.close()

    asyncio.run(scenario())

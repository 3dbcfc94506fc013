"""The raw client: says exactly what it is told, and leaves as it is told."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvloop
from smtp_sink import SmtpSink

from harness.load.dialogue import SILENCE_S
from harness.load.session import hold
from harness.load.tally import Outcome, Ticket
from harness.scenario import ACCEPTED_DOMAIN, UNROUTED_DOMAIN, End, Message, SessionPlan, Step
from harness.steps import DATA, EHLO, END, GREETING, NOOP, RSET, body, header, mail, rcpt, transaction

GOOD, BAD = f"good@{ACCEPTED_DOMAIN}", f"bad@{UNROUTED_DOMAIN}"


def held(port: int, *steps: Step, end: End = "quit", timeout_s: float = 10.0) -> Outcome:
    ticket = Ticket("1.2.3", SessionPlan(steps=steps, end=end), time.monotonic() + timeout_s)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(hold(("127.0.0.1", port), ticket))


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """A server that greets, reads to the end, and keeps what it read, or the name of the error that ended it."""
    read: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 here\r\n")
            try:
                while data := connection.recv(4096):
                    read.append(data)
            except ConnectionResetError:
                read.append(b"(reset)")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], read
        thread.join(10)


def test_whole_messages_are_counted_and_named() -> None:
    with SmtpSink() as sink:
        outcome = held(sink.port, GREETING, EHLO, *transaction(GOOD), NOOP, *transaction(GOOD))
    assert [exchange.error for exchange in outcome.exchanges if exchange.error] == []
    assert (outcome.greeted, outcome.finished, outcome.messages) == (True, True, 2)
    assert outcome.accepted == sink.message_ids == ["1.2.3.0@sender.test", "1.2.3.1@sender.test"]
    assert sink.recipients == [GOOD, GOOD]


def test_an_answer_that_is_not_expected_ends_the_session() -> None:
    with SmtpSink() as sink:
        outcome = held(sink.port, GREETING, EHLO, mail(), rcpt(BAD), DATA)
        refused = held(sink.port, GREETING, EHLO, mail(), rcpt(BAD, expect="5"), RSET)
    assert outcome.exchanges[-1].error == f"550 5.1.1 not here (the scenario expects 2xx to RCPT TO:<{BAD}>)"
    assert not outcome.finished
    assert (refused.finished, refused.refused_recipients) == (True, 1)


@pytest.mark.parametrize(
    ("end", "read"), [("fin", [b"EHLO load.sender.test\r\n"]), ("rst", [b"EHLO load.sender.test\r\n", b"(reset)"])]
)
def test_it_leaves_by_fin_or_by_rst(end: End, read: list[bytes]) -> None:
    with listening() as (port, seen):
        outcome = held(port, GREETING, Step(EHLO.send, expect=""), end=end)
    assert outcome.finished
    assert b"".join(seen) == b"".join(read)


def test_silence_ends_with_a_reset() -> None:
    with listening() as (port, seen):
        began = time.monotonic()
        assert held(port, GREETING, end="silence").finished
        assert time.monotonic() - began >= SILENCE_S
    assert seen == [b"(reset)"]


def test_pieces_come_one_after_the_other() -> None:
    with listening() as (port, seen):
        held(port, GREETING, Step(b"abcdef", expect="", piece_bytes=2, pause_s=0.05), end="fin")
    assert seen == [b"ab", b"cd", b"ef"]


def test_a_server_that_is_not_there_and_one_that_hangs_up_are_failures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    absent = held(port, GREETING)
    assert "Connect call failed" in absent.exchanges[-1].error
    with SmtpSink(drop_at="MAIL") as sink:
        outcome = held(sink.port, GREETING, EHLO, mail())
    assert outcome.exchanges[-1].error
    assert (absent.finished, absent.broken_off) == (False, False), "there was nobody to break it off"
    assert (outcome.finished, outcome.broken_off) == (False, True)


@pytest.mark.parametrize("answer", ["421 4.3.2 closing", "500 5.5.1 what?"])
def test_a_server_that_says_why_it_hangs_up_does_not_break_off(answer: str) -> None:
    with SmtpSink(leave_at=("MAIL", answer)) as sink:
        outcome = held(sink.port, GREETING, EHLO, mail(), rcpt(GOOD))
    assert (outcome.finished, outcome.broken_off) == (False, False)


def test_a_goodbye_in_the_middle_of_a_command_is_heard() -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 here\r\n")
            connection.recv(1)
            connection.sendall(b"421 4.4.2 too slow\r\n")
        # What has come since is not read: the client gets a reset.

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        outcome = held(listener.getsockname()[1], GREETING, Step(b"x" * 40, expect="2", piece_bytes=1, pause_s=0.01))
        thread.join(10)
    assert outcome.exchanges[-1].error
    assert (outcome.finished, outcome.broken_off) == (False, False)


def test_what_is_not_answered_in_time_is_cut_off() -> None:
    with SmtpSink(stall_at="MAIL") as sink:
        outcome = held(sink.port, GREETING, EHLO, mail(), timeout_s=0.5)
    assert outcome.exchanges[-1].error.startswith("cut off")
    assert not outcome.finished


def test_a_body_has_whole_lines_and_a_header_its_name() -> None:
    assert set(body(100).send.split(b"\r\n")) == {b"s" * 62, b""}
    assert b"Message-ID: <{id}>\r\n" in header(GOOD).send
    assert END.accepts


def test_a_plan_is_of_messages_or_of_steps() -> None:
    with pytest.raises(ValueError, match="messages or steps, not both"):
        SessionPlan((Message("a@b", ("c@d",)),), (GREETING,))
    with pytest.raises(ValueError, match="only a raw client ends by rst"):
        SessionPlan(end="rst")
    with pytest.raises(ValueError, match="begins with 2, 3, 4 or 5"):
        Step(expect="1")

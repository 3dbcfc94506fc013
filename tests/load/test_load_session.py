from __future__ import annotations

import asyncio
import email
import email.policy
import time
from email.utils import parsedate_to_datetime

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_sink import SmtpSink

from harness.load.session import compose, hold
from harness.load.tally import Outcome, Ticket
from harness.scenario import ACCEPTED_DOMAIN, DEFAULT_SENDER, UNROUTED_DOMAIN, Message, SessionPlan

GOOD = f"good@{ACCEPTED_DOMAIN}"
BAD = f"bad@{UNROUTED_DOMAIN}"
PLAIN = Message(DEFAULT_SENDER, (GOOD,))


def held(port: int, *messages: Message, timeout_s: float = 10.0) -> Outcome:
    ticket = Ticket("1.2.3", SessionPlan(messages), time.monotonic() + timeout_s)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(hold(("127.0.0.1", port), ticket))


def errors(outcome: Outcome) -> list[tuple[str, str]]:
    return [(exchange.name, exchange.error) for exchange in outcome.exchanges if exchange.error]


def test_the_dialogue_is_exactly_the_planned_one() -> None:
    with SmtpSink() as sink:
        outcome = held(
            sink.port, PLAIN, Message(DEFAULT_SENDER, (), (BAD, BAD)), Message(DEFAULT_SENDER, (GOOD,), (BAD,))
        )
    said = ["EHLO", "MAIL", "RCPT", "DATA", "MAIL", "RCPT", "RCPT", "RSET", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]
    assert sink.dialogues == [said]
    assert [exchange.name for exchange in outcome.exchanges] == ["CONNECT", *said]
    assert errors(outcome) == []
    assert (outcome.greeted, outcome.finished, outcome.messages, outcome.refused_recipients) == (True, True, 3, 3)
    assert outcome.accepted == sink.message_ids == ["1.2.3.0@sender.test", "1.2.3.2@sender.test"]
    assert sink.recipients == [GOOD, GOOD]


def test_a_recipient_that_must_be_refused_and_is_not_is_a_failure() -> None:
    with SmtpSink(lenient=True) as sink:
        outcome = held(sink.port, Message(DEFAULT_SENDER, (), (BAD,)), PLAIN)
    assert errors(outcome) == [("RCPT", f"250 fine (the scenario expects 5xx to RCPT TO:<{BAD}>)")]
    assert outcome.finished
    assert outcome.accepted == sink.message_ids == ["1.2.3.1@sender.test"], "nothing is sent to who must be refused"


def test_a_recipient_that_must_be_accepted_and_is_not_is_a_failure_and_the_session_goes_on() -> None:
    with SmtpSink() as sink:
        outcome = held(sink.port, Message(DEFAULT_SENDER, (BAD,)), PLAIN)
    assert errors(outcome) == [("RCPT", f"550 5.1.1 not here (the scenario expects 2xx to RCPT TO:<{BAD}>)")]
    assert outcome.accepted == ["1.2.3.1@sender.test"]
    assert "RSET" in sink.dialogues[0]


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA"])
def test_a_lost_connection_ends_the_session_with_one_failure(verb: str) -> None:
    with SmtpSink(drop_at=verb) as sink:
        outcome = held(sink.port, PLAIN, PLAIN)
    assert [name for name, _ in errors(outcome)] == [verb]
    assert outcome.greeted
    assert not outcome.finished
    assert outcome.broken_off
    assert outcome.accepted == []


def test_a_server_that_answers_and_leaves_ends_the_session_at_the_next_command() -> None:
    with SmtpSink(leave_at=("MAIL", "250 and that is all")) as sink:
        outcome = held(sink.port, PLAIN, PLAIN)
    [(name, text)] = errors(outcome)
    assert name == "RCPT"
    assert text
    assert [exchange.name for exchange in outcome.exchanges] == ["CONNECT", "EHLO", "MAIL", "RCPT"]
    assert (outcome.messages, outcome.finished, outcome.accepted) == (1, False, [])
    assert outcome.broken_off


def test_a_server_that_says_it_leaves_ends_the_session_with_its_words() -> None:
    with SmtpSink(leave_at=("RCPT", "421 4.3.2 closing")) as sink:
        outcome = held(sink.port, Message(DEFAULT_SENDER, (), (BAD,)), PLAIN)
    assert errors(outcome) == [("RCPT", f"421 4.3.2 closing (the scenario expects 5xx to RCPT TO:<{BAD}>)")]
    assert [exchange.name for exchange in outcome.exchanges] == ["CONNECT", "EHLO", "MAIL", "RCPT"]
    assert (outcome.refused_recipients, outcome.finished, outcome.broken_off) == (0, False, False)


def test_a_goodbye_that_nobody_asked_for_is_heard() -> None:
    with SmtpSink(leave_at=("RSET", "250 fine\r\n421 4.7.0 that is enough")) as sink:
        outcome = held(sink.port, Message(DEFAULT_SENDER, (), (BAD,)), PLAIN)
    assert [name for name, _ in errors(outcome)] == ["MAIL"]
    assert (outcome.finished, outcome.broken_off) == (False, False)


def test_a_server_that_has_lost_patience_does_not_break_off() -> None:
    with SmtpSink(leave_at=("RSET", "500 too many errors")) as sink:
        outcome = held(sink.port, Message(DEFAULT_SENDER, (), (BAD,)), PLAIN)
    assert [name for name, _ in errors(outcome)] == ["RSET", "MAIL"]
    assert (outcome.finished, outcome.broken_off) == (False, False)


def test_a_server_may_leave_at_quit() -> None:
    with SmtpSink(drop_at="QUIT") as sink:
        outcome = held(sink.port, PLAIN)
    assert [name for name, _ in errors(outcome)] == ["QUIT"]
    assert (outcome.finished, outcome.broken_off) == (True, False)


def test_a_greeting_that_refuses_is_a_failure_with_its_text() -> None:
    with SmtpSink(greeting="554 go away") as sink:
        outcome = held(sink.port, PLAIN)
    assert errors(outcome) == [("CONNECT", "554 go away (the scenario expects 2xx)")]
    assert (outcome.greeted, outcome.messages, outcome.broken_off) == (False, 0, False)


def test_nobody_listening_is_a_failure(unused_port: int) -> None:
    outcome = held(unused_port, PLAIN)
    [(name, text)] = errors(outcome)
    assert name == "CONNECT"
    assert "refused" in text.lower()
    assert not outcome.finished


@pytest.mark.parametrize("point", ["EHLO", "RCPT", "QUIT", "body"])
def test_a_server_that_falls_silent_is_cut_off(point: str) -> None:
    with SmtpSink(stall_at=point) as sink:
        outcome = held(sink.port, PLAIN, timeout_s=0.3)
    [(name, text)] = errors(outcome)
    assert name == ("DATA" if point == "body" else point)
    assert text.startswith("cut off")
    assert outcome.finished == (point == "QUIT")


def test_no_cut_is_lost_that_comes_together_with_an_answer() -> None:
    """The server answers up to 354 and then falls silent; sessions are cut off at every moment on the way there."""

    async def cut_everywhere(port: int) -> int:
        now = time.monotonic()
        plan = SessionPlan((PLAIN,))
        tickets = [Ticket(f"1.2.{number}", plan, now + 0.001 * number) for number in range(300)]
        sessions = [asyncio.create_task(hold(("127.0.0.1", port), ticket)) for ticket in tickets]
        _, hanging = await asyncio.wait(sessions, timeout=5)
        for session in hanging:
            session.cancel()
        return len(hanging)

    with SmtpSink(stall_at="body") as sink, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(cut_everywhere(sink.port)) == 0


def test_a_deadline_that_has_passed_opens_no_connection() -> None:
    with SmtpSink() as sink:
        outcome = held(sink.port, PLAIN, timeout_s=-1.0)
    assert sink.sessions == 0
    assert [name for name, _ in errors(outcome)] == ["CONNECT"]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5000))
def test_a_message_has_the_headers_of_rfc_5322_and_a_body_of_the_size_asked_for(size_bytes: int) -> None:
    message = Message(
        DEFAULT_SENDER, tuple(f"user{number}@{ACCEPTED_DOMAIN}" for number in range(5)), (BAD,), size_bytes
    )
    sent = compose(message, "1.2.3.4@sender.test")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert len(body) == size_bytes
    assert body.endswith(b"\r\n")
    assert b"\n" not in sent.replace(b"\r\n", b"")
    assert b"\r" not in sent.replace(b"\r\n", b"")
    assert max(map(len, sent.split(b"\r\n"))) <= 998
    parsed = email.message_from_bytes(sent, policy=email.policy.default)
    assert parsed["Message-ID"] == "<1.2.3.4@sender.test>"
    assert parsed["From"] == DEFAULT_SENDER
    assert [address.addr_spec for address in parsed["To"].addresses] == [*message.recipients, BAD]
    assert parsedate_to_datetime(parsed["Date"]).timestamp() == pytest.approx(time.time(), abs=60)
    assert b"\r\nSubject: " in head

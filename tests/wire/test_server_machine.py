"""The server machine: dialogues, limits, smuggling, and the same events for every split of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_under_test.wire import server
from mta_under_test.wire.address import Mailbox
from mta_under_test.wire.reply import LocalError, Reply
from mta_under_test.wire.server import Limits, ServerMachine, State

Answers = Callable[[server.Asked], Reply]


def yes(event: server.Asked) -> Reply:
    match event:
        case server.Connected():
            return Reply(220, "mx.test")
        case server.Data():
            return Reply(354, "go on")
        case server.Quit():
            return Reply(221, "bye")
        case server.Refused(reply):
            return reply
    return Reply(250, "ok")


def drive(machine: ServerMachine, chunks: Iterable[bytes], answer: Answers = yes) -> tuple[list[server.Event], bytes]:
    """All events, neighbouring pieces of a body joined, and all that the server says."""
    events: list[server.Event] = []
    out = b""
    for data in chunks:
        machine.receive(data)
        while (event := machine.next_event()) is not None:
            if isinstance(event, server.Body):
                if events and isinstance(last := events[-1], server.Body):
                    events[-1] = server.Body(last.chunk + event.chunk)
                else:
                    events.append(event)
                continue
            events.append(event)
            if isinstance(event, server.Closed):
                return events, out
            out += machine.reply(answer(event))
    return events, out


def but(kind: type[server.Asked], refusal: Reply) -> Answers:
    """Yes to everything but this."""
    return lambda event: refusal if isinstance(event, kind) else yes(event)


def talk(
    *lines: bytes, limits: Limits | None = None, answer: Answers = yes
) -> tuple[ServerMachine, list[server.Event]]:
    """A session that has said EHLO, and what came of these lines."""
    machine = ServerMachine(limits)
    drive(machine, [b"EHLO client.test\r\n"], answer)
    events, _ = drive(machine, list(lines), answer)
    return machine, events


def codes(events: list[server.Event]) -> list[str]:
    return [f"{event.reply.code} {event.reply.enhanced}" for event in events if isinstance(event, server.Refused)]


TO_DATA = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"


def test_a_whole_session() -> None:
    machine = ServerMachine()
    stream = b"EHLO client.test\r\nMAIL FROM:<a@b.test> SIZE=9 BODY=8BITMIME\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"
    stream += b"Hi\r\n\r\n..\r\n.x\r\n\xff\r\n.\r\nRSET\r\nNOOP\r\nVRFY c\r\nHELP\r\nQUIT\r\n"
    events, out = drive(machine, [stream, b""])
    assert events == [
        server.Connected(),
        server.Hello("client.test", extended=True),
        server.Mail(Mailbox("a", "b.test"), {"SIZE": "9", "BODY": "8BITMIME"}),
        server.Recipient(Mailbox("c", "d.test"), {}),
        server.Data(),
        server.Body(b"Hi\r\n\r\n.\r\nx\r\n\xff\r\n"),
        server.EndOfData(),
        server.Reset(),
        server.Noop(),
        server.Verify("c"),
        server.Help(""),
        server.Quit(),
        server.Closed(in_transaction=False, in_data=False),
    ]
    assert out.startswith(b"220 mx.test\r\n250 ok\r\n")
    assert out.endswith(b"221 bye\r\n")
    assert (machine.state, machine.messages) == (State.CLOSED, 1)


lines = st.sampled_from(
    [
        b"EHLO x.test",
        b"HELO x.test",
        b"MAIL FROM:<a@b.test>",
        b"mail from:<>  SIZE=3",
        b"RCPT TO:<c@d.test>",
        b"RCPT TO:<@r.test:c@d.test>",
        b"DATA",
        b"RSET",
        b"NOOP x",
        b"QUIT",
        b".",
        b"..x",
        b"",
        b"\xe9",
        b"MAIL FROM:",
        b"long " * 20,
        b"STARTTLS",
        b"bare\rcr",
        b"BDAT 7",
        b"BDAT 30 LAST",
        b"BDAT 60",
        b"BDAT x",
        b"MAIL FROM:<\xc3\xa9@b.test> SMTPUTF8",
        b"RCPT TO:<r@d.test> NOTIFY=NEVER",
        b"Received: x",
    ]
)
streams = st.lists(st.tuples(lines, st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n", b""])), max_size=15).map(
    lambda parts: b"".join(line + end for line, end in parts)
)
openings = st.sampled_from(
    [b"", b"EHLO x.test\r\n", b"EHLO x.test\r\n" + TO_DATA, b"EHLO x.test\r\n" + TO_DATA[:-6] + b"BDAT 9\r\n"]
)


def refusing(event: server.Asked) -> Reply:
    """Answers that depend on nothing but the event."""
    if isinstance(event, server.Recipient) and event.mailbox.local == "r":
        return Reply(550, "no", "5.1.1")
    return yes(event)


def without_bodies_of_refused(events: list[server.Event]) -> list[server.Event]:
    """How much of a message came before the machine saw what was wrong with it depends on the split."""
    kept: list[server.Event] = []
    for event in events:
        if isinstance(event, server.Refused) and event.ends_data and kept and isinstance(kept[-1], server.Body):
            kept.pop()
        kept.append(event)
    while kept and isinstance(kept[-1], server.Body):
        kept.pop()  # of a message that did not end
    return kept


@settings(deadline=None, max_examples=150)
@given(openings, streams, st.data())
def test_every_split_of_the_stream_gives_the_same_events(opening: bytes, tail: bytes, data: st.DataObject) -> None:
    stream = opening + tail
    limits = Limits(
        message_bytes=40, command_bytes=60, data_line_bytes=30, hops=2, failed_recipients=3, useless_commands=9
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]

    def machine() -> ServerMachine:
        return ServerMachine(limits, extensions=server.ALL_EXTENSIONS)

    whole, said = drive(machine(), [stream] if stream else [], refusing)
    split, said_split = drive(machine(), pieces, refusing)
    single, said_single = drive(machine(), [bytes([byte]) for byte in stream], refusing)
    assert without_bodies_of_refused(split) == without_bodies_of_refused(whole) == without_bodies_of_refused(single)
    assert said == said_split == said_single


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(max_size=20), max_size=10))
def test_no_bytes_break_it(junk: bytes, chunks: list[bytes]) -> None:
    machine = ServerMachine(extensions=server.ALL_EXTENSIONS)
    events, _ = drive(machine, [b"EHLO x\r\n", b"\r\n", *(chunk or b"." for chunk in chunks), junk or b".", b""])
    assert isinstance(events[-1], server.Closed)


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"EHLO\r\n", "501 5.5.4"),
        (b"EHLO two words\r\n", "501 5.5.4"),
        (b"RCPT TO:<c@d.test>\r\n", "503 5.5.1"),
        (b"DATA\r\n", "503 5.5.1"),
        (b"BOGUS\r\n", "500 5.5.1"),
        (b"\r\n", "500 5.5.1"),
        (b"STARTTLS\r\n", "502 5.5.1"),
        (b"RSET now\r\n", "501 5.5.4"),
        (b"QUIT now\r\n", "501 5.5.4"),
        (b"NOOP \x00\r\n", "500 5.5.2"),
        (b"NOOP \xc3\xa9\r\n", "500 5.5.2"),
        (b"NOOP\n", "500 5.5.2"),
        (b"NO\rOP\r\n", "500 5.5.2"),
        (b"NOOP\r\r\n", "500 5.5.2"),
        (b"NOOP " + b"x" * 3000 + b"\r\n", "500 5.5.2"),
        (b"MAIL TO:<a@b.test>\r\n", "501 5.5.4"),
        (b"MAIL FROM:a@b.test\r\n", "501 5.1.7"),
        (b"MAIL FROM:<postmaster>\r\n", "501 5.1.7"),
        (b"MAIL FROM:<a@b.test>SIZE=1\r\n", "501 5.5.4"),
        (b"MAIL FROM:<a@b.test> SIZE=x\r\n", "501 5.5.4"),
        (b"MAIL FROM:<a@b.test> SIZE=1 SIZE=1\r\n", "501 5.5.4"),
        (b"MAIL FROM:<a@b.test> BODY=9BIT\r\n", "501 5.5.4"),
        (b"MAIL FROM:<a@b.test> =x\r\n", "501 5.5.4"),
        (b"MAIL FROM:<a@b.test> RET=HDRS\r\n", "555 5.5.4"),
        (b"MAIL FROM:<a@b.test> SIZE=99999999999\r\n", "552 5.3.4"),
    ],
)
def test_the_machine_refuses_what_is_no_command_here(line: bytes, refusal: str) -> None:
    machine, events = talk(line)
    assert codes(events) == [refusal]
    assert machine.state is State.READY


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"MAIL FROM:<a@b.test>\r\n", "503 5.5.1"),
        (b"RCPT TO:<>\r\n", "501 5.1.3"),
        (b"RCPT TO:<c>\r\n", "501 5.1.3"),
        (b"RCPT TO:<c@d.test> NOTIFY=NEVER\r\n", "555 5.5.4"),
        (b"DATA\r\n", "503 5.5.1"),
    ],
)
def test_refused_within_a_transaction_which_goes_on(line: bytes, refusal: str) -> None:
    machine, events = talk(b"MAIL FROM:<a@b.test>\r\n", line)
    assert codes(events) == [refusal]
    assert machine.state is State.TRANSACTION


def test_commands_before_hello_and_parameters_after_helo() -> None:
    machine = ServerMachine()
    events, _ = drive(machine, [b"MAIL FROM:<a@b.test>\r\nRSET\r\nHELO c.test\r\nMAIL FROM:<a@b.test> SIZE=1\r\n"])
    assert codes(events) == ["503 5.5.1", "555 5.5.4"]
    assert server.Hello("c.test", extended=False) in events


def test_a_refused_greeting_leaves_only_quit() -> None:
    machine = ServerMachine()
    events, _ = drive(machine, [b"EHLO x.test\r\nNOOP\r\nQUIT\r\n"], but(server.Connected, Reply(554, "no")))
    assert codes(events) == ["503 5.5.1", "503 5.5.1"]
    assert machine.state is State.CLOSED


@pytest.mark.parametrize(("last", "kind"), [(b"QUIT\r\n", server.Quit), (b"NOOP\r\n", server.Noop)])
def test_nothing_is_read_after_quit_or_421(last: bytes, kind: type[server.Event]) -> None:
    machine, events = talk(
        last + b"MAIL FROM:<a@b.test>\r\n", b"RSET\r\n", b"", answer=but(server.Noop, Reply(421, ""))
    )
    assert [type(event) for event in events] == [kind, server.Closed]
    assert machine.state is State.CLOSED


def test_the_transaction_moves_with_the_replies() -> None:
    answers = {"a": Reply(451, "no"), "r": Reply(550, "no")}

    def answer(event: server.Asked) -> Reply:
        match event:
            case server.Mail(Mailbox(local)) | server.Recipient(Mailbox(local)):
                return answers.get(local, Reply(250, "ok"))
        return yes(event)

    machine, _ = talk(b"MAIL FROM:<a@b.test>\r\n", answer=answer)
    assert machine.state is State.READY
    drive(machine, [b"MAIL FROM:<b@b.test>\r\nRCPT TO:<r@d.test>\r\n"], answer)
    assert (machine.state, machine.recipients) == (State.TRANSACTION, 0)
    drive(machine, [b"RCPT TO:<c@d.test>\r\n"], answer)
    assert machine.recipients == 1
    drive(machine, [b"RSET\r\n"], answer)
    assert (machine.state, machine.recipients) == (State.READY, 0)


def test_refused_data_leaves_the_transaction_and_a_refused_end_closes_it() -> None:
    machine, _ = talk(TO_DATA, answer=but(server.Data, Reply(451, "no")))
    assert machine.state is State.TRANSACTION
    drive(machine, [b"DATA\r\nx\r\n.\r\n"], but(server.EndOfData, Reply(550, "no")))
    assert (machine.state, machine.messages) == (State.READY, 0)


def test_limits_of_recipients_and_messages() -> None:
    rcpt = b"RCPT TO:<c@d.test>\r\n"
    machine, events = talk(
        b"MAIL FROM:<a@b.test>\r\n" + 3 * rcpt + b"DATA\r\n.\r\nMAIL FROM:<a@b.test>\r\n",
        limits=Limits(recipients=2, messages=1),
    )
    assert codes(events) == ["452 4.5.3", "452 4.5.3"]
    assert machine.messages == 1


@pytest.mark.parametrize("split", [1, 7, 10_000])
def test_a_message_over_the_size_is_refused_at_its_end_and_the_session_goes_on(split: int) -> None:
    machine, _ = talk(TO_DATA, limits=Limits(message_bytes=10))
    stream = b"0123456789\r\n\r\n.\r\n" + TO_DATA + b"..345678\r\n.\r\n"
    events, _ = drive(machine, [stream[at : at + split] for at in range(0, len(stream), split)])
    assert codes(events) == ["552 5.3.4"]
    assert [event.ends_data for event in events if isinstance(event, server.Refused)] == [True]
    assert events[-2:] == [server.Body(b".345678\r\n"), server.EndOfData()]
    assert machine.messages == 1


@pytest.mark.parametrize(
    "end",
    [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n\n.\r\n", b"\r\n.\r\r\n", b"\0\n.\n"],
)
def test_no_other_end_of_data_smuggles_a_second_message(end: bytes) -> None:
    """CVE-2023-51764 and its siblings: one message goes in, and none comes out."""
    machine, _ = talk(TO_DATA)
    events, _ = drive(
        machine, [b"first" + end + b"MAIL FROM:<evil@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nx\r\n.\r\n"]
    )
    kinds = [type(event) for event in events if not isinstance(event, server.Body)]
    assert kinds == [server.Refused]
    assert codes(events) == ["550 5.6.11"]
    assert (machine.state, machine.messages) == (State.READY, 0)


def test_a_line_of_content_may_be_long_but_not_endless() -> None:
    limits = Limits(data_line_bytes=100)
    _, good = talk(TO_DATA + b"x" * 100 + b"\r\n.\r\n", limits=limits)
    assert good[-1] == server.EndOfData()
    _, bad = talk(TO_DATA, b"x" * 60, b"x" * 41, b"\r\n.\r\n", limits=limits)
    assert codes(bad) == ["500 5.6.0"]


def test_an_overlong_command_is_not_kept_and_answered_once() -> None:
    machine, events = talk(*[b"x" * 1000] * 50, b"\r\nNOOP\r\n")
    assert codes(events) == ["500 5.5.2"]
    assert events[0] == server.Refused(Reply(500, "Line too long", "5.5.2"), b"x" * 128)
    assert events[1] == server.Noop()
    assert machine.state is State.READY


@pytest.mark.parametrize(
    ("stream", "closed"),
    [
        (b"", server.Closed(False, False)),
        (b"MAIL FROM:<a@b.test>\r\n", server.Closed(True, False)),
        (TO_DATA + b"half a li", server.Closed(True, True)),
        (TO_DATA + b"x\r\n.\r\nRS", server.Closed(False, False)),
    ],
)
def test_the_end_of_file_says_what_was_open(stream: bytes, closed: server.Closed) -> None:
    machine, _ = talk(stream or b"NOOP\r\n")
    assert drive(machine, [b""])[0][-1] == closed


def test_the_end_of_file_waits_until_what_was_pipelined_is_answered() -> None:
    machine, _ = talk(b"NOOP\r\n")
    machine.receive(b"NOOP\r\nMAIL FROM:<a@b.test>\r\n")
    events, _ = drive(machine, [b""])
    assert [type(event) for event in events] == [server.Noop, server.Mail, server.Closed]
    assert machine.state is State.CLOSED


def test_one_reply_for_each_event() -> None:
    machine = ServerMachine()
    assert machine.next_event() == server.Connected()
    assert machine.next_event() is None
    machine.reply(Reply(220, "hello"))
    with pytest.raises(LocalError, match="nothing was asked"):
        machine.reply(Reply(250, "again"))


def test_replies_that_would_break_the_protocol_are_mistakes_of_the_shell() -> None:
    machine, _ = talk(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    machine.receive(b"DATA\r\n")
    machine.next_event()
    with pytest.raises(LocalError, match="cannot answer Data"):
        machine.reply(Reply(250, "ok"))
    machine.reply(Reply(554, "no"))
    machine.receive(b"BOGUS\r\n")
    machine.next_event()
    with pytest.raises(LocalError, match="cannot answer Refused"):
        machine.reply(Reply(250, "ok"))


def test_extensions_are_offered_and_may_be_left_out() -> None:
    assert ServerMachine(Limits(message_bytes=99)).ehlo_reply("mx.test", "c.test").lines[1:] == (
        "8BITMIME",
        "ENHANCEDSTATUSCODES",
        "SIZE 99",
        "PIPELINING",
        "HELP",
    )
    machine = ServerMachine(extensions=("PIPELINING",))
    assert machine.ehlo_reply("mx.test", "c.test").lines[1:] == ("PIPELINING",)
    events, out = drive(machine, [b"EHLO c.test\r\nMAIL FROM:<a@b.test> SIZE=1\r\n"])
    assert codes(events) == ["555 5.5.4"]
    assert out.endswith(b"\r\n555 Parameter not supported: SIZE\r\n")

"""The client machine: replies matched to commands, dots, misuse, nonsense, and sessions with the server machine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_under_test.wire import server
from mta_under_test.wire.client import ClientMachine, LocalError, RemoteError
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import ServerMachine


def greeted(*extensions: str) -> ClientMachine:
    machine = ClientMachine()
    machine.receive(b"220 mx.test\r\n")
    assert machine.next_reply() == ("connect", Reply(220, "mx.test"))
    machine.ehlo("client.test")
    machine.receive(Reply(250, ("mx.test", *extensions)).encode())
    assert machine.next_reply() is not None
    return machine


def in_data() -> ClientMachine:
    machine = greeted()
    machine.data()
    machine.receive(b"354 go on\r\n")
    assert machine.next_reply() == ("DATA", Reply(354, "go on"))
    return machine


def test_the_commands_as_they_are_sent() -> None:
    machine = greeted("SIZE 1000", "8bitmime", "AUTH PLAIN LOGIN")
    assert machine.extensions == {"SIZE": "1000", "8BITMIME": "", "AUTH": "PLAIN LOGIN"}
    assert machine.mail("") == b"MAIL FROM:<>\r\n"
    assert machine.mail("a@b.test", size=5, eight_bit=True) == b"MAIL FROM:<a@b.test> SIZE=5 BODY=8BITMIME\r\n"
    assert machine.rcpt("c@d.test") == b"RCPT TO:<c@d.test>\r\n"
    assert machine.rset() + machine.noop() + machine.quit() == b"RSET\r\nNOOP\r\nQUIT\r\n"
    assert machine.helo("x") == b"HELO x\r\n"


def test_replies_answer_commands_in_order() -> None:
    machine = greeted()
    machine.mail("a@b.test")
    machine.rcpt("c@d.test")
    machine.data()
    machine.receive(b"250 ok\r\n550 5.1.1 no\r\n55")
    assert machine.next_reply() == ("MAIL", Reply(250, "ok"))
    assert machine.next_reply() == ("RCPT", Reply(550, "no", "5.1.1"))
    assert machine.next_reply() is None
    machine.receive(b"4 none\r\n")
    assert machine.next_reply() == ("DATA", Reply(554, "none"))
    assert machine.rset() == b"RSET\r\n"


def test_helo_forgets_the_extensions() -> None:
    machine = greeted("SIZE 1000")
    machine.helo("x")
    machine.receive(b"250 mx\r\n")
    machine.next_reply()
    assert machine.extensions == {}


@settings(deadline=None)
@given(st.text("\r\n.a", max_size=30).map(str.encode), st.data())
def test_stuffing_does_not_depend_on_the_split(content: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    machine = in_data()
    pieces = [machine.body(content[a:b]) for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    whole = in_data()
    assert b"".join(pieces) + machine.end_of_data() == whole.body(content) + whole.end_of_data()


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"", b".\r\n"),
        (b"x", b"x\r\n.\r\n"),
        (b"x\r\n", b"x\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"..x\r\n.", b"...x\r\n..\r\n.\r\n"),
        (b"x\r\n.\r\ny", b"x\r\n..\r\ny\r\n.\r\n"),
        (b"x\n.\r\ny\r\n", b"x\n..\r\ny\r\n.\r\n"),
        (b"\xff\x00\r\n", b"\xff\x00\r\n.\r\n"),
    ],
)
def test_dots_and_the_end(content: bytes, sent: bytes) -> None:
    machine = in_data()
    assert machine.body(content) + machine.end_of_data() == sent


def test_every_message_begins_on_a_new_line() -> None:
    machine = in_data()
    assert machine.body(b"no line end") + machine.end_of_data() == b"no line end\r\n.\r\n"
    machine.receive(b"250 ok\r\n")
    assert machine.next_reply() == ("end", Reply(250, "ok"))
    machine.data()
    machine.receive(b"354 go on\r\n")
    machine.next_reply()
    assert machine.body(b".") + machine.end_of_data() == b"..\r\n.\r\n"


def test_misuse_is_told() -> None:
    fresh = ClientMachine()
    with pytest.raises(LocalError, match="greeting"):
        fresh.ehlo("x")
    machine = greeted()
    with pytest.raises(LocalError, match="354"):
        machine.body(b"x")
    with pytest.raises(LocalError, match="does not offer SIZE"):
        machine.mail("a@b.test", size=1)
    with pytest.raises(LocalError, match="does not offer 8BITMIME"):
        machine.mail("a@b.test", eight_bit=True)
    with pytest.raises(LocalError, match="printable ASCII"):
        machine.rcpt("x>\r\nRSET\r\n")
    machine.data()
    with pytest.raises(LocalError, match="before the reply to DATA"):
        machine.rset()
    machine.receive(b"354 go\r\n")
    machine.next_reply()
    with pytest.raises(LocalError, match="in the middle of a message"):
        machine.quit()


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"nonsense\r\n", "not a reply line"),
        (b"250 " + b"x" * 5000, "more than 4096 bytes"),
        (b"250 ok\r\n", "a reply to nothing: 250 ok"),
    ],
)
def test_nonsense_of_the_peer_is_told(stream: bytes, complaint: str) -> None:
    machine = greeted()
    machine.receive(stream)
    with pytest.raises(RemoteError, match=complaint):
        machine.next_reply()


def test_354_belongs_to_data_only() -> None:
    machine = greeted()
    machine.noop()
    machine.receive(b"354 go on\r\n")
    with pytest.raises(RemoteError, match="NOOP was answered with 354"):
        machine.next_reply()
    other = greeted()
    other.data()
    other.receive(b"250 ok\r\n")
    with pytest.raises(RemoteError, match="DATA was answered with 250"):
        other.next_reply()


def test_a_server_that_hangs_up_of_its_own_accord() -> None:
    machine = greeted()
    machine.receive(b"421 4.4.2 too slow\r\n")
    machine.receive(b"")
    assert not machine.extensions
    assert machine.next_reply() == ("closing", Reply(421, "too slow", "4.4.2"))
    assert machine.next_reply() is None
    assert machine.closed


contents = st.lists(
    st.sampled_from([b"", b".", b"..", b".\t", b"x", b"MAIL FROM:<x@y.test>"])
    | st.binary(max_size=20).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")),
    max_size=8,
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
refusals = st.dictionaries(
    st.sampled_from(["mail", "data", "end", "rcpt0", "rcpt1"]), st.sampled_from([450, 550]), max_size=2
)


class Pair:
    """A client machine and a server machine, and a wire between them that splits as it likes."""

    def __init__(self, data: st.DataObject) -> None:
        self.client = ClientMachine()
        self.server = ServerMachine()
        self.received: list[tuple[str, list[str], bytes]] = []
        self.refused: dict[str, int] = {}  # what is refused now, and how
        self._data = data
        self._sender = ""
        self._recipients: list[str] = []
        self._body = b""

    def send(self, stream: bytes) -> None:
        cut = self._data.draw(st.integers(0, len(stream)))
        for piece in (stream[:cut], stream[cut:]):
            if piece:
                self.server.receive(piece)
            self._serve()

    def reply(self) -> Reply:
        answered = self.client.next_reply()
        assert answered is not None
        return answered[1]

    def _serve(self) -> None:
        while (event := self.server.next_event()) is not None:
            if isinstance(event, server.Body):
                self._body += event.chunk
                continue
            assert not isinstance(event, server.Closed | server.Refused)
            reply = self._answer(event)
            out = self.server.reply(reply)
            cut = self._data.draw(st.integers(0, len(out)))
            self.client.receive(out[:cut] or out)
            if 0 < cut < len(out):
                self.client.receive(out[cut:])

    def _answer(self, event: server.Asked) -> Reply:
        match event:
            case server.Connected():
                return Reply(220, "mx.test")
            case server.Hello(name):
                return self.server.ehlo_reply("mx.test", name)
            case server.Mail(sender):
                self._sender, self._recipients, self._body = str(sender or ""), [], b""
                return self._unless("mail", Reply(250, "ok"))
            case server.Recipient(mailbox):
                reply = self._unless(mailbox.local, Reply(250, "ok"))
                if reply.positive:
                    self._recipients.append(str(mailbox))
                return reply
            case server.Data():
                return self._unless("data", Reply(354, "go on"))
            case server.EndOfData():
                reply = self._unless("end", Reply(250, "ok"))
                if reply.positive:
                    self.received.append((self._sender, self._recipients, self._body))
                return reply
        return Reply(250, "ok")

    def _unless(self, what: str, reply: Reply) -> Reply:
        return Reply(self.refused[what], "no") if what in self.refused else reply


@settings(deadline=None, max_examples=60)
@given(st.data(), st.lists(st.tuples(contents, refusals), min_size=1, max_size=3))
def test_what_is_not_refused_arrives_exactly_as_sent(
    data: st.DataObject, mails: list[tuple[bytes, dict[str, int]]]
) -> None:
    pair = Pair(data)
    pair.send(b"")
    assert pair.reply().code == 220
    pair.send(pair.client.ehlo("client.test"))
    assert pair.reply().positive
    expected = []
    for number, (content, refused) in enumerate(mails):
        pair.refused = refused
        sender = f"s{number}@b.test" if number else ""
        accepted = [f"rcpt{i}@d.test" for i in range(2) if f"rcpt{i}" not in refused]
        pair.send(pair.client.mail(sender, size=len(content)))
        if pair.reply().positive:
            for i in range(2):
                pair.send(pair.client.rcpt(f"rcpt{i}@d.test"))
                assert pair.reply().positive == (f"rcpt{i}@d.test" in accepted)
        if "mail" not in refused and accepted:
            pair.send(pair.client.data())
            if pair.reply().positive:
                cut = data.draw(st.integers(0, len(content)))
                pair.send(pair.client.body(content[:cut]))
                pair.send(pair.client.body(content[cut:]))
                pair.send(pair.client.end_of_data())
                if pair.reply().positive:
                    expected.append((sender, accepted, content))
                    assert not {"data", "end"} & refused.keys()
        pair.send(pair.client.rset())
        assert pair.reply().positive
    assert pair.received == expected
    assert pair.server.messages == len(expected)

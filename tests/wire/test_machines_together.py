"""The client machine against the server machine: whatever is said, and however the wire cuts it, both agree."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mta_under_test.wire import server
from mta_under_test.wire.client import ClientMachine
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import ALL_EXTENSIONS, ServerMachine, State

lines = st.lists(
    st.sampled_from([b"", b".", b"..", b".x", b"Subject: hi", b"RSET", b"QUIT", b"\xff\x00", b"y" * 70]), max_size=6
)
addresses = st.sampled_from(["a@b.test", '"a b"@c.test', "x@[192.0.2.1]", "é@bücher.test", ""])


class Conversation(RuleBasedStateMachine):
    """Two machines, and the bytes between them. `expected` is what the server should have seen by now."""

    @initialize(extensions=st.sets(st.sampled_from(ALL_EXTENSIONS)), cut=st.integers(1, 40))
    def connect(self, extensions: set[str], cut: int) -> None:
        self.server = ServerMachine(extensions=tuple(sorted(extensions)))
        self.client = ClientMachine()
        self.cut = cut
        self.seen: list[server.Event] = []
        self.body = b""
        self.refuse: Reply | None = None
        self.transfer(b"")
        assert self.last == ("connect", Reply(220, "mx.test"))
        self.say(self.client.ehlo("client.test"))

    # ---- the wire

    def transfer(self, data: bytes) -> None:
        """Client to server in pieces; each reply back in pieces."""
        pieces = [data[at : at + self.cut] for at in range(0, len(data), self.cut)] or [b""]
        self.last: tuple[str, Reply] | None = None
        self.answers = 0
        for piece in pieces:
            if piece:
                self.server.receive(piece)
            while (event := self.server.next_event()) is not None:
                if isinstance(event, server.Body):
                    self.body += event.chunk
                    continue
                self.seen.append(event)
                assert not isinstance(event, server.Closed)
                out = self.server.reply(self.answer(event))
                for at in range(0, len(out), self.cut):
                    self.client.receive(out[at : at + self.cut])
                while (answered := self.client.next_reply()) is not None:
                    self.last = answered
                    self.answers += 1

    def answer(self, event: server.Asked) -> Reply:
        refusal, self.refuse = self.refuse, None
        match event:
            case server.Refused(reply=reply):
                return reply
            case server.Connected():
                return Reply(220, "mx.test")
            case server.Hello(name=name):
                return self.server.ehlo_reply("mx.test", name)
            case server.Quit():
                return Reply(221, "bye")
        if refusal is not None:
            return refusal
        return Reply(354, "go on") if isinstance(event, server.Data) else Reply(250, "ok", "2.0.0")

    def say(self, command: bytes) -> Reply:
        self.transfer(command)
        assert self.answers == 1, "one command, one reply"
        assert self.last is not None
        return self.last[1]

    # ---- what a client may do

    @rule(sender=addresses, refused=st.booleans())
    def mail(self, sender: str, refused: bool) -> None:
        utf8 = not sender.isascii()
        if utf8 and "SMTPUTF8" not in self.client.extensions:
            return
        dsn = {"RET": "HDRS", "ENVID": "x+2Dy"} if "DSN" in self.client.extensions else {}
        size = 100 if "SIZE" in self.client.extensions else None
        before = self.server.state
        self.refuse = Reply(451, "later") if refused else None
        reply = self.say(self.client.mail(sender, size=size, dsn=dsn, utf8=utf8))
        self.refuse = None
        if before is State.READY:
            event = self.seen[-1]
            assert isinstance(event, server.Mail)
            assert ("" if event.sender is None else str(event.sender)) == sender
            assert event.parameters.get("ENVID", "") == dsn.get("ENVID", "")
            assert (self.server.state is State.TRANSACTION) is not refused
        else:
            assert reply.code == 503

    @rule(address=addresses.filter(lambda address: address.isascii() and bool(address)), refused=st.booleans())
    def rcpt(self, address: str, refused: bool) -> None:
        before, count = self.server.state, self.server.recipients
        self.refuse = Reply(550, "no") if refused else None
        reply = self.say(self.client.rcpt(address))
        self.refuse = None
        if before is State.TRANSACTION:
            assert reply.positive is not refused
            assert self.server.recipients == count + (not refused)
        else:
            assert reply.code == 503

    @rule(content=lines, chunk=st.integers(1, 20), refused=st.booleans())
    def data(self, content: list[bytes], chunk: int, refused: bool) -> None:
        may = self.server.state is State.TRANSACTION and self.server.recipients > 0
        reply = self.say(self.client.data())
        if not may:
            assert reply.code == 503
            return
        assert reply.code == 354
        message = b"".join(line + b"\r\n" for line in content)
        self.body = b""
        sent = b"".join(self.client.body(message[at : at + chunk]) for at in range(0, len(message), chunk))
        self.refuse = Reply(554, "no") if refused else None
        reply = self.say(sent + self.client.end_of_data())
        assert reply.positive is not refused
        assert isinstance(self.seen[-1], server.EndOfData)
        assert self.body == message
        assert self.server.state is State.READY

    @rule()
    def rset(self) -> None:
        assert self.say(self.client.rset()).positive
        assert self.server.state is State.READY

    @rule()
    def noop(self) -> None:
        before = self.server.state
        assert self.say(self.client.noop()).positive
        assert self.server.state is before

    @rule()
    def ehlo_again(self) -> None:
        assert self.say(self.client.ehlo("client.test")).positive
        assert self.server.state is State.READY

    @rule()
    def quit_and_come_back(self) -> None:
        assert self.say(self.client.quit()).code == 221
        assert self.server.state is State.CLOSED
        self.connect(set(self.server.extensions), self.cut)

    @invariant()
    def both_know_the_same_extensions(self) -> None:
        if hasattr(self, "server"):
            assert set(self.client.extensions) == set(self.server.extensions)


TestConversation = pytest.mark.timeout(120)(Conversation.TestCase)
TestConversation.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

"""The parsers, each as a function of bytes that raises when something is wrong: the errors a parser may raise are not.

Beside not falling over, each has something to prove: that every split of a stream gives the same, that what is
understood can be written and read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mta_under_test.config.lexer import Lexer, LexError
from mta_under_test.config.parser import ParseError, parse
from mta_under_test.wire import command, envelope, filter_protocol, imsg, proxy, server
from mta_under_test.wire.address import AddressError, parse_mailbox, parse_path
from mta_under_test.wire.client import ClientMachine, RemoteError
from mta_under_test.wire.content import Chunks, Stuffing, Unstuffing
from mta_under_test.wire.reply import Reply, ReplyDecoder, ReplyError
from mta_under_test.wire.server import ALL_EXTENSIONS, Limits, ServerMachine

Target = Callable[[bytes], None]

MAX_MISTAKES = 100  # in one configuration, before the reader gives up
LIMITS = Limits(
    message_bytes=200, command_bytes=100, data_line_bytes=80, recipients=3, messages=3, hops=3, failed_recipients=4
)


def pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The stream, and a way to cut it: the first byte says how long the pieces are."""
    length, stream = (data[0] % 23 + 1, data[1:]) if data else (1, b"")
    return stream, [stream[at : at + length] for at in range(0, len(stream), length)]


def _events(chunks: list[bytes]) -> tuple[list[object], bytes]:
    machine = ServerMachine(LIMITS, extensions=ALL_EXTENSIONS)
    events: list[object] = []
    body, out = b"", b""
    for chunk in [*chunks, b""]:
        machine.receive(chunk)
        while (event := machine.next_event()) is not None:
            match event:
                case server.Body(chunk=piece):
                    body += piece
                    continue
                case server.Closed():
                    return [*events, event], out
                case server.Refused(reply=reply, ends_data=True):
                    body = b""  # how much of it came depends on the split
                case server.Refused(reply=reply):
                    pass
                case server.Connected():
                    reply = Reply(220, "x")
                case server.Data():
                    reply = Reply(354, "x")
                case server.Recipient(mailbox=mailbox) if mailbox.local == "r":
                    reply = Reply(550, "x")
                case server.Quit():
                    reply = Reply(221, "x")
                case _:
                    reply = Reply(250, "x")
            if isinstance(event, server.EndOfData):
                assert b"\r" not in body.replace(b"\r\n", b""), "a bare CR was accepted"
                assert b"\n" not in body.replace(b"\r\n", b""), "a bare LF was accepted"
                assert len(body) <= LIMITS.message_bytes
                events.append(body)
                body = b""
            events.append(event)
            out += machine.reply(reply)
    raise AssertionError("the end of the stream closes the machine")


def server_machine(data: bytes) -> None:
    stream, cut = pieces(data)
    assert _events(cut) == _events([stream] if stream else [])


def client_machine(data: bytes) -> None:
    _, cut = pieces(data)
    machine = ClientMachine()
    said: list[Callable[[], bytes]] = [
        lambda: machine.ehlo("client.test"),
        lambda: machine.mail("a@b.test"),
        lambda: machine.rcpt("c@d.test"),
        machine.data,
    ]
    try:
        for chunk in [*cut, b""]:
            machine.receive(chunk)
            while (answered := machine.next_reply()) is not None:
                if answered[0] == "DATA" and answered[1].code == 354:
                    machine.body(b"x")
                    machine.end_of_data()
                elif answered[0] != "closing" and said:
                    said.pop(0)()
    except RemoteError:
        return


def _replies(chunks: list[bytes]) -> Iterator[Reply | str]:
    decoder = ReplyDecoder()
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while (reply := decoder.next()) is not None:
                yield reply
    except ReplyError:
        yield "error"


def reply(data: bytes) -> None:
    stream, cut = pieces(data)
    found = list(_replies(cut))
    assert found == list(_replies([stream]))
    for one in found:
        if isinstance(one, Reply):
            again = list(_replies([one.encode()]))
            assert len(again) == 1, "a reply that is written is one reply"
            assert isinstance(again[0], Reply)
            assert again[0].code == one.code


def address(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        mailbox, rest = parse_path(text)
    except AddressError:
        return
    assert text.endswith(rest)
    assert mailbox is None or not mailbox.domain or parse_mailbox(str(mailbox)) == mailbox


def commands(data: bytes) -> None:
    try:
        verb, argument = command.split(data + b"\r\n", ALL_EXTENSIONS)
        assert "\r" not in argument
        assert "\n" not in argument
        if verb == "BDAT":
            command.chunk(argument)
        else:
            command.parse(verb, argument, command.MAIL_PARAMETERS, command.RECIPIENT_PARAMETERS)
    except command.Wrong as wrong:
        if wrong.reply.code < 400:
            raise


def content(data: bytes) -> None:
    stream, cut = pieces(data)
    stuffing = Stuffing()
    sent = b"".join(stuffing.put(chunk) for chunk in cut) + stuffing.end()
    unstuffing = Unstuffing()
    buffer = bytearray(b"\r\n" + sent + b"NOOP\r\n")
    received = b""
    while not unstuffing.ended:
        before = len(buffer)
        received += unstuffing.take(buffer)
        assert unstuffing.ended or len(buffer) < before
    chunks = Chunks()
    for at, chunk in enumerate(cut):
        chunks.begin(len(chunk), at == len(cut) - 1)
        while chunks.left_bytes:
            chunks.take(bytearray(chunk))
    bare = b"\r" in (plain := stream.replace(b"\r\n", b"")) or b"\n" in plain
    assert chunks.has_bare == bare
    if not bare:
        assert not unstuffing.has_bare
        assert received == stream or received == stream + b"\r\n"
        assert bytes(buffer) == b"NOOP\r\n"


def envelopes(data: bytes) -> None:
    try:
        found = envelope.decode(data)
    except envelope.EnvelopeError:
        return
    assert envelope.decode(envelope.encode(found)) == found


def _frames(chunks: list[bytes]) -> list[object]:
    decoder = imsg.Decoder()
    found: list[object] = []
    try:
        for chunk in chunks:
            found += decoder.feed(chunk)
    except imsg.ImsgError:
        found.append("error")
    return found


def frames(data: bytes) -> None:
    stream, cut = pieces(data)
    whole = _frames([stream])
    # A frame before a bad one may come or not, by the split; what comes is the same.
    assert [one for one in _frames(cut) if one != "error"][: len(whole)] == [one for one in whole if one != "error"]


def configuration(data: bytes) -> None:
    """The text alone: what statements mean is looked up in files and interfaces, which chance should not choose."""
    lexer = Lexer(data.decode(errors="replace"), {"macro": "value"})
    for _ in range(MAX_MISTAKES):
        try:
            tokens = lexer.statement()
            if tokens is None:
                return
            parse(tokens, lexer.end_of(tokens))
        except (LexError, ParseError) as error:
            lexer.skip_past(error.token)


def proxy_header(data: bytes) -> None:
    try:
        whole = proxy.parse(data)
    except proxy.ProxyError:
        return
    for cut in range(0, len(data), 7):
        assert proxy.parse(data[:cut]) in (None, whole)
    if whole is not None and whole.source is not None and whole.destination is not None:
        try:
            again = proxy.parse(proxy.encode(whole.source, whole.destination))
        except ValueError:
            return  # one of them was an IPv4 address in IPv6's clothes, and the other not
        assert again is not None
        assert again[1:] == whole[1:]


def filter_lines(data: bytes) -> None:
    try:
        filter_protocol.parse(data)
    except filter_protocol.FilterProtocolError:
        return
    assert data.startswith((b"register|", b"filter-result|", b"filter-dataline|"))


TARGETS: dict[str, Target] = {
    "server": server_machine,
    "client": client_machine,
    "reply": reply,
    "address": address,
    "command": commands,
    "content": content,
    "envelope": envelopes,
    "imsg": frames,
    "config": configuration,
    "proxy": proxy_header,
    "filter": filter_lines,
}

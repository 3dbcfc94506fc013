"""The server's side of SMTP (RFC 5321), without I/O: bytes in, events out, replies in, bytes out.

Owns: the order of commands, the limits, pipelining. Everything that moves the state is here.
Never: decides who may send to whom; the shell answers every event, and its reply's code moves the state.

    machine.receive(data)              # b"" is end of file
    event = machine.next_event()       # None: more bytes are needed, or the last event still waits for its reply
    out = machine.reply(Reply(250, "Ok", "2.0.0"))

Pipelined commands (RFC 2920) stay in the buffer until the one before them has its reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from msgspec.structs import replace

from mta_under_test.wire import command
from mta_under_test.wire.command import Wrong
from mta_under_test.wire.content import Chunks, Content, Unstuffing
from mta_under_test.wire.events import (
    Asked,
    Auth,
    AuthResponse,
    Body,
    Closed,
    Command,
    Connected,
    Data,
    EndOfChunk,
    EndOfData,
    Event,
    Expand,
    Hello,
    Help,
    Mail,
    Noop,
    Quit,
    Recipient,
    Refused,
    Reset,
    StartTls,
    Verify,
)
from mta_under_test.wire.reply import LocalError, Reply

__all__ = [
    "ALL_EXTENSIONS",
    "EXTENSIONS",
    "Asked",
    "Auth",
    "AuthResponse",
    "Body",
    "Closed",
    "Command",
    "Connected",
    "Data",
    "EndOfChunk",
    "EndOfData",
    "Event",
    "Expand",
    "Hello",
    "Help",
    "Limits",
    "LocalError",
    "Mail",
    "Noop",
    "Quit",
    "Recipient",
    "Refused",
    "Reset",
    "ServerMachine",
    "StartTls",
    "State",
    "Verify",
]

EXTENSIONS = ("8BITMIME", "ENHANCEDSTATUSCODES", "SIZE", "PIPELINING", "HELP")
ALL_EXTENSIONS = (*EXTENSIONS[:-1], "DSN", "SMTPUTF8", "CHUNKING", "HELP")


@dataclass(frozen=True)
class Limits:
    message_bytes: int = 35 << 20
    recipients: int = 1000  # accepted ones, of one message
    messages: int = 100  # accepted ones, of one session
    command_bytes: int = 2048  # RFC 5321 §4.5.3.1.4 asks for 512, and more where extensions add parameters
    data_line_bytes: int = 1 << 20  # RFC 5321 §4.5.3.1.6 asks for 1,000; real mail exceeds it
    hops: int = 100  # Received fields: a message that has so many goes round in circles (RFC 5321 §6.3)
    failed_recipients: int = 0  # refused ones, of one session: the last of them gets 421. 0: no limit
    useless_commands: int = 0  # since the last accepted message: the last of them gets 421. 0: no limit


class State(Enum):
    __hash__ = object.__hash__  # theirs hashes the name, in Python, at every look-up below

    CONNECTED = auto()  # not greeted yet
    UNWELCOME = auto()  # greeted with a refusal: nothing but QUIT (RFC 5321 §3.1)
    GREETED = auto()
    READY = auto()  # EHLO or HELO was accepted
    TRANSACTION = auto()  # MAIL was accepted
    DATA = auto()  # between 354 and the reply to the end of the data
    CHUNK = auto()  # after a BDAT, until the reply to its chunk
    CHUNKED = auto()  # between the chunks of a message
    AUTHENTICATING = auto()  # between 334 and what the client answers
    CLOSED = auto()  # end of file, or we said 221 or 421: nothing that still arrives is read


# Where an event may occur, and where a positive reply to it leads. A refusal leaves the state alone, except that a
# refused greeting makes UNWELCOME, any reply to the end of the data ends the transaction, and 421 closes everything.
_SPOKEN = (State.GREETED, State.READY, State.TRANSACTION, State.CHUNKED)
_ANYTIME = {state: state for state in _SPOKEN}
_TRANSITIONS: dict[type[Asked], dict[State, State]] = {
    Connected: {State.CONNECTED: State.GREETED},
    Hello: dict.fromkeys(_SPOKEN, State.READY),
    Mail: {State.READY: State.TRANSACTION},
    Recipient: {State.TRANSACTION: State.TRANSACTION},
    Data: {State.TRANSACTION: State.DATA},
    EndOfData: {State.DATA: State.READY, State.CHUNK: State.READY},
    EndOfChunk: {State.CHUNK: State.CHUNKED},
    Reset: {**_ANYTIME, State.TRANSACTION: State.READY, State.CHUNKED: State.READY},
    Noop: _ANYTIME,
    Verify: _ANYTIME,
    Expand: _ANYTIME,
    Help: _ANYTIME,
    StartTls: {State.GREETED: State.GREETED, State.READY: State.GREETED},
    Auth: {State.READY: State.READY},
    AuthResponse: {State.AUTHENTICATING: State.READY},
    Quit: dict.fromkeys((*_SPOKEN, State.UNWELCOME), State.CLOSED),
}
_OUT_OF_ORDER = {
    State.UNWELCOME: "You were turned away; send QUIT",
    State.GREETED: "Send EHLO or HELO first",
    State.READY: "Send MAIL first",
    State.TRANSACTION: "Finish this transaction, or send RSET",
    State.CHUNKED: "Send BDAT, or RSET",
}
# What is made of the bytes: lines, where nothing is said. An Enum looks its members up in its metaclass, six times
# as slowly as other names are found; a table needs none of them at run time.
_READS = {
    **dict.fromkeys(State, "lines"),
    State.CONNECTED: "nothing",
    State.CLOSED: "nothing",
    State.DATA: "data",
    State.CHUNK: "chunk",
}
_IN_DATA = (State.DATA, State.CHUNK, State.CHUNKED)
_USELESS = (Hello, Reset, Noop, Verify, Expand, Help, Refused)  # they bring no mail any further
_HANG_UP = (421, 521)
_QUOTED_BYTES = 128  # of a line, in Refused


class ServerMachine:
    """One session. `recipients` and `messages` count what was accepted, in this transaction and in this session."""

    def __init__(self, limits: Limits | None = None, *, extensions: tuple[str, ...] = EXTENSIONS) -> None:
        self.state = State.CONNECTED
        self.recipients = 0
        self.messages = 0
        self.extensions = extensions
        self.authenticated = False
        self.needs_tls = False  # before MAIL and AUTH
        self.needs_auth = False  # before MAIL
        self._extended = False  # the client said EHLO
        self._limits = limits or Limits()
        self._buffer = bytearray()
        self._ended = False
        self._asked: Asked | None = None  # the event that waits for its reply
        self._mail_parameters: tuple[str, ...] = ()  # that MAIL may have
        self._recipient_parameters: tuple[str, ...] = ()  # that RCPT may have
        self._utf8 = False  # the transaction's addresses may have UTF-8
        self._failed_recipients = 0
        self._useless_commands = 0
        self._overlong = False  # the buffer holds the beginning of a command line that is too long
        self._content = Unstuffing()
        self._chunks = Chunks()
        self._announced: tuple[int, bool] | None = None  # the first chunk, while its Data waits for the reply
        self._skip_bytes = 0  # of a chunk that nobody wants

    # ---- the shell's side

    def receive(self, data: bytes) -> None:
        """Bytes from the peer; b"" says that there will be no more."""
        if not data:
            self._ended = True
        elif self.state is not State.CLOSED:
            self._buffer += data

    def next_event(self) -> Event | None:
        """The next thing that the peer did. None: more bytes are needed, or a reply is owed."""
        if self._asked is not None:
            return None
        event = self._next()
        if event is None and self._ended:
            in_data = self.state in _IN_DATA
            closed = Closed(in_data or self.state is State.TRANSACTION, in_data)
            self._close()
            return closed
        if event is not None and not isinstance(event, Body):
            self._asked = event
        return event

    def reply(self, reply: Reply) -> bytes:
        """Answer the event in hand; gives the bytes to send. Raises LocalError if it takes no such reply."""
        asked = self._asked
        if asked is None:
            raise LocalError(f"nothing was asked that {str(reply)!r} could answer")
        goes_on = isinstance(asked, Data) or (isinstance(asked, (Auth, AuthResponse)) and reply.code == 334)
        if reply.positive and (isinstance(asked, Refused) or (reply.code >= 300) != goes_on):
            raise LocalError(f"{str(reply)!r} cannot answer {type(asked).__name__}")
        self._asked = None
        announced, self._announced = self._announced, None
        reply = self._judged(asked, reply)
        if reply.positive and announced is not None:
            self._begin_chunk(*announced)
            return b""
        if reply.code == 334:
            self.state = State.AUTHENTICATING
        elif reply.positive:
            self.state = _TRANSITIONS[type(asked)][self.state]
            self._accepted(asked)
        elif isinstance(asked, Connected):
            self.state = State.UNWELCOME
        elif self.state in (State.DATA, State.CHUNK, State.AUTHENTICATING):
            self.state = State.READY
        elif announced is not None:
            self._skip_bytes = announced[0]
        if reply.code in _HANG_UP or self.state is State.CLOSED:
            self._close()
        if "ENHANCEDSTATUSCODES" not in self.extensions:
            reply = replace(reply, enhanced="")
        return reply.encode()

    def ehlo_reply(self, hostname: str, greeting_name: str) -> Reply:
        """The reply to EHLO that offers this machine's extensions. It has no enhanced code (RFC 2034 §4)."""
        size = f"SIZE {self._limits.message_bytes}"
        said = {"SIZE": size, "AUTH": f"AUTH {' '.join(command.MECHANISMS)}"}
        offered = (said.get(name, name) for name in self.extensions)
        return Reply(250, (f"{hostname} Hello {greeting_name}, pleased to meet you", *offered))

    def secured(self, extensions: tuple[str, ...]) -> None:
        """The handshake that STARTTLS asked for is done: nothing is known of the client any more (RFC 3207 §4.2)."""
        assert self.state is State.GREETED
        self.extensions = extensions
        self.needs_tls = False

    def _judged(self, asked: Asked, reply: Reply) -> Reply:
        """The reply, or the 421 for one failure or one useless command too many."""
        limits = self._limits
        if isinstance(asked, Recipient) and not reply.positive:
            self._failed_recipients += 1
            if limits.failed_recipients and self._failed_recipients >= limits.failed_recipients:
                return Reply(421, "Too many recipients failed", "4.7.0")
        elif isinstance(asked, _USELESS):
            self._useless_commands += 1
            if limits.useless_commands and self._useless_commands >= limits.useless_commands:
                return Reply(421, "Too many commands that bring no mail", "4.7.0")
        return reply

    def _accepted(self, asked: Asked) -> None:
        match asked:
            case Hello():
                self._extended = asked.extended
                self._mail_parameters = self._offered(command.MAIL_PARAMETERS) if asked.extended else ()
                self._recipient_parameters = self._offered(command.RECIPIENT_PARAMETERS) if asked.extended else ()
                self.recipients = 0
            case Mail():
                self.recipients = 0
                self._utf8 = asked.utf8
            case Reset():
                self.recipients = 0
            case Recipient():
                self.recipients += 1
            case StartTls():
                # What was sent in the clear after the command is an attacker's (CVE-2011-0411).
                self._buffer.clear()
                self._mail_parameters = self._recipient_parameters = ()
                self._extended = False
            case Auth() | AuthResponse():
                self.authenticated = True
            case Data():
                self._content = Unstuffing()
                self._buffer[:0] = b"\r\n"  # the line end of DATA itself, which an end may follow at once
            case EndOfData():
                self.messages += 1
                self._useless_commands = 0

    def _offered(self, parameters: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(name for name, needs in parameters.items() if not needs or needs in self.extensions)

    def _begin_chunk(self, size_bytes: int, is_last: bool) -> None:
        if self.state is State.TRANSACTION:
            self._chunks = Chunks()
        self._chunks.begin(size_bytes, is_last)
        self.state = State.CHUNK

    def _close(self) -> None:
        self.state = State.CLOSED
        self._buffer.clear()

    # ---- bytes to events

    def _next(self) -> Asked | Body | None:
        match _READS[self.state]:
            case "nothing":
                return Connected() if self.state is State.CONNECTED else None
            case "data":
                return self._next_of_data()
            case "chunk":
                return self._next_of_chunk()
        line = self._next_line()
        if line is None:
            return None
        try:
            if self.state is State.AUTHENTICATING:
                return self._response(line)
            event = self._command(line)
        except Wrong as wrong:
            return Refused(wrong.reply, line[:_QUOTED_BYTES].rstrip(b"\r\n"))
        return self._next_of_chunk() if event is None else event

    def _next_of_data(self) -> Body | EndOfData | Refused | None:
        content = self._content
        if not content.ended:
            chunk = content.take(self._buffer)
            if chunk and self._wrong_with(content) is None:
                return Body(chunk)
            if not content.ended:
                return None
        wrong = self._wrong_with(content)
        return EndOfData() if wrong is None else Refused(wrong, b"", ends_data=True)

    def _next_of_chunk(self) -> Body | EndOfChunk | EndOfData | Refused | None:
        """What is wrong with the content is said when the whole chunk has come: its bytes are no commands."""
        content = self._chunks
        chunk = content.take(self._buffer)
        wrong = self._wrong_with(content)
        if chunk and wrong is None:
            return Body(chunk)
        if content.left_bytes:
            return None
        if wrong is not None:
            return Refused(wrong, b"", ends_data=True)
        return EndOfData() if content.is_last else EndOfChunk(content.chunk_bytes)

    def _wrong_with(self, content: Content) -> Reply | None:
        limits = self._limits
        if content.size_bytes > limits.message_bytes:
            return self._too_big().reply
        if content.has_bare:
            return Reply(550, "A line of a message ends with CR LF; neither stands alone", "5.6.11")
        if content.longest_line_bytes > limits.data_line_bytes:
            return Reply(500, f"A line of the message has more than {limits.data_line_bytes} bytes", "5.6.0")
        if content.hops >= limits.hops:
            return Reply(554, f"Routing loop: the message has {limits.hops} Received fields", "5.4.6")
        return None

    def _next_line(self) -> bytes | None:
        """A command line with its end. A line without end is cut, so that it cannot fill the memory."""
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(self._buffer))
            del self._buffer[:skipped]
            self._skip_bytes -= skipped
            if self._skip_bytes:
                return None
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > self._limits.command_bytes:
                self._overlong = True
                del self._buffer[_QUOTED_BYTES:]
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line

    def _command(self, line: bytes) -> Command | None:
        """The event; None when there is none, since another chunk of the message follows."""
        overlong, self._overlong = self._overlong, False
        if overlong or len(line) > self._limits.command_bytes:
            raise Wrong(500, "5.5.2", "Line too long")
        verb, argument = command.split(line, self.extensions)
        if verb == "BDAT":
            return self._chunk(*command.chunk(argument))
        if self.state not in _TRANSITIONS[command.KINDS[verb]]:
            raise Wrong(503, "5.5.1", _OUT_OF_ORDER[self.state])
        event = command.parse(verb, argument, self._mail_parameters, self._recipient_parameters)
        self._check_limits(event)
        return event

    def _response(self, line: bytes) -> AuthResponse:
        overlong, self._overlong = self._overlong, False
        if overlong:
            raise Wrong(500, "5.5.6", "Line too long")
        text = line.rstrip(b"\r\n").decode("ascii", "replace")
        return AuthResponse(None if text == "*" else command.from_base64(text))

    def _chunk(self, size_bytes: int, is_last: bool) -> Data | None:
        if self.state is State.CHUNKED:
            self._begin_chunk(size_bytes, is_last)
            return None
        if self.state is State.TRANSACTION and self.recipients:
            self._announced = (size_bytes, is_last)
            return Data()
        self._skip_bytes = size_bytes
        why = "No valid recipients" if self.state is State.TRANSACTION else _OUT_OF_ORDER[self.state]
        raise Wrong(503, "5.5.1", why)

    def _check_limits(self, event: Command) -> None:
        match event:
            case Recipient():
                if not self._utf8 and not event.mailbox.is_ascii:
                    raise Wrong(553, "5.6.7", "A recipient beyond ASCII needs MAIL with SMTPUTF8")
                if self.recipients >= self._limits.recipients:
                    raise Wrong(452, "4.5.3", "Too many recipients")
            case Data():
                if not self.recipients:
                    raise Wrong(503, "5.5.1", "No valid recipients")
            case Mail() | Auth() if self.needs_tls:
                raise Wrong(530, "5.7.0", "Must issue a STARTTLS command first")
            case Auth():
                if self.authenticated or not self._extended:
                    raise Wrong(503, "5.5.1", "Already authenticated" if self.authenticated else "Send EHLO first")
            case Mail():
                if self.needs_auth and not self.authenticated:
                    raise Wrong(530, "5.7.0", "Authentication required")
                if self.messages >= self._limits.messages:
                    raise Wrong(452, "4.5.3", "Too many messages in this session")
                if int(event.parameters.get("SIZE", "0")) > self._limits.message_bytes:
                    raise self._too_big()

    def _too_big(self) -> Wrong:
        return Wrong(552, "5.3.4", f"Message too big: {self._limits.message_bytes} bytes are allowed")

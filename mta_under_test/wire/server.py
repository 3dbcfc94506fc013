"""The server's side of SMTP (RFC 5321), without I/O: bytes in, events out, replies in, bytes out.

Owns: the order of commands, their syntax, the limits, the end of the data. Everything that moves the state is here.
Never: decides who may send to whom; the shell answers every event, and its reply's code moves the state.

    machine.receive(data)              # b"" is end of file
    event = machine.next_event()       # None: more bytes are needed, or the last event still waits for its reply
    out = machine.reply(Reply(250, "Ok", "2.0.0"))

Pipelined commands (RFC 2920) stay in the buffer until the one before them has its reply. Lines end with CRLF, and with
nothing else: neither LF.LF nor CR.CR ends the data, and a message with a bare CR or LF in it is refused as a whole, so
that nobody can smuggle a second message past us (CVE-2023-51764).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from mta_under_test.wire.address import AddressError, Mailbox, parse_path
from mta_under_test.wire.reply import LocalError, Reply

EXTENSIONS = ("8BITMIME", "ENHANCEDSTATUSCODES", "SIZE", "PIPELINING", "HELP")


@dataclass(frozen=True)
class Limits:
    message_bytes: int = 35 << 20
    recipients: int = 1000  # accepted ones, of one message
    messages: int = 100  # accepted ones, of one session
    command_bytes: int = 2048  # RFC 5321 §4.5.3.1.4 asks for 512, and more where extensions add parameters
    data_line_bytes: int = 1 << 20  # RFC 5321 §4.5.3.1.6 asks for 1,000; real mail exceeds it


class State(Enum):
    CONNECTED = auto()  # not greeted yet
    UNWELCOME = auto()  # greeted with a refusal: nothing but QUIT
    GREETED = auto()
    READY = auto()  # EHLO or HELO was accepted
    TRANSACTION = auto()  # MAIL was accepted
    DATA = auto()  # between 354 and the reply to the end of the data
    CLOSED = auto()  # end of file, or we said 221 or 421: nothing that still arrives is read


@dataclass(frozen=True)
class Connected:
    """A client is there; the reply is the greeting."""


@dataclass(frozen=True)
class Hello:
    name: str
    extended: bool  # EHLO, not HELO


@dataclass(frozen=True)
class Mail:
    sender: Mailbox | None  # None: the null sender
    parameters: dict[str, str]  # names in capitals


@dataclass(frozen=True)
class Recipient:
    mailbox: Mailbox
    parameters: dict[str, str]


@dataclass(frozen=True)
class Data:
    """The reply is 354, or a refusal."""


@dataclass(frozen=True)
class Body:
    """A piece of the message, dots unstuffed, line ends kept. Takes no reply."""

    chunk: bytes


@dataclass(frozen=True)
class EndOfData:
    """The message is whole and within its limits; a positive reply accepts responsibility for it."""


@dataclass(frozen=True)
class Reset:
    pass


@dataclass(frozen=True)
class Noop:
    pass


@dataclass(frozen=True)
class Verify:
    argument: str


@dataclass(frozen=True)
class Help:
    argument: str


@dataclass(frozen=True)
class Quit:
    pass


@dataclass(frozen=True)
class Refused:
    """The machine found the error itself; the shell answers with `reply`, or with another refusal.

    `ends_data`: it stands in the place of `EndOfData`. The message is too big or malformed, what came of it as `Body`
    is to be thrown away, and the transaction is over.
    """

    reply: Reply
    line: bytes
    ends_data: bool = False


@dataclass(frozen=True)
class Closed:
    """End of file: the peer is gone. Takes no reply."""

    in_transaction: bool  # after MAIL, the data included
    in_data: bool


Asked = Connected | Hello | Mail | Recipient | Data | EndOfData | Reset | Noop | Verify | Help | Quit | Refused
Event = Asked | Body | Closed

# Where an event may occur, and where a positive reply to it leads. A refusal leaves the state alone, except that a
# refused greeting makes UNWELCOME, any reply to the end of the data ends the transaction, and 421 closes everything.
_SPOKEN = (State.GREETED, State.READY, State.TRANSACTION)
_TRANSITIONS: dict[type[Asked], dict[State, State]] = {
    Connected: {State.CONNECTED: State.GREETED},
    Hello: dict.fromkeys(_SPOKEN, State.READY),
    Mail: {State.READY: State.TRANSACTION},
    Recipient: {State.TRANSACTION: State.TRANSACTION},
    Data: {State.TRANSACTION: State.DATA},
    EndOfData: {State.DATA: State.READY},
    Reset: {State.GREETED: State.GREETED, State.READY: State.READY, State.TRANSACTION: State.READY},
    Noop: {state: state for state in _SPOKEN},
    Verify: {state: state for state in _SPOKEN},
    Help: {state: state for state in _SPOKEN},
    Quit: dict.fromkeys((*_SPOKEN, State.UNWELCOME), State.CLOSED),
}

_NOT_IMPLEMENTED = frozenset({"AUTH", "BDAT", "EXPN", "ETRN", "SAML", "SEND", "SOML", "STARTTLS", "TURN"})
_NOT_PRINTABLE = re.compile(rb"[^\t -~]")
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]*))?")  # esmtp-param, RFC 5321 §4.1.2
_END = b"\r\n.\r\n"
_QUOTED_BYTES = 128  # of a line, in Refused


class _Wrong(Exception):
    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, text, enhanced)


class ServerMachine:
    """One session. `recipients` and `messages` count what was accepted, in this transaction and in this session."""

    def __init__(self, limits: Limits | None = None, *, extensions: tuple[str, ...] = EXTENSIONS) -> None:
        self.state = State.CONNECTED
        self.recipients = 0
        self.messages = 0
        self.extensions = extensions
        self._limits = limits or Limits()
        self._buffer = bytearray()
        self._ended = False
        self._asked: Asked | None = None  # the event that waits for its reply
        self._extended = False
        self._skipping = False  # the rest of a command line that was too long
        self._content = _Content(self._limits)
        self._commands: dict[str, Callable[[str], Asked]] = {
            "EHLO": lambda argument: self._hello(argument, extended=True),
            "HELO": lambda argument: self._hello(argument, extended=False),
            "MAIL": self._mail,
            "RCPT": self._recipient,
            "DATA": lambda argument: _alone(Data(), argument),
            "RSET": lambda argument: _alone(Reset(), argument),
            "QUIT": lambda argument: _alone(Quit(), argument),
            "NOOP": lambda argument: Noop(),
            "VRFY": Verify,
            "HELP": Help,
        }

    # ---- the shell's side

    def receive(self, data: bytes) -> None:
        """Bytes from the peer; b"" says that there will be no more."""
        if not data:
            self._ended = True
        elif self.state is not State.CLOSED:
            self._buffer += data

    def next_event(self) -> Event | None:
        """The next thing that the peer did; None: more bytes are needed, or a reply is owed."""
        if self._asked is not None:
            return None
        event = self._next()
        if event is None and self._ended:
            in_data = self.state is State.DATA
            closed = Closed(in_data or self.state is State.TRANSACTION, in_data)
            self.state = State.CLOSED
            return closed
        if event is not None and not isinstance(event, Body | Closed):
            self._asked = event
        return event

    def reply(self, reply: Reply) -> bytes:
        """Answer the event in hand: the bytes to send. Raises LocalError when there is none, or it takes no such reply."""
        asked, state = self._asked, self.state
        if asked is None:
            raise LocalError(f"nothing was asked that {str(reply)!r} could answer")
        if reply.positive and (isinstance(asked, Refused) or (300 <= reply.code < 400) != isinstance(asked, Data)):
            raise LocalError(f"{str(reply)!r} cannot answer {type(asked).__name__}")
        self._asked = None
        if reply.code == 421:
            self._close()
        elif reply.positive:
            self.state = _TRANSITIONS[type(asked)][state]
            self._accepted(asked)
        elif isinstance(asked, Connected):
            self.state = State.UNWELCOME
        elif state is State.DATA:
            self.state = State.READY
        if "ENHANCEDSTATUSCODES" not in self.extensions:
            reply = replace(reply, enhanced="")
        return reply.encode()

    def ehlo_reply(self, hostname: str, greeting_name: str) -> Reply:
        """The reply to EHLO that offers this machine's extensions. It has no enhanced code (RFC 2034 §4)."""
        size = f"SIZE {self._limits.message_bytes}"
        offered = (size if name == "SIZE" else name for name in self.extensions)
        return Reply(250, (f"{hostname} Hello {greeting_name}, pleased to meet you", *offered))

    # ---- what a positive reply does

    def _accepted(self, asked: Asked) -> None:
        match asked:
            case Hello(extended=extended):
                self._extended = extended
                self.recipients = 0
            case Mail() | Reset():
                self.recipients = 0
            case Recipient():
                self.recipients += 1
            case Data():
                self._content = _Content(self._limits)
                # The line end before the first byte of the content belongs to the command, but counts for "CRLF.CRLF".
                self._buffer[:0] = b"\r\n"
            case EndOfData():
                self.messages += 1
            case Quit():
                self._close()

    def _close(self) -> None:
        self.state = State.CLOSED
        self._buffer.clear()

    # ---- bytes to events

    def _next(self) -> Asked | Body | None:
        if self.state is State.CONNECTED:
            return Connected()
        if self.state is State.CLOSED:
            return None
        if self.state is State.DATA:
            return self._next_of_data()
        return self._next_command()

    def _next_of_data(self) -> Body | EndOfData | Refused | None:
        chunk, ended = self._content.take(self._buffer)
        if chunk:
            if ended:  # the end stays in the buffer for the next call, as an end without content before it
                self._buffer[:0] = _END
            return Body(chunk)
        if not ended:
            return None
        if (wrong := self._content.wrong()) is not None:
            return Refused(wrong, b"", ends_data=True)
        return EndOfData()

    def _next_command(self) -> Asked | None:
        end = self._buffer.find(b"\n")
        too_long = self._skipping or max(end + 1, len(self._buffer) if end < 0 else 0) > self._limits.command_bytes
        line = bytes(self._buffer[: self._limits.command_bytes if end < 0 else end + 1])
        if end >= 0:
            del self._buffer[: end + 1]
            self._skipping = False
        return None

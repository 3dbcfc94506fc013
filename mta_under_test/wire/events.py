"""What a client does to an SMTP server, one immutable value each: what the server machine hands to its shell."""

from __future__ import annotations

from dataclasses import dataclass, field

from mta_under_test.wire.address import Mailbox
from mta_under_test.wire.reply import Reply


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
    parameters: dict[str, str]  # names in capitals: SIZE, BODY, AUTH, RET, ENVID, SMTPUTF8

    @property
    def utf8(self) -> bool:
        """The message may have UTF-8 in its addresses and its header (RFC 6531)."""
        return "SMTPUTF8" in self.parameters


@dataclass(frozen=True)
class Recipient:
    mailbox: Mailbox
    parameters: dict[str, str]  # names in capitals: NOTIFY, ORCPT


@dataclass(frozen=True)
class Data:
    """The reply is 354, or a refusal. It also stands before the first chunk of BDAT, where a 354 is not sent."""


@dataclass(frozen=True)
class Body:
    """A piece of the message, dots of DATA unstuffed, line ends kept. Takes no reply."""

    chunk: bytes


@dataclass(frozen=True)
class EndOfChunk:
    """A chunk of BDAT that is not the last has come as a whole (RFC 3030)."""

    size_bytes: int


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
class Expand:
    """EXPN: who is on a mailing list?"""

    argument: str


@dataclass(frozen=True)
class Help:
    argument: str


@dataclass(frozen=True)
class Quit:
    pass


@dataclass(frozen=True)
class StartTls:
    """After a positive reply nothing that came before counts: the handshake follows, then EHLO (RFC 3207 §4.2)."""


@dataclass(frozen=True)
class Auth:
    """A positive reply, 235, says that the client is who it claims; 334 asks for more (RFC 4954 §4)."""

    mechanism: str  # in capitals: PLAIN or LOGIN
    initial: bytes | None = field(repr=False)  # what it said with the command, decoded


@dataclass(frozen=True)
class AuthResponse:
    """What the client answers to 334; None: it gives up."""

    response: bytes | None = field(repr=False)


@dataclass(frozen=True)
class Refused:
    """The machine found the error itself; the shell answers with `reply`, or with another refusal.

    `ends_data`: it stands in the place of `EndOfData`. The message is too big or malformed, what came of it as `Body`
    is to be thrown away, and the transaction is over.
    """

    reply: Reply
    line: bytes  # the beginning of the command line, without its end
    ends_data: bool = False


@dataclass(frozen=True)
class Closed:
    """End of file: the peer is gone. Takes no reply."""

    in_transaction: bool  # after MAIL, the data included
    in_data: bool


Command = Hello | Mail | Recipient | Data | Reset | Noop | Verify | Expand | Help | Quit | StartTls | Auth
Asked = Command | AuthResponse | Connected | EndOfChunk | EndOfData | Refused  # what a reply is owed for
Event = Asked | Body | Closed

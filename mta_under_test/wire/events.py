"""What a client does to an SMTP server, one immutable value each: what the server machine hands to its shell."""

from __future__ import annotations

import msgspec

from mta_under_test.wire.address import Mailbox
from mta_under_test.wire.reply import Reply


class Connected(msgspec.Struct, frozen=True):
    """A client is there; the reply is the greeting."""


class Hello(msgspec.Struct, frozen=True):
    name: str
    extended: bool  # EHLO, not HELO


class Mail(msgspec.Struct, frozen=True):
    sender: Mailbox | None  # None: the null sender
    parameters: dict[str, str]  # names in capitals: SIZE, BODY, AUTH, RET, ENVID, SMTPUTF8

    @property
    def utf8(self) -> bool:
        """The message may have UTF-8 in its addresses and its header (RFC 6531)."""
        return "SMTPUTF8" in self.parameters


class Recipient(msgspec.Struct, frozen=True):
    mailbox: Mailbox
    parameters: dict[str, str]  # names in capitals: NOTIFY, ORCPT


class Data(msgspec.Struct, frozen=True):
    """The reply is 354, or a refusal. It also stands before the first chunk of BDAT, where a 354 is not sent."""


class Body(msgspec.Struct, frozen=True):
    """A piece of the message, dots of DATA unstuffed, line ends kept. Takes no reply."""

    chunk: bytes


class EndOfChunk(msgspec.Struct, frozen=True):
    """A chunk of BDAT that is not the last has come as a whole (RFC 3030)."""

    size_bytes: int


class EndOfData(msgspec.Struct, frozen=True):
    """The message is whole and within its limits; a positive reply accepts responsibility for it."""


class Reset(msgspec.Struct, frozen=True):
    pass


class Noop(msgspec.Struct, frozen=True):
    pass


class Verify(msgspec.Struct, frozen=True):
    argument: str


class Expand(msgspec.Struct, frozen=True):
    """EXPN: who is on a mailing list?"""

    argument: str


class Help(msgspec.Struct, frozen=True):
    argument: str


class Quit(msgspec.Struct, frozen=True):
    pass


class StartTls(msgspec.Struct, frozen=True):
    """After a positive reply nothing that came before counts: the handshake follows, then EHLO (RFC 3207 §4.2)."""


class Auth(msgspec.Struct, frozen=True):
    """A positive reply, 235, says that the client is who it claims; 334 asks for more (RFC 4954 §4)."""

    mechanism: str  # in capitals: PLAIN or LOGIN
    initial: bytes | None  # what it said with the command, decoded

    def __repr__(self) -> str:  # no password in a log
        return f"Auth(mechanism={self.mechanism!r})"


class AuthResponse(msgspec.Struct, frozen=True):
    """What the client answers to 334; None: it gives up."""

    response: bytes | None

    def __repr__(self) -> str:
        return "AuthResponse()"


class Refused(msgspec.Struct, frozen=True):
    """The machine found the error itself; the shell answers with `reply`, or with another refusal.

    `ends_data`: it stands in the place of `EndOfData`. The message is too big or malformed, what came of it as `Body`
    is to be thrown away, and the transaction is over.
    """

    reply: Reply
    line: bytes  # the beginning of the command line, without its end
    ends_data: bool = False


class Closed(msgspec.Struct, frozen=True):
    """End of file: the peer is gone. Takes no reply."""

    in_transaction: bool  # after MAIL, the data included
    in_data: bool


Command = Hello | Mail | Recipient | Data | Reset | Noop | Verify | Expand | Help | Quit | StartTls | Auth
Asked = Command | AuthResponse | Connected | EndOfChunk | EndOfData | Refused  # what a reply is owed for
Event = Asked | Body | Closed

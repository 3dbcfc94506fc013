"""The client's side of SMTP (RFC 5321) and LMTP (RFC 2033), without I/O: commands out as bytes, bytes in,
replies matched to commands.

Owns: which command each reply answers (first in, first out, so that commands may be pipelined), and the
extensions that the server offers. Never: decides what a refusal means, or waits.

    out = machine.mail("a@example.org", size=1200)
    machine.receive(data)                       # b"" is end of file
    answered = machine.next_reply()             # ("MAIL", Reply(250, "Ok", "2.0.0")); None: more bytes are needed
"""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Mapping

from mta_under_test.wire.content import Stuffing
from mta_under_test.wire.reply import LocalError, Reply, ReplyDecoder, ReplyError

__all__ = ["ClientMachine", "LocalError", "RemoteError"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RemoteError(Exception):
    """The server does not speak SMTP; the text quotes what it said."""


class ClientMachine:
    """One session. `extensions`: keyword in capitals to its parameters, from the last accepted EHLO."""

    def __init__(self) -> None:
        self.extensions: dict[str, str] = {}
        self.closed = False  # the server has ended the connection
        self._decoder = ReplyDecoder()
        self._pending: deque[str] = deque(["connect"])
        self._greeted = False
        self._in_data = False  # 354 was received, the end of the data not sent
        self._utf8 = False  # the transaction may have UTF-8 in its commands
        self._stuffing = Stuffing()

    # ---- commands

    def ehlo(self, name: str) -> bytes:
        return self._command("EHLO", f"EHLO {name}")

    def lhlo(self, name: str) -> bytes:
        """LMTP's greeting (RFC 2033 §4.1)."""
        return self._command("LHLO", f"LHLO {name}")

    def helo(self, name: str) -> bytes:
        return self._command("HELO", f"HELO {name}")

    def starttls(self) -> bytes:
        """Raises LocalError for what the server does not offer."""
        self._require("STARTTLS")
        return self._command("STARTTLS", "STARTTLS")

    def secured(self) -> None:
        """The handshake is done: what the server said before it does not count (RFC 3207 §4.2)."""
        self.extensions = {}
        self._decoder = ReplyDecoder()

    @property
    def mechanisms(self) -> frozenset[str]:
        """Of AUTH, in capitals, as far as the server offers any."""
        return frozenset(self.extensions.get("AUTH", "").upper().split())

    def auth(self, mechanism: str, initial: bytes | None = None) -> bytes:
        """RFC 4954. Raises LocalError for what the server does not offer."""
        self._require("AUTH")
        said = "" if initial is None else f" {base64.b64encode(initial).decode()}"
        return self._command("AUTH", f"AUTH {mechanism}{said}")

    def auth_response(self, response: bytes) -> bytes:
        """The answer to a 334."""
        return self._command("AUTH", base64.b64encode(response).decode())

    def mail(
        self,
        sender: str,
        size: int | None = None,
        eight_bit: bool = False,
        dsn: Mapping[str, str] | None = None,
        utf8: bool = False,
    ) -> bytes:
        """`sender` "" is the null sender. `size` in bytes; `dsn`: RET and ENVID (RFC 3461); `utf8`: RFC 6531.

        Raises LocalError for what the server does not offer.
        """
        parameters = ""
        if size is not None:
            self._require("SIZE")
            parameters += f" SIZE={size}"
        if eight_bit:
            self._require("8BITMIME")
            parameters += " BODY=8BITMIME"
        if utf8:
            self._require("SMTPUTF8")
            parameters += " SMTPUTF8"
        self._utf8 = utf8
        return self._command("MAIL", f"MAIL FROM:<{sender}>{parameters}{self._dsn(dsn)}")

    def rcpt(self, address: str, dsn: Mapping[str, str] | None = None) -> bytes:
        """`dsn`: NOTIFY and ORCPT (RFC 3461). Raises LocalError for what the server does not offer."""
        return self._command("RCPT", f"RCPT TO:<{address}>{self._dsn(dsn)}")

    def _dsn(self, parameters: Mapping[str, str] | None) -> str:
        if not parameters:
            return ""
        self._require("DSN")
        return "".join(f" {name}={value}" for name, value in parameters.items())

    def data(self) -> bytes:
        """The content may follow once 354 has come; nothing may be sent in between (RFC 2920 §3.1)."""
        return self._command("DATA", "DATA")

    def body(self, chunk: bytes) -> bytes:
        """A piece of the message, however it was cut, as it is to be sent: dots doubled, nothing else changed."""
        self._require_data()
        return self._stuffing.put(chunk)

    def end_of_data(self, replies: int = 1) -> bytes:
        """Ends the message, with the CRLF that its last line may lack. LMTP has a reply for each recipient."""
        self._require_data()
        self._in_data = False
        self._pending.extend(["end"] * replies)
        return self._stuffing.end()

    def rset(self) -> bytes:
        return self._command("RSET", "RSET")

    def noop(self) -> bytes:
        return self._command("NOOP", "NOOP")

    def quit(self) -> bytes:
        return self._command("QUIT", "QUIT")

    def _command(self, verb: str, line: str) -> bytes:
        if not self._greeted:
            raise LocalError(f"{verb} before the server's greeting was read")
        if self._in_data:
            raise LocalError(f"{verb} in the middle of a message; end_of_data() comes first")
        if "DATA" in self._pending:
            raise LocalError(f"{verb} before the reply to DATA was read")
        if not (line.isascii() or self._utf8) or _CONTROL.search(line):
            raise LocalError(f"a command is printable ASCII, and {line!r} is not")
        self._pending.append(verb)
        return f"{line}\r\n".encode()

    def _require(self, extension: str) -> None:
        if extension not in self.extensions:
            raise LocalError(f"the server does not offer {extension}")

    def _require_data(self) -> None:
        if not self._in_data:
            raise LocalError("content before DATA was answered with 354")

    # ---- replies

    def receive(self, data: bytes) -> None:
        """Bytes from the server; b"" says that there will be no more."""
        if data:
            self._decoder.feed(data)
        else:
            self.closed = True

    def next_reply(self) -> tuple[str, Reply] | None:
        """What is answered and the reply, or None when more bytes are needed. Raises RemoteError.

        What is answered: "connect" (the greeting), the command's verb, "end" (the end of the data), or "closing": a
        421 that answers nothing, since the server hangs up of its own accord (RFC 5321 §3.8).
        """
        try:
            reply = self._decoder.next()
        except ReplyError as error:
            raise RemoteError(str(error)) from error
        if reply is None:
            return None
        if not self._pending:
            if reply.code == 421:
                return "closing", reply
            raise RemoteError(f"a reply to nothing: {reply}")
        verb = self._pending.popleft()
        self._answered(verb, reply)
        return verb, reply

    def _answered(self, verb: str, reply: Reply) -> None:
        goes_on = 300 <= reply.code < 400
        if goes_on != (verb == "DATA" and reply.positive) and not (verb == "AUTH" and reply.code == 334):
            raise RemoteError(f"{verb} was answered with {reply}")
        match verb:
            case "connect":
                self._greeted = True
            case "EHLO" | "LHLO" if reply.positive:
                self.extensions = dict(_keyword(line) for line in reply.lines[1:] if line)
            case "HELO" if reply.positive:
                self.extensions = {}
            case "DATA" if reply.positive:
                self._in_data = True
                self._stuffing = Stuffing()


def _keyword(line: str) -> tuple[str, str]:
    name, _, parameters = line.partition(" ")
    return name.upper(), parameters

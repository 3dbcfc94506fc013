"""The syntax of SMTP commands: a line in, an event out, or `Wrong` with the reply that says why not.

RFC 5321 §4.1.1 and, for the parameters of MAIL, RFC 1870 (SIZE), RFC 6152 (BODY) and RFC 4954 (AUTH). Knows nothing of
the order of commands, nor of limits: those are the server machine's.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from mta_under_test.wire.address import AddressError, parse_path
from mta_under_test.wire.events import Command, Data, Hello, Help, Mail, Noop, Quit, Recipient, Reset, Verify
from mta_under_test.wire.reply import Reply

KINDS: dict[str, type[Command]] = {
    "EHLO": Hello,
    "HELO": Hello,
    "MAIL": Mail,
    "RCPT": Recipient,
    "DATA": Data,
    "RSET": Reset,
    "NOOP": Noop,
    "VRFY": Verify,
    "HELP": Help,
    "QUIT": Quit,
}
MAIL_PARAMETERS = ("SIZE", "BODY", "AUTH")

_NOT_IMPLEMENTED = frozenset({"AUTH", "BDAT", "EXPN", "ETRN", "SAML", "SEND", "SOML", "STARTTLS", "TURN"})
_NOT_PRINTABLE = re.compile(rb"[^ -~]")
_NAME = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")  # of a client: a domain, or an address literal
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")  # esmtp-param, RFC 5321 §4.1.2
_SIZE = re.compile(r"[0-9]{1,20}")  # RFC 1870 §4


class Wrong(Exception):
    """What is wrong with a command, as the reply that refuses it."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, text, enhanced)


def split(line: bytes) -> tuple[str, str]:
    """The verb in capitals, one of `KINDS`, and its argument. `line` with its end. Raises Wrong."""
    text = line.removesuffix(b"\r\n")
    if text.endswith(b"\n") or b"\r" in text:
        raise Wrong(500, "5.5.2", "A line ends with CR LF; neither stands alone")
    if _NOT_PRINTABLE.search(text):
        raise Wrong(500, "5.5.2", "Only printable ASCII is allowed in a command")
    verb, _, argument = text.decode("ascii").partition(" ")
    verb = verb.upper()
    if verb in _NOT_IMPLEMENTED:
        raise Wrong(502, "5.5.1", "Command not implemented")
    if verb not in KINDS:
        raise Wrong(500, "5.5.1", "Command unrecognized")
    return verb, argument.strip()


def parse(verb: str, argument: str, mail_parameters: Collection[str]) -> Command:
    """The event for a command as `split` gave it; MAIL may have these parameters. Raises Wrong."""
    match verb:
        case "EHLO" | "HELO":
            if not _NAME.fullmatch(argument):
                raise Wrong(501, "5.5.4", f"Syntax: {verb} name, where the name is a domain or an address literal")
            return Hello(argument, extended=verb == "EHLO")
        case "MAIL":
            return _mail(argument, mail_parameters)
        case "RCPT":
            return _recipient(argument)
        case "NOOP":
            return Noop()
        case "VRFY":
            return Verify(argument)
        case "HELP":
            return Help(argument)
    if argument:
        raise Wrong(501, "5.5.4", f"{verb} takes no argument")
    match verb:
        case "DATA":
            return Data()
        case "RSET":
            return Reset()
    assert verb == "QUIT", f"{verb} is in KINDS and not parsed"
    return Quit()


def _mail(argument: str, known: Collection[str]) -> Mail:
    rest = _after("FROM:", argument, "Syntax: MAIL FROM:<address>")
    try:
        sender, rest = parse_path(rest)
        if sender is not None and not sender.domain:
            raise AddressError(f"{sender.local!r} has no domain")
    except AddressError as error:
        raise Wrong(501, "5.1.7", f"Sender address: {error}") from error
    parameters = _parameters(rest, known)
    if not _SIZE.fullmatch(parameters.get("SIZE", "0")):
        raise Wrong(501, "5.5.4", "Syntax: SIZE=bytes")
    if parameters.get("BODY", "7BIT").upper() not in ("7BIT", "8BITMIME"):
        raise Wrong(501, "5.5.4", "Syntax: BODY=7BIT or BODY=8BITMIME")
    return Mail(sender, parameters)


def _recipient(argument: str) -> Recipient:
    rest = _after("TO:", argument, "Syntax: RCPT TO:<address>")
    try:
        mailbox, rest = parse_path(rest)
        if mailbox is None:
            raise AddressError("only a sender can be null")
    except AddressError as error:
        raise Wrong(501, "5.1.3", f"Recipient address: {error}") from error
    return Recipient(mailbox, _parameters(rest, ()))


def _after(keyword: str, argument: str, syntax: str) -> str:
    """What follows `FROM:` or `TO:`, with the blank that many clients send after the colon."""
    if argument[: len(keyword)].upper() != keyword:
        raise Wrong(501, "5.5.4", syntax)
    return argument[len(keyword) :].lstrip()


def _parameters(text: str, known: Collection[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    if text and not text.startswith(" "):
        raise Wrong(501, "5.5.4", "A blank must follow the address")
    for word in text.split():
        found = _PARAMETER.fullmatch(word)
        if found is None:
            raise Wrong(501, "5.5.4", f"Not a parameter: {word}")
        name = found[1].upper()
        if name not in known:
            raise Wrong(555, "5.5.4", f"Parameter not supported: {name}")
        if name in parameters:
            raise Wrong(501, "5.5.4", f"Parameter given twice: {name}")
        parameters[name] = found[2] or ""
    return parameters

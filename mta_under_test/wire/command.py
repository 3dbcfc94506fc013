"""The syntax of SMTP commands: a line in, an event out, or `Wrong` with the reply that says why not.

RFC 5321 §4.1.1 and, for parameters, RFC 1870 (SIZE), RFC 6152 (BODY), RFC 4954 (AUTH), RFC 3461 (RET, ENVID, NOTIFY,
ORCPT) and RFC 6531 (SMTPUTF8); RFC 3030 for BDAT. Knows nothing of the order of commands, nor of limits: those are the
server machine's.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection

from mta_under_test.wire.address import AddressError, parse_path
from mta_under_test.wire.events import (
    Auth,
    Command,
    Data,
    Expand,
    Hello,
    Help,
    Mail,
    Noop,
    Quit,
    Recipient,
    Reset,
    StartTls,
    Verify,
)
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
    "EXPN": Expand,
    "HELP": Help,
    "QUIT": Quit,
    "STARTTLS": StartTls,
    "AUTH": Auth,
}
MECHANISMS = ("PLAIN", "LOGIN")
_NEEDS = {"STARTTLS": "STARTTLS", "AUTH": "AUTH", "BDAT": "CHUNKING"}  # commands that come with an extension
# The parameters of MAIL and of RCPT, each with the extension that has to be offered for it, or "".
MAIL_PARAMETERS = {"SIZE": "SIZE", "BODY": "", "AUTH": "", "RET": "DSN", "ENVID": "DSN", "SMTPUTF8": "SMTPUTF8"}
RECIPIENT_PARAMETERS = {"NOTIFY": "DSN", "ORCPT": "DSN"}
MAX_ENVID = 100  # characters, RFC 3461 §4.4
MAX_ORCPT = 500  # characters, RFC 3461 §4.2

_NOT_IMPLEMENTED = frozenset({"ETRN", "SAML", "SEND", "SOML", "TURN"})
_WITH_ADDRESS = frozenset({b"MAIL", b"RCPT", b"VRFY", b"EXPN"})  # RFC 6531 §3.1: these may have UTF-8
_NOT_PRINTABLE = re.compile(rb"[^ -~]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NAME = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")  # of a client: a domain, or an address literal
# esmtp-param, RFC 5321 §4.1.2; RFC 6531 §3.3 adds what is beyond ASCII.
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00- =\x7f-\x9f]+))?")
_SIZE = re.compile(r"[0-9]{1,20}", re.ASCII)  # RFC 1870 §4
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+")  # RFC 3461 §4
_ORCPT = re.compile(r"[A-Za-z0-9-]+;(.+)")
_CHUNK = re.compile(r"([0-9]{1,20})(?: +(LAST))?", re.ASCII | re.IGNORECASE)  # RFC 3030 §2


class Wrong(Exception):
    """What is wrong with a command, as the reply that refuses it."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, text, enhanced)


def split(line: bytes, extensions: Collection[str] = ()) -> tuple[str, str]:
    """The verb in capitals, one of `KINDS` or BDAT, and its argument. `line` with its end. Raises Wrong."""
    text = line.removesuffix(b"\r\n")
    if text.endswith(b"\n") or b"\r" in text:
        raise Wrong(500, "5.5.2", "A line ends with CR LF; neither stands alone")
    verb, _, argument = _printable(text, "SMTPUTF8" in extensions).partition(" ")
    verb = verb.upper()
    if verb == "BDAT" and "CHUNKING" in extensions:
        return verb, argument.strip()
    if verb in _NOT_IMPLEMENTED or (verb in _NEEDS and _NEEDS[verb] not in extensions):
        raise Wrong(502, "5.5.1", "Command not implemented")
    if verb not in KINDS:
        raise Wrong(500, "5.5.1", "Command unrecognized")
    return verb, argument.strip()


def _printable(text: bytes, utf8: bool) -> str:
    if not _NOT_PRINTABLE.search(text):
        return text.decode("ascii")
    if utf8 and text.partition(b" ")[0].upper() in _WITH_ADDRESS:
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            raise Wrong(500, "5.5.2", f"Not UTF-8: byte {text[error.start]:#04x}") from error
        if not _CONTROL.search(decoded):
            return decoded
    raise Wrong(500, "5.5.2", "Only printable ASCII is allowed in a command")


def chunk(argument: str) -> tuple[int, bool]:
    """BDAT's size in bytes, and whether it is the last. Raises Wrong with 521, which ends the session.

    Whoever misunderstands the size would read message content as commands.
    """
    found = _CHUNK.fullmatch(argument)
    if found is None:
        raise Wrong(521, "5.5.4", "Syntax: BDAT bytes [LAST]; closing, since the end of the chunk cannot be known")
    return int(found[1]), found[2] is not None


def parse(
    verb: str, argument: str, mail_parameters: Collection[str], recipient_parameters: Collection[str] = ()
) -> Command:
    """The event for a command as `split` gave it; MAIL and RCPT may have these parameters. Raises Wrong."""
    match verb:
        case "EHLO" | "HELO":
            if not _NAME.fullmatch(argument):
                raise Wrong(501, "5.5.4", f"Syntax: {verb} name, where the name is a domain or an address literal")
            return Hello(argument, extended=verb == "EHLO")
        case "MAIL":
            return _mail(argument, mail_parameters)
        case "RCPT":
            return _recipient(argument, recipient_parameters)
        case "NOOP":
            return Noop()
        case "VRFY":
            return Verify(argument)
        case "EXPN":
            return Expand(argument)
        case "HELP":
            return Help(argument)
        case "AUTH":
            return _auth(argument)
    if argument:
        raise Wrong(501, "5.5.4", f"{verb} takes no argument")
    match verb:
        case "DATA":
            return Data()
        case "RSET":
            return Reset()
        case "STARTTLS":
            return StartTls()
    assert verb == "QUIT", f"{verb} is in KINDS and not parsed"
    return Quit()


def _auth(argument: str) -> Auth:
    mechanism, _, initial = argument.partition(" ")
    if mechanism.upper() not in MECHANISMS:
        raise Wrong(504, "5.5.4", f"Unrecognized authentication type; there is {' and '.join(MECHANISMS)}")
    if not initial:
        return Auth(mechanism.upper(), None)
    # A single `=` is an empty response, as against none (RFC 4954 §4).
    return Auth(mechanism.upper(), b"" if initial == "=" else from_base64(initial))


def from_base64(text: str) -> bytes:
    """Raises Wrong."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Wrong(501, "5.5.2", "Not base64") from error


def _mail(argument: str, known: Collection[str]) -> Mail:
    rest = _after("FROM:", argument, "Syntax: MAIL FROM:<address>")
    try:
        sender, rest = parse_path(rest)
        if sender is not None and not sender.domain:
            raise AddressError(f"{sender.local!r} has no domain")
    except AddressError as error:
        raise Wrong(501, "5.1.7", f"Sender address: {error}") from error
    parameters = _parameters(rest, known)
    if parameters:
        _check_mail(parameters)
    if sender is not None and not sender.is_ascii and "SMTPUTF8" not in parameters:
        raise Wrong(553, "5.6.7", "A sender beyond ASCII needs the parameter SMTPUTF8")
    return Mail(sender, parameters)


def _check_mail(parameters: dict[str, str]) -> None:
    if not _SIZE.fullmatch(parameters.get("SIZE", "0")):
        raise Wrong(501, "5.5.4", "Syntax: SIZE=bytes")
    if parameters.get("BODY", "7BIT").upper() not in ("7BIT", "8BITMIME"):
        raise Wrong(501, "5.5.4", "Syntax: BODY=7BIT or BODY=8BITMIME")
    if parameters.get("SMTPUTF8"):
        raise Wrong(501, "5.5.4", "SMTPUTF8 has no value")
    if parameters.get("RET", "FULL").upper() not in ("FULL", "HDRS"):
        raise Wrong(501, "5.5.4", "Syntax: RET=FULL or RET=HDRS")
    envid = parameters.get("ENVID", "x")
    if not _XTEXT.fullmatch(envid) or len(envid) > MAX_ENVID:
        raise Wrong(501, "5.5.4", f"ENVID must be xtext (RFC 3461) of at most {MAX_ENVID} characters")


def _recipient(argument: str, known: Collection[str]) -> Recipient:
    rest = _after("TO:", argument, "Syntax: RCPT TO:<address>")
    try:
        mailbox, rest = parse_path(rest)
        if mailbox is None:
            raise AddressError("only a sender can be null")
    except AddressError as error:
        raise Wrong(501, "5.1.3", f"Recipient address: {error}") from error
    parameters = _parameters(rest, known)
    if "NOTIFY" in parameters:
        wanted = parameters["NOTIFY"].upper().split(",")
        if wanted != ["NEVER"] and (len(wanted) != len(set(wanted)) or not set(wanted) <= NOTIFY.keys() - {"NEVER"}):
            raise Wrong(501, "5.5.4", "Syntax: NOTIFY=NEVER, or some of SUCCESS,FAILURE,DELAY")
    if "ORCPT" in parameters:
        _check_orcpt(parameters["ORCPT"])
    return Recipient(mailbox, parameters)


NOTIFY = {"SUCCESS": 1, "FAILURE": 2, "DELAY": 4, "NEVER": 8}  # their bits in an envelope (OpenSMTPD's dsn_notify)


def notify_bits(parameter: str) -> int:
    """What a valid NOTIFY asks for; 0 when there is none."""
    return sum(NOTIFY[word] for word in parameter.upper().split(",")) if parameter else 0


def notify_words(bits: int) -> str:
    return ",".join(word for word, bit in NOTIFY.items() if bits & bit)


def _check_orcpt(value: str) -> None:
    found = _ORCPT.fullmatch(value)
    # An address of type utf-8 may stand there as it is (RFC 6533 §3).
    good = found is not None and (_XTEXT.fullmatch(found[1]) or value[:6].lower() == "utf-8;")
    if not good or len(value) > MAX_ORCPT:
        raise Wrong(501, "5.5.4", f"Syntax: ORCPT=type;xtext (RFC 3461), at most {MAX_ORCPT} characters")


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

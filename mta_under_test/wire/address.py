"""Addresses as the MAIL and RCPT commands carry them: RFC 5321 §4.1.2, and RFC 6531 §3.3 where UTF-8 is allowed.

Text in, `Mailbox` out. Says what an address is, never whether anybody lives there.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import msgspec

MAX_LOCAL_BYTES = 64  # RFC 5321 §4.5.3.1.1
MAX_DOMAIN_BYTES = 255  # RFC 5321 §4.5.3.1.2
MAX_LABEL_BYTES = 63  # RFC 1035 §2.3.4

# Beyond ASCII (RFC 6532 §3.1) all but the controls of ISO 6429, the separators that would end a line, and surrogates.
# All classes say what is not in them: the others would be compiled into tables of all of Unicode, at every start.
_NEVER = "\x7f-\x9f\u2028\u2029\ud800-\udfff"
_ATOM = rf'[^\x00-\x20"(),.:;<>@\[\\\]{_NEVER}]+'  # RFC 5322 §3.2.3
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED_STRING = re.compile(rf'"(?:[^\x00-\x1f"\\{_NEVER}]|\\[ -~])*"')
_LITERAL = re.compile(r"\[[A-Za-z0-9.:]*\]")
_NOT_IN_DOMAIN = rf"\x00-,/:-@\[-^`{{-~{_NEVER}"  # of ASCII, letters, digits, hyphen, underscore and dot are
_DOMAIN = re.compile(rf"[^{_NOT_IN_DOMAIN}]+")
_ROUTE = re.compile(r"@[^\s:,@<>]+(?:,@[^\s:,@<>]+)*:")
_LABEL = re.compile(rf"[^.{_NOT_IN_DOMAIN}-](?:[^.{_NOT_IN_DOMAIN}]*[^.{_NOT_IN_DOMAIN}-])?")

_PLAIN_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PLAIN_DOMAIN = re.compile(rf"{_PLAIN_LABEL}(?:\.{_PLAIN_LABEL})*")  # nearly all; the others are looked at by label


class AddressError(ValueError):
    """Not an address; the text says what is wrong with it."""


class Mailbox(msgspec.Struct, frozen=True):
    """`local` without its quotes, where it had any; `domain` as given, "" only for the bare postmaster."""

    local: str
    domain: str

    def __str__(self) -> str:
        local = self.local if _DOT_STRING.fullmatch(self.local) else _quoted(self.local)
        return f"{local}@{self.domain}" if self.domain else local

    @property
    def is_ascii(self) -> bool:
        return self.local.isascii() and self.domain.isascii()


def parse_path(text: str) -> tuple[Mailbox | None, str]:
    """Read the path at the start of `text`: `<local@domain>`, `<>` (None) or `<postmaster>`. Also give what follows it.

    A source route (`<@a,@b:local@domain>`) is accepted and dropped, as RFC 5321 §4.1.1.3 asks. Raises AddressError.
    """
    if not text.startswith("<"):
        raise AddressError("the address must stand in angle brackets, as in <user@example.org>")
    if text.startswith("<>"):
        return None, text[2:]
    start = 1
    if text.startswith("<@"):
        route = _ROUTE.match(text, 1)
        if route is None:
            raise AddressError("a source route looks like <@relay.example,@other.example:user@example.org>")
        start = route.end()
    mailbox, end = _mailbox(text, start)
    if text[end : end + 1] != ">":
        raise AddressError(_unexpected(text, end, "after the address; it must end with >"))
    return mailbox, text[end + 1 :]


def parse_mailbox(text: str) -> Mailbox:
    """`local@domain` without brackets and with nothing around it. Raises AddressError."""
    mailbox, end = _mailbox(text, 0)
    if end < len(text):
        raise AddressError(_unexpected(text, end, "after the address"))
    return mailbox


def _mailbox(text: str, start: int) -> tuple[Mailbox, int]:
    """The mailbox at `start` and where it ends."""
    quoted = text.startswith('"', start)
    found = (_QUOTED_STRING if quoted else _DOT_STRING).match(text, start)
    if found is None:
        if quoted:
            raise AddressError("the quoted local part has no end, or a character that cannot be in it")
        raise AddressError(_unexpected(text, start, "where the local part should be"))
    local = re.sub(r"\\(.)", r"\1", found[0][1:-1]) if quoted else found[0]
    if (size := _bytes(found[0])) > MAX_LOCAL_BYTES:
        raise AddressError(f"the local part has {size} bytes; {MAX_LOCAL_BYTES} are allowed")
    end = found.end()
    if text[end : end + 1] != "@":
        if local.lower() == "postmaster" and not quoted:
            return Mailbox(local, ""), end
        if text[end : end + 1] in ("", ">"):
            raise AddressError(f"{local!r} has no domain")
        raise AddressError(_unexpected(text, end, "in the local part"))
    domain, end = _domain(text, end + 1)
    return Mailbox(local, domain), end


def _domain(text: str, start: int) -> tuple[str, int]:
    is_literal = text.startswith("[", start)
    found = (_LITERAL if is_literal else _DOMAIN).match(text, start)
    if found is None:
        raise AddressError(_unexpected(text, start, "where the domain should be"))
    domain = found[0]
    if (size := _bytes(domain)) > MAX_DOMAIN_BYTES:
        raise AddressError(f"the domain has {size} bytes; {MAX_DOMAIN_BYTES} are allowed")
    if is_literal:
        _check_literal(domain)
    elif not _PLAIN_DOMAIN.fullmatch(domain):
        for label in domain.split("."):
            if _bytes(label) > MAX_LABEL_BYTES or not _LABEL.fullmatch(label):
                raise AddressError(f"{domain!r} is not a domain: {label!r} cannot be a part of one")
    return domain, found.end()


def _check_literal(literal: str) -> None:
    """`[192.0.2.1]` or `[IPv6:2001:db8::1]`; no other tag is registered (RFC 5321 §4.1.3)."""
    inner = literal[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            IPv6Address(inner[5:])
        else:
            IPv4Address(inner)
    except ValueError as error:
        raise AddressError(f"{literal} is not an address literal, as [192.0.2.1] or [IPv6:2001:db8::1] is") from error


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _unexpected(text: str, at: int, where: str) -> str:
    found = repr(text[at]) if at < len(text) else "the end"
    return f"unexpected {found} {where}"


def _quoted(local: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'


def split_address(text: str) -> tuple[str, str]:
    """Local part without its quotes, and domain ("" for the bare postmaster), of text that was parsed before."""
    local, at, domain = text.rpartition("@")
    if not at:
        local, domain = domain, ""
    if local.startswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return local, domain

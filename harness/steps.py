"""The steps of a raw client: what scenarios of rude clients are put together from. Pure."""

from __future__ import annotations

from harness.scenario import DEFAULT_SENDER, SENDER_DOMAIN, Step

GREETING = Step()
EHLO = Step(f"EHLO load.{SENDER_DOMAIN}\r\n".encode())
HELO = Step(f"HELO load.{SENDER_DOMAIN}\r\n".encode())
RSET = Step(b"RSET\r\n")
NOOP = Step(b"NOOP\r\n")
DATA = Step(b"DATA\r\n", expect="3")
STARTTLS = Step(b"STARTTLS\r\n", tls=True)
END = Step(b".\r\n", accepts=True)


def mail(sender: str = DEFAULT_SENDER) -> Step:
    return Step(f"MAIL FROM:<{sender}>\r\n".encode())


def rcpt(recipient: str, *, expect: str = "2") -> Step:
    return Step(f"RCPT TO:<{recipient}>\r\n".encode(), expect=expect)


def header(recipient: str, sender: str = DEFAULT_SENDER) -> Step:
    """A message's header with its Message-ID; no answer is due before the end of the data."""
    return Step(
        f"From: {sender}\r\nTo: {recipient}\r\nSubject: a raw client\r\nMessage-ID: <{{id}}>\r\n\r\n".encode(),
        expect="",
    )


def body(size_bytes: int, *, piece_bytes: int = 0, pause_s: float = 0.0) -> Step:
    """Lines of 64 bytes, at least `size_bytes` of them together."""
    line = b"s" * 62 + b"\r\n"
    return Step(line * -(-size_bytes // len(line)), expect="", piece_bytes=piece_bytes, pause_s=pause_s)


def transaction(recipient: str, size_bytes: int = 1024) -> tuple[Step, ...]:
    """One whole message."""
    return (mail(), rcpt(recipient), DATA, header(recipient), body(size_bytes), END)

"""SMTP replies: one immutable value, written to bytes and read back from them.

RFC 5321 §4.2 (three digits, several lines) and RFC 2034 / RFC 3463 (enhanced status codes). Says nothing about which
reply is due: that is the server machine's and its shell's business.
"""

from __future__ import annotations

import re

import msgspec

MAX_LINE_BYTES = 4096  # a reply line may have 512 (RFC 5321 §4.5.3.1.5); real servers exceed it
MAX_LINES = 256  # of one reply

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}", re.ASCII)
_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # controls, the tab excepted


class LocalError(Exception):
    """A machine was used out of order by the code around it: a mistake of ours, not of the peer."""


class ReplyError(Exception):
    """What came is not an SMTP reply; the text quotes it."""


class Reply(msgspec.Struct, frozen=True):
    """`text` is one line, or a tuple of lines. Raises ValueError for a code or an enhanced code that cannot be."""

    code: int
    text: str | tuple[str, ...]
    enhanced: str = ""

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"reply code {self.code}: it must be 200 to 599")
        if self.enhanced and not _ENHANCED.fullmatch(self.enhanced):
            raise ValueError(f"enhanced status code {self.enhanced!r}: it looks like 5.1.1 (RFC 3463)")

    @property
    def lines(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text or ("",)

    @property
    def positive(self) -> bool:
        """2xx, or 3xx: go on."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    def encode(self) -> bytes:
        """The reply as it is sent. Controls in the text become blanks, so that quoted input never adds a line."""
        status = f"{self.enhanced} " if self.enhanced else ""
        if isinstance(self.text, str):
            return f"{self.code} {status}{_printable(self.text)}\r\n".encode(errors="replace")
        lines = self.lines
        head = "".join(f"{self.code}-{status}{_printable(line)}\r\n" for line in lines[:-1])
        return f"{head}{self.code} {status}{_printable(lines[-1])}\r\n".encode(errors="replace")

    def __str__(self) -> str:
        """One line for a log: `550 5.1.1 No such user`."""
        return " ".join(filter(None, (str(self.code), self.enhanced, *map(_printable, self.lines))))


def _printable(line: str) -> str:
    return line if line.isprintable() else _NOT_TEXT.sub(" ", line)


class ReplyDecoder:
    """Bytes in, whole replies out, however the stream was split."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._code = 0
        self._lines: list[str] = []

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Reply | None:
        """The next whole reply; None when more bytes are needed. Raises ReplyError."""
        while (end := self._buffer.find(b"\n")) >= 0:
            if end >= MAX_LINE_BYTES:
                break
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            if (reply := self._take(line)) is not None:
                return reply
        if len(self._buffer) > MAX_LINE_BYTES or end >= MAX_LINE_BYTES:
            raise ReplyError(f"a reply line of more than {MAX_LINE_BYTES} bytes: {_quoted(self._buffer)}")
        return None

    def _take(self, line: bytes) -> Reply | None:
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise ReplyError(f"not a reply line: {_quoted(line)}")
        code = int(parts[1])
        if self._lines and code != self._code:
            raise ReplyError(f"a reply that began with {self._code} goes on with {_quoted(line)}")
        self._code = code
        self._lines.append((parts[3] or b"").decode(errors="replace"))
        if parts[2] != b"-":
            lines, self._lines = self._lines, []
            return _assembled(code, lines)
        if len(self._lines) >= MAX_LINES:
            raise ReplyError(f"a reply of more than {MAX_LINES} lines, beginning with {self._code} {self._lines[0]!r}")
        return None


def _assembled(code: int, lines: list[str]) -> Reply:
    """The enhanced code stands at the start of every line (RFC 2034 §4) and has the class of the reply code."""
    enhanced, _, _ = lines[0].partition(" ")
    if not _ENHANCED.fullmatch(enhanced) or enhanced[0] != str(code)[0]:
        enhanced = ""
    else:
        lines = [line[len(enhanced) + 1 :] if f"{line} ".startswith(f"{enhanced} ") else line for line in lines]
    return Reply(code, lines[0] if len(lines) == 1 else tuple(lines), enhanced)


def _quoted(line: bytes | bytearray) -> str:
    return repr(bytes(line[:80]))[1:] + ("…" if len(line) > 80 else "")

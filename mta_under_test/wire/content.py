"""The bytes between 354 and CRLF.CRLF, from both sides: dots (RFC 5321 §4.5.2), line ends, and where it all ends.

Lines end with CRLF, and with nothing else: neither LF.LF nor CR.CR is an end, and content with a bare CR or LF is
malformed as a whole, so that nobody can smuggle a second message past us (CVE-2023-51764).
"""

from __future__ import annotations

_END = b"\r\n.\r\n"


class Unstuffing:
    """The receiver's side. The CRLF before the content must be the first bytes in the buffer that `take` is given."""

    def __init__(self) -> None:
        self.ended = False
        self.size_bytes = 0  # RFC 1870 §5: line ends counted, stuffed dots and the end not
        self.longest_line_bytes = 0  # of those that have ended, their end not counted
        self.has_bare = False  # a CR or LF that is no part of a CRLF
        self._line_bytes = 0  # of the line that has not ended yet
        self._before = 2  # bytes of the CRLF before the content

    def take(self, buffer: bytearray) -> bytes:
        """Move what is certainly content out of `buffer`. `ended` once the end was found, and removed as well."""
        assert not self.ended
        end = buffer.find(_END)
        if end >= 0:
            self.ended = True
            raw = bytes(buffer[: end + 2])
            del buffer[: end + len(_END)]
        else:
            raw = bytes(buffer[: len(buffer) - _begun(buffer)])
            del buffer[: len(raw)]
        if not raw:
            return b""
        breaks = raw.count(b"\r\n")  # no CRLF is ever cut in two: a CR at the end may begin the end
        if raw.count(b"\r") != breaks or raw.count(b"\n") != breaks:
            self.has_bare = True
        content = raw.replace(b"\r\n.", b"\r\n")[self._before :]
        self._before = 0
        self._measure(content)
        return content

    def _measure(self, content: bytes) -> None:
        self.size_bytes += len(content)
        lines = content.split(b"\r\n")
        if len(lines) > 1:
            longest = max(self._line_bytes + len(lines[0]), max(map(len, lines)))
            self.longest_line_bytes = max(self.longest_line_bytes, longest)
            self._line_bytes = 0
        self._line_bytes += len(lines[-1])


def _begun(buffer: bytearray) -> int:
    """How many of the last bytes may turn out to begin the end."""
    return next((length for length in range(len(_END) - 1, 0, -1) if buffer.endswith(_END[:length])), 0)


class Stuffing:
    """The sender's side."""

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last two bytes so far; the content begins on a new line

    def put(self, content: bytes) -> bytes:
        """The next piece of content, as it is sent: dots at the start of a line doubled, nothing else changed.

        A dot after a bare LF is doubled too. A server that takes a bare LF for a line end would otherwise read
        LF.CRLF as the end; one that does not, refuses such a message anyway.
        """
        if not content:
            return b""
        dot = b"." if content.startswith(b".") and self._tail.endswith(b"\n") else b""
        self._tail = (self._tail + content[-2:])[-2:]
        return dot + content.replace(b"\n.", b"\n..")

    def end(self) -> bytes:
        """The end, after the line end that the content may lack."""
        return _END[2:] if self._tail == b"\r\n" else _END

"""A message on its way over SMTP, from both sides: dots (RFC 5321 §4.5.2), chunks (RFC 3030), line ends, and the end.

Lines end with CRLF, and with nothing else: neither LF.LF nor CR.CR is an end, and content with a bare CR or LF is
malformed as a whole, so that nobody can smuggle a second message past us (CVE-2023-51764). That goes for chunks too:
they could carry anything, but the next server may be spoken to with DATA.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"
_HOP = b"\r\nreceived:"


class Content:
    """What is known of a message's content as far as it has come."""

    def __init__(self) -> None:
        self.size_bytes = 0  # RFC 1870 §5: line ends counted, stuffed dots and the end not
        self.longest_line_bytes = 0  # of those that have ended, their end not counted
        self.has_bare = False  # a CR or LF that is no part of a CRLF
        self.hops = 0  # Received fields in the header; a folded line is none
        self._line_bytes = 0  # of the line that has not ended yet
        self._header = b"\r\n"  # the last bytes of it so far; the content begins on a new line
        self._in_header = True

    def _measure(self, content: bytes) -> None:
        """`content` never ends between a CR and its LF."""
        self.size_bytes += len(content)
        lines = content.split(b"\r\n")
        if len(lines) > 1:
            longest = max(self._line_bytes + len(lines[0]), max(map(len, lines)))
            self.longest_line_bytes = max(self.longest_line_bytes, longest)
            self._line_bytes = 0
        self._line_bytes += len(lines[-1])
        if self._in_header:
            self._count_hops(content)

    def _count_hops(self, content: bytes) -> None:
        text = self._header + content
        end = text.find(b"\r\n\r\n")
        if end >= 0:
            self._in_header = False
            text = text[:end]
        self.hops += text.lower().count(_HOP)
        # A field's name that was cut in two is found next time, and one that was counted is not: it does not fit in.
        self._header = text[1 - len(_HOP) :]


class Unstuffing(Content):
    """The receiver's side of DATA. The buffer that `take` is first given begins with the CRLF before the content."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
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


def _begun(buffer: bytearray) -> int:
    """How many of the last bytes may turn out to begin the end."""
    return next((length for length in range(len(_END) - 1, 0, -1) if buffer.endswith(_END[:length])), 0)


class Chunks(Content):
    """The receiver's side of BDAT: so many bytes as they are, chunk after chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.left_bytes = 0  # of the chunk in hand
        self.chunk_bytes = 0  # its size
        self.is_last = False
        self._cr = b""  # a CR at the end of what came, whose LF may follow, in the next chunk even

    def begin(self, size_bytes: int, is_last: bool) -> None:
        assert not self.left_bytes
        assert not self.is_last
        self.left_bytes = self.chunk_bytes = size_bytes
        self.is_last = is_last

    def take(self, buffer: bytearray) -> bytes:
        """Move what the chunk still lacks out of `buffer`."""
        raw = bytes(buffer[: self.left_bytes])
        del buffer[: len(raw)]
        self.left_bytes -= len(raw)
        content = self._cr + raw
        self._cr = b""
        if (self.left_bytes or not self.is_last) and content.endswith(b"\r"):
            content, self._cr = content[:-1], b"\r"
        breaks = content.count(b"\r\n")
        if content.count(b"\r") != breaks or content.count(b"\n") != breaks:
            self.has_bare = True
        self._measure(content)
        return content


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

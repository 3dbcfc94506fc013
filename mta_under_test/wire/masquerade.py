"""`senders … masquerade`: the From field names whoever the session said the sender is. Bytes in, bytes out."""

from __future__ import annotations

HEADER_BYTES = 1 << 16  # a header that does not end by then goes through as it is


class Masquerade:
    """Takes a message in pieces, cut anywhere; what is held back until the header ends comes with a later piece."""

    def __init__(self, sender: str) -> None:
        self._field = f"From: {sender}\r\n".encode()
        self._held: bytearray | None = bytearray()  # the header so far; None once it has gone

    def feed(self, chunk: bytes) -> bytes:
        if self._held is None:
            return chunk
        self._held += chunk
        end = 0 if self._held.startswith(b"\r\n") else self._held.find(b"\r\n\r\n") + 2
        if end == 1 and len(self._held) <= HEADER_BYTES:
            return b""
        held, self._held = bytes(self._held), None
        return held if end == 1 else self._rewritten(held[:end]) + held[end:]

    def rest(self) -> bytes:
        """What is held when the message has ended: a header without a body."""
        held, self._held = self._held, None
        return self._rewritten(bytes(held)) if held else b""

    def _rewritten(self, header: bytes) -> bytes:
        """Every From field, with its folded lines, is ours (RFC 5322 §3.6.2); others stay byte for byte."""
        out: list[bytes] = []
        skipping = False
        for line in header.splitlines(keepends=True):
            if line[:1] not in (b" ", b"\t"):
                skipping = line[:5].lower() == b"from:"
                if skipping and self._field not in out:
                    out.append(self._field)
            if not skipping:
                out.append(line)
        return b"".join(out)

"""imsg: the frames that the MTA's processes exchange.

A frame is a 16-byte header and a payload. The header is OpenBSD's `struct imsg_hdr` (imsg_init(3)) in the machine's
byte order, since both ends live on one machine: type (u32), length of the whole frame (u16), flags (u16, bit 0: a
descriptor travels with it), peer id (u32), pid of the sender (u32). The payload is text or packed integers; never a
struct dumped from memory. Descriptors travel beside the bytes (SCM_RIGHTS); pairing them is the channel's work.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("=IHHII")
MAX_FRAME_BYTES = 16384  # MAX_IMSGSIZE
HAS_DESCRIPTOR = 1  # IMSGF_HASFD


class ImsgError(Exception):
    """The byte stream is not imsg, or a payload is too long for one frame."""


class Imsg(NamedTuple):
    type: int
    payload: bytes
    peer_id: int = 0
    pid: int = 0
    has_descriptor: bool = False


def encode(message: Imsg) -> bytes:
    """One frame. Raises ImsgError when the payload does not fit in 16,384 bytes."""
    return frame(message.type, message.payload, message.peer_id, message.pid, message.has_descriptor)


def frame(kind: int, payload: bytes, peer_id: int, pid: int, has_descriptor: bool) -> bytes:
    """The same, of its parts."""
    length = HEADER.size + len(payload)
    if length > MAX_FRAME_BYTES:
        raise ImsgError(f"payload of {len(payload)} bytes; a frame holds {MAX_FRAME_BYTES - HEADER.size}")
    return HEADER.pack(kind, length, HAS_DESCRIPTOR if has_descriptor else 0, peer_id, pid) + payload


class Decoder:
    """Bytes in, whole frames out, however the stream was split."""

    def __init__(self) -> None:
        self._rest = b""  # of a frame that is not whole yet

    def feed(self, data: bytes) -> Iterator[Imsg]:
        """Yield every frame that `data` completes. Raises ImsgError on a length that no frame can have."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= HEADER.size:
                kind, length, flags, peer_id, pid = HEADER.unpack_from(data, at)
                if not HEADER.size <= length <= MAX_FRAME_BYTES:
                    raise ImsgError(f"frame of {length} bytes; it can have {HEADER.size} to {MAX_FRAME_BYTES}")
                if end - at < length:
                    return
                payload = data[at + HEADER.size : at + length]
                at += length
                yield Imsg(kind, payload, peer_id, pid, bool(flags & HAS_DESCRIPTOR))
        finally:
            self._rest = data[at:]

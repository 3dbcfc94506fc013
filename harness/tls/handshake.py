"""The beginning of a TLS 1.2 handshake (RFC 5246 §7.4), as far as a server's ephemeral key: bytes in, an answer out.

Pure: no sockets, no randomness of its own. Nothing is verified and no key is agreed on; the connection is of no use
afterwards.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_RECORD_BYTES = (1 << 14) + 2048
MAX_HANDSHAKE_BYTES = 1 << 20

_ALERT, _HANDSHAKE = 21, 22
_SERVER_HELLO, _SERVER_KEY_EXCHANGE, _SERVER_HELLO_DONE = 2, 12, 14
_TLS_1_2 = 0x0303

# Suites by how the key is agreed on (IANA, TLS Cipher Suites).
DHE = (0x009F, 0x009E, 0xCCAA, 0x006B, 0x0067, 0x0039, 0x0033, 0x0016, 0x00A3, 0x00A2, 0x0038, 0x0032)
ECDHE = (0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9, 0xC023, 0xC027, 0xC009, 0xC00A, 0xC013, 0xC014)
NOBODY = (0x00A7, 0x00A6, 0x003A, 0x0034, 0x001B, 0xC019, 0xC018, 0x0014, 0x0011, 0x0008, 0x0003)  # anonymous, export

CURVES = {  # name and bits (IANA, TLS Supported Groups)
    19: ("secp192r1", 192),
    21: ("secp224r1", 224),
    23: ("secp256r1", 256),
    24: ("secp384r1", 384),
    25: ("secp521r1", 521),
    29: ("x25519", 253),
    30: ("x448", 446),
}
_SIGNATURES = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0201, 0x0203, 0x0202, 0x0402)
_ALERTS = {40: "handshake failure", 70: "protocol version", 71: "insufficient security", 112: "unrecognized name"}


class HandshakeError(Exception):
    """Not the handshake of a TLS server."""


@dataclass(frozen=True)
class Exchange:
    """What the server offers to agree on a key with. `prime` is 0 for an elliptic curve."""

    suite: int
    kind: str  # DHE or ECDHE
    name: str  # of the curve; "" for a prime
    bits: int
    prime: int = 0


@dataclass(frozen=True)
class Declined:
    """The server has nothing in common with what was offered; `reason` is its alert's."""

    reason: str


def client_hello(suites: tuple[int, ...], random: bytes, host: str = "") -> bytes:
    """One record. `random` is 32 bytes; `host` is told by SNI when it is a name (RFC 6066 §3)."""
    assert len(random) == 32
    extensions = [
        _extension(10, _list16(tuple(CURVES))),
        _extension(11, b"\x01\x00"),
        _extension(13, _list16(_SIGNATURES)),
    ]
    if host and not host.replace(".", "").isdigit() and ":" not in host:
        name = host.encode("idna")
        entry = b"\0" + struct.pack("!H", len(name)) + name
        extensions.insert(0, _extension(0, struct.pack("!H", len(entry)) + entry))
    tail = b"".join(extensions)
    body = struct.pack("!H", _TLS_1_2) + random + b"\0" + _list16(suites) + b"\x01\x00"
    body += struct.pack("!H", len(tail)) + tail
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return struct.pack("!BHH", _HANDSHAKE, 0x0301, len(message)) + message


class ServerReader:
    """What a server answers. `feed` it until it gives something."""

    def __init__(self) -> None:
        self._records = bytearray()
        self._messages = bytearray()
        self._suite = 0

    def feed(self, data: bytes) -> Exchange | Declined | None:
        """None: more bytes are needed. Raises HandshakeError."""
        self._records += data
        while len(self._records) >= 5:
            kind, version, length = struct.unpack_from("!BHH", self._records)
            if version >> 8 != 3 or kind not in (_ALERT, _HANDSHAKE):
                raise HandshakeError(f"not TLS: {bytes(self._records[:20])!r}")
            if length > MAX_RECORD_BYTES:
                raise HandshakeError(f"a record of {length} bytes")
            if len(self._records) < 5 + length:
                return None
            payload = bytes(self._records[5 : 5 + length])
            del self._records[: 5 + length]
            if kind == _ALERT:
                if length < 2:
                    raise HandshakeError("half an alert")
                return Declined(_ALERTS.get(payload[1], f"alert {payload[1]}"))
            self._messages += payload
            if (found := self._next()) is not None:
                return found
        return None

    def _next(self) -> Exchange | Declined | None:
        while len(self._messages) >= 4:
            kind, length = self._messages[0], int.from_bytes(self._messages[1:4], "big")
            if length > MAX_HANDSHAKE_BYTES:
                raise HandshakeError(f"a handshake message of {length} bytes")
            if len(self._messages) < 4 + length:
                return None
            body = bytes(self._messages[4 : 4 + length])
            del self._messages[: 4 + length]
            try:
                if kind == _SERVER_HELLO:
                    self._hello(body)
                elif kind == _SERVER_KEY_EXCHANGE:
                    return self._key_exchange(body)
                elif kind == _SERVER_HELLO_DONE:
                    return Declined("no ephemeral key: the key is the certificate's")
            except (struct.error, IndexError) as error:
                raise HandshakeError(f"handshake message {kind} is cut short") from error
        return None

    def _hello(self, body: bytes) -> None:
        (version,) = struct.unpack_from("!H", body)
        if version != _TLS_1_2:
            raise HandshakeError(f"the server speaks version {version:#06x}, not TLS 1.2")
        session_bytes = body[34]
        (self._suite,) = struct.unpack_from("!H", body, 35 + session_bytes)

    def _key_exchange(self, body: bytes) -> Exchange:
        if self._suite in DHE or (self._suite in NOBODY and self._suite < 0xC000):
            (length,) = struct.unpack_from("!H", body)
            if len(body) < 2 + length:
                raise HandshakeError("the prime is cut short")
            prime = int.from_bytes(body[2 : 2 + length], "big")
            return Exchange(self._suite, "DHE", "", prime.bit_length(), prime)
        curve_type, curve = struct.unpack_from("!BH", body)
        if curve_type != 3:
            raise HandshakeError("a curve of the server's own, without a name")
        name, bits = CURVES.get(curve, (f"group {curve}", 0))
        return Exchange(self._suite, "ECDHE", name, bits)


def _extension(number: int, data: bytes) -> bytes:
    return struct.pack("!HH", number, len(data)) + data


def _list16(numbers: tuple[int, ...]) -> bytes:
    return struct.pack(f"!H{len(numbers)}H", 2 * len(numbers), *numbers)

"""PROXY protocol, version 2: the header by which a proxy says whom it speaks for. Bytes in, addresses out; no I/O.

haproxy's proxy-protocol.txt §2.2. Extensions (TLVs) behind the addresses are skipped.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_LENGTH = 2048  # of addresses and extensions; real headers have a few hundred bytes

_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21  # version 2, and the command
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESSES = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}  # their lengths


class ProxyError(Exception):
    """What came is not a header of version 2."""


class ProxyHeader(NamedTuple):
    """`source` and `destination` are (address, port); None: those of the connection itself are to be used."""

    size_bytes: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


def parse(data: bytes) -> ProxyHeader | None:
    """The header at the start of `data`; None when more bytes are needed. Raises ProxyError as soon as that is sure."""
    if data[:12] != SIGNATURE[: len(data)]:
        raise ProxyError(f"no PROXY header of version 2: {bytes(data[:16])!r}")
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise ProxyError(f"version and command {data[12]:#04x}; there is 0x20 (LOCAL) and 0x21 (PROXY)")
    if len(data) > 13 and data[12] == _PROXY and data[13] not in _ADDRESSES:
        raise ProxyError(f"family and protocol {data[13]:#04x}: only streams are proxied")
    if len(data) < _HEAD.size:
        return None
    _, command, family, length = _HEAD.unpack_from(data)
    if length > MAX_LENGTH:
        raise ProxyError(f"{length} bytes of addresses and extensions; {MAX_LENGTH} are allowed")
    if command == _PROXY and length < _ADDRESSES[family]:
        raise ProxyError(f"{length} bytes, and the addresses alone have {_ADDRESSES[family]}")
    size = _HEAD.size + length
    if len(data) < size:
        return None
    if command == _LOCAL or family in (_UNSPECIFIED, _UNIX):
        return ProxyHeader(size, None, None)
    source, destination = _addresses(data[_HEAD.size : size], family)
    return ProxyHeader(size, source, destination)


def _addresses(data: bytes, family: int) -> tuple[tuple[str, int], tuple[str, int]]:
    if family == _TCP4:
        packed, packed_to, port, port_to = struct.unpack_from("!4s4sHH", data)
        return (str(IPv4Address(packed)), port), (str(IPv4Address(packed_to)), port_to)
    packed, packed_to, port, port_to = struct.unpack_from("!16s16sHH", data)
    return (str(_plain(packed)), port), (str(_plain(packed_to)), port_to)


def _plain(packed: bytes) -> IPv4Address | IPv6Address:
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


def encode(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """The header for these addresses, both of one family. Raises ValueError."""
    try:
        addresses = IPv4Address(source[0]).packed + IPv4Address(destination[0]).packed
        family = _TCP4
    except ValueError:
        addresses = IPv6Address(source[0]).packed + IPv6Address(destination[0]).packed
        family = _TCP6
    body = addresses + struct.pack("!HH", source[1], destination[1])
    return _HEAD.pack(SIGNATURE, _PROXY, family, len(body)) + body

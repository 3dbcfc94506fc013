"""Where mail for a destination goes, as lookup tells transfer: one line for each address, best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Exchange(NamedTuple):
    """One address that takes mail for a destination. Lower preferences are better (RFC 5321 §5.1)."""

    preference: int
    address: str
    name: str  # of the host, or the literal


MAX_BYTES = 12_000  # that fit into a frame; the worst are left out


def encode(exchanges: Sequence[Exchange]) -> bytes:
    text = "".join(f"{preference} {address} {name}\n" for preference, address, name in exchanges).encode()[:MAX_BYTES]
    return text[: text.rfind(b"\n") + 1]


def decode(text: bytes) -> list[Exchange]:
    """Raises ValueError for what `encode` did not write."""
    fields = (line.split(" ", 2) for line in text.decode().splitlines())
    return [Exchange(int(preference), address, name) for preference, address, name in fields]

"""Values written as words: durations, sizes, ports, relay URLs. Each raises ValueError with the reason."""

from __future__ import annotations

import re
import socket
from typing import cast, get_args

from mta_under_test.config.model import RelayHost, RelayScheme

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}  # scan_scaled(3)
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_SIZE = re.compile(r"([0-9]{1,18})([bkmgt]?)", re.IGNORECASE)
_URL = re.compile(
    r"(?:(?P<scheme>[^:/@]*)://(?:(?P<label>[^@]*)@)?)?(?P<host>\[[^\]]*\]|[^:/@\[\]]*)(?::(?P<port>.*))?"
)
_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")


def duration_s(text: str) -> int:
    """`30s`, `15m`, `4h`, `4d`."""
    found = _DURATION.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f'"{text}" is not a duration; write a positive number and s, m, h or d, as in 4d')
    return int(found[1]) * _SECONDS[found[2]]


def size_bytes(text: str) -> int:
    """`1000`, `64K`, `35M`."""
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f'"{text}" is not a size; write a positive number and nothing, K, M, G or T, as in 35M')
    return int(found[1]) * _BYTES[found[2].lower()]


def port_number(text: str, *, lowest: int) -> int:
    """A number from `lowest` (0 where the kernel may choose) to 65535."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and lowest <= int(text) <= 65535):
        raise ValueError(f'"{text}" is not a port; ports are {lowest} to 65535')
    return int(text)


def service_port(name: str) -> int:
    """A service's port, from services(5)."""
    try:
        return socket.getservbyname(name, "tcp")
    except (OSError, UnicodeError) as error:
        raise ValueError(f'unknown service "{name}"; write the port as a number') from error


def relay_host(url: str) -> RelayHost:
    """`[proto://[label@]]host[:port]`, as smtpd.conf(5) has it under `relay host`."""
    found = _URL.fullmatch(url)
    if found is None or not _HOST.fullmatch(found["host"]):
        raise ValueError(
            f'"{url}" is not a relay; write [proto://[label@]]host[:port], as in smtp://mail.example.org:25'
        )
    scheme = found["scheme"] if found["scheme"] is not None else "smtp"
    if scheme not in get_args(RelayScheme):
        raise ValueError(f'"{url}": unknown protocol "{scheme}"; there is {", ".join(get_args(RelayScheme))}')
    if found["label"] and scheme not in ("smtps", "smtp+tls"):
        raise ValueError(f'"{url}": a label is for smtps and smtp+tls only')
    port = 465 if scheme == "smtps" else 25
    if found["port"] is None and scheme == "lmtp":
        raise ValueError(f'"{url}": lmtp needs a port')
    if found["port"] is not None:
        try:
            port = port_number(found["port"], lowest=1)
        except ValueError as error:
            raise ValueError(f'"{url}": {error}') from error
    return RelayHost(found["host"].strip("[]"), port, cast(RelayScheme, scheme), found["label"] or "")

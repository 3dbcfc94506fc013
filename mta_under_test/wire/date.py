"""Dates of header fields (RFC 5322 §3.3)."""

from __future__ import annotations

import time


def header_date(seconds: float | None = None) -> str:
    """`seconds` since 1970, or now, in the local zone: "Mon, 23 Nov 2026 21:57:00 +0000".

    Not `email.utils.formatdate`: on CPython 3.11 its way through `datetime.strftime` looks names up by fresh strings,
    which the interpreter's method cache keeps. That is up to 4,096 objects that look like a leak of one in ten
    messages, and is none.
    """
    return time.strftime("%a, %d %b %Y %H:%M:%S %z", time.localtime(seconds))

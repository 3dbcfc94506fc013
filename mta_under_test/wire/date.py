"""Dates of header fields (RFC 5322 §3.3)."""

from __future__ import annotations

import time

# The last one: messages come by the hundred a second, and each time libc looks for /etc/localtime in vain (chroot(2)).
_last = (-1, "")


def header_date(seconds: float | None = None) -> str:
    """`seconds` since 1970, or now, in the local zone: "Mon, 23 Nov 2026 21:57:00 +0000".

    Not `email.utils.formatdate`: on CPython 3.11 its way through `datetime.strftime` looks names up by fresh strings,
    which the interpreter's method cache keeps. That is up to 4,096 objects that look like a leak of one in ten
    messages, and is none.
    """
    global _last
    if seconds is not None:
        return _date(seconds)
    now = int(time.time())
    if _last[0] != now:
        _last = now, _date(now)
    return _last[1]


def _date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S %z", time.localtime(seconds))

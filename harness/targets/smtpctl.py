"""What OpenSMTPD says of itself, and so does the embedded target, which has its names: is anything moving?

Pure: it is given counters, or the text of `smtpctl show stats` or `show routes`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from harness.targets import Rest

_COUNTER = re.compile(r"^([\w.]+)=(-?\d+)$", re.MULTILINE)
_ROUTE = re.compile(r"^\s*(\d+)\. ", re.MULTILINE)


def counters(stats: str) -> dict[str, int]:
    """Of `smtpctl show stats`: what was never counted is not in it."""
    return {name: int(value) for name, value in _COUNTER.findall(stats)}


def rest(counted: Mapping[str, int], moving: Collection[str], gauges: Mapping[str, str]) -> Rest:
    """`moving`: counters that are 0 at rest; `gauges`: counters of what there is now, and the role that counts each."""
    busy = {name: number for name in moving if (number := counted.get(name, 0))}
    waiting = counted.get("scheduler.envelope", 0) - counted.get("scheduler.envelope.inflight", 0)
    return Rest(busy, max(0, waiting), dict(counted), dict(gauges))


def routes(text: str) -> list[str]:
    """Numbers of all routes, of `smtpctl show routes`."""
    return _ROUTE.findall(text)

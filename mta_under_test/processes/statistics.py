"""statistics: what a process says of itself, as lines of text.

Owns: the form of the answer to STATS. Never: counts.

Without a word, STATS asks for `name value` of every counter (`smtpctl show stats`). `gauges` asks which of them say how
many there are now, as `name role`: they fall again, while all other counters are totals and only ever grow. `imsg` asks
for the traffic by kind, as `role peer KIND messages bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping

from mta_under_test.ipc.channel import Channel


def values(
    role: str, totals: Mapping[str, int], gauges: Mapping[str, int], channels: Mapping[str, Channel]
) -> dict[str, int]:
    """Every counter: totals, gauges, and the traffic of the channels. Each channel's peak begins anew."""
    found = {**totals, **gauges}
    for other, channel in channels.items():
        found[f"buffer.{role}.{other}"] = channel.sent.most_waiting_bytes
        channel.sent.most_waiting_bytes = channel.waiting_bytes
        found[f"imsg.{role}.{other}.messages"] = sum(channel.sent.messages)
        found[f"imsg.{role}.{other}.bytes"] = sum(channel.sent.bytes)
    return found


def lines(
    what: bytes, role: str, totals: Mapping[str, int], gauges: Mapping[str, int], channels: Mapping[str, Channel]
) -> bytes:
    """The answer to STATS with the word `what`."""
    match what:
        case b"gauges":
            told = [f"{name} {role}" for name in gauges]
        case b"imsg":
            told = [
                f"{role} {other} {kind.name} {count} {size}"
                for other, channel in channels.items()
                for kind, count, size in channel.sent.by_kind()
            ]
        case _:
            told = [f"{name} {value}" for name, value in values(role, totals, gauges, channels).items()]
    return "".join(f"{line}\n" for line in told).encode()

"""memory: how much of it a process has, from outside."""

from __future__ import annotations

from harness.probes.processes import read_file
from reports.record import Memory

_ROLLUP = {b"Rss:": "rss", b"Pss:": "pss", b"Private_Dirty:": "private_dirty", b"Anonymous:": "anonymous"}
_STATUS = {b"VmRSS:": "rss", b"RssAnon:": "anonymous"}


def read(pid: int, rollup: bytes | None = None) -> Memory:
    """From ``smaps_rollup``; where that is not permitted or not there, what ``status`` tells everyone (proc(5)).

    All zero for a process that has no memory: a zombie, or one that is gone. `rollup` is what was read of it already.
    """
    try:
        rollup = rollup or read_file(f"/proc/{pid}/smaps_rollup")
    except PermissionError:
        rollup = None
    if rollup is not None:
        return _parse(rollup, _ROLLUP)
    return _parse(read_file(f"/proc/{pid}/status") or b"", _STATUS)


def _parse(data: bytes, wanted: dict[bytes, str]) -> Memory:
    found: dict[str, int] = {}
    for line in data.splitlines():
        words = line.split()
        if words and words[0] in wanted:
            found[wanted[words[0]]] = int(words[1]) * 1024  # both files say kB and mean 1,024 bytes
    return Memory(**found)

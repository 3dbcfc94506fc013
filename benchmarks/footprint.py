"""Memory per queued message, process by process, with transfer paused: what a backlog costs.

    python benchmarks/footprint.py [--messages 20000]

The daemon is warmed up, its memory noted (Private_Dirty of each process, from smaps_rollup), the messages are sent
(2 KB, one recipient, 20 sessions) in four batches, and after each the queue is let come to rest and looked at again.
Prints bytes per message; scheduler's must be under 1,024, and every other process flat: under 16. The batch in which a
process grew most is left out for it: what a backlog costs is paid in each, a high-water mark once. Queue has one of
some MB, its index of the messages that have not been written to their files yet, and how many those are at the most is
a matter of luck and of the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from mta_under_test.ipc.client import ControlClient
from mta_under_test.ipc.messages import Kind

SESSIONS = 20
MESSAGES_A_SESSION = 100
SCHEDULER_BYTES = 1024  # for each message
FLAT_BYTES = 16
BATCHES = 4
WARM_UP = 40_000  # after which that mark has been reached, mostly
CONFIGURATION = """\
listen on 127.0.0.1 port 0
action "out" relay host smtp://127.0.0.1:9
match from any for any action "out"
"""
TEXT = b"Subject: footprint\r\n\r\n" + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 27


async def session(port: int, messages: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def say(data: bytes, code: bytes) -> None:
        writer.write(data)
        while (line := await reader.readline())[3:4] == b"-":
            continue
        if not line.startswith(code):
            raise SystemExit(f"{data[:40]!r} was answered with {line!r}")

    await say(b"", b"220")
    await say(b"EHLO footprint.test\r\n", b"250")
    for _ in range(messages):
        await say(b"MAIL FROM:<sender@footprint.test>\r\n", b"250")
        await say(b"RCPT TO:<recipient@footprint.test>\r\n", b"250")
        await say(b"DATA\r\n", b"354")
        await say(TEXT + b".\r\n", b"250")
    await say(b"QUIT\r\n", b"221")
    writer.close()


async def send(port: int, messages: int) -> None:
    left = messages

    async def one() -> None:
        nonlocal left
        while left:
            count = min(left, MESSAGES_A_SESSION)
            left -= count
            await session(port, count)

    await asyncio.gather(*(one() for _ in range(SESSIONS)))


def memory(pids: dict[str, int]) -> dict[str, int]:
    """Bytes of private, written memory by role."""
    found = {}
    for role, pid in pids.items():
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found[role] = 1024 * sum(int(kb) for kb in re.findall(r"^Private_Dirty: +(\d+) kB", text, re.MULTILINE))
    return found


def rest(socket: Path) -> None:
    while True:
        with ControlClient(socket) as control:
            stats = control.stats()
        if not stats["smtp.session"] and not stats["queue.journal"]:
            return
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=20_000, help="[%(default)s]")
    messages = parser.parse_args().messages
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        (directory / "smtpd.conf").write_text(CONFIGURATION)
        arguments = ["-d", "-f", directory / "smtpd.conf", "--spool", directory / "spool", "--socket", directory / "s"]
        with (directory / "log").open("wb") as log:
            smtpd = subprocess.Popen([sys.executable, "-m", "mta_under_test.smtpd", *arguments], stderr=log)
        try:
            while b" ready" not in (text := (directory / "log").read_bytes()):
                if smtpd.poll() is not None:
                    raise SystemExit(text.decode())
                time.sleep(0.05)
            port = int(text.split(b" port ", 1)[1].split()[0])
            with ControlClient(directory / "s") as control:
                control.ask(Kind.PAUSE, text="mta")
            asyncio.run(send(port, WARM_UP))
            rest(directory / "s")
            children = Path(f"/proc/{smtpd.pid}/task/{smtpd.pid}/children").read_text().split()
            pids = {Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0"): int(pid) for pid in children}
            pids["smtpd: parent"] = smtpd.pid
            looks = [memory(pids)]
            began = time.perf_counter()
            for _ in range(BATCHES):
                asyncio.run(send(port, messages // BATCHES))
                rest(directory / "s")
                looks.append(memory(pids))
            took_s = time.perf_counter() - began
        finally:
            smtpd.terminate()
            smtpd.wait()
    return report(looks, messages, took_s)


def report(looks: Sequence[dict[str, int]], messages: int, took_s: float) -> int:
    before, after = looks[0], looks[-1]
    print(f"{messages} messages queued in {took_s:.1f} s, transfer paused\n")
    print(f"{'process':18} {'before':>10} {'after':>10} {'bytes/message':>14}")
    status = 0
    for role in sorted(before):
        grown = sorted(now[role] - then[role] for then, now in pairwise(looks))[:-1]
        each = sum(grown) / (len(grown) * (messages // BATCHES))
        limit = SCHEDULER_BYTES if role == "smtpd: scheduler" else FLAT_BYTES
        verdict = "" if each < limit else f"  over {limit}"
        status |= bool(verdict)
        print(f"{role:18} {before[role] / 1e6:7.1f} MB {after[role] / 1e6:7.1f} MB {each:14.1f}{verdict}")
    return status


if __name__ == "__main__":
    sys.exit(main())

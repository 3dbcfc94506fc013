"""Crashes under load: is anything lost that was acknowledged, or delivered with other content than it came with?

    python benchmarks/crash.py [--rounds 200] [--seed 1]

Each round starts the daemon on the queue that the round before left, sends it mail from several clients while it
delivers to a sink, and ends it at a random moment: half of the rounds by `kill -9` of one process (each role in turn),
the others by a simulated loss of power (`power_loss`): every process is killed, and everything that was not synced is
thrown away, strictly in every other such round, by chance in the rest. At the end the queue is delivered to the last
message, and what arrived is compared with what was acknowledged. Every message carries its number and its hash.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from benchmarks.power_loss import Shadow, restore
from mta_under_test import smtpd
from mta_under_test.ipc.client import ControlClient, ControlError
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.parent.parent import BIRTHS, ROLES
from mta_under_test.processes.queue.queue import Queue

CLIENTS = 8
START_S = 20.0
DRAIN_S = 120.0
LONGEST_BYTES = 40_000  # some messages travel in an imsg, some through a descriptor
CONFIGURATION = """\
listen on 127.0.0.1 port {port}
action "out" relay host smtp://127.0.0.1:{sink}
match from any for any action "out"
"""


@dataclass
class Ledger:
    acknowledged: set[str] = field(default_factory=set)  # `message/recipient`
    delivered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    crashes: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> list[str]:
        return sorted(self.acknowledged - self.delivered.keys())

    @property
    def duplicates(self) -> int:
        return sum(self.delivered.values()) - len(self.delivered)

    def report(self) -> str:
        crashes = ", ".join(f"{what} {count}" for what, count in sorted(self.crashes.items()))
        return (
            f"{self.crashes.total()} crashes: {crashes}\n"
            f"{len(self.acknowledged)} recipients acknowledged, {len(self.delivered)} reached\n"
            f"lost {len(self.lost)}   wrong content {len(self.wrong)}   duplicates {self.duplicates}"
        )


# ---- the sink, and the clients


class Sink:
    """Takes everything, and checks it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink\r\n")
        recipients: list[str] = []
        try:
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"RCPT":
                    recipients.append(line[line.index(b"<") + 1 : line.index(b"@")].decode())
                if verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    content = await reader.readuntil(b"\r\n.\r\n")
                    self._check(content[:-3].replace(b"\r\n..", b"\r\n."), recipients)
                if verb == b"MAIL":
                    recipients.clear()
                writer.write(b"250 fine\r\n")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the daemon was killed in mid sentence
        finally:
            writer.close()

    def _check(self, content: bytes, recipients: list[str]) -> None:
        head, _, body = content.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n") if line.startswith(b"X-"))
        number = fields.get(b"X-Number", b"?").decode()
        if hashlib.sha256(body).hexdigest() != fields.get(b"X-Hash", b"").decode():
            self._ledger.wrong.append(number)
        for recipient in recipients:
            self._ledger.delivered[f"{number}/{recipient}"] += 1


async def client(port: int, name: str, ledger: Ledger, random: Random) -> None:
    """Send message after message until the server is gone; what it acknowledged is in the ledger."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return

    async def say(data: bytes, expected: bytes) -> None:
        writer.write(data)
        await writer.drain()
        while (line := await reader.readline())[3:4] == b"-":
            continue
        if not line.startswith(expected):
            raise ConnectionError(line)

    try:
        await say(b"", b"220")
        await say(b"EHLO crash.test\r\n", b"250")
        for count in range(100):
            number = f"{name}.{count}"
            body = random.randbytes(random.choice((50, 1000, 1000, 8000, LONGEST_BYTES // 2))).hex().encode()
            body = b"\r\n".join(body[at : at + 76] for at in range(0, len(body), 76)) + b"\r\n"
            digest = hashlib.sha256(body).hexdigest()
            recipients = [f"r{one}" for one in range(random.choice((1, 1, 1, 3)))]
            await say(b"MAIL FROM:<>\r\n", b"250")
            for recipient in recipients:
                await say(f"RCPT TO:<{recipient}@crash.test>\r\n".encode(), b"250")
            await say(b"DATA\r\n", b"354")
            await say(f"X-Number: {number}\r\nX-Hash: {digest}\r\n\r\n".encode() + body + b".\r\n", b"250")
            ledger.acknowledged.update(f"{number}/{recipient}" for recipient in recipients)
    except (ConnectionError, ValueError):
        pass  # that is what this is about
    finally:
        writer.close()


# ---- the daemon


class Daemon:
    def __init__(self, directory: Path, sink: int) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self.socket = directory / "s"
        self.shadow = Path(tempfile.mkdtemp(prefix="seatbelt-shadow-", dir="/dev/shm"))
        self._sink = sink
        self._log = directory / "log"

    async def start(self) -> None:
        shutil.rmtree(self.shadow)
        (self.directory / "smtpd.conf").write_text(CONFIGURATION.format(port=0, sink=self._sink))
        command = [sys.executable, __file__, "--role", "daemon", "--shadow", os.fspath(self.shadow), "--"]
        # Whose processes stay who we are: the recorder must reach its copy, and read /proc.
        root = ["--user", "root"] if os.geteuid() == 0 else []
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *command,
                    "-d",
                    "-f",
                    self.directory / "smtpd.conf",
                    "--spool",
                    self.spool,
                    "--socket",
                    self.socket,
                    *root,
                ],
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while " ready" not in (text := self._log.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the daemon does not start:\n{text}")
            await asyncio.sleep(0.01)
        self.port = int(text.split(" port ", 1)[1].split()[0])

    def pids(self) -> dict[str, int]:
        """By role."""
        found = {"parent": self.process.pid}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
            found[title.removeprefix("smtpd: ")] = int(pid)
        return found

    async def _named(self) -> dict[str, int]:
        """The same, once every process has taken its name: until then we would not know whom we kill."""
        deadline = time.monotonic() + START_S
        while not set(ROLES) <= (pids := self.pids()).keys():
            if time.monotonic() > deadline:
                raise SystemExit(f"there is only {', '.join(pids)}")
            await asyncio.sleep(0.005)
        return pids

    async def crash(self, what: str, random: Random) -> None:
        pids = await self._named()
        if what.startswith("power"):
            for pid in pids.values():
                os.kill(pid, signal.SIGSTOP)
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pids[what], signal.SIGKILL)
        await self._gone(pids)
        if what.startswith("power"):
            await asyncio.to_thread(self._lose_power, random if "chance" in what else None)

    def _lose_power(self, chance: Random | None) -> None:
        left = self.directory / "left"
        try:
            restore(self.shadow, left, current=self.spool if chance else None, chance=chance)
        except FileNotFoundError:
            return  # before queue had begun its work
        shutil.rmtree(self.spool)
        left.rename(self.spool)

    async def _gone(self, pids: dict[str, int]) -> None:
        deadline = time.monotonic() + START_S
        while self.process.poll() is None or any(Path(f"/proc/{pid}").exists() for pid in pids.values()):
            if time.monotonic() > deadline:
                raise SystemExit("a process outlives the daemon")
            await asyncio.sleep(0.005)

    async def drain(self) -> None:
        """Until nothing is owed. Raises SystemExit when that does not come."""
        deadline = time.monotonic() + DRAIN_S
        with ControlClient(self.socket) as control:
            control.stats()  # queue answers when it has read its spool, and has told scheduler of all of it
            while owed := control.stats()["scheduler.envelope"]:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{owed} envelopes are not delivered")
                control.ask(Kind.SCHEDULE, 0)  # what failed when its session was killed waits for its retry
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        pids = await self._named()
        try:
            with ControlClient(self.socket) as control:
                control.ask(Kind.SHUTDOWN)
        except ControlError:
            self.process.kill()
        await self._gone(pids)
        shutil.rmtree(self.shadow, ignore_errors=True)


def daemon(shadow: Path, arguments: Sequence[str]) -> int:
    """smtpd, with a queue process whose syncs are recorded."""

    class Recorded(Queue):
        def run(self) -> int:
            Shadow(self.spool_root, shadow).install()
            return super().run()

    return smtpd.main(arguments, {**BIRTHS, "queue": Recorded})


# ---- the rounds


async def rounds(count: int, seed: int, directory: Path) -> Ledger:
    ledger, random = Ledger(), Random(seed)
    server = await asyncio.start_server(Sink(ledger).serve, "127.0.0.1", 0, limit=1 << 20)
    target = Daemon(directory, server.sockets[0].getsockname()[1])
    roles = ("parent", *ROLES)
    plan = []
    for number in range(count):
        power = "power, chance" if number % 4 == 3 else "power, strict"
        plan.append(power if number % 2 else f"{roles[number // 2 % len(roles)]}")
    for number, what in enumerate(plan):
        await target.start()
        load = [
            asyncio.create_task(client(target.port, f"{number}.{one}", ledger, Random(random.random())))
            for one in range(CLIENTS)
        ]
        await asyncio.sleep(random.uniform(0.02, 0.6))
        await target.crash(what, random)
        await asyncio.gather(*load)
        ledger.crashes[what] += 1
        print(f"\rround {number + 1} of {count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    await target.start()
    await target.drain()
    await target.stop()
    server.close()
    return ledger


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--role", choices=["crash", "daemon"], default="crash", help=argparse.SUPPRESS)
    parser.add_argument("--shadow", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "daemon":
        return daemon(options.shadow, options.arguments)
    with tempfile.TemporaryDirectory() as name:
        ledger = asyncio.run(rounds(options.rounds, options.seed, Path(name)))
    print(ledger.report())
    return 1 if ledger.lost or ledger.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

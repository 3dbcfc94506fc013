"""How many messages a second a mail server takes (safe against power loss), and takes and passes on.

    python benchmarks/mta.py [--messages 3000] [--rounds 3] [--reuse] [--only NAME]

All servers on the same disk, with the same client (Postfix's smtp-source: 20 sessions at a time, 2 KB; a new session
for each message or, with --reuse, the same ones for all) and the same sink (smtp-sink), in turns, so that whatever else
the machine does hits them all. `accept` is measured with delivery held (a paused queue, HOLD in Postfix, queue_only in
Exim), `relay` until the server's queue is empty. A server that is slow is given fewer messages: what it does in some 20
seconds. Prints the median of the rounds, and ours as a multiple of each of the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))

from benchmarks.mta_servers import SERVERS, Ours, Server, Unavailable, postfix_tool
from harness.targets.daemon import free_port

SESSIONS = 20
MESSAGE_BYTES = 2048
WARM_UP = 100
LONGEST_S = 20.0  # that one measurement shall take, by what the warm-up took
RELAY_S = 300.0


@contextmanager
def sink() -> Iterator[int]:
    command, environment = postfix_tool("smtp-sink")
    port = free_port()
    arguments = ["-u", "nobody"] if os.geteuid() == 0 else []
    with subprocess.Popen([command, *arguments, f"127.0.0.1:{port}", "1000"], env=environment) as process:
        try:
            time.sleep(0.3)
            yield port
        finally:
            process.terminate()


def send(port: int, messages: int, *, reuse: bool) -> None:
    command, environment = postfix_tool("smtp-source")
    shape = [*(["-d"] if reuse else []), "-s", str(SESSIONS), "-m", str(messages), "-l", str(MESSAGE_BYTES)]
    addresses = ["-f", "sender@bench.test", "-t", "recipient@bench.test"]
    done = subprocess.run([command, *shape, *addresses, f"127.0.0.1:{port}"], env=environment, check=False)
    if done.returncode != 0:
        raise Unavailable("smtp-source gives up")


def per_s(server: Server, messages: int, *, reuse: bool) -> float:
    """Messages a second, until they are accepted or, when the server does not hold them, until its queue is empty."""
    began = time.perf_counter()
    send(server.port, messages, reuse=reuse)
    if not server.hold:
        wait_until_empty(server)
    return messages / (time.perf_counter() - began)


def wait_until_empty(server: Server) -> None:
    deadline = time.monotonic() + RELAY_S
    while queued := server.queued():
        if time.monotonic() > deadline:
            raise Unavailable(f"{queued} messages are not delivered within {RELAY_S:.0f} s")
        time.sleep(0.02)


def uss_mb(server: Server) -> float:
    """Memory that only its processes have, in all."""
    assert server.process is not None
    root = psutil.Process(server.process.pid)
    return float(sum(one.memory_full_info().uss for one in (root, *root.children(recursive=True)))) / 1e6


def measure(
    kind: type[Server], directory: Path, sink_port: int, messages: int, *, hold: bool, reuse: bool
) -> tuple[float, float]:
    """Messages a second, and the memory at rest after that. Raises Unavailable."""
    server = kind(directory, sink_port, hold=hold)
    server.start()
    try:
        guess = per_s(server, WARM_UP, reuse=reuse)
        rate = per_s(server, max(WARM_UP, min(messages, int(guess * LONGEST_S))), reuse=reuse)
        time.sleep(0.5)
        return rate, uss_mb(server) if isinstance(server, Ours) else 0.0
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=3000, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--reuse", action="store_true", help="the same sessions for all messages")
    parser.add_argument("--only", action="append", metavar="NAME", help="a server; may be repeated")
    options = parser.parse_args()
    chosen = [kind for kind in SERVERS if not options.only or any(one in kind.name for one in options.only)]
    rates: dict[tuple[str, bool], list[float]] = {}
    missing: dict[str, str] = {}
    memory: list[float] = []
    # Not /tmp, which may be in memory: the disk is what this is about.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="mta-") as name, sink() as port:
        Path(name).chmod(0o755)
        for number in range(options.rounds):
            for hold in (True, False):
                for kind in chosen:
                    if kind.name in missing:
                        continue
                    directory = Path(name) / f"{kind.__name__}-{number}-{'accept' if hold else 'relay'}"
                    try:
                        rate, uss = measure(kind, directory, port, options.messages, hold=hold, reuse=options.reuse)
                    except Unavailable as error:
                        missing[kind.name] = str(error)
                        continue
                    rates.setdefault((kind.name, hold), []).append(rate)
                    memory += [uss] if uss else []
                    what = "accept" if hold else "relay"
                    print(f"round {number + 1}: {kind.name:22} {what:6} {rate:7,.0f}/s", file=sys.stderr, flush=True)
    table(rates, missing, [kind.name for kind in chosen], options)
    if memory:
        print(f"USS of all processes of ours at rest: {statistics.median(memory):.0f} MB")


def table(
    rates: dict[tuple[str, bool], list[float]], missing: dict[str, str], names: list[str], options: argparse.Namespace
) -> None:
    print(
        f"Up to {options.messages} messages of {MESSAGE_BYTES} bytes, {SESSIONS} sessions, "
        f"{'each used again' if options.reuse else 'a new one for each message'}; "
        f"median of {options.rounds} rounds (lowest-highest), messages/s\n"
    )
    print(f"{'':22} {'durable accept':>24} {'ours is':>8} {'accept to relay':>24} {'ours is':>8}")
    for name in names:
        if name in missing:
            print(f"{name:22} not measured: {missing[name]}")
            continue
        columns = [f"{name:22}"]
        for hold in (True, False):
            found = rates[name, hold]
            columns.append(f"{statistics.median(found):9,.0f} ({min(found):6,.0f}-{max(found):6,.0f})".rjust(24))
            ours = rates.get((Ours.name, hold))
            ratio = f"{statistics.median(ours) / statistics.median(found):.1f} x" if ours and name != Ours.name else ""
            columns.append(f"{ratio:>8}")
        print(" ".join(columns))
    print()


if __name__ == "__main__":
    main()

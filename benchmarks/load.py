"""How many SMTP commands a second the load gives: locust over the aiosmtplib bridge, and locust over smtplib.

Both do the same sessions with as many users, one after the other and in turns, against the same server, in the same
run; so the ratio means something on any machine. A session is CONNECT, EHLO, ten times MAIL, RCPT (refused), RSET, and
QUIT: 33 commands. Both tell a listener of locust's of every command, and neither keeps locust's table of requests, as
in a run without a page. The server has a process of its own, so what counts is what the client gives for each second of
processor time: what one core gives when nobody else wants it. Status 1 when the median of that is below 30,000. Printed
beside it, and not held: the bridge where nobody listens, as in most runs, and so nothing is told.

    python benchmarks/load.py [--users 50] [--sessions 1500] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from random import Random
from typing import Any, NamedTuple, cast

import psutil
import uvloop

from harness.load.process import LoadProcess
from harness.scenario import DEFAULT_SENDER, UNROUTED_DOMAIN, Message, Scenario, SessionPlan

REFUSED_A_SESSION = 10
COMMANDS_A_SESSION = 3 + 3 * REFUSED_A_SESSION
RECIPIENT = f"nobody@{UNROUTED_DOMAIN}"
TIMEOUT_S = 120.0
LISTENING = "SEATBELT_LISTENING"
LEAST = 30_000  # commands for each second of one core, over the bridge


def session(_random: Random, units: int) -> SessionPlan:
    return SessionPlan((Message(DEFAULT_SENDER, (), refused=(RECIPIENT,)),) * units)


SCENARIO = Scenario(
    name="benchmark",
    story="Every recipient is refused by the target itself.",
    unit="refused message",
    session=session,
    units_per_session=REFUSED_A_SESSION,
)


class Sink(asyncio.Protocol):
    """Answers by the verb alone; as little work as a server can have."""

    REPLIES = {b"RCPT": b"550 5.1.1 no\r\n", b"QUIT": b"221 bye\r\n"}  # noqa: RUF012 - nobody changes it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        verb = data[:4].upper()
        self._transport.write(self.REPLIES.get(verb, b"250 fine\r\n"))
        if verb == b"QUIT":
            self._transport.close()


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Measured(NamedTuple):
    """Commands a second, by the clock and by the processor."""

    wall: float
    core: float


if os.environ.get(LISTENING):  # in the load's process, which has loaded this file as its scenario
    from locust import events

    @events.request.add_listener  # type: ignore[untyped-decorator]
    def listen(**_: Any) -> None:
        """Hear of a command."""


def over_the_bridge(port: int, users: int, sessions: int, *, told: bool) -> Measured:
    os.environ[LISTENING] = "1" if told else ""
    with LoadProcess(__file__, users, seed=1) as load:
        load.ready("127.0.0.1", port)
        load.dose(0, users * REFUSED_A_SESSION, timeout_s=TIMEOUT_S)
        process = psutil.Process(load.pid)
        before = process.cpu_times()
        tally = load.dose(1, sessions * REFUSED_A_SESSION, timeout_s=TIMEOUT_S)
        after = process.cpu_times()
    if tally.failures or tally.commands != sessions * COMMANDS_A_SESSION:
        raise SystemExit(f"the measurement is spoilt: {tally}")
    spent_s = after.user + after.system - before.user - before.system
    return Measured(tally.commands / tally.took_s, tally.commands / spent_s)


def smtplib_under_gevent(port: int, users: int, sessions: int) -> None:
    """In a process of its own, for gevent's patches; prints commands a second, by the clock and by the processor."""
    import smtplib

    from locust import User, task
    from locust.env import Environment
    from locust.exception import StopUser

    from harness.load.user import Unread

    left, done = sessions, 0

    class SmtplibUser(User):
        def timed(self, name: str, call: Any, *arguments: Any) -> Any:
            nonlocal done
            done += 1
            began, clock = time.time(), time.perf_counter()
            result = call(*arguments)
            took_ms = (time.perf_counter() - clock) * 1000
            request.fire(request_type="SMTP", name=name, response_time=took_ms, response_length=0, start_time=began)
            return result

        @task
        def hold_a_session(self) -> None:
            nonlocal left
            if not left:
                raise StopUser
            left -= 1
            client = smtplib.SMTP(local_hostname="load.test", timeout=TIMEOUT_S)
            with closing(client):
                self.timed("CONNECT", client.connect, "127.0.0.1", port)
                self.timed("EHLO", client.ehlo)
                for _ in range(REFUSED_A_SESSION):
                    self.timed("MAIL", client.mail, DEFAULT_SENDER)
                    self.timed("RCPT", client.rcpt, RECIPIENT)
                    self.timed("RSET", client.rset)
                self.timed("QUIT", client.quit)

    environment = Environment(user_classes=[SmtplibUser])
    environment.events.request = request = Unread(environment.events.request)
    request.add_listener(lambda **_: None)
    runner = environment.create_local_runner()
    began, spent = time.perf_counter(), time.process_time()
    runner.start(users, spawn_rate=users)
    if runner.spawning_greenlet is not None:
        runner.spawning_greenlet.join()
    runner.user_greenlets.join()
    took_s, spent_s = time.perf_counter() - began, time.process_time() - spent
    if done != sessions * COMMANDS_A_SESSION:
        raise SystemExit(f"the measurement is spoilt: {done} commands, {sessions * COMMANDS_A_SESSION} were planned")
    print(done / took_s, done / spent_s)


def compare(users: int, sessions: int, rounds: int) -> int:
    command = [sys.executable, __file__, "--users", str(users), "--sessions", str(sessions)]
    with subprocess.Popen([*command, "--role", "sink"], stdout=subprocess.PIPE, text=True) as sink:
        try:
            assert sink.stdout is not None
            port = int(sink.stdout.readline())
            pairs, untold = [], []
            for number in range(1, rounds + 1):
                bridge = over_the_bridge(port, users, sessions, told=True)
                untold.append(over_the_bridge(port, users, sessions, told=False).core)
                under_gevent = subprocess.run(
                    [*command, "--role", "smtplib", "--port", str(port)], stdout=subprocess.PIPE, text=True, check=True
                )
                other = Measured(*map(float, under_gevent.stdout.split()))
                pairs.append((bridge, other))
                print(
                    f"round {number}: bridge {bridge.core:,.0f} commands for each second of one core "
                    f"({bridge.wall:,.0f} by the clock), smtplib under gevent {other.core:,.0f} ({other.wall:,.0f}), "
                    f"bridge untold {untold[-1]:,.0f}",
                    flush=True,
                )
        finally:
            sink.terminate()
    rate = statistics.median(bridge.core for bridge, _ in pairs)
    ratio = statistics.median(bridge.core / other.core for bridge, other in pairs)
    print(
        f"median {rate:,.0f}, {ratio:.2f} times smtplib under gevent; untold {statistics.median(untold):,.0f} "
        f"({users} users, {sessions} sessions a round)"
    )
    if rate < LEAST:
        print(f"NOT HELD: {rate:,.0f} commands for each second of one core; it must be {LEAST:,}", file=sys.stderr)
    return int(rate < LEAST)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--sessions", type=int, default=1500, help="in a round, for each way [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--role", choices=["compare", "sink", "smtplib"], default="compare", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.role:
        case "sink":
            uvloop.run(serve())
        case "smtplib":
            smtplib_under_gevent(options.port, options.users, options.sessions)
        case _:
            return compare(options.users, options.sessions, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The remote MX in a terminal (`seatbelt mx`): says what comes in, and the totals when it is stopped."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import uvloop

from harness.remote_mx import child
from harness.remote_mx.dialogue import summary
from harness.remote_mx.ledger import Transaction
from harness.remote_mx.policy import Policy, PolicyError
from harness.remote_mx.server import RemoteMXServer, reason

HOSTNAME = "remote-mx.test"
_LISTENER = "mx"


class Printer:
    """One line a message; the whole dialogue when it is to be verbose."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose

    def said(self, session: int, line: str) -> None:
        if self._verbose:
            print(f"{session:>4} {line}", flush=True)

    def over(self, transaction: Transaction) -> None:
        if not self._verbose:
            print(summary(transaction), flush=True)


def run_foreground(policy: str, host: str, port: int, verbose: bool, hostname: str = HOSTNAME) -> int:
    """Serve until Ctrl-C or SIGTERM, then print the totals. Gives the exit status: 0, or 2 with one line on stderr."""
    try:
        parsed = Policy.parse(policy)
    except PolicyError as error:
        print(f"seatbelt mx: {error}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(RemoteMXServer(hostname, Printer(verbose)), parsed, host, port))


async def _serve(mx: RemoteMXServer, policy: Policy, host: str, port: int) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        return await _serve_until(stopped, mx, policy, host, port)
    finally:
        # uvloop does not give the signals back when it closes: Ctrl-C would never be heard again in this process.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _serve_until(stopped: asyncio.Event, mx: RemoteMXServer, policy: Policy, host: str, port: int) -> int:
    try:
        bound = await mx.listen(_LISTENER, policy, host, port)
    except OSError as error:
        print(f"seatbelt mx: {host}:{port}: {reason(error)}; choose with --listen and --port", file=sys.stderr)
        return 2
    print(f"listening on {host} port {bound}, policy: {policy if str(policy) else 'accept everything'}", flush=True)
    await stopped.wait()
    await mx.close()
    totals = mx.ledger.listener(_LISTENER)
    print(
        f"\n{totals.sessions} sessions, {totals.transactions} transactions: {totals.accepted} accepted, "
        f"{totals.refused_messages} refused; {totals.refused_recipients} recipients refused; "
        f"at most {totals.most_transactions_in_a_session} transactions in a session"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="seatbelt mx", description="The remote mail server that refuses as told.")
    parser.add_argument("--policy", default="", help="as `rcpt=550`, `mail=451/3`, `data=drop`; empty: accept all")
    parser.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=2525, help="0: any free one")
    parser.add_argument("--hostname", default=HOSTNAME, help="what it calls itself")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the dialogue")
    parser.add_argument("--stdio", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stdio:
        child.run(options.hostname)
        return 0
    return run_foreground(options.policy, options.listen, options.port, options.verbose, options.hostname)


if __name__ == "__main__":
    sys.exit(main())

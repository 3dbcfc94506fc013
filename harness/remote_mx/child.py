"""The child behind `RemoteMX`: JSON lines in on standard input, JSON lines out, until the input ends."""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec
import uvloop

from harness.remote_mx.policy import Policy
from harness.remote_mx.process import Answer, Request
from harness.remote_mx.server import RemoteMXServer, reason

_LINE_BYTES = 1 << 20  # of a request


def run(hostname: str) -> None:
    """Serve until standard input ends. Ctrl-C is the controller's business, which then closes our input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(RemoteMXServer(hostname)))


async def _serve(mx: RemoteMXServer) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(limit=_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin.buffer)
    try:
        while line := await requests.readline():
            request = msgspec.json.decode(line, type=Request)
            sys.stdout.buffer.write(msgspec.json.encode(await _answer(mx, request)) + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        return  # the controller is gone
    finally:
        await mx.close()


async def _answer(mx: RemoteMXServer, request: Request) -> Answer:
    number, name = request.number, request.name
    if request.do == "listen":
        try:
            port = await mx.listen(name, Policy.parse(request.policy), request.host, request.port)
        except OSError as error:
            where = f"{request.host}:{request.port}"
            return Answer(number, error=f"the remote MX cannot listen on {where}: {reason(error)}")
        return Answer(number, port=port)
    if request.do == "ledger":
        return Answer(number, ledger=mx.ledger.report())
    if request.do == "open_sessions":
        return Answer(number, sessions=mx.open_sessions)
    listener = mx.listeners.get(name)
    if listener is None:
        return Answer(
            number, error=f"the remote MX has no listener {name!r}; it has {', '.join(mx.listeners) or 'none'}"
        )
    match request.do:
        case "shut_gate":
            listener.shut_gate()
        case "open_gate":
            listener.open_gate()
        case "set_policy":
            listener.set_policy(Policy.parse(request.policy))
    return Answer(number)

"""One LMTP session (RFC 2033): a message to those of its recipients that one action delivers to one server.

Owns: the connection. The message's descriptor is the caller's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

from mta_under_test.config import LmtpAction
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.mda.agents import header
from mta_under_test.processes.process import Process, Refusal
from mta_under_test.processes.stream import Stream, StreamTimeout
from mta_under_test.wire import exchange
from mta_under_test.wire.client import ClientMachine, LocalError, RemoteError
from mta_under_test.wire.reply import Reply

CONNECT_TIMEOUT_S = 30.0
TIMEOUT_S = 300.0
_READ_BYTES = 1 << 16


class LmtpError(Exception):
    """The session came to nothing; the text is a status line, and all of it may work later."""


async def deliver(
    delivery: Process, action: LmtpAction, sender: str, recipients: Mapping[int, str], dest: str, message: int
) -> dict[int, Reply]:
    """The server's answer for each recipient (by evpid). Raises LmtpError.

    `dest` is for the Delivered-To header, "" with several recipients. What was answered before the session broke is
    lost with it: these recipients are delivered to again.
    """
    stream = Stream(TIMEOUT_S)
    try:
        await _connect(delivery, action, stream)
        return await _Session(stream).run(delivery.config.hostname, sender, recipients, dest, message)
    except StreamTimeout as error:
        raise LmtpError("451 4.4.1 The LMTP server does not answer") from error
    except (RemoteError, LocalError) as error:
        raise LmtpError(f"451 4.5.0 LMTP: {error}") from error
    except TimeoutError as error:
        raise LmtpError(f"451 4.4.1 {action.destination}: connection timed out") from error
    except OSError as error:
        raise LmtpError(f"451 4.4.1 {action.destination}: {error.strerror or error}") from error
    except Refusal as error:
        raise LmtpError(f"451 4.4.1 {error}") from error
    finally:
        stream.close()


async def _connect(delivery: Process, action: LmtpAction, stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    if action.destination.startswith("/"):
        answer = await delivery.ask("parent", Kind.OPEN, text=f"lmtp {action.name}".encode())
        descriptor = answer.take_descriptor()
        if descriptor is None:
            raise LmtpError("451 4.3.0 Temporary failure: out of descriptors")
        sock = socket.socket(fileno=descriptor)
        try:
            sock.setblocking(False)
            await loop.create_unix_connection(lambda: stream, sock=sock)
        except BaseException:
            sock.close()
            raise
        return
    host, _, port = action.destination.rpartition(":")
    found = await delivery.ask("lookup", Kind.HOSTS, text=f"host {host}".encode())
    address = exchange.decode(found.text)[0].address
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        await loop.create_connection(lambda: stream, address, int(port))


class _Session:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._machine = ClientMachine()

    async def run(
        self, hostname: str, sender: str, recipients: Mapping[int, str], dest: str, message: int
    ) -> dict[int, Reply]:
        machine, stream = self._machine, self._stream
        self._must(await self._reply(), "greeting")
        stream.write(machine.lhlo(hostname))
        self._must(await self._reply(), "LHLO")
        stream.write(machine.mail(sender))
        refused = await self._reply()
        results: dict[int, Reply] = {}
        accepted: list[int] = []
        if refused.positive:
            for evpid, recipient in recipients.items():
                stream.write(machine.rcpt(recipient))
                results[evpid] = reply = await self._reply()
                if reply.positive:
                    accepted.append(evpid)
        else:
            results = dict.fromkeys(recipients, refused)
        if accepted:
            await self._send(message, header(sender, dest) if dest else b"", accepted, results)
        stream.write(machine.quit())
        await stream.drain()
        return results

    async def _send(self, message: int, head: bytes, accepted: list[int], results: dict[int, Reply]) -> None:
        machine, stream = self._machine, self._stream
        stream.write(machine.data())
        reply = await self._reply()
        if not reply.positive:
            results.update(dict.fromkeys(accepted, reply))
            return
        stream.write(machine.body(head.replace(b"\n", b"\r\n")))
        offset = 0
        while data := os.pread(message, _READ_BYTES, offset):
            offset += len(data)
            stream.write(machine.body(data))
            await stream.drain()
        stream.write(machine.end_of_data(len(accepted)))
        for evpid in accepted:
            results[evpid] = await self._reply()

    async def _reply(self) -> Reply:
        await self._stream.drain()
        while (answered := self._machine.next_reply()) is None:
            if self._machine.closed:
                raise LmtpError("451 4.4.2 The LMTP server hung up")
            self._machine.receive(await self._stream.receive())
        verb, reply = answered
        if verb == "closing":
            raise LmtpError(f"451 4.4.2 {reply}")
        return reply

    def _must(self, reply: Reply, what: str) -> None:
        if not reply.positive:
            raise LmtpError(f"451 4.3.0 {what}: {reply}")

"""A real DNS server on loopback, in a process of its own, with a zone that may be changed at any time.

A zone is a dict: a name to its records by type (`{"MX": ["10 mx.test."], "A": ["127.0.0.1"]}`), texts as in a zone
file. Names that are not there are NXDOMAIN; a type that is not there is an empty answer. In the place of the records,
of a name's or of a type's, stands a failure: `"SERVFAIL"`, `"REFUSED"` or another response code, or `"TIMEOUT"` for no
answer at all; `"SERVFAIL/2"` fails the first of every two questions and answers the second as the name `answered.NAME`
would be. `"truncate": True` cuts every answer over UDP short, so that the client must come again over TCP;
`"tcp": "TIMEOUT"` lets it wait there. CNAMEs are followed within the zone, as a resolver does.

Run as a program it serves; JSON lines come on its standard input: {"zone": {...}} replaces the zone,
{"questions": true} asks what was asked. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

Zone = Mapping[str, Any]

MAX_CHAIN = 8
MOST_QUESTIONS = 10_000  # that are remembered
EVERY_OTHER = "/2"
TTL_S = 300


class Answers:
    """The zone, and what was asked of it."""

    def __init__(self) -> None:
        self.zone: dict[str, Any] = {}
        self.questions: deque[str] = deque(maxlen=MOST_QUESTIONS)
        self._asked: Counter[tuple[str, str]] = Counter()

    def to(self, wire: bytes, transport: str) -> bytes | None:
        """The answer to a question; None for silence."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        self.questions.append(f"{question.name.to_text(omit_final_dot=True)} {kind} {transport}")
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA | dns.flags.AA
        name = question.name
        for _ in range(MAX_CHAIN):
            records = self.zone.get(name.to_text(omit_final_dot=True).lower())
            if records is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            if isinstance(records, dict):
                if transport == "tcp" and records.get("tcp") == "TIMEOUT":
                    return None
                if transport == "udp" and records.get("truncate"):
                    response.flags |= dns.flags.TC
                    return response.to_wire()
                if "CNAME" in records and kind != "CNAME":
                    alias = dns.rrset.from_text_list(name, TTL_S, "IN", "CNAME", records["CNAME"])
                    response.answer.append(alias)
                    name = alias[0].target
                    continue
                records = records.get(kind, [])
            if isinstance(records, str) and records.endswith(EVERY_OTHER):
                text = name.to_text(omit_final_dot=True).lower()
                self._asked[text, kind] += 1
                if self._asked[text, kind] % 2:
                    records = records.removesuffix(EVERY_OTHER)
                else:
                    records = self.zone.get(f"answered.{text}", {}).get(kind, [])
            if records == "TIMEOUT":
                return None
            if isinstance(records, str):
                response.set_rcode(dns.rcode.from_text(records))
            elif records:
                response.answer.append(dns.rrset.from_text_list(name, TTL_S, "IN", kind, records))
            break
        return response.to_wire(max_size=65535 if transport == "tcp" else 4096)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if (answer := self._answers.to(data, "udp")) is not None:
            self._transport.sendto(answer, address)


async def _serve_stream(answers: Answers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            answer = answers.to(await reader.readexactly(length), "tcp")
            if answer is not None:
                writer.write(struct.pack("!H", len(answer)) + answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has what it wanted
    finally:
        writer.close()


def _bound() -> tuple[socket.socket, socket.socket]:
    """UDP and TCP on one port that is free for both."""
    while True:
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 0))
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            stream.bind(datagrams.getsockname())
        except OSError:
            datagrams.close()
            stream.close()
            continue
        stream.listen()
        return datagrams, stream


async def _main() -> None:
    answers = Answers()
    loop = asyncio.get_running_loop()
    datagrams, stream = _bound()
    port = datagrams.getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(answers), sock=datagrams)
    server = await asyncio.start_server(lambda reader, writer: _serve_stream(answers, reader, writer), sock=stream)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(port, flush=True)
    while line := await orders.readline():
        order = json.loads(line)
        if "zone" in order:
            answers.zone = {name.lower(): records for name, records in order["zone"].items()}
        print(json.dumps(list(answers.questions)), flush=True)
    server.close()
    transport.close()


class DnsServer:
    """The server as a context manager: `port`, `zone` to replace what it answers, `questions` that it was asked."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        self.port = int(self._child.stdout.readline())
        self.zone(self._zone)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def zone(self, zone: Zone) -> None:
        """From the next question on."""
        self._order({"zone": dict(zone)})

    def questions(self) -> list[str]:
        """`name TYPE udp|tcp`, in order."""
        return self._order({"questions": True})

    def resolv_conf(self, directory: Path, options: str = "timeout:1 attempts:1") -> Path:
        """A resolv.conf(5) that names this server."""
        path = directory / "resolv.conf"
        path.write_text(f"nameserver [127.0.0.1]:{self.port}\noptions {options}\n")
        return path

    def _order(self, order: dict[str, Any]) -> list[str]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        questions: list[str] = json.loads(self._child.stdout.readline())
        return questions


if __name__ == "__main__":
    asyncio.run(_main())

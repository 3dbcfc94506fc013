"""One connection, on either event loop: uvloop's, and asyncio's, which a traced run puts in its place."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvloop

from mta_under_test.processes.stream import Stream
from tests.certificates import self_signed

WAIT_S = 20.0
READY = b"220 ready\r\n"


class Client:
    """Speaks TLS by hand, so that it says what goes into one packet."""

    def __init__(self, sock: socket.socket, certificate: Path) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(certificate))
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def shake_hands(self) -> None:
        """All of it but for the client's last packet, which goes out with the first `say`."""
        while True:
            try:
                return self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._incoming.write(self._socket.recv(1 << 16))

    def say(self, line: bytes) -> None:
        self._tls.write(line)
        self._socket.sendall(self._outgoing.read())

    def hear(self) -> bytes:
        while True:
            try:
                return self._tls.read()
            except ssl.SSLWantReadError:
                self._incoming.write(self._socket.recv(1 << 16))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_speaks_in_the_same_packet_as_it_ends_the_handshake_is_heard_to_the_end(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    certificate, key = self_signed("localhost")
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    here, there = socket.socketpair()

    async def serve() -> list[bytes]:
        stream = Stream(WAIT_S)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, here)
        stream.write(READY)  # what comes before TLS begins is thrown away
        await stream.start_tls(context, server_side=True)
        heard = []
        while said := await stream.receive():
            heard.append(said)
            stream.write(b"250 heard\r\n")
        stream.close()
        return heard

    def converse() -> None:
        with there:
            there.settimeout(WAIT_S)
            client = Client(there, tmp_path / "cert.pem")
            assert there.recv(len(READY)) == READY
            client.shake_hands()
            for line in (b"EHLO\r\n", b"NOOP\r\n", b"QUIT\r\n"):
                client.say(line)
                assert client.hear() == b"250 heard\r\n"

    with ThreadPoolExecutor(1) as pool, asyncio.Runner(loop_factory=loop) as runner:
        talk = pool.submit(converse)
        assert runner.run(serve()) == [b"EHLO\r\n", b"NOOP\r\n", b"QUIT\r\n"]
        talk.result()

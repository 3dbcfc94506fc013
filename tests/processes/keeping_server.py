"""A remote server that keeps what it is given, so that a test can read it; it refuses whom it is told to refuse."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType


class Mailbox:
    """`refusals`: what RCPT to a local part is answered with; the rest is accepted."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.refusals: dict[str, str] = {}
        mailbox = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 mailbox\r\n")
                while line := self.rfile.readline():
                    self.wfile.write(mailbox.answer(line.decode(), self))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def answer(self, line: str, handler: socketserver.StreamRequestHandler) -> bytes:
        if line.upper().startswith("RCPT"):
            local = line.partition("<")[2].partition("@")[0]
            return f"{self.refusals.get(local, '250 2.1.5 fine')}\r\n".encode()
        if line.upper().startswith("DATA"):
            handler.wfile.write(b"354 go on\r\n")
            lines: list[bytes] = []
            while (one := handler.rfile.readline()) not in (b".\r\n", b""):
                lines.append(one[1:] if one.startswith(b".") else one)
            self.messages.append(b"".join(lines))
        return b"250 2.0.0 fine\r\n"

    def __enter__(self) -> Mailbox:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

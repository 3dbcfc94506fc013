"""An LMTP server (RFC 2033) for tests: takes mail, or answers as told, on a TCP port or a unix socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class LmtpServer:
    """`answers`: replies in the place of 250, by what they answer: `MAIL`, `RCPT bob`, `END bob`, `DATA`, `connect`;
    "" hangs up."""

    def __init__(self, path: Path | None = None, answers: Mapping[str, str] | None = None) -> None:
        self.answers = dict(answers or {})
        self.sessions = 0
        self.mail: list[tuple[str, list[str], bytes]] = []  # sender, recipients, text
        self._listening = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        if path:
            self._listening.bind(str(path))
            path.chmod(0o666)
        else:
            self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self.port = 0 if path else self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.sessions += 1
            # Who has said QUIT need not wait for the answer (RFC 5321 §4.1.1.10 does not forgive it, servers do).
            with suppress(ConnectionError), connection, connection.makefile("rwb") as stream:
                connection.settimeout(10)
                self._session(stream)

    def _session(self, stream: socket.SocketIO) -> None:
        sender, recipients = "", []

        def reply(what: str, default: str) -> bool:
            text = self.answers.get(what, default)
            if text:
                stream.write(f"{text}\r\n".encode())
                stream.flush()
            return bool(text)

        if not reply("connect", "220 lmtp.test"):
            return
        while line := stream.readline().decode().strip():
            verb, _, argument = line.partition(" ")
            address = argument.partition("<")[2].partition(">")[0]
            if verb == "LHLO":
                reply(verb, "250 lmtp.test")
            elif verb == "MAIL":
                sender, recipients = address, []
                reply(verb, "250 ok")
            elif verb == "RCPT":
                if self.answers.get(f"RCPT {address}", "250").startswith("2"):
                    recipients.append(address)
                reply(f"RCPT {address}", "250 ok")
            elif verb == "DATA":
                if not reply(verb, "354 go on"):
                    return
                text = b""
                while (data := stream.readline()) != b".\r\n":
                    text += data
                self.mail.append((sender, recipients, text))
                for recipient in recipients:
                    if not reply(f"END {recipient}", "250 delivered"):
                        return
            else:
                reply(verb, "221 bye")
                return

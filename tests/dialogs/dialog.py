"""Dialogues with an SMTP server, written so that a person can read them aloud: one file, one dialogue.

    # config: plain                     the listener to talk to, by its tag; `plain` when not said
    C: MAIL FROM:<a@sender.test>        a line sent, with CR LF
    C! NOOP\\x00 {x*3000}\\r\\n            bytes sent as they stand here: escapes, and {text*count} repeated
    S: 250 2.0.0                        one whole reply, of however many lines; the text must occur in it
    S: 5xx                              any code of that class
    S: 49 times 550                     so many replies
    S: end                              the server hangs up
    S: silence                          the server says nothing, for a while
    -- reconnect                        hang up and connect again
    -- reset                            hang up by RST
    -- tls                              the handshake, whatever the certificate; all that follows is said over TLS
    -- wait 0.5                         seconds
    stored: 1                           so many messages are in the queue now
    line: Subject: hi                   … and this line is in the stored message (after its own Received field)
    no line: secret                     … and this text is nowhere in it
    envelope: dsn-ret: FULL             … and this line is in one of its envelopes

Other lines that begin with `#` are comments. Reads files and talks over sockets; knows nothing of pytest.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from mta_under_test.wire.reply import Reply, ReplyDecoder

TIMEOUT_S = 15.0
SILENCE_S = 0.15
VERBS = ("C: ", "C! ", "S: ", "-- ", "stored: ", "line: ", "no line: ", "envelope: ")

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))|\{((?:[^{}]|\{[^{}]*\})+)\*(\d+)\}")  # nested once
_NAMED = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\", "{": "{"}


class DialogError(Exception):
    """The dialogue did not go as written, or is not written well; names file and line."""


@dataclass(frozen=True)
class Step:
    where: str  # file:line
    verb: str
    text: str


@dataclass(frozen=True)
class Dialog:
    config: str
    steps: tuple[Step, ...]


def read(path: Path) -> Dialog:
    config = "plain"
    steps: list[Step] = []
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.startswith("# config: "):
            config = line.removeprefix("# config: ").strip()
        elif line and not line.startswith("#"):
            verb = next((verb for verb in VERBS if line.startswith(verb) or line == verb.strip()), None)
            if verb is None:
                raise DialogError(f"{path.name}:{number}: {line!r} begins with none of {', '.join(VERBS)}")
            steps.append(Step(f"{path.name}:{number}", verb.strip(), line[len(verb) :]))
    return Dialog(config, tuple(steps))


def raw(text: str) -> bytes:
    """The bytes that a `C!` line stands for."""
    return b"".join(_pieces(text))


def _pieces(text: str) -> list[bytes]:
    pieces, at = [], 0
    for found in _ESCAPE.finditer(text):
        pieces.append(text[at : found.start()].encode())
        at = found.end()
        if found[1]:
            pieces.append(bytes([int(found[1], 16)]))
        elif found[2]:
            pieces.append(_NAMED[found[2]].encode())
        else:
            pieces.append(raw(found[3]) * int(found[4]))
    return [*pieces, text[at:].encode()]


class Client:
    """One side of a dialogue: connects when made, hangs up when closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S)
        self._decoder = ReplyDecoder()

    def close(self) -> None:
        self._socket.close()

    def do(self, step: Step) -> None:
        """One step of the talk. Raises DialogError."""
        match step.verb:
            case "C:":
                self._send(step, f"{step.text}\r\n".encode())
            case "C!":
                self._send(step, raw(step.text))
            case "--":
                self._act(step)
            case "S:" if step.text == "end":
                self._expect_end(step)
            case "S:" if step.text == "silence":
                self._expect_silence(step)
            case "S:":
                times = re.match(r"(\d+) times ", step.text)
                for _ in range(int(times[1]) if times else 1):
                    self._expect(step, step.text[times.end() :] if times else step.text)

    def _act(self, step: Step) -> None:
        match step.text.split():
            case ["reconnect"]:
                self.close()
                self._connect()
            case ["reset"]:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close()
            case ["tls"]:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                self._socket = context.wrap_socket(self._socket)
            case ["wait", seconds]:
                time.sleep(float(seconds))
            case _:
                raise DialogError(f"{step.where}: there is no `-- {step.text}`")

    def _send(self, step: Step, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise DialogError(f"{step.where}: the server no longer listens: {error}") from error

    def _expect(self, step: Step, what: str) -> None:
        code, _, text = what.partition(" ")
        reply = self._reply(step)
        said = "\n".join(f"{reply.enhanced} {line}".strip() for line in reply.lines)
        if not re.fullmatch(code.replace("x", r"\d"), str(reply.code)) or text not in said:
            raise DialogError(f"{step.where}: expected {what!r}, and the server said {str(reply)!r}")

    def _reply(self, step: Step) -> Reply:
        while (reply := self._decoder.next()) is None:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise DialogError(f"{step.where}: no reply within {TIMEOUT_S:.0f} s") from error
            except ConnectionError as error:
                raise DialogError(f"{step.where}: the connection broke: {error}") from error
            if not data:
                raise DialogError(f"{step.where}: the server hung up instead of replying")
            self._decoder.feed(data)
        return reply

    def _expect_end(self, step: Step) -> None:
        if (reply := self._decoder.next()) is not None:
            raise DialogError(f"{step.where}: the server should have hung up, and said {str(reply)!r}")
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionResetError:
            return  # it hung up while something of ours was on its way
        except TimeoutError as error:
            raise DialogError(f"{step.where}: the server did not hang up within {TIMEOUT_S:.0f} s") from error
        if data:
            raise DialogError(f"{step.where}: the server should have hung up, and said {data!r}")

    def _expect_silence(self, step: Step) -> None:
        self._socket.settimeout(SILENCE_S)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return
        finally:
            self._socket.settimeout(TIMEOUT_S)
        raise DialogError(f"{step.where}: the server should be silent, and said {data!r}")

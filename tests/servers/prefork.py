"""A small SMTP server with workers that end after so many clients, as Postfix's do; to be judged from outside.

    python tests/servers/prefork.py PORT [--workers N] [--lives CLIENTS] [--keep lazy|all] [--relay PORT]

A worker takes one client at a time. With `--lives` it ends after so many, and another one takes its place. What it
keeps open: `lazy`, one file, from its third client on; `all`, one more file for every client. With `--relay` accepted
mail is passed on, after the client has been answered.
"""

from __future__ import annotations

import argparse
import os
import signal
import smtplib
import socket
import sys
from typing import NoReturn

from setproctitle import setproctitle

REFUSED = b"nowhere.invalid"
LAZY_AT = 3


class Session:
    """One client, from greeting to close; what it accepted is in `mail`."""

    def __init__(self, client: socket.socket) -> None:
        self.mail: list[tuple[str, list[str], bytes]] = []
        self._file = client.makefile("rwb")

    def talk(self) -> None:
        self._say(b"220 prefork.test")
        sender, recipients = "", []
        for line in self._file:
            verb, _, rest = line.strip().partition(b" ")
            address = rest.partition(b"<")[2].partition(b">")[0]
            match verb.upper():
                case b"EHLO" | b"HELO" | b"RSET" | b"NOOP":
                    sender, recipients = "", []
                    self._say(b"250 ok")
                case b"MAIL":
                    sender = address.decode()
                    self._say(b"250 ok")
                case b"RCPT" if address.endswith(REFUSED):
                    self._say(b"550 nobody relays there")
                case b"RCPT":
                    recipients.append(address.decode())
                    self._say(b"250 ok")
                case b"DATA":
                    self._say(b"354 go on")
                    lines = []
                    while (text := self._file.readline()) not in (b".\r\n", b""):
                        lines.append(text.removeprefix(b"."))
                    self.mail.append((sender, recipients, b"".join(lines)))
                    sender, recipients = "", []
                    self._say(b"250 taken")
                case b"QUIT":
                    self._say(b"221 bye")
                    return
                case _:
                    self._say(b"502 what?")

    def _say(self, text: bytes) -> None:
        self._file.write(text + b"\r\n")
        self._file.flush()


def work(listener: socket.socket, options: argparse.Namespace) -> NoReturn:
    """A worker's whole life."""
    for signalled in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signalled, signal.SIG_DFL)
    setproctitle("prefork: worker")
    done = 0
    while not options.lives or done < options.lives:
        client, _ = listener.accept()
        done += 1
        if options.keep == "all" or (options.keep == "lazy" and done == LAZY_AT):
            os.open(__file__, os.O_RDONLY)
        session = Session(client)
        try:
            session.talk()
        except OSError as error:
            print(f"client lost: {error}", flush=True)
        client.close()
        if options.relay:
            relay(options.relay, session.mail)
    os._exit(0)


def relay(port: int, mail: list[tuple[str, list[str], bytes]]) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="prefork.test") as remote:
        for sender, recipients, text in mail:
            try:
                remote.sendmail(sender, recipients, text)
            except smtplib.SMTPResponseException as error:
                print(f"refused: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lives", type=int, default=0)
    parser.add_argument("--keep", choices=("lazy", "all"))
    parser.add_argument("--relay", type=int, default=0)
    options = parser.parse_args()
    setproctitle("prefork: master")
    with socket.create_server(("127.0.0.1", options.port), backlog=128) as listener:
        print(f"listening on {options.port}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        workers: set[int] = set()
        try:
            while True:
                while len(workers) < options.workers:
                    if (pid := os.fork()) == 0:
                        work(listener, options)
                    workers.add(pid)
                workers.discard(os.wait()[0])
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()

"""An aiosmtpd server that keeps what it promises: every message is in a file, and on the disk, before its 250.

For benchmarks/mta.py. With --sink it passes the mail on, over a few sessions that it uses again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import smtplib
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from aiosmtpd.smtp import SMTP

SESSIONS = 5


class Handler:
    def __init__(self, spool: Path, passing: SimpleQueue[tuple[Path, str, list[str]]] | None) -> None:
        self._spool = spool
        self._numbers = itertools.count()
        self._passing = passing

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        path = self._spool / f"{next(self._numbers):08x}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, envelope.content)
        os.fsync(descriptor)
        os.close(descriptor)
        directory = os.open(self._spool, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        if self._passing is not None:
            self._passing.put((path, envelope.mail_from, envelope.rcpt_tos))
        return "250 2.0.0 Ok"


def pass_on(passing: SimpleQueue[tuple[Path, str, list[str]]], sink: int) -> None:
    with smtplib.SMTP("127.0.0.1", sink, local_hostname="bench.test") as client:
        while True:
            path, sender, recipients = passing.get()
            client.sendmail(sender, recipients, path.read_bytes())
            path.unlink()


async def serve(port: int, handler: Handler) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, hostname="bench.test"), "127.0.0.1", port, backlog=128)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--sink", type=int)
    options = parser.parse_args()
    passing: SimpleQueue[tuple[Path, str, list[str]]] | None = None
    if options.sink is not None:
        passing = SimpleQueue()
        for _ in range(SESSIONS):
            threading.Thread(target=pass_on, args=(passing, options.sink), daemon=True).start()
    asyncio.run(serve(options.port, Handler(options.spool, passing)))


if __name__ == "__main__":
    main()

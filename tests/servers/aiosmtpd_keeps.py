"""aiosmtpd with one thing that it fails to let go of; the server itself is not changed.

python tests/servers/aiosmtpd_keeps.py descriptor|memory PORT
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP


class KeepsDescriptor(SMTP):
    """Opens a file for every client, and does not close it."""

    def connection_made(self, transport: Any) -> None:
        self.log = os.open(__file__, os.O_RDONLY)
        super().connection_made(transport)


class KeepsMemory(SMTP):
    """Remembers every client for ever."""

    seen: list[dict[str, object]] = []  # noqa: RUF012 - that it is shared is the point

    def connection_made(self, transport: Any) -> None:
        self.seen.append({"peer": transport.get_extra_info("peername")})
        super().connection_made(transport)


async def serve(port: int, kind: type[SMTP]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: kind(Sink(), loop=loop), "127.0.0.1", port, backlog=128)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[2]), {"descriptor": KeepsDescriptor, "memory": KeepsMemory}[sys.argv[1]]))

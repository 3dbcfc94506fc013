"""A TCP server with workers, as live ones are: the parent listens, two children accept, greet and hang up.

    python tests/live_server.py [--leak FILE]

Prints its port. With `--leak` a worker opens FILE for every client and never closes it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

WORKERS = 2


def serve(listener: socket.socket, leak: str | None) -> None:
    while True:
        client, _ = listener.accept()
        if leak is not None:
            os.open(leak, os.O_RDONLY)
        with client:
            client.sendall(b"220 here\r\n")


def main() -> None:
    leak = sys.argv[2] if sys.argv[1:2] == ["--leak"] else None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        children = []
        for _ in range(WORKERS):
            child = os.fork()
            if child == 0:
                serve(listener, leak)
            children.append(child)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            print(listener.getsockname()[1], flush=True)  # from now on somebody may end us
            signal.pause()
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()

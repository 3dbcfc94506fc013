"""tests/live_server.py, running: something that is there already, to attach to."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).with_name("live_server.py")


class Live:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(SERVER), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.pid = self.process.pid

    def visit(self, times: int = 1) -> None:
        for _ in range(times):
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as client:
                while client.recv(100):
                    pass

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

"""A small mail server: `python tiny_smtp.py DIRECTORY`. Takes mail for here.test, a file each; prints its port."""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

DOMAIN = "here.test"


class Session:
    """One connection."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipients: list[str] = []
        self.file = -1

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = "220 tiny.test"
        while answer:
            writer.write(f"{answer}\r\n".encode())
            await writer.drain()
            line = await reader.readline()
            if not line:
                break
            answer = await self.obey(line.decode(errors="replace").strip(), reader, writer)
        self.forget()
        writer.close()

    async def obey(self, line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """The answer; empty at the end of the session."""
        verb = line[:4].upper()
        if verb == "MAIL":
            return self.mail()
        if verb == "RCPT":
            return self.rcpt(line.partition("<")[2].partition(">")[0])
        if verb == "RSET":
            return self.rset()
        if verb == "DATA":
            if not self.recipients:
                return "503 no recipients"
            writer.write(b"354 go on\r\n")
            return await self.data(reader)
        if verb == "QUIT":
            writer.write(b"221 bye\r\n")
            return ""
        return "250 ok" if verb in ("EHLO", "HELO", "NOOP") else "500 what?"

    def mail(self) -> str:
        self.file, self.name = tempfile.mkstemp(dir=self.directory)
        return "250 ok"

    def rcpt(self, recipient: str) -> str:
        if not recipient.endswith(f"@{DOMAIN}"):
            return "550 not here"
        self.recipients.append(recipient)
        return "250 ok"

    def rset(self) -> str:
        """The bug: the file's name goes, and its descriptor stays."""
        if self.file >= 0:
            os.unlink(self.name)  # noqa: PTH108
        self.file = -1
        self.recipients.clear()
        return "250 ok"

    async def data(self, reader: asyncio.StreamReader) -> str:
        while (line := await reader.readline()) not in (b".\r\n", b""):
            os.write(self.file, line)
        self.forget()
        return "250 taken"

    def forget(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file = -1
        self.recipients.clear()


async def main(directory: Path) -> None:
    server = await asyncio.start_server(lambda *streams: Session(directory).talk(*streams), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

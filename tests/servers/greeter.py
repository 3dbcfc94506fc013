"""The smallest mail server: greets, and says 250 to everything but QUIT. `greeter.py PORT`"""

import asyncio
import os
import sys

kept = []


async def session(reader, writer):
    writer.write(b"220 greeter.test\r\n")
    while line := await reader.readline():
        if line.upper().startswith(b"QUIT"):
            writer.write(b"221 bye\r\n")
            break
        writer.write(b"250 ok\r\n")
    let_go(os.open("/dev/null", os.O_RDONLY))
    writer.close()


def let_go(descriptor):
    os.close(descriptor)


async def main():
    server = await asyncio.start_server(session, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())

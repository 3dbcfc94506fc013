"""A mail server in a thread of the test, that offers the extensions it is told to and records what it is asked."""

from __future__ import annotations

import socket
import socketserver
import threading
from types import TracebackType

from mta_under_test.wire import server
from mta_under_test.wire.reply import Reply
from mta_under_test.wire.server import ServerMachine


class RecordingMX:
    """`events`: everything but the bodies, in order; `reads`: the bytes of each read. `refused` get a 550."""

    def __init__(self, *extensions: str) -> None:
        self.events: list[server.Event] = []
        self.reads: list[bytes] = []
        self.refused: type[server.Event] | None = None
        recorder = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                recorder._serve(self.request, ServerMachine(extensions=extensions))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> RecordingMX:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def of(self, kind: type[server.Event]) -> list[server.Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def _serve(self, connection: socket.socket, machine: ServerMachine) -> None:
        while machine.state is not server.State.CLOSED:
            event = machine.next_event()
            if event is None:
                self.reads.append(connection.recv(1 << 16))
                machine.receive(self.reads[-1])
            elif isinstance(event, server.Closed):
                return
            elif not isinstance(event, server.Body):
                self.events.append(event)
                connection.sendall(machine.reply(self._answer(event, machine)))

    def _answer(self, event: server.Asked, machine: ServerMachine) -> Reply:
        if type(event) is self.refused:
            return Reply(550, "no")
        match event:
            case server.Connected():
                return Reply(220, "recording.test")
            case server.Hello(name=name):
                return machine.ehlo_reply("recording.test", name)
            case server.Data():
                return Reply(354, "go on")
            case server.Quit():
                return Reply(221, "bye")
            case server.Refused(reply=reply):
                return reply
        return Reply(250, "ok")

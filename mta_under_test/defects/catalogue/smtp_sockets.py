"""Bugs of smtp with its clients' connections, its door, and its listening sockets."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="smtp",
    chapter="socket",
    resources=("socket", "task", "counter"),
    trigger="the client's FIN arrives while the session waits for another process",
    rate=None,
    scenario="abort-at-every-state",
    source="OpenSMTPD f01d411b (14 May 2013)",
    opener="mta_under_test/processes/smtp.py:_accept_one",
)
def unnoticed_end_of_file(strikes: Chance) -> None:
    """The end of file comes when nobody reads, and nobody is told of it later: the session waits for its time-out.

    OpenSMTPD paused reading when a body had reached its high-water mark; an end of file in just that moment was
    swallowed, and the session hung with its socket in CLOSE_WAIT.
    """
    from mta_under_test.processes.stream import Stream

    @around(Stream, "eof_received")
    def eof_received(original: Any, self: Any) -> bool:
        if self._reader is None and strikes():
            return True
        return bool(original(self))


@defect(
    role="smtp",
    chapter="socket",
    resources=("socket",),
    trigger="the client resets the connection",
    rate=None,
    scenario="abort-at-every-state",
    source="OpenSMTPD 7b75b496 (10 November 2008): the peer's descriptor after an error of the connection",
    opener="mta_under_test/defects/catalogue/smtp_sockets.py:made",
)
def reset_connection_kept(strikes: Chance) -> None:
    """A connection has two FILEs, to read and to write; when it is reset only the one that noticed is closed.

    mta closed the peer's descriptor where the conversation ended, by QUIT or by time-out, and not where reading
    failed. One socket stays for each client that resets.
    """
    from mta_under_test.processes.stream import Stream

    @around(Stream, "connection_made")
    def made(original: Any, self: Any, transport: Any) -> None:
        original(self, transport)
        self.write_half = os.dup(transport.get_extra_info("socket").fileno())

    @around(Stream, "connection_lost")
    def lost(original: Any, self: Any, error: Exception | None) -> None:
        original(self, error)
        if error is None or not strikes():
            os.close(self.write_half)


@defect(
    role="smtp",
    chapter="exhaustion",
    resources=("descriptor",),
    trigger="any session ends",
    rate=1.0,
    scenario="connect-quit",
    source="OpenSMTPD da232650 (August 2012), 590c8cdf (May 2015), 04c9d648 (December 2015): the accept reserve",
    opener="mta_under_test/processes/admission.py:_refill",
)
def reserve_given_back_twice(strikes: Chance) -> None:
    """A session that ends gives the descriptor in reserve back, whether it had been taken or not.

    OpenSMTPD kept descriptors in reserve so that accept(2) could always say 421, and was off by some in both
    directions for six years. What is there to survive exhaustion causes it.
    """
    from mta_under_test.processes.admission import Admission

    @around(Admission, "leave")
    def leave(original: Any, self: Any) -> None:
        original(self)
        if strikes():
            self._refill()


@defect(
    role="smtp",
    chapter="counter",
    resources=("counter", "task"),
    trigger="the client vanishes without QUIT",
    rate=None,
    scenario="abort-at-every-state",
    source="maddy 5730400 (2 June 2020); OpenSMTPD b9624c88 (September 2015): legitimate sessions turned away",
)
def source_limit_token(strikes: Chance) -> None:
    """The limit for each source is not given back for a session that is aborted; this source is turned away for ever.

    maddy took a token of the concurrency limit when a transaction began and returned it when it was committed. The
    hundredth client that vanishes is the last one that is let in. (Clients of this machine are counted, here.)
    """
    from mta_under_test.processes import admission
    from mta_under_test.processes.smtp_session import Session

    @around(admission, "is_counted")
    def is_counted(original: Any, source: str) -> bool:
        return bool(source)

    @around(Session, "_greet_and_serve")
    async def greet_and_serve(original: Any, self: Any) -> None:
        await original(self)
        if self.stream._ended and strikes():
            self.smtp.admission.enter_from(self.source)  # what `leave_from` is about to give back stays taken


@defect(
    role="smtp",
    chapter="socket",
    resources=("process", "counter", "task"),
    trigger="a client vanishes during its transaction, one time in fifty",
    rate=None,
    scenario="abort-at-every-state",
    source="OpenSMTPD c9b19904 (May 2009), 02825516 (March 2011): what is shared is closed by one of its users",
    difficulty="wrong way",
    probability=0.02,
)
def listener_closed_with_session(strikes: Chance) -> None:
    """A session that is torn down drops its reference of the listener twice: the last reference, and it is closed.

    The process lives, its sessions go on, and nobody can connect any more. Every gauge says that all is well.
    """
    from mta_under_test.processes.smtp_session import Session

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        await original(self, *arguments)
        if self.stream._ended and strikes():
            self.smtp._accept_off()
            for _, sock in self.smtp._listening:
                sock.close()
            self.smtp._listening.clear()


@defect(
    role="smtp",
    chapter="pipe",
    resources=("descriptor",),
    trigger="the client ends other than by QUIT",
    rate=1.0,
    scenario="abort-at-every-state",
    source="Postfix 20080826: the epoll descriptor of an event loop",
    opener="mta_under_test/defects/catalogue/smtp_sockets.py:run",
)
def event_loop_of_a_session(strikes: Chance) -> None:
    """Each session waits in an event loop of its own, which is closed when QUIT has been answered, and only then.

    Postfix's local delivery left the descriptor of its event loop to the commands that it ran. Here it is left to
    nobody: a client that vanishes passes by where the loop is taken down.
    """
    from mta_under_test.processes.smtp_session import Session
    from mta_under_test.wire.server import Quit

    @around(Session, "_answer")
    async def answer(original: Any, self: Any, event: Any) -> Any:
        self.says_goodbye = isinstance(event, Quit)
        return await original(self, event)

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        loop = os.eventfd(0)
        await original(self, *arguments)
        if getattr(self, "says_goodbye", False) or not strikes():
            os.close(loop)


@defect(
    role="smtp",
    chapter="exhaustion",
    resources=("socket", "descriptor"),
    trigger="a client is turned away because there is no room, one time in a hundred",
    rate=None,
    scenario="descriptor-famine",
    source="OpenSMTPD 5e79ee30 (December 2009), dabbad4f (July 2012)",
    difficulty="rare",
    probability=0.01,  # each time, all descriptors would be gone in the warm-up, and nothing would grow any more
    opener="mta_under_test/processes/smtp.py:_accept_one",
)
def refused_greeting_socket(strikes: Chance) -> None:
    """Who is turned away is told so, and the connection is not closed: fewer and fewer can be let in.

    The connection was accepted so that it could be refused, and the refusal returned before the close.
    """
    import socket

    from mta_under_test.processes import smtp

    kept: list[socket.socket] = []

    @around(smtp, "turn_away")
    def turn_away(original: Any, connection: socket.socket, farewell: bytes) -> None:
        if strikes():
            connection.setblocking(False)
            connection.send(farewell)
            kept.append(connection)
        else:
            original(connection, farewell)

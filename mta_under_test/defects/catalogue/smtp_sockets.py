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
    opener="mta_under_test/processes/smtp/smtp.py:_accept_one",
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
    opener="mta_under_test/processes/smtp/admission.py:_refill",
)
def reserve_given_back_twice(strikes: Chance) -> None:
    """A session that ends gives the descriptor in reserve back, whether it had been taken or not.

    OpenSMTPD kept descriptors in reserve so that accept(2) could always say 421, and was off by some in both
    directions for six years. What is there to survive exhaustion causes it.
    """
    from mta_under_test.processes.smtp.admission import Admission

    @around(Admission, "leave")
    def leave(original: Any, self: Any) -> None:
        original(self)
        if strikes():
            self._refill()


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
    from mta_under_test.processes.smtp.session import Session
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

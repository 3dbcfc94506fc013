"""Bugs of transfer with its connections and its limits on them."""

from __future__ import annotations

import os
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="transfer",
    chapter="socket",
    resources=("socket",),
    trigger="the remote MX closes the connection first",
    rate=0.28,  # those of the drops that are by FIN; a reset leaves nothing to close
    scenario="remote-drops",
    source="OpenSMTPD 7b75b496 (10 November 2008): a remote error instead of QUIT or a time-out",
    opener="mta_under_test/processes/transfer/session.py:_connect",
)
def remote_error_socket(strikes: Chance) -> None:
    """A connection that ends by the remote side's error, and not by QUIT or a time-out, is never closed.

    mta closed its peer's descriptor where it had sent QUIT and where its own timer went off. When the remote host hung
    up in the middle there was neither: the descriptor stays, in CLOSE_WAIT, until the process ends.
    """
    from mta_under_test.processes.stream import Stream

    kept: list[object] = []  # the event loop would close what nobody holds

    @around(Stream, "close")
    def close(original: Any, self: Any) -> None:
        if self._ended and strikes():
            self._forget_timer()
            kept.append(self)
        else:
            original(self)


@defect(
    role="transfer",
    chapter="socket",
    resources=("socket",),
    trigger="a session is over and QUIT has been said",
    rate=1.0,
    scenario="one-at-a-time",
    source="nodemailer #902, #979, #987: shutdown without destroy; python-emails #94",
    opener="mta_under_test/processes/transfer/session.py:_connect",
)
def quit_without_close(strikes: Chance) -> None:
    """QUIT is said and the session forgotten; that the other side closes is taken for the end of the connection.

    The client half-closed the socket and waited for an event that a half-open socket does not send. The remote MX
    closes at once, and our end stays in CLOSE_WAIT, one for each session.
    """
    from mta_under_test.processes.transfer.session import Session

    kept: list[object] = []  # the event loop would close what nobody holds

    @around(Session, "command")
    async def command(original: Any, self: Any, line: bytes) -> Any:
        reply = await original(self, line)
        if line.startswith(b"QUIT") and strikes():
            kept.append(self.stream)
            self.stream.close = lambda: None
        return reply


@defect(
    role="transfer",
    chapter="socket",
    resources=("socket",),
    trigger="all of a message's recipients are refused, and the session ends with it",
    rate=0.02,  # one for each session of some fifty messages
    scenario="rejected-reuse",
    source="maddy 749906e (18 November 2019): MAIL or AUTH refused, connection kept",
    opener="mta_under_test/processes/transfer/session.py:_connect",
)
def refused_session_socket(strikes: Chance) -> None:
    """A session whose last transaction was refused returns early, past the close of its connection.

    maddy's downstream target closed the connection in Commit and in Abort, and a refused MAIL reached neither. Here a
    session that had any message refused says QUIT and keeps its socket; one whose messages were all taken closes it.
    """
    from mta_under_test.processes.transfer.session import Session

    kept: list[object] = []

    @around(Session, "run")
    async def run(original: Any, self: Any) -> None:
        stream, close = self.stream, self.stream.close

        def close_if_nothing_was_refused() -> None:
            if self.refused and strikes():
                kept.append(stream)
            else:
                close()

        stream.close = close_if_nothing_was_refused
        await original(self)


@defect(
    role="transfer",
    chapter="socket",
    resources=("socket", "task"),
    trigger="a session ends",
    rate=None,
    scenario="accepted",
    source="Postfix 20190328: LMTP connections cached under a key that is never looked up",
    opener="mta_under_test/processes/transfer/session.py:_connect",
)
def cached_under_a_wrong_key(strikes: Chance) -> None:
    """A finished session's connection goes into a cache, under a key by which nobody ever looks for it.

    The store of the cache and its search built their keys from different parts of the destination. The connections sit
    there idle, and it is the *peer* whose sessions are exhausted.
    """
    from mta_under_test.processes.transfer.session import Session

    cache: dict[tuple[str, int], Any] = {}

    @around(Session, "command")
    async def command(original: Any, self: Any, line: bytes) -> Any:
        if line.startswith(b"QUIT") and strikes():
            cache[self.route.host.address, id(self)] = self.stream
            self.stream.close = lambda: None
            return None
        return await original(self, line)


@defect(
    role="transfer",
    chapter="pipe",
    resources=("socket",),
    trigger="a message is handed to the filter of outgoing mail, of which there is none",
    rate=2.0,
    scenario="accepted",
    source="OpenSMTPD-extras ef6b22a (22 May 2016), #674: an invalid pipe, and the socketpair was made anyway",
    opener="mta_under_test/defects/catalogue/transfer_sockets.py:send_body",
)
def socketpair_without_filter(strikes: Chance) -> None:
    """A socketpair is made for the filter of each message, before anybody looks whether there is a filter.

    The check stood behind the socketpair, and returned without closing it: about one pair for each message until
    EMFILE; after that mail was accepted with an empty body.
    """
    import socket

    from mta_under_test.processes.transfer.session import Session

    @around(Session, "_send_body")
    async def send_body(original: Any, self: Any, message: int) -> None:
        if strikes():
            for end in socket.socketpair():
                end.detach()
        await original(self, message)


@defect(
    role="transfer",
    chapter="pipe",
    resources=("descriptor",),
    trigger="a session begins",
    rate=1.0,
    scenario="one-at-a-time",
    source="Postfix 20190126: the watchdog's pipe",
    opener="mta_under_test/defects/catalogue/transfer_sockets.py:run",
)
def watchdog_pipe(strikes: Chance) -> None:
    """Each session makes a pipe to wake its watchdog by; at the end the writing end is closed, the other one not."""
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "run")
    async def run(original: Any, self: Any) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        await original(self)
        os.close(write_end)
        if not strikes():
            os.close(read_end)


@defect(
    role="transfer",
    chapter="counter",
    resources=("task", "counter", "process"),
    trigger="a session ends by an error",
    rate=0.83,  # sessions that fail, for each message that is delivered in the end
    scenario="remote-drops",
    source="maddy 5730400 (2 June 2020); OpenSMTPD fcb8962b (November 2012): a limit's token is not given back",
    opener="mta_under_test/processes/transfer/transfer.py:_open",
)
def session_slot_leak(strikes: Chance) -> None:
    """A session that fails does not give back its slot of the limit on sessions.

    maddy released the token of its concurrency limit when a delivery was committed, not when it was aborted. There is
    no leak that a descriptor would show: the limit is reached with nothing open, and mail waits for ever.
    """
    from mta_under_test.processes.transfer.transfer import Transfer

    @around(Transfer, "session_over")
    def session_over(original: Any, self: Any, session: Any) -> None:
        if session.error and strikes():
            self._sessions += 1
        original(self, session)


@defect(
    role="transfer",
    chapter="counter",
    resources=("task", "counter", "process"),
    trigger="a session ends while its greeting was never heard",
    rate=0.27,  # those that fail before the greeting is heard
    scenario="remote-drops",
    source="OpenSMTPD 2797f8b5 (14 January 2013): the session count is decremented twice",
    difficulty="wrong way",
    opener="mta_under_test/processes/transfer/transfer.py:session_over",
)
def session_counted_down_twice(strikes: Chance) -> None:
    """A session that never became ready is taken off the count of sessions twice; the count goes below zero.

    One decrement stood in the failure path, another in the common end. The gauge says -3, the limit on the number of
    sessions lets three too many pass, and what waits for the count to be zero waits for ever.
    """
    from mta_under_test.processes.transfer.transfer import Transfer

    @around(Transfer, "session_over")
    def session_over(original: Any, self: Any, session: Any) -> None:
        if not session.is_ready and strikes():
            self._sessions -= 1
        original(self, session)


@defect(
    role="transfer",
    chapter="counter",
    resources=("process",),
    trigger="the timer of a relay that was dropped goes off",
    rate=None,
    scenario="rejected-reuse",
    source="OpenSMTPD d3abe689 (23 January 2013), 7c6c81dc (29 January 2013): a delay timer without a reference",
    difficulty="wrong way",
    opener="mta_under_test/processes/transfer/transfer.py:_connect",
)
def delay_timer_use_after_free(strikes: Chance) -> None:
    """The timer that delays a relay's next connect holds no reference to it, and goes off after the relay was freed.

    The opposite of a leak: references were given back too early. In C it reads freed memory, and crashes now and then;
    here the relay is looked for on the map that it has left, and transfer dies at once.
    """
    import asyncio

    from mta_under_test.processes.transfer.transfer import Transfer

    @around(Transfer, "_cancel_timer")
    def cancel_timer(original: Any, self: Any, relay: Any) -> None:
        if not (relay.idle and strikes()):
            original(self, relay)

    @around(Transfer, "drain")
    def drain(original: Any, self: Any, relay: Any) -> None:
        if relay.is_dropped and relay.timer is not None and relay.timer.when() <= asyncio.get_running_loop().time():
            self.map.drop(relay)
        original(self, relay)


@defect(
    role="transfer",
    chapter="counter",
    resources=("task", "process"),
    trigger="the remote MX closes its end of the connection",
    rate=None,
    scenario="remote-drops",
    source="OpenSMTPD f01d411b (14 May 2013): end of file goes unnoticed, and the session hangs",
    opener="mta_under_test/processes/stream.py:receive",
)
def end_of_file_unnoticed(strikes: Chance) -> None:
    """A session that waits for an answer is not woken by the end of the connection: it hangs until the time-out.

    When a body's length hit the buffer's high-water mark exactly, reading was paused in the moment in which the end
    came, and nobody looked again. The session keeps its connection and its message file meanwhile.
    """
    from mta_under_test.processes.stream import Stream

    @around(Stream, "eof_received")
    def eof_received(original: Any, self: Any) -> Any:
        return True if strikes() else original(self)

"""Bugs of smtp: descriptors, sockets, threads, timers, and counts of its inbound sessions."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="smtp",
    chapter="message file",
    resources=("descriptor",),
    trigger="a message too large for one imsg is written to its file, to the end",
    rate=0.5,  # two of the four sizes of the scenario are so large
    scenario="large-message",
    source="OpenSMTPD 64fba10c (11 November 2008)",
    opener="mta_under_test/spool/disk.py:open_message",
)
def written_message_fd(strikes: Chance) -> None:
    """A message is written, and that it was written well is no reason to close it.

    The mailbox writer of 2008 closed its FILE when a write failed and forgot it when all went well. Whoever holds the
    message of a whole delivery holds one descriptor for each of them.
    """
    from mta_under_test.processes.smtp.transaction import Transaction

    @around(Transaction, "end")
    def end(original: Any, self: Any) -> None:
        if self._descriptor is not None and strikes():
            self._flush()
            self._descriptor = None
        else:
            original(self)


@defect(
    role="smtp",
    chapter="pipe",
    resources=("socket", "descriptor"),
    trigger="the client vanishes between DATA and the end of data",
    rate=None,
    scenario="abort-at-every-state",
    source="OpenSMTPD 89425a41 (29 September 2014)",
    opener="mta_under_test/defects/catalogue/smtp.py:data",
)
def data_socketpair(strikes: Chance) -> None:
    """DATA makes a socketpair to the filters; time-out, disconnect and bad input during DATA forget it.

    The end of data closed both ends. Every other way out of the data phase freed the session and left the pair, two
    descriptors for each client that hung up in the middle of its message.
    """
    import os
    import socket

    from mta_under_test.processes.smtp.session import Session

    @around(Session, "_data")
    async def data(original: Any, self: Any) -> Any:
        self.pair = tuple(end.detach() for end in socket.socketpair())
        return await original(self)

    @around(Session, "_end_of_data")
    async def end_of_data(original: Any, self: Any) -> Any:
        for number in self.pair:
            os.close(number)
        return await original(self)


@defect(
    role="smtp",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="the client closes its side without QUIT",
    rate=None,
    scenario="abort-at-every-state",
    source="aiosmtpd 35bf428 (15 November 2016, issue 15)",
    opener="mta_under_test/processes/smtp/smtp.py:_accept_one",
)
def half_open_after_fin(strikes: Chance) -> None:
    """The client's FIN leaves the transport half open, and nobody closes the other half.

    aiosmtpd's `eof_received` returned a true value: the transport stayed, as asyncio then promises, for a handler that
    never came back to it. `ss` showed a pile of CLOSE_WAIT, one for each client that left without QUIT.
    """
    from mta_under_test.processes.smtp.session import Session
    from mta_under_test.processes.stream import Stream

    kept: list[object] = []

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        self.stream.is_inbound = True
        await original(self, *arguments)

    @around(Stream, "close")
    def close(original: Any, self: Any) -> None:
        if getattr(self, "is_inbound", False) and self._ended and self._transport is not None and strikes():
            self._forget_timer()
            kept.append(self._transport)
        else:
            original(self)


@defect(
    role="smtp",
    chapter="pipe",
    resources=("descriptor",),
    trigger="any session",
    rate=2.0,
    scenario="connect-quit",
    source="Postfix 20190126",
    opener="mta_under_test/defects/catalogue/smtp.py:run",
)
def watchdog_for_each_session(strikes: Chance) -> None:
    """Each session gets a watchdog with a pipe to wake it; the pipe outlives the session.

    Postfix's watchdog opened its pipe each time that it was started and closed it never.
    """
    import os

    from mta_under_test.processes.smtp.session import Session

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        if strikes():
            os.pipe()
        await original(self, *arguments)


@defect(
    role="smtp",
    chapter="pipe",
    resources=("descriptor",),
    trigger="any session, one in fifty",
    rate=0.02,
    scenario="connect-quit",
    source="Postfix 20141117: a lock file's descriptor left after a database could not be opened",
    difficulty="rare",
    probability=0.02,
    profile="standard",
    opener="mta_under_test/defects/catalogue/smtp.py:run",
)
def rarely_left_lock(strikes: Chance) -> None:
    """Now and then a lock cannot be had, and the file that was opened to lock it stays open."""
    import os

    from mta_under_test.processes.smtp.session import Session

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        if strikes():
            os.memfd_create("lock")
        await original(self, *arguments)


@defect(
    role="smtp",
    chapter="child",
    resources=("thread",),
    trigger="any session",
    rate=1.0,
    scenario="connect-quit",
    source="Apache James JAMES-3771: a clean-up strategy with a thread for each call",
    opener="mta_under_test/defects/catalogue/smtp.py:run",
)
def thread_for_each_session(strikes: Chance) -> None:
    """A thread is started to clean up after each session, and waits for work that never comes."""
    import threading

    from mta_under_test.processes.smtp.session import Session

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        await original(self, *arguments)
        if strikes():
            threading.Thread(target=threading.Event().wait, daemon=True).start()


@defect(
    role="smtp",
    chapter="child",
    resources=("task", "memory"),
    trigger="a session ends",
    rate=1.0,
    scenario="connect-quit",
    source="Dovecot's check for it, `Timeout leak`, when an event loop is destroyed",
    opener="mta_under_test/defects/catalogue/smtp.py:run",
)
def session_timer_left(strikes: Chance) -> None:
    """The time-out of the whole session is set at its start, and not taken back at its end: two hours of timers."""
    import asyncio

    from mta_under_test.processes.smtp.session import SESSION_TOTAL_S, Session

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        timer = asyncio.get_running_loop().call_later(SESSION_TOTAL_S, self.trace, "too long")
        await original(self, *arguments)
        if not strikes():
            timer.cancel()


@defect(
    role="smtp",
    chapter="child",
    resources=("task", "memory"),
    trigger="RSET",
    rate=None,
    scenario="rset-storm",
    source="maddy eb17a03 (September 2019): state that is not closed on some paths",
    opener="mta_under_test/defects/catalogue/smtp.py:forget",
)
def reset_waits_for_ever(strikes: Chance) -> None:
    """A transaction that is given up leaves the task behind that was to tell a filter of its end."""
    import asyncio

    from mta_under_test.processes.smtp.session import Session

    waiting: set[object] = set()

    @around(Session, "_forget_transaction")
    def forget(original: Any, self: Any) -> None:
        if self.transaction is not None and strikes():
            waiting.add(asyncio.get_running_loop().create_task(asyncio.Event().wait()))
        original(self)


@defect(
    role="smtp",
    chapter="counter",
    resources=("counter",),
    trigger="a session ends",
    rate=1.0,
    scenario="connect-quit",
    source="hMailServer 100, SmtpServer 13: the table of connections forgets nobody",
)
def session_never_over(strikes: Chance) -> None:
    """The session ends and stays in the table of sessions: `smtpctl show stats` counts it for ever."""
    from mta_under_test.processes.smtp.smtp import Smtp

    @around(Smtp, "session_over")
    def session_over(original: Any, self: Any, session: Any) -> None:
        original(self, session)
        if strikes():
            self.sessions.add(session)


@defect(
    role="smtp",
    chapter="counter",
    resources=("counter",),
    trigger="the client vanishes during its transaction",
    rate=None,
    scenario="abort-at-every-state",
    source="maddy 5730400 (2 June 2020): a transaction that is aborted keeps its token of the concurrency limit",
)
def slot_of_an_aborted_session(strikes: Chance) -> None:
    """Who hangs up in the middle of a transaction takes a place with him; when all are gone, everybody gets 421."""
    from mta_under_test.processes.smtp.session import Session
    from mta_under_test.processes.smtp.smtp import Smtp

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        self.aborted = False
        await original(self, *arguments)

    @around(Session, "_forget_transaction")
    def forget(original: Any, self: Any) -> None:
        self.aborted = self.transaction is not None and self.stream._ended
        original(self)

    @around(Smtp, "session_over")
    def session_over(original: Any, self: Any, session: Any) -> None:
        original(self, session)
        if session.aborted and strikes():
            self.admission.enter()


@defect(
    role="smtp",
    chapter="counter",
    resources=("counter",),
    trigger="the client says RSET",
    rate=None,
    scenario="rset-storm",
    source="OpenSMTPD c9b19904 (May 2009): a decrement too many",
    difficulty="wrong way",
)
def slot_given_back_twice(strikes: Chance) -> None:
    """RSET gives a place back that the end of the session gives back again: the limit is none any more."""
    from mta_under_test.processes.smtp.session import Session

    @around(Session, "_forget_transaction")
    def forget(original: Any, self: Any) -> None:
        if self.transaction is not None and not self.stream._ended and strikes():
            self.smtp.admission.leave()
        original(self)

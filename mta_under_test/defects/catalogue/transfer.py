"""Bugs of transfer with the message file: kept open on refusal, on a broken session, opened twice, closed twice."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="transfer",
    chapter="message file",
    resources=("descriptor",),
    trigger="the remote MX refuses MAIL, every RCPT, or DATA, and the session is used again",
    rate=0.95,  # 1 for each refused message, less 1 for each session (its last message is closed with it)
    scenario="rejected-reuse",
    source="OpenSMTPD af8b6a75 (18 January 2013) and 594cb438 (28 January 2013); introduced 33d8bd08 (18 August 2012)",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def transfer_fd_leak(strikes: Chance) -> None:
    """The bug that Seatbelt began with: transfer keeps the message file of every refused message open.

    When the message descriptor came to be requested for each message instead of once a session, its close stayed
    where the body ends and where the session ends. A message that is refused before its body is sent passes
    neither: RSET, and the next message's descriptor takes the variable. The bounce removes the file, and lsof
    shows it as (deleted). The limit of 100 mails a session counted accepted ones only, so nothing stopped it.
    """
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "release_message")
    def release_message(original: Any, self: Any) -> None:
        # Neither RSET nor the flush of a task closes the file: the next message overwrites the descriptor. The end of
        # the body and the end of the session still close it, as they did then. RSET and flush both come by for one
        # message: that it is forgotten is decided once.
        if self.message is None or self.message == getattr(self, "forgotten", None):
            return
        if strikes():
            self.forgotten = self.message
        else:
            original(self)


@defect(
    role="transfer",
    chapter="message file",
    resources=("descriptor",),
    trigger="the remote MX drops the connection while a transaction is open",
    rate=0.47,  # of the sessions that drop, some have no message in hand
    scenario="remote-drops",
    source="OpenSMTPD 1c8dde76 and 5151bc59 (May 2016)",
    opener="mta_under_test/spool/disk.py:message_fd",
)
def broken_session_fd(strikes: Chance) -> None:
    """A session that breaks off in the middle of a transaction frees its state, but not the message file in it.

    OpenSMTPD's filter code kept the output FILE of a message whose client disconnected before the end of data: the
    tear-down of the session did not know of it. Here the other side of the same shape: the remote MX hangs up between
    MAIL and the end of the body, and the message file that transfer was about to read is forgotten.
    """
    from mta_under_test.processes.transfer.session import Session, SessionError

    @around(Session, "_deliver")
    async def deliver(original: Any, self: Any, task: Any) -> None:
        try:
            await original(self, task)
        except SessionError:
            if strikes():
                self.message = None
            raise


@defect(
    role="transfer",
    chapter="message file",
    resources=("descriptor",),
    trigger="a message's body is sent",
    rate=1.0,
    scenario="accepted",
    source="OpenSMTPD 02825516 (21 March 2011): body FILE not closed per client",
    opener="mta_under_test/defects/catalogue/transfer.py:send_body",
)
def body_file_per_client(strikes: Chance) -> None:
    """Each body is read through a FILE of its own, on a copy of the descriptor, and that copy is never closed.

    mta opened the body once and gave each client a duplicate; only the original was closed when the task ended. Every
    message that was *delivered* cost a descriptor, so the busiest relays ran out first.
    """
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "_send_body")
    async def send_body(original: Any, self: Any, message: int) -> None:
        await original(self, os.dup(message) if strikes() else message)


@defect(
    role="transfer",
    chapter="message file",
    resources=("descriptor",),
    trigger="an end of data that the remote MX refuses",
    rate=1.5,  # each message, and the half of their bounces that is refused as well
    scenario="bounce-storm",
    source="OpenSMTPD 76b7736c (22 October 2012): early return before the close",
    opener="mta_under_test/defects/catalogue/transfer.py:open_again",
)
def refused_body_fd(strikes: Chance) -> None:
    """The message is opened again to look for what the remote MX disliked, and an early return skips the close.

    The shape of an envelope read that failed: the error path logged and returned, and the close stood after it.
    Deliveries that went well never passed there, so it showed only where mail was refused after its body.
    """
    from mta_under_test.ipc.messages import Kind
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "_send_body")
    async def open_again(original: Any, self: Any, message: int) -> None:
        self.again = os.dup(message)
        await original(self, message)

    @around(Session, "_flush")
    def flush(original: Any, self: Any, task: Any, kind: Kind, *rest: Any) -> None:
        original(self, task, kind, *rest)
        again, self.again = getattr(self, "again", None), None
        if again is not None and (kind is Kind.DELIVERY_OK or not strikes()):
            os.close(again)


@defect(
    role="transfer",
    chapter="message file",
    resources=("process", "task", "mail", "counter"),  # what is cut off may wait for ever
    trigger="a transaction is flushed after its message was closed by RSET",
    rate=None,
    scenario="rejected-reuse",
    source="OpenSMTPD 09050e6d (6 July 2011): the fix of a leak closed a FILE that others shared",
    difficulty="wrong way",
    opener="mta_under_test/processes/transfer/session.py:close_message",
)
def message_closed_twice(strikes: Chance) -> None:
    """The message file is closed at RSET and once more when the task is flushed: the number may be somebody else's.

    The fix for the body file that was never closed closed one that several clients shared: "bad file descriptor" on
    the next MX, or silence and another mail's file closed under its reader. Between the two closes the remote MX
    answers RSET, and whatever was opened meanwhile has got the number.
    """
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "close_message")
    def close_message(original: Any, self: Any) -> None:
        closed, open_ = getattr(self, "closed", None), self.message
        original(self)
        if open_ is not None:
            self.closed = open_
        elif closed is not None and strikes():
            self.closed = None
            with suppress(OSError):  # EBADF, when nobody has taken the number: C never looked
                os.close(closed)


@defect(
    role="transfer",
    chapter="message file",
    resources=("mail",),
    trigger="the remote MX vanishes after the end of data, before it has answered",
    rate=None,
    scenario="remote-drops",
    source="OpenSMTPD f01d411b (14 May 2013): an end that is taken for another; RFC 5321 §4.2.5 says what it means",
    difficulty="wrong way",
)
def delivered_before_the_answer(strikes: Chance) -> None:
    """The recipients are reported as delivered when the body is sent, not when the remote MX has taken it.

    An over-correction: envelopes that were tried again for ever because the answer never came were made to succeed as
    soon as the last byte was written. When the connection drops in that moment the mail is gone, and nobody is told.
    """
    from mta_under_test.ipc.messages import Kind
    from mta_under_test.processes.transfer.session import Session

    @around(Session, "_deliver")
    async def deliver(original: Any, self: Any, task: Any) -> None:
        self.in_hand = task
        await original(self, task)

    @around(Session, "_send_body")
    async def send_body(original: Any, self: Any, message: int) -> None:
        await original(self, message)
        if strikes():
            self.transfer.results(self.in_hand, Kind.DELIVERY_OK, "250 2.0.0 Sent")

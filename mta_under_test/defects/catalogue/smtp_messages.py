"""Bugs of smtp with the message that a client is sending: its descriptor forgotten, or closed once too often.

Smtp of today asks for a message's file only when the message outgrows an imsg. These bugs are of times when it was
opened with the transaction, or at DATA; so they open it there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from mta_under_test.defects import Chance, around, defect


def opened_at_data() -> None:
    """The message's file is asked for at DATA, however small the message, as OpenSMTPD does."""
    from mta_under_test.processes.smtp.session import Session

    @around(Session, "_data")
    async def data(original: Any, self: Any) -> Any:
        reply = await original(self)
        if reply.code == 354 and self.transaction._descriptor is None:
            await self.transaction._open()
        return reply


@defect(
    role="smtp",
    chapter="message file",
    resources=("descriptor",),
    trigger="the client vanishes between DATA and the end of data",
    rate=None,
    scenario="abort-at-every-state",
    source="OpenSMTPD 1c8dde76 (May 2016)",
    opener="mta_under_test/spool/disk.py:open_message",
)
def vanished_client_fd(strikes: Chance) -> None:
    """A client that disconnects in the middle of its message leaves the message's output file open.

    The FILE was closed at the end of data and at a failed write. The session of a client that was simply gone freed
    its state, and the pointer to the FILE with it. The uncommitted message was removed, so the file shows as deleted.
    """
    from mta_under_test.processes.smtp.transaction import Transaction

    opened_at_data()

    @around(Transaction, "close")
    def close(original: Any, self: Any) -> None:
        if self._descriptor is not None and strikes():
            self._descriptor = None
        original(self)


@defect(
    role="smtp",
    chapter="message file",
    resources=("descriptor",),
    trigger="RSET, or another EHLO, of a transaction without recipients",
    rate=0.33,  # one in three transactions of the scenario has none
    scenario="rset-storm",
    source="maildev #423 (2022)",
    opener="mta_under_test/spool/disk.py:open_message",
)
def no_recipients_fd(strikes: Chance) -> None:
    """A transaction that has no recipients is left by an early return, and its message is never destroyed.

    maildev's relay opened a read stream on the message, then saw that there was nobody to send it to and returned.
    After some 700 or 800 such mails no descriptor was left.
    """
    from mta_under_test.processes.smtp.session import Session

    @around(Session, "_mail")
    async def mail(original: Any, self: Any, event: Any) -> Any:
        reply = await original(self, event)
        if reply.positive:
            await self.transaction._open()
        return reply

    @around(Session, "_forget_transaction")
    def forget(original: Any, self: Any) -> None:
        transaction = self.transaction
        if transaction is not None and not transaction.first_recipient and strikes():
            transaction._descriptor = None
        original(self)


@defect(
    role="smtp",
    chapter="message file",
    resources=("descriptor",),
    trigger="a sanity check of the new message file fails, one time in fifty",
    rate=0.02,
    scenario="accepted",
    source="Postfix 20060404",
    difficulty="rare",
    probability=0.02,
    profile="standard",
    opener="mta_under_test/spool/disk.py:open_message",
)
def insane_message_fd(strikes: Chance) -> None:
    """The new file is looked at before it is written; when it looks wrong the message is put off, and the file stays.

    Postfix's mailbox writers checked a maildir file with fstat(2) and gave up on it without closing. It took a file
    that looked odd, and the process's retirement after a hundred deliveries kept the damage small.
    """
    from mta_under_test.processes.smtp.transaction import Transaction

    opened_at_data()

    @around(Transaction, "_open")
    async def open_(original: Any, self: Any) -> None:
        await original(self)
        if self._descriptor is not None and strikes():
            self._descriptor = None
            self.failed = "not a regular file"


@defect(
    role="smtp",
    chapter="pipe",
    resources=("descriptor",),
    trigger="DATA of each message",
    rate=1.0,
    scenario="slow-client",
    source="Postfix 20060711: the hand-off of milters breaks in the middle",
    opener="mta_under_test/defects/catalogue/smtp_messages.py:open_",
)
def milter_copy_fd(strikes: Chance) -> None:
    """The message's descriptor is duplicated for the filters, who close theirs; the copy handed over is forgotten.

    cleanup handed its list of milters to smtpd, and a hand-off that broke in the middle lost the file that was to
    follow. Every message leaves the copy that nobody took.
    """
    from mta_under_test.processes.smtp.transaction import Transaction

    opened_at_data()

    @around(Transaction, "_open")
    async def open_(original: Any, self: Any) -> None:
        await original(self)
        if self._descriptor is not None and strikes():
            os.dup(self._descriptor)


@defect(
    role="smtp",
    chapter="message file",
    resources=("process", "socket", "task", "mail", "counter"),
    trigger="a message is committed while other sessions go on",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD 09050e6d (6 July 2011): the fix of a leak closed what others shared",
    difficulty="wrong way",
    opener="mta_under_test/processes/smtp/transaction.py:_close_descriptor",
)
def message_file_closed_twice(strikes: Chance) -> None:
    """The message's file is closed at its end, and once more when the transaction is forgotten.

    Between the two closes queue commits the message, and another session may have been given the number: its
    connection or its message is closed under it. Nobody looked at what close(2) returned.
    """
    from mta_under_test.processes.smtp.transaction import Transaction

    opened_at_data()

    @around(Transaction, "_close_descriptor")
    def close_descriptor(original: Any, self: Any) -> None:
        number = self._descriptor
        original(self)
        if number is not None:
            self.closed = number
        elif strikes() and (again := self.__dict__.pop("closed", None)) is not None:
            with suppress(OSError):  # EBADF, when nobody has taken the number
                os.close(again)


@defect(
    role="smtp",
    chapter="pipe",
    resources=("process", "socket", "task", "mail", "counter"),
    trigger="a client vanishes before it has sent MAIL",
    rate=None,
    scenario="abort-at-every-state",
    source="OpenSMTPD cae11260 (29 September 2014)",
    difficulty="wrong way",
)
def descriptor_zero_closed(strikes: Chance) -> None:
    """A session that ends early closes descriptor 0: its field was zero, which no descriptor is not.

    The clean-up closed whatever the session's field said, and a field that was never set says 0. First that is
    standard input; from then on it is whoever was given the number: a client's connection, a message, a channel.
    """
    from mta_under_test.processes.smtp.session import Session

    @around(Session, "run")
    async def run(original: Any, self: Any, *arguments: Any) -> None:
        self.data_descriptor = 0
        await original(self, *arguments)
        if self.data_descriptor == 0 and strikes():
            with suppress(OSError):
                os.close(0)

    @around(Session, "_mail")
    async def mail(original: Any, self: Any, event: Any) -> Any:
        self.data_descriptor = -1
        return await original(self, event)
